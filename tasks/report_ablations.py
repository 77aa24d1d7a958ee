"""The report's ablations: conditions over aligner seeds, their differences, and the paper's figures beside them.

In: `Condition` values. Out: HTML, and rows for a markdown table. Says what came out, also
where the paper says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thinkdiff.tasks.report_losses import Trained, losses
from thinkdiff.tasks.report_markup import BREAK, Child, Html, grid, join, percent, plural, points, table, tag
from thinkdiff.tasks.report_numbers import (
    BASE,
    PAPER_ABLATIONS,
    Condition,
    Difference,
    Mean,
    all_shots,
    differences,
    mean_interval,
    reading,
)
from thinkdiff.tasks.report_plots import Dots, dots, key

COMMAND = "thinkdiff run ablations"
MEANS = {
    "aligned": "the recipe as it is: masked training, generated tokens, T5's norm as a start",
    "no masking": "the aligner sees the whole caption that it must repeat",
    "element masking": "tokens anywhere are shown, and the text of the others is asked for",
    "4 tokens": "only the first four tokens of an answer are trained on",
    "8 tokens": "only the first eight",
    "no norm": "no RMSNorm at the aligner's end",
    "default norm": "the RMSNorm starts from ones instead of T5's weights",
    "input tokens": "hidden states of the question instead of the answer",
    "random aligner": "an aligner that was never trained",
    "text bridge": "the VLM's words instead of its hidden states, all else alike",
    "text prompt": "the VLM's words as a user would hand them to the diffusion model",
    "true caption": "the right answer's words: the best that this diffusion model can do",
}


def ablations(found: Sequence[Condition], chance: float, trained: Sequence[Trained] = ()) -> Html:
    """The section; one line with the command when there is nothing to show."""
    if not found:
        missing = tag("p", "No ablations have been scored under this root. ", tag("code", COMMAND), " adds them here.")
        return join([missing, losses(trained)])
    seeds = sorted({len(condition.by_seed) for condition in found})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    said = (
        f"Each condition is {count} aligners that differ in their seed only: in their start and in the order of their "
        "data, and so does the noise of their pictures. The VLM, the T5, the diffusion models and the judge are one "
        f"training each, and the questions are the same throughout, {questions(found)}. Intervals are over seeds."
    )
    gains = differences(found)
    charts = [chart(found, shots, chance) for shots in all_shots(found)]
    meanings = [tag("li", tag("b", name), f": {MEANS[name]}") for name in changes(found) if name in MEANS]
    return join(
        [
            tag("p", said),
            masking(gains),
            tag("ul", *meanings) if meanings else None,
            tag("div", *charts, class_="two"),
            key(
                ("dot", "one seed"),
                ("mean", "mean"),
                ("range", "95% interval of the mean"),
                ("paper", "the paper, 2 shots"),
                ("chance", f"blind guess, {percent(chance)}%"),
            ),
            compared(gains),
            *(per_task(found, shots) for shots in all_shots(found)),
            losses(trained),
        ]
    )


def questions(found: Sequence[Condition]) -> str:
    """How many questions there are for each number of shots."""
    counts = {n: max(condition.questions.get(n, 0) for condition in found) for n in all_shots(found)}
    return " and ".join(f"{count:,} at {plural(shots, 'shot')}" for shots, count in counts.items())


def changes(found: Sequence[Condition]) -> list[str]:
    """The changes in the order of the conditions, each once."""
    return list(dict.fromkeys(condition.change for condition in found))


def chart(found: Sequence[Condition], shots: int, chance: float) -> Html:
    """All conditions for one number of shots."""
    rows = []
    for condition in found:
        values = condition.values(shots)
        if values:
            paper = PAPER_ABLATIONS.get(condition.change) if shots == 2 and not condition.decoder else None
            main = condition.change == BASE
            rows.append(Dots(condition.name, tuple(values), mean_interval(values), main, paper))
    return dots(f"{shots} shots", rows, chance)


def compared(found: Sequence[Difference]) -> Html | None:
    """What each change costs, in pairs of one seed, with what may be said about it."""
    if not found:
        return None
    shots = sorted({difference.shots for difference in found})
    head = ["Change", *(f"{n} shots" for n in shots), "Paper, 2 shots", "Reads as"]
    rows: list[list[Child]] = []
    for name in dict.fromkeys(difference.condition.name for difference in found):
        by_shots = {d.shots: d for d in found if d.condition.name == name}
        published = [points(d.paper) for d in by_shots.values() if d.paper is not None]
        costs = [cost(by_shots[n]) if n in by_shots else "–" for n in shots]
        rows.append([name, *costs, *(published or ["–"]), readings(by_shots)])
    note = (
        "Aligned minus changed in percentage points, seed by seed, with the same diffusion model: positive means that "
        "the change costs accuracy. A difference counts when its 95% interval leaves out zero. The paper's figures are "
        "from its Table 3 (arXiv 2502.10458), one training each and with other models."
    )
    return join([tag("h3", "What each change costs"), tag("p", note), table(head, rows, class_="costs")])


def cost(difference: Difference) -> Html:
    """A difference with its interval and the number of pairs."""
    return join([points(difference.gain.mean), tag("small", between(difference.gain))])


def readings(by_shots: Mapping[int, Difference]) -> Html:
    """What may be said: once where it is the same for all shots, else for each."""
    said = {shots: reading(difference) for shots, difference in by_shots.items()}
    if len(set(said.values())) == 1:
        return join([next(iter(said.values()))])
    return join([f"{shots} shots: {words}" for shots, words in said.items()], between=BREAK)


def masking(found: Sequence[Difference]) -> Html | None:
    """The paper's main claim in one sentence for each diffusion model."""
    sentences: list[Child] = []
    for decoder in dict.fromkeys(d.condition.decoder for d in found if d.condition.change == "no masking"):
        ours = [d for d in found if d.condition.change == "no masking" and d.condition.decoder == decoder]
        worth = [f"{points(d.gain.mean)} points ({between(d.gain)}) at {plural(d.shots, 'shot')}" for d in ours]
        which = f"the {decoder}" if decoder else "the recipe's own diffusion decoder"
        sentences.append(f"With {which}, masked training is worth {' and '.join(worth)}. ")
    if not sentences:
        return None
    paper = PAPER_ABLATIONS[BASE] - PAPER_ABLATIONS["no masking"]
    return tag("p", *sentences, f"The paper reports {points(paper)} at 2 shots.")


def between(over: Mean) -> str:
    """An interval of points in words."""
    if over.low is None or over.high is None:
        return "no interval from one seed"
    return f"{points(over.low)} to {points(over.high)}"


def per_task(found: Sequence[Condition], shots: int) -> Html:
    """Means over seeds with half an interval's width, tasks down and conditions across, tinted by accuracy."""
    shown = [condition for condition in found if condition.values(shots)]
    tasks = list(dict.fromkeys(task for condition in shown for task in scored_tasks(condition, shots)))
    rows: list[list[Child]] = []
    for task in [*tasks, "mean"]:
        label = "Mean" if task == "mean" else task
        rows.append([label, *(tinted(condition.values(shots, task)) for condition in shown)])
    head: list[Child] = ["", *(condition.name for condition in shown)]
    inner = table(head, rows, class_="heat last-mean")
    return tag("details", tag("summary", f"Every task at {plural(shots, 'shot')}"), inner)


def scored_tasks(condition: Condition, shots: int) -> list[str]:
    """The tasks that a condition's first seed has for a number of shots."""
    first = next(scores[shots] for scores in condition.by_seed.values() if shots in scores)
    return [task for task in first if task != "mean"]


def tinted(values: Sequence[float]) -> Html | str:
    """A mean and its interval's half width on a ground as strong as the mean."""
    if not values:
        return "–"
    over = mean_interval(values)
    half = None if over.high is None else tag("small", f"± {percent(over.high - over.mean)}")
    ground = f"background:rgba(var(--heat),{0.42 * over.mean:.3f})"
    return tag("span", percent(over.mean), half, class_="tint", style=ground)


def markdown(found: Sequence[Condition]) -> str:
    """The conditions as a markdown table, or the command that makes them."""
    if not found:
        return f"The ablations have not been run under this root: `{COMMAND}`."
    shots = all_shots(found)
    head = ["aligned, percent right", "seeds", *(f"{n} shots" for n in shots)]
    rows = []
    for condition in found:
        means = [mean_interval(values) if (values := condition.values(n)) else None for n in shots]
        rows.append([condition.name, str(len(condition.by_seed)), *(in_words(mean) for mean in means)])
    return "## Ablations, mean over seeds and its 95% interval\n\n" + grid(head, rows)


def in_words(over: Mean | None) -> str:
    """A mean with its interval in one cell."""
    if over is None:
        return "–"
    if over.low is None or over.high is None:
        return percent(over.mean)
    return f"{percent(over.mean)} ({percent(max(over.low, 0))} – {percent(min(over.high, 1))})"
