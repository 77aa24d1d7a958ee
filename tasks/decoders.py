"""Which decoder opens a diffusion model: a folder in, by the class that its `model_index.json` names; or a spec.

What the decoders share is in `diffusion`; each family is a file of its own. Nothing is drawn here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.cogvideox import CogVideoXDecoder
from thinkdiff.tasks.deepfloyd import DeepFloydDecoder
from thinkdiff.tasks.diffusion import Decoder, Offload, Precision, read_index
from thinkdiff.tasks.flux import FluxDecoder
from thinkdiff.tasks.models import model_path, require_files
from thinkdiff.tasks.pixart import PixArtDecoder
from thinkdiff.tasks.sd3 import StableDiffusion3Decoder

if TYPE_CHECKING:
    from thinkdiff.schemas.artifact import Execution
    from thinkdiff.schemas.media import MediaSpec

FAMILIES: tuple[type[Decoder], ...] = (
    FluxDecoder, StableDiffusion3Decoder, PixArtDecoder, DeepFloydDecoder, CogVideoXDecoder,
)  # fmt: skip


def open_decoder(
    path: str,
    transformer_path: str | None = None,
    device: str = "cpu",
    precision: Precision = "bfloat16",
    offload: Offload = "none",
    compiled: bool = False,
) -> Decoder:
    """The decoder of a folder, by the class that its `model_index.json` names.

    Raises ModelError when the folder is no whole model or its class is none of the families'.
    """
    return family(path)(path, transformer_path, device, precision, offload, compiled)


def decoder_of(spec: MediaSpec, run: Execution, device: str) -> Decoder:
    """The decoder that a spec names. Raises as `open_decoder` and `model_path` do."""
    transformer = model_path(spec.transformer, run) if spec.transformer else None
    path = model_path(spec.decoder, run)
    return open_decoder(path, transformer, device, spec.precision, run.offload, run.compile_decoder)


def family(path: str) -> type[Decoder]:
    """The decoder that opens a folder; nothing is loaded. Raises ModelError when its class is none of the families'."""
    require_files(path, ("model_index.json",))
    found = str(read_index(path).get("_class_name"))
    known = {name: family for family in FAMILIES for name in family.pipelines}
    if found not in known:
        raise ModelError(
            f"model {path}: found the pipeline {found!r:.60}, expected one of {', '.join(known)}. Those are what can "
            "be given a T5's prompt embeddings here; name such a model."
        )
    return known[found]
