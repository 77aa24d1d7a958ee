"""The evaluation of a task as the benchmark's code keeps it: a CSV with a line for each sample and one that counts.

In: samples with what a judge saw. Out: text. As in the benchmark, a sample without a picture is a line of zeros, and
counts. `response` is the word that the judge saw, `answer` its number among the options, from 1, or -1. What the judge
was asked, and CLIP's similarities, are not recorded. Opens no file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thinkdiff.schemas.cobsat import CobsatPrompts
from thinkdiff.tasks.cobsat import Prompt, same_word

if TYPE_CHECKING:
    from thinkdiff.storage.score_tables import Verdict

    Row = tuple[str, Prompt, Verdict | None]
    """A sample's picture as a path, its prompt, and what the judge saw, None where there is no picture."""

CHECKS = ("check_detail", "check_obj", "correct", "check_textual", "check_visual")
COLUMNS = (
    "file_path", "prompt_detail", "prompt_obj", "ground_truth_detail", "ground_truth_obj", "response_detail",
    "response_obj", "true_label_detail", "true_label_obj", "answer_detail", "answer_obj", *CHECKS,
)  # fmt: skip


def summary(spec: CobsatPrompts, rows: Sequence[Row]) -> str:
    """The CSV of one task: a line for each sample, and SUMMARY with the counts."""
    families = {family.name: family for family in spec.families}
    sink = io.StringIO(newline="")
    out: csv.DictWriter[str] = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    out.writeheader()
    sums: dict[str, int] = dict.fromkeys(CHECKS, 0)
    for path, prompt, verdict in rows:
        checks: dict[str, int] = dict.fromkeys(CHECKS, 0)
        line: dict[str, object] = {"file_path": path}
        if verdict is not None:
            family, seen = families[prompt.family], {"detail": verdict.value, "obj": verdict.thing}
            options = {"detail": family.values, "obj": family.things}
            truth = {"detail": prompt.target_value, "obj": prompt.target_thing}
            right = {"detail": verdict.right_value, "obj": verdict.right_thing}
            textual, visual = ("detail", "obj") if prompt.version == "I" else ("obj", "detail")
            for kind in ("detail", "obj"):
                line |= {f"ground_truth_{kind}": truth[kind], f"response_{kind}": seen[kind]}
                line |= {f"true_label_{kind}": option(truth[kind], options[kind])}
                line |= {f"answer_{kind}": option(seen[kind], options[kind])}
            checks = {"check_detail": right["detail"], "check_obj": right["obj"], "correct": verdict.right}
            checks |= {"check_textual": right[textual], "check_visual": right[visual]}
        sums = {name: sums[name] + int(value) for name, value in checks.items()}
        out.writerow({**line, **checks})
    out.writerow({"file_path": "SUMMARY", "prompt_detail": f"Valid Count: {len(rows)}", **sums})
    return sink.getvalue()


def option(word: str, words: Sequence[str]) -> int:
    """A word's number among the options, from 1; -1 for none of them."""
    return next((number for number, known in enumerate(words, start=1) if same_word(word, known)), -1)
