"""What a sweep has to tell: its points, which of them no other beats, and what both methods gain over the better alone.

Units as in `onnxcompress.report.figures`. The names are the keys of `sweep.json`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxcompress.evaluation.intervals import Interval
from onnxcompress.report.figures import ModelFigures


@dataclass(frozen=True)
class Yardstick:
    """What the points of a sweep are judged by.

    Attributes:
        title: as a plot has it; `column`: as a table has it.
        losses: that are allowed, in the rows of the table of gains: percentage points of accuracy, or percent.
        told: the one of them that is told first.
        unit: behind one loss, and behind any other.
        deep: what loses more must not squeeze the others in a plot.
        distance: what `SweepPoint.distance` is.
    """

    title: str
    column: str
    losses: tuple[float, ...]
    told: float
    unit: tuple[str, str]
    deep: float
    distance: str = "KL"

    def loss(self, loss: float | None = None) -> str:
        """Return a loss in words, the one that is told first by itself: `1 point lost`, `2 % error`."""
        loss = self.told if loss is None else loss
        return f"{loss:g} {self.unit[loss != 1.0]}"


_POINTS = ("point lost", "points lost")
_PERCENT = ("% relative error", "% relative error")
YARDSTICKS = {
    "top1": Yardstick("Top-1 accuracy", "top-1", (0.5, 1.0, 2.0), 1.0, _POINTS, 20.0),
    "agreement": Yardstick("Agreement with the original", "agreement", (0.5, 1.0, 2.0), 1.0, _POINTS, 20.0),
    "relative_error": Yardstick(
        "Relative error of the outputs", "error", (1.0, 2.0, 5.0, 10.0), 5.0, _PERCENT, 50.0, "error"
    ),
}
"""By what is measured: with labels, without, and where nothing classifies."""

_OF_WHOLE_NUMBERS = replace(
    YARDSTICKS["relative_error"],
    title="Elements of the outputs that differ (of a class 1 - IoU)",
    unit=("% of elements that differ", "% of elements that differ"),
)
"""Whole numbers are not larger or smaller by a share: see `evaluation.relative_error`."""

MEASURES = ("bytes", "params", "macs", "latency")
"""What is compressed: `compression` has original / compressed of each."""

_ROUNDING = 1e-9
_AS_FAR = 1.1
"""Distances that differ by less than this factor count as the same, where no two points enclose them."""


@dataclass(frozen=True)
class SweepPoint:
    """One point: what was asked for, and what came of it.

    Attributes:
        method: prune, tucker or both.
        options: those that make the point, as recipe keys.
        reason: why it failed; None where it did not, and then every figure below that was measured is set.
        exit_code: what `compress` would have ended with.
        accuracy: percent of top-1, or of agreement with the original where there are no labels; None where nothing
            classifies.
        relative_error: of the outputs, a share.
        drop: points of accuracy that are lost, the relative error in percent where nothing classifies; with its 95 %
            interval.
        latency_ms, original_latency_ms: p50 on the first provider.
        compression: original / compressed, by `MEASURES`; what was not measured is missing.
        model: the file's name in the sweep's folder.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    reason: str | None = None
    exit_code: int = 0
    accuracy: float | None = None
    agreement: float | None = None
    kl: float | None = None
    relative_error: float | None = None
    drop: float | None = None
    drop_interval: Interval | None = None
    bytes: int | None = None
    params: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    original_latency_ms: float | None = None
    speedup_interval: Interval | None = None
    compression: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    model: str | None = None
    resumed: bool = False

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.reason is None

    @property
    def distance(self) -> float | None:
        """How far the answers are from the original's: in nats (KL), as a share where nothing classifies."""
        return self.relative_error if self.kl is None else self.kl


@dataclass(frozen=True)
class Gain:
    """The best compression of each method within a loss, and what both gain over the better one alone.

    Attributes:
        best: {method: (compression, name of the point)}; a method without a point within the loss is missing. Only
            measured points count: nothing is interpolated.
        gain: of both over the better of prune and tucker, as a share (0.57: 57 % more); None where both or the two
            alone have no point.
        gain_at_distance: of the best point of both over what the better one alone has where its answers are as far
            from the original's; see `gains_of`.
    """

    measure: str
    loss: float
    best: Mapping[str, tuple[float, str]]
    gain: float | None
    gain_at_distance: float | None = None


@dataclass(frozen=True)
class SweepReport:
    """Everything a sweep has to tell.

    Attributes:
        original_accuracy: percent of top-1, 100 where there are no labels; None where nothing classifies.
        judged_by: a name of `YARDSTICKS`; `whole_numbers` whether the outputs hold nothing else, such as classes of
            pixels: their error is the share that differs, or 1 - IoU of a class.
        fronts: {measure: names of the points that no other beats in both what is lost and that measure}.
    """

    input: ModelFigures
    labels: bool
    samples: int
    original_accuracy: float | None
    judged_by: str
    points: tuple[SweepPoint, ...]
    gains: tuple[Gain, ...]
    fronts: Mapping[str, tuple[str, ...]]
    sweep: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    whole_numbers: bool = False
    command: str = "sweep"
    versions: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that a point has."""
        return tuple(m for m in MEASURES if any(m in point.compression for point in self.points))

    @property
    def yardstick(self) -> Yardstick:
        """What the points are judged by."""
        if self.judged_by == "relative_error" and self.whole_numbers:
            return _OF_WHOLE_NUMBERS
        return YARDSTICKS[self.judged_by]

    @property
    def failed(self) -> tuple[SweepPoint, ...]:
        """The points without a result."""
        return tuple(point for point in self.points if not point.done)


def gains_of(points: Sequence[SweepPoint], losses: Iterable[float] = YARDSTICKS["top1"].losses) -> tuple[Gain, ...]:
    """Return the table of Goyal et al. (IPDPSW 2019): for each measure and loss the best measured point of each method.

    A point holds a loss if what was measured to be lost is at most that. Which samples change their class is largely
    chance, and with it which points hold a loss. How far the answers are from the original's (`distance`) is told by
    all samples: so the best point of both is also held against the better method alone at its own distance, between two
    of the method's points along the logarithms. Nothing is known where a method that may be the better one has only
    points that are nearer, or only farther ones.
    """
    measured = [measure for measure in MEASURES if any(measure in point.compression for point in points)]
    return tuple(_gain(points, measure, loss) for measure in measured for loss in losses)


def _gain(points: Sequence[SweepPoint], measure: str, loss: float) -> Gain:
    found: dict[str, tuple[float, SweepPoint]] = {}
    for point in points:
        ratio = point.compression.get(measure)
        if ratio is None or point.drop is None or point.drop > loss + _ROUNDING:
            continue
        if point.method not in found or ratio > found[point.method][0]:
            found[point.method] = ratio, point
    best = {method: (ratio, point.name) for method, (ratio, point) in found.items()}
    alone = [found[method][0] for method in ("prune", "tucker") if method in found]
    if "both" not in found:
        return Gain(measure, loss, best, None)
    ratio, point = found["both"]
    gain = ratio / max(alone) - 1.0 if alone else None
    return Gain(measure, loss, best, gain, _gain_at(points, measure, ratio, point.distance))


def _gain_at(points: Sequence[SweepPoint], measure: str, both: float, distance: float | None) -> float | None:
    """Return what a compression gains over the better one alone at its distance; None where that is not known."""
    if not distance:
        return None
    reached: list[tuple[float, bool]] = []
    for method in {point.method for point in points} - {"both"}:
        front = _unbeaten((point for point in points if point.method == method), measure, _distance)
        if not front:
            continue
        known = [(lost, point.compression[measure]) for lost, point in front]
        if distance > known[-1][0]:
            return None
        # Before the nearest point a method has at most what that point has.
        ratio = math.exp(np.interp(math.log(distance), *np.log(known).T))
        reached.append((ratio, distance >= known[0][0] / _AS_FAR))
    ratio, is_known = max(reached, default=(0.0, False))
    return both / ratio - 1.0 if is_known else None


def fronts_of(points: Sequence[SweepPoint]) -> dict[str, tuple[str, ...]]:
    """Return {measure: names of the points that no other beats}, from the one that loses least on.

    A point is beaten by one that loses no more and is at least as small, and better in one of the two.
    """
    fronts: dict[str, tuple[str, ...]] = {}
    for measure in MEASURES:
        front = _unbeaten(points, measure, lambda point: point.drop)
        if front:
            fronts[measure] = tuple(point.name for _, point in front)
    return fronts


def _unbeaten(
    points: Iterable[SweepPoint], measure: str, lost: Callable[[SweepPoint], float | None]
) -> list[tuple[float, SweepPoint]]:
    """Return what is lost, and the point, of all that no other beats, from the one that loses least on."""
    known = [(own, point) for point in points if (own := lost(point)) is not None and measure in point.compression]
    front: list[tuple[float, SweepPoint]] = []
    for own, point in sorted(known, key=lambda each: (each[0], -each[1].compression[measure])):
        if not front or point.compression[measure] > front[-1][1].compression[measure]:
            front.append((own, point))
    return front


def _distance(point: SweepPoint) -> float | None:
    """Return a distance that has a logarithm."""
    return point.distance or None
