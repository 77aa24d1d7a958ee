"""The report's failures: how many wrong pictures each part of the chain is to blame for.

In: causes by prompt, as `failures` finds them. Out: HTML and a markdown table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from thinkdiff.tasks.failures import CAUSES, Cause
from thinkdiff.tasks.report_markup import Child, Html, grid, join, percent, plural, table, tag

if TYPE_CHECKING:
    from thinkdiff.storage.score_tables import AskedPrompt

BLAMED: Mapping[Cause, str] = {"vlm": "VLM", "aligner": "aligner", "decoder": "diffusion model", "judge": "judge"}
EVIDENCE: Mapping[Cause, str] = {
    "vlm": "its answer does not name both the object and the attribute",
    "aligner": "the answer does, but the caption that a T5 decoder finds likeliest to the aligned rows does not, or "
    "the same words are drawn rightly when they come as text",
    "decoder": "the picture of the true caption is wrong, too, or neither words nor aligned rows are drawn rightly",
    "judge": "the second judge finds the picture right",
}
Counts = dict[int, Counter[Cause]]


def by_shots(causes: Mapping[str, Cause], prompts: Mapping[str, AskedPrompt]) -> Counts:
    """How many failures of each cause, by the number of shots."""
    found: Counts = {}
    for name, cause in causes.items():
        found.setdefault(prompts[name].shots, Counter())[cause] += 1
    return dict(sorted(found.items()))


def failures(counted: Counts, second: bool, read_back: bool) -> Html | None:
    """The shares for each number of shots, and what they are told by."""
    if not counted:
        return None
    meanings = [tag("li", tag("b", BLAMED[c]), f": {EVIDENCE[c]}") for c in CAUSES if c != "judge" or second]
    rows: list[list[Child]] = [
        [f"{shots} shots", *(share(causes, cause) for cause in CAUSES), plural(sum(causes.values()), "picture")]
        for shots, causes in counted.items()
    ]
    read = "the caption that a T5 decoder finds likeliest to the aligned rows, " if read_back else ""
    said = (
        "Every wrong picture of the aligned route is put down to one part of the chain, by comparing the VLM's text, "
        f"{read}and the pictures drawn from words. The first that fails is named:"
    )
    head = ["", *(BLAMED[cause] for cause in CAUSES), "wrong"]
    without = None if second else tag("p", "No second judge was asked, so no failure is put down to the judge.")
    return join([tag("h3", "Where it fails"), tag("p", said), tag("ul", *meanings), table(head, rows), without])


def share(causes: Counter[Cause], cause: Cause) -> Html:
    total = sum(causes.values())
    return join([f"{percent(causes[cause] / total)}%", tag("small", f"n = {causes[cause]}")])


def markdown(counted: Counts) -> str:
    """The same as a markdown table, "" when nothing is known."""
    if not counted:
        return ""
    head = ["wrong pictures, percent", *(BLAMED[cause] for cause in CAUSES), "n"]
    rows: Sequence[Sequence[str]] = [
        [f"{shots} shots", *(percent(c[cause] / sum(c.values())) for cause in CAUSES), str(sum(c.values()))]
        for shots, c in counted.items()
    ]
    return "## Where it fails\n\n" + grid(head, rows)
