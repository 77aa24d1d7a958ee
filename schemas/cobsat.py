"""The CoBSAT benchmark as a request: which words, which pictures, how many prompts.

Source of the rules: CoBSAT (Zeng et al. 2024), `load_datasets/gen_prompts.py` and `configs.py` of its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from thinkdiff.schemas.artifact import Frozen

# ThinkDiff, Appendix B.
PAPER_INSTRUCTION = (
    "I give you several words and pictures. First, please analyse what the next picture is. Then give me a "
    "detailed diffusion prompt to describe the next picture. Please only provide me the detailed prompt and "
    "start the answer with 'Create an image'."
)

PromptType = Literal["default", "caption", "instruct", "misleading", "exact", "cot"]
Split = Literal["default", "ft_test", "ft_train"]

# Words become file names, so they hold no separators.
Word = Annotated[str, Field(min_length=1, pattern=r"^[^/\\\x00-\x1f]+$")]


class Family(Frozen):
    """One attribute family, which makes two tasks: I (infer the object) and II (infer the attribute)."""

    name: Word = Field(description="attribute kind, e.g. color")
    thing: Word = Field(default="object", description="what carries the attribute: object or animal")
    values: tuple[Word, ...] = Field(min_length=3, description="attribute words in benchmark order")
    things: tuple[Word, ...] = Field(min_length=3, description="object words in benchmark order")
    caption: str | tuple[str, ...] = Field(
        default="{value} {thing}",
        description="true caption of a (value, thing) pair: one template, or one for each value",
    )

    @model_validator(mode="after")
    def _words_fit(self) -> Self:
        for words in (self.values, self.things):
            if len(set(words)) != len(words):
                raise ValueError(f"the words {', '.join(words)} must differ from one another")
        if not isinstance(self.caption, str) and len(self.caption) != len(self.values):
            raise ValueError(f"{len(self.caption)} captions must be one, or one for each of {len(self.values)} values")
        for template in (self.caption,) if isinstance(self.caption, str) else self.caption:
            try:
                template.format(value="", thing="")
            except (LookupError, ValueError, AttributeError):
                raise ValueError(f"the caption {template!r} must hold no other fields than value and thing") from None
        return self


class CobsatPrompts(Frozen):
    """A draw of in-context prompts: `per_task` for each of the ten tasks and each number of shots.

    Splits of the benchmark: default, the 1,000 drawn prompts of a task; ft_test, for models that were tuned, 250 drawn
    from the latter half of each list (its words 5 to 9); ft_train, all permutations of the former half (300 for two
    shots and 600 for four). What a prompt type asks is in tasks/cobsat_prompts.py.
    """

    later: ClassVar[Mapping[str, Any]] = {"split": "default", "prompt_type": "default", "images_digest": None}
    kind: Literal["cobsat"] = "cobsat"
    families: tuple[Family, ...] = Field(min_length=1)
    images: str = Field(
        description="folder or .zip of e.g. color_car/white_car.jpg; a relative one is below the data root"
    )
    images_digest: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="expected digest of the pictures, or of the captions for prompt type caption, as `thinkdiff "
        "verify-cobsat` prints it; others are refused",
    )
    instruction: str = PAPER_INSTRUCTION
    prompt_type: PromptType = "default"
    split: Split = "default"
    shots: tuple[int, ...] = Field(default=(2, 4), min_length=1, description="the benchmark has 2, 4, 6 and 8")
    per_task: int = Field(
        default=1000, ge=1, description="prompts per task and number of shots, at most: ft_test has 250, ft_train all"
    )
    seed: int = Field(default=123, ge=0, description="of the benchmark's own shuffles")
    held_out: tuple[tuple[str, str, str], ...] = Field(
        default=(), description="(family, value, thing) that no model has been trained on; reported apart"
    )

    @model_validator(mode="after")
    def _draws_fit(self) -> Self:
        names = [family.name for family in self.families]
        if len(set(names)) != len(names) or len(set(self.shots)) != len(self.shots) or min(self.shots) < 1:
            raise ValueError("families must differ by name, and shots must be distinct positive numbers")
        shortest = min(len(words) for family in self.families for words in (family.values, family.things))
        usable = {"default": shortest, "ft_test": shortest - shortest // 2, "ft_train": shortest // 2}[self.split]
        if usable <= max(self.shots):
            where = "" if self.split == "default" else f", of which {self.split} has a half"
            raise ValueError(f"{max(self.shots)} shots and a query need lists of more than {usable} words{where}")
        if self.split == "ft_train" and self.prompt_type == "misleading":
            raise ValueError("ft_train draws no words that could mislead; take the split default or ft_test")
        return self
