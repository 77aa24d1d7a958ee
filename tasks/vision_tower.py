"""The vision tower of ThinkDiff-CLIP: pictures in, the tokens of an EVA-CLIP ViT out (authors' code, ThinkDiff-CLIP).

In: the folder of a BLIP-2, or of an open_clip EVA (`eva_giant_patch14_clip_224`), as safetensors; only the tower is
read. Out: the last states after the final norm, the class token first, the patches pooled 2x2: 1 + 16x16 become 65.
BLIP-2's tower lacks EVA's last block and has a final norm of its own; an EVA brings the one that it was trained with.

Shapes: B pictures, L tokens, D width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL.Image import Resampling

from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.models import json_object, loading, require_files

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from thinkdiff.tasks.qwen_chat import Generation, Request

MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)  # of CLIP
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)
PREFIXES = ("vision_model.", "visual.trunk.", "visual.", "")
HEAD_WIDTH = 88  # of EVA's giant, whose files do not tell
NAMES = {  # of timm and open_clip, as patterns, and what Hugging Face's BLIP-2 calls the same
    r"cls_token": "embeddings.class_embedding",
    r"pos_embed": "embeddings.position_embedding",
    r"patch_embed\.proj\.(\w+)": r"embeddings.patch_embedding.\1",
    r"blocks\.(\d+)\.norm([12])\.(\w+)": r"encoder.layers.\1.layer_norm\2.\3",
    r"blocks\.(\d+)\.attn\.qkv\.weight": r"encoder.layers.\1.self_attn.qkv.weight",
    r"blocks\.(\d+)\.attn\.proj\.(\w+)": r"encoder.layers.\1.self_attn.projection.\2",
    r"blocks\.(\d+)\.mlp\.(fc[12])\.(\w+)": r"encoder.layers.\1.mlp.\2.\3",
    r"norm\.(\w+)": r"post_layernorm.\1",
}
BATCH = 32


class VisionTower:
    """`tokens` is L. Raises ModelError when the folder holds no whole tower."""

    def __init__(self, path: str, device: str, precision: Literal["bfloat16", "float32"] = "float32") -> None:
        import torch

        self.device, self.dtype = device, torch.bfloat16 if precision == "bfloat16" else torch.float32
        with loading(path):
            from transformers import Blip2VisionConfig, Blip2VisionModel

            tensors = tower_tensors(path)
            about = tower_config(path, tensors)
            with torch.device("meta"):
                model: Any = Blip2VisionModel(Blip2VisionConfig(**about))
            model.load_state_dict({name: value.to(self.dtype) for name, value in tensors.items()}, assign=True)
        self.model = model.to(device).eval().requires_grad_(False)
        self.side: int = model.config.image_size
        self.tokens = 1 + (self.side // model.config.patch_size // 2) ** 2

    def __call__(self, pictures: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        """(B, L, D) of RGB pictures of any size."""
        import torch

        pixels = torch.from_numpy(np.stack([self.pixels(picture) for picture in pictures]))
        with torch.inference_mode():
            states = self.model(pixel_values=pixels.to(self.device, self.dtype)).last_hidden_state
            return pooled(states.float()).cpu().numpy()

    def pixels(self, picture: Image.Image) -> npt.NDArray[np.float32]:
        """(3, side, side): resized without regard to its shape, bicubic, and normalised as CLIP's."""
        resized = picture.resize((self.side, self.side), Resampling.BICUBIC)
        scaled = (np.asarray(resized, np.float32) / 255 - MEAN) / STD
        return scaled.transpose(2, 0, 1).astype(np.float32, copy=False)


class TowerEngine:
    """The tower where an engine is expected: a request is one picture, its answer no token and L input features."""

    def __init__(self, path: str, device: str, precision: Literal["bfloat16", "float32"]) -> None:
        self.path, self.device = path, device
        self.precision: Literal["bfloat16", "float32"] = precision
        self._tower: VisionTower | None = None

    def __enter__(self) -> Self:
        self._tower = VisionTower(self.path, self.device, self.precision)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the model."""
        self._tower = None

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answers a batch. Raises InputError for a picture that cannot be decoded."""
        from thinkdiff.tasks.qwen_chat import Generation, images_of

        assert self._tower is not None
        found: list[Generation] = []
        for first in range(0, len(requests), BATCH):
            some = requests[first : first + BATCH]
            pictures = [picture for request in some for picture in images_of(request)]
            for request, states_LD in zip(some, self._tower(pictures), strict=True):
                none = np.zeros((0, states_LD.shape[1]), states_LD.dtype)
                found.append(Generation(request.key, [], "", none, [], states_LD, None))
        return found

    def stream(self, batches: Iterable[Sequence[Request]]) -> Iterator[list[Generation]]:
        """The answers to batches, one after the other."""
        return map(self.generate, batches)

    def statistics(self) -> dict[str, float]:
        """This engine counts nothing."""
        return {}


def pooled(states_BLD: torch.Tensor) -> torch.Tensor:
    """The class token and the mean of each 2x2 patches: what bilinear interpolation by a half gives."""
    import torch
    import torch.nn.functional as F

    patches = states_BLD[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    grid_BDHW = patches.transpose(1, 2).unflatten(2, (side, side))
    return torch.cat([states_BLD[:, :1], F.avg_pool2d(grid_BDHW, 2).flatten(2).transpose(1, 2)], 1)


def tower_width(path: str) -> int:
    """D, from the file's heads alone."""
    return tower_shapes(path)["embeddings.class_embedding"][-1]


def tower_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tower's tensors, no data read. Raises ModelError when the folder has none."""
    return {name: tuple(file.get_slice(key).get_shape()) for file, key, name in found_tensors(path, "np")}


def tower_tensors(path: str) -> dict[str, torch.Tensor]:
    """The tower's tensors under Hugging Face's names; the biases of queries and values become one of three parts."""
    import torch

    tensors: dict[str, torch.Tensor] = {name: file.get_tensor(key) for file, key, name in found_tensors(path)}
    for name in [name for name in tensors if name.endswith(".q_bias")]:
        q_bias, v_bias = tensors.pop(name), tensors.pop(name.replace("q_bias", "v_bias"))
        joined = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        tensors[name.replace("q_bias", "qkv.bias")] = joined
    return tensors


def found_tensors(path: str, framework: Literal["pt", "np"] = "pt") -> Iterator[tuple[Any, str, str]]:
    """Each tensor of the tower: its open file, its name there, and Hugging Face's."""
    from safetensors import safe_open

    require_files(path, ("*.safetensors",))
    files = [safe_open(str(file), framework) for file in sorted(Path(path).glob("*.safetensors"))]
    for prefix in PREFIXES:
        keys = [(file, key) for file in files for key in file.keys() if key.startswith(prefix)]
        named = [(file, key, hugging_face_name(key.removeprefix(prefix))) for file, key in keys]
        found = [(file, key, name) for file, key, name in named if name is not None]
        if any(name == "embeddings.class_embedding" for _, _, name in found):
            yield from found
            return
    raise ModelError(
        f"model {path}: found no tensors of a vision tower, expected those of a BLIP-2 or of an open_clip EVA as "
        "safetensors. Name one as vlm."
    )


def hugging_face_name(name: str) -> str | None:
    """Hugging Face's name of a tensor, None for one that is not the tower's."""
    if re.fullmatch(r"(embeddings|encoder|post_layernorm)\..+", name):
        return name
    if match := re.fullmatch(r"blocks\.(\d+)\.attn\.([qv]_bias)", name):
        return f"encoder.layers.{match[1]}.self_attn.{match[2]}"
    return next((match.expand(new) for old, new in NAMES.items() if (match := re.fullmatch(old, name))), None)


def tower_config(path: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The tower's configuration: that of `config.json` where it is a BLIP-2's, else by the shapes of its tensors."""
    config = Path(path) / "config.json"
    told = json_object(config) if config.is_file() else {}
    if "vision_config" in told:
        return told["vision_config"]
    if told.get("model_type") == "blip_2_vision_model":
        return told
    width = tensors["embeddings.class_embedding"].shape[-1]
    patch = tensors["embeddings.patch_embedding.weight"].shape[-1]
    grid = round((tensors["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    heads = told.get("num_attention_heads") or max(width // HEAD_WIDTH, 1)
    return {
        "hidden_size": width, "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": sum(name.endswith("mlp.fc1.weight") for name in tensors), "num_attention_heads": heads,
        "patch_size": patch, "image_size": grid * patch, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    }  # fmt: skip
