"""The Pareto plot of a sweep: accuracy or error against size, MACs, parameters or latency, as SVG in a page or file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnxcompress.recipe.sweep_options import METHODS
from onnxcompress.report.html_elements import Markup, element, join
from onnxcompress.report.html_plots import ticks
from onnxcompress.report.sweep_figures import SweepPoint, SweepReport, fronts_of
from onnxcompress.report.text import percent

METHOD_TITLES = {"prune": "pruning alone", "tucker": "Tucker alone", "both": "both"}

_HEIGHT, _TOP, _BOTTOM = 340, 18, 296
_LEFT_PERCENT, _RIGHT_PERCENT = 14.0, 97.0
_FILE_WIDTH = 760
_LOSS_KIND = "loss"
_SHAPES = {
    "prune": "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z",
    "tucker": "M-5.5 -5.5h11v11h-11z",
    "both": "M0 -7.5L7 5.5H-7z",
    "original": "M0 -8L2.4 -2.6L8 -2.2L3.6 1.6L5 7.4L0 4.2L-5 7.4L-3.6 1.6L-8 -2.2L-2.4 -2.6z",
}
_STYLE = """\
svg { font: 13px system-ui, sans-serif; background: #fff; }
text { fill: #1b2430; } .faint { fill: #5a6675; } .grid { stroke: #dde2e8; } .loss { stroke: #b3261e; }
.loss, .zero { stroke-width: 1.5; stroke-dasharray: 5 4; } .zero { stroke: #5a6675; }
.prune { fill: #c04e00; stroke: #c04e00; } .tucker { fill: #1f6fd6; stroke: #1f6fd6; }
.both { fill: #0a7d54; stroke: #0a7d54; } .original { fill: #1b2430; stroke: #1b2430; }
.mark { stroke-width: 1.5; fill-opacity: .85; } .below { fill: none; } .front { stroke-width: 1.5; opacity: .6; }
"""


@dataclass(frozen=True)
class _Scale:
    """A measure's values in the unit of its axis."""

    title: str
    of: Callable[[SweepPoint], float | None]
    original: float | None
    divisor: float


def pareto_plots(report: SweepReport) -> list[Markup]:
    """Return a figure for each measure that there is, for the page."""
    return [
        element(
            "figure",
            element("figcaption", _title(report, measure), class_="small"),
            element(
                "svg",
                *_drawn(report, measure),
                width="100%",
                height=_HEIGHT,
                role="img",
                aria_label=_title(report, measure),
                class_="pareto",
            ),
            data_measure=measure,
        )
        for measure in report.measures
    ]


def pareto_file(report: SweepReport, measure: str) -> str:
    """Return the plot of one measure as an SVG file with a legend."""
    keys: list[Markup] = []
    across = 16
    for kind, told in _legend(report):
        keys += [_key(kind, across, 18), element("text", told, x=across + 14, y=22)]
        across += 40 + 8 * len(told)
    title = element("text", _title(report, measure), x=10, y=_HEIGHT + 36, class_="faint")
    plot = element("svg", *_drawn(report, measure), x=10, y=30, width=_FILE_WIDTH - 20, height=_HEIGHT)
    content = element(
        "svg",
        element("style", Markup(_STYLE)),
        *keys,
        plot,
        title,
        xmlns="http://www.w3.org/2000/svg",
        width=_FILE_WIDTH,
        height=_HEIGHT + 46,
    )
    return f"{content}\n"


def legend(report: SweepReport) -> Markup:
    """Return what the marks mean, for the page."""
    entries = [
        element(
            "span",
            element("svg", _key(kind, 9, 9), width=18, height=18, aria_hidden="true"),
            told,
        )
        for kind, told in _legend(report)
    ]
    return element("div", *entries, class_="marks small")


def _methods(report: SweepReport) -> list[str]:
    return [method for method in METHODS if any(p.method == method and p.done for p in report.points)]


def any_below(report: SweepReport) -> bool:
    """Return whether a point lies too deep to be shown where it belongs: it stands on the axis, hollow."""
    return any(_is_below(point, report) for point in report.points)


def _is_below(point: SweepPoint, report: SweepReport) -> bool:
    return point.drop is not None and point.drop > report.yardstick.deep


def _height(point: SweepPoint) -> float:
    """Return how high a point stands: its accuracy, or as far below zero as its error."""
    return -(point.drop or 0.0) if point.accuracy is None else point.accuracy


def _legend(report: SweepReport) -> list[tuple[str, str]]:
    methods = [(method, METHOD_TITLES[method]) for method in _methods(report)]
    return [("original", "original"), *methods, (_LOSS_KIND, report.yardstick.loss())]


def _key(kind: str, x: int, y: int) -> Markup:
    if kind == _LOSS_KIND:
        return element("line", class_=kind, x1=x - 9, x2=x + 9, y1=y, y2=y)
    return _mark(kind, str(x), str(y), f"mark {kind}")


def _title(report: SweepReport, measure: str) -> str:
    return f"{report.yardstick.title} in percent against {_scale(report, measure).title}"


def _scale(report: SweepReport, measure: str) -> _Scale:
    before = report.input
    if measure == "latency":
        times = [p.original_latency_ms for p in report.points if p.original_latency_ms is not None]
        middle = sorted(times)[len(times) // 2] if times else None

        def latency(point: SweepPoint) -> float | None:
            # Each point was measured beside the original: where the machine changed its pace, only their ratio holds.
            ratio = point.compression.get("latency")
            return middle / ratio if middle is not None and ratio else point.latency_ms

        return _Scale("latency (ms, p50)", latency, middle, 1.0)
    name, original, of = {
        "bytes": ("file size", before.bytes, lambda p: p.bytes),
        "params": ("parameters", before.params, lambda p: p.params),
        "macs": ("MACs of a sample", before.macs, lambda p: p.macs),
    }[measure]
    divisor, unit = next(
        (d, u) for d, u in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")) if (original or 0) >= 2 * d or d == 1.0
    )
    unit += "B" if measure == "bytes" else ""
    return _Scale(f"{name} ({unit})" if unit else name, of, original, divisor)


class _Frame:
    """Where a value and a height stand: across in percent, so that text keeps its size on a phone."""

    def __init__(self, report: SweepReport, values: Sequence[float], heights: Sequence[float]) -> None:
        low, high = min(values), max(values)
        room = 0.05 * (high - low) or 0.05 * high or 1.0
        self.low, self.high = max(0.0, low - room), high + room
        self.original = report.original_accuracy or 0.0
        self.loss = self.original - report.yardstick.told
        best, least = max(heights), min([self.original - 2 * report.yardstick.told, *heights])
        self.floor = least if report.original_accuracy is None else max(0.0, least)
        self.most = 0.0 if report.original_accuracy is None else 100.0
        head = 0.06 * (best - self.floor) or 1.0
        self.bottom, self.top = self.floor - head, best + head

    def x(self, value: float) -> str:
        across = (value - self.low) / (self.high - self.low)
        return f"{_LEFT_PERCENT + (_RIGHT_PERCENT - _LEFT_PERCENT) * across:.2f}%"

    def y(self, height: float) -> str:
        down = (self.top - max(height, self.bottom)) / (self.top - self.bottom)
        return f"{_TOP + (_BOTTOM - _TOP) * down:.1f}"


def _drawn(report: SweepReport, measure: str) -> Iterator[Markup]:
    scale = _scale(report, measure)

    def place(point: SweepPoint) -> tuple[float, float]:
        return (scale.of(point) or 0.0) / scale.divisor, _height(point)

    points = [p for p in report.points if p.drop is not None and scale.of(p) is not None]
    original = None if scale.original is None else scale.original / scale.divisor
    values = [*(place(p)[0] for p in points), *([] if original is None else [original])]
    shown = [report.original_accuracy or 0.0, *(place(p)[1] for p in points if not _is_below(p, report))]
    frame = _Frame(report, values, shown)
    yield element("title", _title(report, measure))
    for tick in ticks(frame.bottom, frame.top):
        if frame.floor <= tick <= frame.most:
            yield element("line", class_="grid", x1="0", x2="100%", y1=frame.y(tick), y2=frame.y(tick))
            yield element("text", f"{abs(tick):g} %", class_="faint", x="0", y=f"{float(frame.y(tick)) - 4:.1f}")
    for tick in ticks(frame.low, frame.high):
        yield element("line", class_="grid", x1=frame.x(tick), x2=frame.x(tick), y1=_BOTTOM, y2=_BOTTOM + 5)
        yield element("text", f"{tick:,g}", class_="faint", x=frame.x(tick), y=_BOTTOM + 22, text_anchor="middle")
    yield element("line", class_="grid", x1="0", x2="100%", y1=_BOTTOM, y2=_BOTTOM)
    yield element("text", scale.title, class_="faint", x="100%", y=_HEIGHT - 4, text_anchor="end")
    for level, kind in ((frame.original, "zero"), (frame.loss, _LOSS_KIND)):
        yield element("line", class_=kind, x1="0", x2="100%", y1=frame.y(level), y2=frame.y(level))
    for method in _methods(report):
        yield from _front(method, points, measure, place, frame)
    for point in points:
        value, height = place(point)
        below = _is_below(point, report)
        told = f"{point.name}: {percent(abs(height))}, {value:.4g} ({point.compression[measure]:.2f} x)"
        y = frame.y(frame.bottom if below else height)
        yield _mark(point.method, frame.x(value), y, f"mark {point.method}{' below' if below else ''}", told)
    if original is not None:
        name = f"original: {percent(frame.original)}, {original:.4g}"
        yield _mark("original", frame.x(original), frame.y(frame.original), "mark original", name)


def _front(
    method: str,
    points: Sequence[SweepPoint],
    measure: str,
    place: Callable[[SweepPoint], tuple[float, float]],
    frame: _Frame,
) -> Iterator[Markup]:
    """A line through the points of a method that none of its others beats, as far as the plot goes."""
    own = {point.name: point for point in points if point.method == method}
    names = fronts_of(list(own.values())).get(measure, ())
    for first, second in pairwise(place(own[name]) for name in names):
        low, high = sorted((first, second), key=lambda end: end[1])
        if high[1] <= frame.bottom:
            continue
        if low[1] < frame.bottom:
            share = (high[1] - frame.bottom) / (high[1] - low[1])
            low = (high[0] + share * (low[0] - high[0]), frame.bottom)
        ends = {"x1": frame.x(high[0]), "x2": frame.x(low[0]), "y1": frame.y(high[1]), "y2": frame.y(low[1])}
        yield element("line", class_=f"front {method}", **ends)


def _mark(kind: str, x: str, y: str, classes: str, told: str = "") -> Markup:
    """A shape at a place whose x may be a percentage: a path alone could not stand there."""
    title = [element("title", told)] if told else []
    return element(
        "svg", element("path", *title, d=_SHAPES[kind], class_=classes), x=x, y=y, overflow="visible", width=1, height=1
    )


def join_plots(report: SweepReport) -> Markup:
    """Return the legend and all plots."""
    return join([legend(report), element("div", *pareto_plots(report), class_="plots")])
