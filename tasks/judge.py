"""The judge: pictures in, what each of them shows out. A stock image classifier with labels `<group>/<word>`.

The group `object` names the thing, every other group is an attribute family of the benchmark; the most likely
word is taken within a group. A group may hold words that no prompt asks for (`color/none`), which are simply
wrong.

Shapes: N pictures, H and W pixels, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from thinkdiff.schemas.errors import ModelError
from thinkdiff.tasks.models import complete, loading, require_files

THING = "object"


class Judge:
    """Raises ModelError when the folder is not a whole classifier with such labels."""

    def __init__(self, path: str, device: str = "cpu") -> None:
        require_files(path, ("config.json", "preprocessor_config.json"))
        with loading(path):
            import torch
            from transformers import AutoImageProcessor, AutoModelForImageClassification

            loaded = AutoModelForImageClassification.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True
            )
            self.model: Any = complete(path, loaded).to(device).eval().requires_grad_(False)
            self.processor: Any = AutoImageProcessor.from_pretrained(path)
        self.device = device
        self.groups = label_groups(path, self.model.config.id2label)

    def verdicts(
        self, images_NHW3: npt.NDArray[np.uint8], families: Sequence[str], batch: int = 256
    ) -> list[tuple[str, str]]:
        """(thing, value) of each picture, the value in the family of the same position.

        Raises ModelError for a family that the judge has no labels for.
        """
        if unknown := set(families) - set(self.groups):
            raise ModelError(
                f"judge: found labels for {', '.join(self.groups)}, expected also "
                f"{', '.join(sorted(unknown))}. It was made for another benchmark; name one that knows these "
                "families."
            )
        found: list[tuple[str, str]] = []
        for start in range(0, len(families), batch):
            logits_NC = self._logits(images_NHW3[start : start + batch])
            for logits_C, family in zip(logits_NC, families[start : start + batch], strict=True):
                found.append((self._best(logits_C, THING), self._best(logits_C, family)))
        return found

    def _best(self, logits_C: npt.NDArray[np.float32], group: str) -> str:
        words, places = self.groups[group]
        return words[int(logits_C[places].argmax())]  # softmax within a group keeps the order

    def _logits(self, images_NHW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        import torch

        inputs = self.processor(images=list(images_NHW3), return_tensors="pt", input_data_format="channels_last")
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
