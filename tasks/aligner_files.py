"""An aligner as others keep it: in the authors' checkpoint layout, and as a folder of the Hugging Face hub.

In: a `.pth` of the authors' release (`thinkdiff_lvlm.pth`, `thinkdiff_clip.pth`) or of that layout, a hub folder or hub
name, an artifact of train_aligner. Out: the same weights in another form, float32, their names, shapes and values
checked. A `.pth` is a pickle: it is read with `weights_only=True`, which runs nothing of it, and written only because
that layout is one. A hub folder is safetensors, JSON and a model card. Nothing is trained or applied here.

Shapes: Q width of the VLM, H width of the middle, D width of the T5.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as safetensors_bytes

from thinkdiff.schemas.aligner import AlignerCheckpoint
from thinkdiff.schemas.artifact import Execution, Model
from thinkdiff.schemas.errors import InputError, ModelError, SpecError, StoreError, ThinkDiffError
from thinkdiff.schemas.features import FeatureSet
from thinkdiff.storage.checkpoints import load_aligner
from thinkdiff.storage.records import artifact_folder, read_record
from thinkdiff.storage.root import Folder, locate
from thinkdiff.tasks.aligner import EPS, Aligner, AlignerConfig
from thinkdiff.tasks.models import DIGEST, model_path

Tensors = dict[str, torch.Tensor]
Layout = Literal["authors", "hub"]
PREFIX, NORM = "mm_projector.", "mm_projector.3.weight"
DIMENSIONS = {
    "mm_projector.0.weight": 2,
    "mm_projector.0.bias": 1,
    "mm_projector.2.weight": 2,
    "mm_projector.2.bias": 1,
    NORM: 1,
}
NORMS, KINDS = ("t5", "default", "none"), ("lvlm", "clip")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EVA_WIDTH = 1408  # of ThinkDiff-CLIP's tower; no Qwen-VL is that wide
LARGEST = 8 << 30  # bytes of a .pth; one of the authors' layout holds 0.4 GB with its optimizer
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
CITATION = """@article{mi2025thinkdiff,
  title={I Think, Therefore I Diffuse: Enabling Multimodal In-Context Reasoning in Diffusion Models},
  author={Mi, Zhenxing and Wang, Kuan-Chieh and Qian, Guocheng and Ye, Hanrong and Liu, Runtao and Tulyakov, Sergey
          and Aberman, Kfir and Xu, Dan},
  journal={arXiv preprint arXiv:2502.10458},
  year={2025}
}"""


@dataclass(frozen=True)
class Card:
    """What a model card says beside the shapes. `facts` become a table; nothing is said of what is not known."""

    origin: str = ""
    vlm: Model | None = None
    t5: Model | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    license: str = "other"


def read_authors_checkpoint(path: str | Path) -> tuple[Tensors, AlignerConfig]:
    """The weights of a `.pth` of the authors' layout, float32, and the configuration that follows from their shapes.

    It may be `{"model": weights, ...}` or the weights alone, under names with or without `module.` before them. What
    else it holds (the optimizer, buffers of the frozen models) is left aside. Raises InputError in one sentence.
    """
    held = plain_values(path)
    inner = held.get("model") if isinstance(held, dict) else None
    state = inner if isinstance(inner, dict) else held
    if not isinstance(state, dict):
        raise refused(path, f"found a {type(state).__name__}, expected weights by name")
    names = {key: key.removeprefix("module.") for key in state if isinstance(key, str)}
    found = {name: state[key] for key, name in names.items() if name.startswith(PREFIX)}
    if len(found) < sum(name.startswith(PREFIX) for name in names.values()):
        raise refused(path, "found a name twice, with and without module., expected one of both")
    return checked(found, None, lambda phrase: refused(path, phrase))


def plain_values(path: str | Path) -> Any:
    """The tensors and plain values of a file of `torch.save`; nothing in it is run. Raises InputError."""
    folder, name = locate(".", str(path))
    if not folder.exists(name):
        raise InputError(f"{path}: found no file, expected a checkpoint (.pth). Look at the path.")
    if (size := folder.size(name)) > LARGEST:
        raise refused(path, f"found {size / 1e9:.1f} GB, expected at most {LARGEST / 1e9:.1f}")
    data = io.BytesIO(folder.read(name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol; what matters is refused below
            return torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn pickle raises what it likes; torch's own advice to run it is not passed on
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise refused(
                path,
                f"found a pickle that asks for {asked[1]!r:.80}, expected tensors and plain values, so nothing was run",
            ) from None
        raise refused(
            path, f"found no readable checkpoint ({type(error).__name__}), expected one of torch.save"
        ) from None


def refused(path: str | Path, phrase: str) -> InputError:
    """The sentence for a file that is not of the authors' layout."""
    return InputError(
        f"{path}: {phrase}. It is damaged, or no ThinkDiff aligner; fetch it again from its makers, or name another."
    )


def checked(
    found: Mapping[str, Any], config: AlignerConfig | None, refuse: Callable[[str], ThinkDiffError]
) -> tuple[Tensors, AlignerConfig]:
    """Float32 copies of an aligner's weights, and its configuration, by default the one that their shapes tell: one
    from the width of EVA's giant is ThinkDiff-CLIP's.

    Raises what `refuse` makes of the phrase that says what is wrong with them.
    """
    if wrong := strange(found, list(shapes_of(config) if config else DIMENSIONS)):
        raise refuse(wrong)
    if config is None:
        (hidden, width), out = found["mm_projector.0.weight"].shape, found["mm_projector.2.weight"].shape[0]
        config = AlignerConfig(width, hidden, out, "t5", "clip" if width == EVA_WIDTH else "lvlm")
    # Copies share no storage: a file of torch.save holds the whole storage of what it is given.
    tensors = {
        name: found[name].detach().to("cpu", torch.float32, copy=True).contiguous() for name in shapes_of(config)
    }
    if wrong := misfit(tensors, config):
        raise refuse(wrong)
    return tensors, config


def strange(found: Mapping[str, Any], expected: list[str]) -> str:
    """A phrase for weights with other names than expected, or for one that is no plain matrix or vector of floats."""
    if missing := [name for name in expected if name not in found]:
        return f"found no {missing[0]}, expected {', '.join(expected)}"
    if surplus := sorted(set(found) - set(expected)):
        return f"found {surplus[0]!r:.80}, expected {', '.join(expected)} and no other of {PREFIX}*"
    for name in expected:
        value = found[name]
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
            return f"found {name} to be no array of numbers, expected a tensor"
        if value.dtype not in FLOATS:
            return f"found {name} of {value.dtype}, expected floats"
        # A small file can name a tensor of any size that repeats a few stored values.
        if value.ndim != DIMENSIONS[name] or not 0 < value.nbytes <= value.untyped_storage().nbytes():
            return f"found {name} of shape {tuple(value.shape)}, expected {DIMENSIONS[name]} dimensions with values"
    return ""


def misfit(tensors: Tensors, config: AlignerConfig) -> str:
    """A phrase for weights whose shapes are not those of the configuration, or that are not finite."""
    for name, shape in shapes_of(config).items():
        if tuple(tensors[name].shape) != shape:
            return (
                f"found {name} of shape {tuple(tensors[name].shape)}, expected {shape} for an aligner from "
                f"{config.in_features} over {config.hidden} to {config.out_features}"
            )
    for name, value in tensors.items():
        if bad := int((~value.isfinite()).sum()):
            return f"found {bad} of {value.numel()} values of {name} NaN or infinite, expected finite ones"
    return ""


def shapes_of(config: AlignerConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of an aligner's weights, in the authors' order."""
    width, hidden, out = config.in_features, config.hidden, config.out_features
    shapes = zip(DIMENSIONS, [(hidden, width), (hidden,), (out, hidden), (out,), (out,)], strict=True)
    return {name: shape for name, shape in shapes if name != NORM or config.norm != "none"}


def write_authors_checkpoint(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes `{"model": weights}` as the authors' code loads it, float32, at once.

    Raises SpecError for weights that the layout has no place for, as of an aligner without a norm.
    """
    held, _ = checked(
        tensors, None, lambda phrase: SpecError(f"{path}: {phrase}. The authors' layout has no other; take the hub's.")
    )
    data = io.BytesIO()
    torch.save({"model": held}, data)
    folder, name = locate(".", str(path))
    folder.write(name, data.getbuffer())


def save_pretrained(
    folder: str | Path, tensors: Mapping[str, torch.Tensor], config: AlignerConfig, card: Card | None = None
) -> None:
    """Writes `model.safetensors` (float32), `config.json` and the model card `README.md` into a folder or bucket.

    Raises SpecError for weights that are not those of the configuration.
    """
    held, _ = checked(
        tensors, config, lambda phrase: SpecError(f"{folder}: {phrase}. Pass weights and configuration of one aligner.")
    )
    about = {"library_name": "thinkdiff", "model_type": "thinkdiff_aligner", **config.as_dict()}
    target = Folder.at(str(folder))
    target.write(WEIGHTS, safetensors_bytes(held, {"format": "pt"}))
    target.write(CONFIG, json.dumps(about, indent=2).encode())
    target.write(CARD, card_text(config, card or Card()).encode())


def from_pretrained(name: str | Path, revision: str | None = None, run: Execution | None = None) -> Aligner:
    """The aligner of a hub folder, of a bucket's, or of a name on the hub, ready to be applied on the CPU.

    Only `model.safetensors` and `config.json` are fetched and read. Raises ModelError in one sentence.
    """
    if "://" not in str(name):
        name = model_path(Model(name=str(name), revision=revision), run or Execution(), (WEIGHTS, CONFIG))
    folder = Folder.at(str(name))
    if lacking := [needed for needed in (WEIGHTS, CONFIG) if not folder.exists(needed)]:
        raise ModelError(
            f"{name}: found no {lacking[0]}, expected {WEIGHTS} and {CONFIG}. Weights are read from safetensors only; "
            "`thinkdiff import-aligner` makes such a folder of a .pth."
        )
    config = read_config(folder)
    try:
        found = load_safetensors(folder.read(WEIGHTS))
    except Exception as error:  # the library has no one error for a torn file
        raise unloadable(folder, f"found no readable safetensors ({error!s:.80}), expected them") from error
    tensors, _ = checked(found, config, lambda phrase: unloadable(folder, phrase))
    with torch.device("meta"):
        aligner = Aligner(config)
    aligner.load_state_dict(tensors, assign=True)
    return aligner.eval()


def read_config(folder: Folder) -> AlignerConfig:
    """The configuration of a hub folder; keys of others are left aside. Raises ModelError."""
    try:
        held = json.loads(folder.read(CONFIG))
        sizes = [held[key] for key in ("in_features", "hidden", "out_features")]
        norm, kind = held["norm"], held.get("kind", "lvlm")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        sizes, norm, kind = [], None, None
    if norm not in NORMS or kind not in KINDS or any(type(size) is not int or size < 1 for size in sizes):
        raise unloadable(
            folder, f"found no such values in {CONFIG}, expected in_features, hidden, out_features, norm and kind"
        )
    return AlignerConfig(*sizes, norm=norm, kind=kind)


def unloadable(folder: Folder, phrase: str) -> ModelError:
    """The sentence for a hub folder that holds no aligner."""
    return ModelError(f"{folder.uri}: {phrase}. The aligner is not whole; fetch or export it again.")


def artifact_tensors(artifact: AlignerCheckpoint) -> tuple[Tensors, AlignerConfig]:
    """The weights of a trained aligner, verified, float32. Raises StoreError when they are lost or altered."""
    arrays, values = load_aligner(artifact)
    found = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    return checked(
        found,
        AlignerConfig(**values),
        lambda phrase: StoreError(f"{artifact.uri}: {phrase}. Train it again with --refresh train_aligner."),
    )


def export_aligner(artifact: AlignerCheckpoint, target: str, layout: Layout, license: str = "other") -> None:
    """Writes a trained aligner as a `.pth` of the authors' layout, or as a hub folder. Raises SpecError."""
    if layout == "hub" and target.endswith((".pth", ".pt")):
        raise SpecError(f"{target}: found a file's name, expected a folder's. A .pth is of --format authors.")
    tensors, config = artifact_tensors(artifact)
    if layout == "authors":
        write_authors_checkpoint(target, tensors)
    else:
        save_pretrained(target, tensors, config, card_of(artifact, license))


def import_aligner(source: str, target: str, license: str = "other") -> AlignerConfig:
    """Makes a hub folder of a `.pth` of the authors' layout. Raises InputError for another file."""
    tensors, config = read_authors_checkpoint(source)
    folder, name = locate(".", source)
    origin = f"Converted from `{name}` (sha256 `{folder.hash(name).sha256}`); the weights are its makers'."
    save_pretrained(target, tensors, config, Card(origin=origin, license=license))
    return config


def card_of(artifact: AlignerCheckpoint, license: str = "other") -> Card:
    """What the record of a training tells, and that of its features where it is still in the same root."""
    parent, t5 = artifact.parents.get("features"), artifact.spec.get("t5")
    root = artifact.uri.rsplit("/", 2)[0]
    features = parent and read_record(artifact_folder(root, parent.stage, parent.fingerprint), FeatureSet)
    facts = {
        **artifact.counts, **artifact.stats, "fingerprint": artifact.fingerprint, "digest": artifact.digest,
        "digest of the features": parent.digest if parent else None, "made": artifact.provenance.created,
        "packages": ", ".join(f"{name} {version}" for name, version in artifact.provenance.packages.items()),
    }  # fmt: skip
    return Card(
        origin="Trained by the stage `train_aligner` of thinkdiff; losses are nats per token.",
        vlm=Model.model_validate(features.spec["vlm"]) if features and "vlm" in features.spec else None,
        t5=Model.model_validate(t5) if t5 else None,
        facts={name.replace("_", " "): value for name, value in facts.items() if value not in (None, "")},
        spec=artifact.spec,
        license=license,
    )


def card_text(config: AlignerConfig, card: Card) -> str:
    """The model card: the hub's front matter, then Markdown."""
    from huggingface_hub import ModelCardData

    models = [model for model in (card.vlm, card.t5) if model]
    bases = [model.name for model in models if on_the_hub(model)]
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if bases else {}
    front = ModelCardData(
        license=card.license, library_name="thinkdiff", pipeline_tag="image-text-to-image",
        tags=["thinkdiff", "aligner", "arxiv:2502.10458"], base_model=bases or None,
        **relation,
    )  # fmt: skip
    vlm, t5 = (f"`{model.name}`" if model else "not recorded" for model in (card.vlm, card.t5))
    layers = "Linear, GELU, Linear" + (f", RMSNorm (eps {EPS:g})" if config.norm != "none" else "")
    parameters = sum(torch.Size(shape).numel() for shape in shapes_of(config).values())
    facts = {
        "vision-language model": vlm, "T5": t5, "token features": f"(..., {config.in_features})",
        "prompt embeddings": f"(..., {config.out_features})", "layers": f"{layers}; {config.hidden} wide in the middle",
        "weights": f"{parameters:,} parameters, float32", **card.facts,
    }  # fmt: skip
    spec = f"## Settings\n\n```json\n{json.dumps(dict(card.spec), indent=1)}\n```\n" if card.spec else ""
    return "\n".join(
        (
            f"---\n{front.to_yaml()}\n---\n\n# A ThinkDiff aligner\n",
            "It maps the token features of a vision-language model to prompt embeddings that the decoder of a T5 can",
            "read, and with it a diffusion model that is conditioned on that T5, as in "
            "[I Think, Therefore I Diffuse](https://arxiv.org/abs/2502.10458).\n",
            *([f"{card.origin}\n"] if card.origin else []),
            "| | |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "\n## Use\n\n```python\nfrom thinkdiff.tasks.aligner_files import from_pretrained\n",
            'aligner = from_pretrained("this folder, or its name on the hub")',
            "prompt_embeddings_BLD = aligner(token_features_BLQ)\n```\n",
            f"{spec}## Citation\n\n```bibtex\n{CITATION}\n```\n",
        )
    )


def on_the_hub(model: Model) -> bool:
    """Whether a model's name may stand for one on the hub, and not for a folder."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(model.name)
    except HFValidationError:
        return False
    return "/" in model.name and not (model.revision or "").startswith(DIGEST)
