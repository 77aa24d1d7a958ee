"""A judge that is an image classifier with labels `<group>/<word>`, such as the miniature's.

The group `object` names the thing, every other group is an attribute family of the benchmark; the most likely
word is taken within a group. A group may hold words that no prompt asks for (`color/none`), which are simply
wrong.

Shapes: N pictures, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.judge import Seen, Subject, Wanted, picture
from thinkdiff.tasks.models import SAFE, complete, loading, require_files

THING = "object"


class ClassifyingJudge:
    """Raises ModelError when the folder is not a whole classifier with such labels."""

    def __init__(self, path: str, device: str = "cpu") -> None:
        require_files(path, ("config.json", "preprocessor_config.json"))
        with loading(path):
            import torch
            from transformers import AutoImageProcessor, AutoModelForImageClassification

            loaded = AutoModelForImageClassification.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, **SAFE
            )
            self.model: Any = complete(path, loaded).to(device).eval().requires_grad_(False)
            self.processor: Any = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
        self.device = device
        self.groups = label_groups(path, self.model.config.id2label)

    def see(self, subjects: Sequence[Subject], wanted: Sequence[Wanted]) -> list[Seen]:
        """What each PNG picture shows. Raises ModelError for a family that the judge has no labels for."""
        if unknown := {want.family for want in wanted} - set(self.groups):
            raise ModelError(
                f"judge: found labels for {', '.join(self.groups)}, expected also "
                f"{', '.join(sorted(unknown))}. It was made for another benchmark; name one that knows these "
                "families."
            )
        logits_NC = self._logits(subjects)
        pairs = zip(logits_NC, wanted, strict=True)
        return [Seen(self._best(logits_C, want.family), self._best(logits_C, THING)) for logits_C, want in pairs]

    def _best(self, logits_C: npt.NDArray[np.float32], group: str) -> str:
        words, places = self.groups[group]
        return words[int(logits_C[places].argmax())]  # softmax within a group keeps the order

    def _logits(self, subjects: Sequence[Subject]) -> npt.NDArray[np.float32]:
        import torch

        inputs = self.processor(images=[picture(data) for data in subjects], return_tensors="pt")
        with torch.inference_mode():
            output = self.model(pixel_values=inputs["pixel_values"].to(self.device))
        return output.logits.float().cpu().numpy()


def label_groups(path: str, id2label: dict[int, str]) -> dict[str, tuple[list[str], list[int]]]:
    """Group -> (words, their places among the labels). Raises ModelError for labels of another form."""
    groups: dict[str, tuple[list[str], list[int]]] = {}
    for place, label in sorted(id2label.items()):
        group, slash, word = label.partition("/")
        if not (group and slash and word):
            raise ModelError(
                f"judge {path}: found the label {label!r}, expected <group>/<word> such as object/car. It is "
                "a classifier of another kind; name a judge."
            )
        words, places = groups.setdefault(group, ([], []))
        words.append(word)
        places.append(place)
    if THING not in groups or len(groups) < 2:
        raise ModelError(
            f"judge {path}: found the label groups {', '.join(groups) or 'none'}, expected {THING} and at "
            "least one attribute family. It cannot judge both; name a judge."
        )
    return groups
