"""What a CoBSAT prompt says: one function for each prompt type of the benchmark, in ThinkDiff's frame.

In: a CobsatPrompts spec, one of its prompts, for `caption` the captions of the pictures. Out: the user's turn, texts
that are to be joined as they stand and pictures between them. Reads no file and asks no model.

ThinkDiff's frame (Appendix B of the paper and its authors' multi-image script) is the instruction, then for each
example `Word i: <word>, ` and its picture, then the query. The benchmark's types change words or what is beside them:

    type        words            beside each        also
    default     <x>              its picture
    caption     <x>              its caption        a sentence that says so
    instruct    <x>              its picture        a sentence that gives the task away
    misleading  <x> <decoy>      its picture
    exact       <x> <theta>      its picture
    cot         <x>              its picture        a first question that asks for an analysis, which the second quotes

The words of `misleading` and `exact` are the benchmark's text inputs without their colon. Which decoy stands where is
the benchmark's draw too: the latent words of the prompt's own shuffle in order (`cobsat.choices`), so it follows from
`seed`. The sentences of `caption`, `instruct` and `cot` are ours. The benchmark's chain of thought is two turns of one
chat; here the second question is a turn of its own that quotes the analysis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from thinkdiff.schemas.cobsat import CobsatPrompts, PromptType
from thinkdiff.tasks.cobsat import Content, ImageRef, Prompt, framed, interleaved

Captions = Mapping[ImageRef, str]

CAPTIONS_SAY = "Each picture is given by its caption."
ANALYSE = (
    "I give you several words and pictures. Think step by step: say how each word and its picture belong together, "
    "what all pictures have in common, and what the next picture must therefore show."
)
ANALYSIS_SAYS = "This is an analysis of them: "


def content(spec: CobsatPrompts, prompt: Prompt, captions: Captions) -> Content:
    """The user's turn by the spec's prompt type; of `cot` the first one, which asks for an analysis."""
    return TYPES[spec.prompt_type](spec, prompt, captions)


def default(spec: CobsatPrompts, prompt: Prompt, captions: Captions | None = None) -> Content:
    """ThinkDiff's prompt as it is."""
    return interleaved(spec, prompt)


def caption(spec: CobsatPrompts, prompt: Prompt, captions: Captions) -> Content:
    """Captions stand in place of the pictures. Raises KeyError for a picture without one."""
    seen = framed(f"{spec.instruction}\n\n{CAPTIONS_SAY}", prompt, prompt.words)
    return [part if isinstance(part, str) else captions[part] for part in seen]


def instruct(spec: CobsatPrompts, prompt: Prompt, captions: Captions | None = None) -> Content:
    """A sentence of ours says what the pictures share and what the words name."""
    family = next(family for family in spec.families if family.name == prompt.family)
    if prompt.version == "I":
        task = (
            f"All pictures show the same {family.thing}, and each word names the {family.name} in its picture. The "
            f"next picture shows that {family.thing} with the {family.name} that the last word names."
        )
    else:
        task = (
            f"All pictures have the same {family.name}, and each word names the {family.thing} in its picture. The "
            f"next picture shows the {family.thing} that the last word names with that {family.name}."
        )
    return framed(f"{spec.instruction}\n\n{task}", prompt, prompt.words)


def misleading(spec: CobsatPrompts, prompt: Prompt, captions: Captions | None = None) -> Content:
    """Beside each word stands one of the latent kind, drawn with the prompt."""
    return framed(spec.instruction, prompt, text_inputs(spec, prompt))


def exact(spec: CobsatPrompts, prompt: Prompt, captions: Captions | None = None) -> Content:
    """Beside each word stands the latent word itself."""
    return framed(spec.instruction, prompt, text_inputs(spec, prompt))


def cot(spec: CobsatPrompts, prompt: Prompt, captions: Captions | None = None) -> Content:
    """Chain of thought, the first of two questions: what the words and pictures have in common."""
    return framed(ANALYSE, prompt, prompt.words)


def cot_answer(spec: CobsatPrompts, prompt: Prompt, analysis: str) -> Content:
    """Chain of thought, the second question: the first one's answer, then the prompt once more."""
    return framed(f"{spec.instruction}\n\n{ANALYSIS_SAYS}{analysis}", prompt, prompt.words)


def text_inputs(spec: CobsatPrompts, prompt: Prompt, colon: str = "") -> list[str]:
    """The words of a prompt; with the colon `: ` the benchmark's `text_inputs`."""
    beside = {"misleading": prompt.decoys, "exact": (prompt.latent,) * len(prompt.words)}.get(spec.prompt_type)
    words = prompt.words if beside is None else [f"{x} {y}" for x, y in zip(prompt.words, beside, strict=True)]
    return [f"{word}{colon}" for word in words]


TYPES: dict[PromptType, Callable[[CobsatPrompts, Prompt, Captions], Content]] = {
    "default": default,
    "caption": caption,
    "instruct": instruct,
    "misleading": misleading,
    "exact": exact,
    "cot": cot,
}
