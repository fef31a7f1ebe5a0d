"""What planning computed, kept until the rewrite uses it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.passes.base import Decision, Plan
from onnxcompress.passes.tucker.sites import Array


class Site(Protocol):
    """A node with a weight that can be split."""

    @property
    def weight(self) -> Array:
        """Its weight, as stored."""


class Factors(Protocol):
    """What a weight is split into."""

    @property
    def relative_error(self) -> float:
        """Of their product against the weight."""


Value = TypeVar("Value")
AnySite = TypeVar("AnySite", bound=Site)
AnyFactors = TypeVar("AnyFactors", bound=Factors)
How = TypeVar("How")


class WeightCache(Generic[Value]):
    """Values computed from weights; without an entry they are computed again, to the same bytes.

    Arrays are never written into, so that an array's identity is the key; an entry holds on to its array.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[object, ...], tuple[Array, Value]] = {}
        self._lock = threading.Lock()

    def put(self, weight: Array, how: tuple[object, ...], value: Value) -> None:
        """Keep what was computed from a weight in a certain way."""
        key = (id(weight), *how)
        with self._lock:
            self._entries[key] = (weight, value)

    def take(self, weight: Array, how: tuple[object, ...]) -> Value | None:
        """Hand over what was computed from a weight in a certain way, if it is here."""
        with self._lock:
            entry = self._entries.pop((id(weight), *how), None)
        return None if entry is None else entry[1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


def remeasured(
    plan: Plan,
    work: Sequence[tuple[AnySite, How]],
    factors: Callable[[AnySite, How], AnyFactors],
    cache: WeightCache[AnyFactors],
    key: Callable[[AnySite, How], tuple[object, ...]],
) -> Plan:
    """Return the plan with the errors of the factors at hand, which are kept for the rewrite.

    Args:
        work: what each decision splits, and how.
        factors: makes the factors of a split.
        key: what determines them besides the weight itself.
    """
    made = parallel_map(lambda pair: factors(*pair), work)
    decisions: list[Decision] = []
    for decision, (site, how), own in zip(plan.decisions, work, made, strict=True):
        cache.put(site.weight, key(site, how), own)
        decisions.append({**decision, "error": own.relative_error})
    return replace(plan, decisions=tuple(decisions))
