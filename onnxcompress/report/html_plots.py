"""Plots of the HTML report: pairs of bars, and a value with its interval on an axis, drawn as SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxcompress.report.html_elements import Markup, element, join

_HEIGHT, _MARGIN_PERCENT = 86, 7.0
_AXIS_Y, _VALUE_Y = 58, 36
_MOST_TICKS = 6


def bar(share: float, kind: str) -> Markup:
    """Return a bar of `share` (0 to 1) of the width there is; `kind` is `before` or `after`."""
    return element("span", class_=f"bar {kind}", style=f"width:{100 * min(max(share, 0.0), 1.0):.2f}%")


def bar_pair(before: float | None, after: float | None, largest: float) -> Markup:
    """Return two bars below each other; what is not known has none."""
    scale = 1.0 / largest if largest > 0 else 0.0
    pairs = ((before, "before"), (after, "after"))
    return join([bar(value * scale, kind) for value, kind in pairs if value is not None])


@dataclass(frozen=True)
class Axis:
    """What an interval plot is drawn on.

    Attributes:
        neutral: where nothing is gained and nothing lost.
        limit: a gate's, None where there is none; limit_text: how it is called.
        unit: behind every number.
    """

    neutral: float
    limit: float | None
    limit_text: str
    unit: str


def interval_plot(title: str, value: float, interval: tuple[float, float] | None, axis: Axis) -> Markup:
    """Return a value and its 95 % confidence interval between the neutral value and the limit."""
    ends = interval or (value, value)
    shown = [value, *ends, axis.neutral, *([] if axis.limit is None else [axis.limit])]
    low, high = min(shown), max(shown)
    room = 0.08 * (high - low) or 1.0
    low, high = low - room, high + room

    def across(position: float) -> float:
        return _MARGIN_PERCENT + (100.0 - 2.0 * _MARGIN_PERCENT) * (position - low) / (high - low)

    def x(position: float) -> str:
        # Percent of the width there is, so that text keeps its size on a phone.
        return f"{across(position):.2f}%"

    drawn: list[Markup] = [
        element("title", title),
        element("line", class_="axis", x1=x(low), x2=x(high), y1=_AXIS_Y, y2=_AXIS_Y),
    ]
    for tick in ticks(low, high):
        drawn.append(element("line", class_="axis", x1=x(tick), x2=x(tick), y1=_AXIS_Y, y2=_AXIS_Y + 5))
        label = f"{tick:g}{axis.unit}"
        drawn.append(element("text", label, class_="faint", x=x(tick), y=_AXIS_Y + 20, text_anchor="middle"))
    drawn.append(element("line", class_="zero", x1=x(axis.neutral), x2=x(axis.neutral), y1=_VALUE_Y - 14, y2=_AXIS_Y))
    if axis.limit is not None:
        drawn.append(element("line", class_="limit", x1=x(axis.limit), x2=x(axis.limit), y1=_VALUE_Y - 16, y2=_AXIS_Y))
        anchor = "end" if across(axis.limit) > 50.0 else "start"
        drawn.append(element("text", axis.limit_text, class_="limit-text", x=x(axis.limit), y=14, text_anchor=anchor))
    if interval is not None:
        drawn.append(element("line", class_="whisker", x1=x(ends[0]), x2=x(ends[1]), y1=_VALUE_Y, y2=_VALUE_Y))
        for end in ends:
            drawn.append(element("line", class_="whisker", x1=x(end), x2=x(end), y1=_VALUE_Y - 6, y2=_VALUE_Y + 6))
    drawn.append(element("circle", class_="dot", cx=x(value), cy=_VALUE_Y, r=6))
    svg = element("svg", *drawn, width="100%", height=_HEIGHT, role="img", aria_label=title)
    return element("figure", element("figcaption", title, class_="small"), svg)


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`, at most seven of them."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / _MOST_TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= _MOST_TICKS)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]
