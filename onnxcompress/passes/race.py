"""Races: two models timed against each other, for rewrites that are exact but not faster everywhere.

Passes may not measure by themselves: the pipeline gives them a race (`PassContext.race`), or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxcompress.graph import Model

_PROVIDER_SUFFIX = "ExecutionProvider"


@dataclass(frozen=True)
class RaceResult:
    """What a race on one execution provider came to.

    Attributes:
        provider: as onnxruntime calls it.
        speedup: time of the first model / time of the second.
        interval: of the speed-up, 95 %; None where too few rounds were run for one.
    """

    provider: str
    speedup: float
    interval: tuple[float, float] | None


Race = Callable[[Model, Model], Sequence[RaceResult]]
"""Times two models against each other on every asked provider; returns nothing where one cannot be run as it is."""


def is_faster(results: Sequence[RaceResult]) -> bool:
    """Whether the second model is faster beyond doubt on one provider, and slower beyond doubt on none."""
    intervals = [result.interval or (result.speedup, result.speedup) for result in results]
    return any(low > 1.0 for low, _ in intervals) and all(high >= 1.0 for _, high in intervals)


def short_name(provider: str) -> str:
    """Return onnxruntime's name of a provider without what all of them end in."""
    return provider.removesuffix(_PROVIDER_SUFFIX)


def race_text(results: Sequence[RaceResult]) -> str:
    """Return the results in words: `2.31 x on CPU`."""
    return ", ".join(f"{each.speedup:.2f} x on {short_name(each.provider)}" for each in results)
