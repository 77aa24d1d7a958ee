"""What is publicly known of models and data, so that a plan can be made where none of them is: a table with sources.

Nothing here is looked up, and what is not in the tables is "not known". A width or size that a model's own files tell
goes before these; of a model on the hub the hub's word on the licence does.
"""

from __future__ import annotations

from typing import NamedTuple

NOT_KNOWN = "not known"


class Known(NamedTuple):
    """licence and source: what a model may be used for, and where that is said; gated: whether the hub asks to accept
    conditions first; parameters: how many, where its card says so; width: that of its states, or of what it reads."""

    licence: str
    source: str
    gated: bool = False
    parameters: float | None = None
    width: int | None = None


HUB = "https://huggingface.co/"
CLIP = "https://github.com/openai/CLIP/blob/main/LICENSE"
GOOGLE = "any purpose, acknowledgement of Google LLC appreciated"
MINI = ("qwen2-vl", "eva-clip", "t5", "flux", "flux-less-robust", "judge")
MODELS: dict[str, Known] = {
    "Qwen/Qwen2-VL-7B-Instruct": Known("Apache 2.0", f"{HUB}Qwen/Qwen2-VL-7B-Instruct", False, 8.29e9, 3584),
    "Qwen/Qwen2-VL-2B-Instruct": Known("Apache 2.0", f"{HUB}Qwen/Qwen2-VL-2B-Instruct", False, 2.21e9),
    "google/flan-t5-xxl": Known("Apache 2.0", f"{HUB}google/flan-t5-xxl", False, 11e9, 4096),
    "google/t5-v1_1-xxl": Known("Apache 2.0", f"{HUB}google/t5-v1_1-xxl", False, 11e9, 4096),
    "black-forest-labs/FLUX.1-dev": Known(
        "FLUX.1 [dev] Non-Commercial License", f"{HUB}black-forest-labs/FLUX.1-dev", True, 12e9, 4096
    ),
    "llava-hf/llava-1.5-13b-hf": Known(
        "Llama 2 Community License", f"{HUB}llava-hf/llava-1.5-13b-hf", False, 13.4e9
    ),
    "openai/clip-vit-base-patch32": Known("MIT", CLIP),
    "openai/clip-vit-large-patch14": Known("MIT", CLIP),
    "facebook/dino-vits16": Known("Apache 2.0", "https://github.com/facebookresearch/dino/blob/main/LICENSE"),
    "THUDM/CogVideoX-5b": Known("a licence of its own", f"{HUB}THUDM/CogVideoX-5b/blob/main/LICENSE", width=4096),
    "Salesforce/blip2-flan-t5-xxl": Known("MIT", f"{HUB}Salesforce/blip2-flan-t5-xxl", width=1408),
    **{f"mini-{name}": Known("Apache 2.0", "the project's own") for name in MINI},
}  # fmt: skip
DATA: dict[str, tuple[str, str]] = {
    "cc3m": (GOOGLE, "https://github.com/google-research-datasets/conceptual-captions/blob/master/LICENSE"),
    "cc12m": (GOOGLE, f"{HUB}datasets/google-research-datasets/conceptual_12m"),
}


def licence_of(model: str, told: str | None = None) -> str:
    """The licence of a model, with its source; `told` is what the hub says, if it was asked."""
    if told is not None:
        return f"{told} ({HUB}{model})"
    known = MODELS.get(model)
    return f"{known.licence} ({known.source})" if known else NOT_KNOWN


def licence_of_data(name: str) -> str:
    """The licence of a collection's captions, by its name, with its source."""
    return "{} ({})".format(*DATA[name]) if name in DATA else NOT_KNOWN
