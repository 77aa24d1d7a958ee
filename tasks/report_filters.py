"""Filters of a page that runs nothing: radio buttons, and style rules that hide what is not chosen.

In: axes with their options. Out: HTML for the buttons, the attributes of what is filtered, and style rules. Options
go by their numbers, so that no stranger's word gets into a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thinkdiff.tasks.report_markup import Html, tag


@dataclass(frozen=True)
class Axis:
    """Something to choose by: `key` is its name in attributes, a plain word; `options` are what a reader sees."""

    key: str
    title: str
    options: Sequence[str]


def buttons(axes: Sequence[Axis], scope: str) -> Html:
    """A group of buttons for each axis, the first of which chooses all. `scope` is the id of what holds everything."""
    return tag("div", *(group(axis, scope) for axis in axes if len(axis.options) > 1), class_="filters")


def group(axis: Axis, scope: str) -> Html:
    choices = [("all", "all"), *((str(number), label) for number, label in enumerate(axis.options))]
    labels = [
        tag(
            "label",
            tag(
                "input",
                type="radio",
                name=f"{scope}-{axis.key}",
                id=f"{scope}-{axis.key}-{value}",
                checked=value == "all",
            ),
            label,
        )
        for value, label in choices
    ]
    return tag("fieldset", tag("legend", axis.title), *labels)


def attributes(axes: Sequence[Axis], values: Sequence[str]) -> dict[str, str]:
    """The attributes of one thing that is filtered: a value for each axis, "" for one that it does not have."""
    return {
        f"data_{axis.key}": str(list(axis.options).index(value)) if value in axis.options else "none"
        for axis, value in zip(axes, values, strict=True)
    }


def rules(axes: Sequence[Axis], scope: str, what: str) -> str:
    """The style rules: of the elements `what` inside the element of that id, those that are not chosen are hidden."""
    return "\n".join(
        f'#{scope}:has(#{scope}-{axis.key}-{i}:checked) {what}:not([data-{axis.key}="{i}"]) {{ display: none; }}'
        for axis in axes
        for i in range(len(axis.options))
    )
