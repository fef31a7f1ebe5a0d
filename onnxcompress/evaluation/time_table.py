"""How long the layers of a model take whole and split, on one machine and one execution provider; kept in a file.

A layer goes by its shape and by what stands around it, not by its name: what was measured for one model serves every
other model that has the same layer in the same place, on the same machine, provider, number of threads and batch.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from onnxcompress.analysis.split import WHOLE, Split
from onnxcompress.errors import RecipeError
from onnxcompress.remote import Location, read_json

SCHEMA = 1
KIND = "onnxcompress time table"

_LONGEST_MS = 1e9
"""Sums and ratios of longer times are no numbers any more, and no model takes days."""

_NEIGHBOURS = 4
"""Of the times measured nearest to the one that is wanted, so many count."""


@dataclass(frozen=True)
class Conditions:
    """What a time depends on besides the layer: two tables are comparable only where all of it agrees.

    Attributes:
        processor, machine: name of the CPU (or of the accelerator), architecture.
        onnxruntime: version.
        provider: as onnxruntime calls it; options: of it.
        threads, batch: of a run.
        block: channels that the provider's kernels take at once there.
    """

    processor: str
    machine: str
    onnxruntime: str
    provider: str
    options: Mapping[str, str]
    threads: int
    batch: int
    block: int = 8

    def differences(self, other: Conditions) -> list[str]:
        """Return `name: this value, not that one` of everything in which `other` differs."""
        own, others = asdict(self), asdict(other)
        return [f"{name} {_shown(own[name])}, not {_shown(others[name])}" for name in own if own[name] != others[name]]


@dataclass(frozen=True)
class PairTime:
    """Two whole models timed against each other.

    Attributes:
        before_ms: of one run of the first; None where only the ratio was asked for.
        speedup: time of the first / time of the second.
        low, high: of the speed-up's 95 % interval.
    """

    before_ms: float | None
    speedup: float
    low: float
    high: float


@dataclass
class TimeTable:
    """Milliseconds of layers whole and split.

    Attributes:
        layers: {layer's key: {ranks: ms}}.
        models: {sha256 of a model's file: ms of one run of it as it is, and cleaned up}.
        pairs: {what identifies two models and how they were timed: what came of it}.
    """

    conditions: Conditions
    layers: dict[str, dict[Split, float]] = field(default_factory=dict)
    models: dict[str, dict[str, float]] = field(default_factory=dict)
    pairs: dict[str, PairTime] = field(default_factory=dict)

    def time_of(self, key: str, ranks: Split, macs: Callable[[Split], float]) -> float | None:
        """Return the milliseconds of a layer split so, from its nearest measured splits where it was not measured.

        Args:
            key: of the layer.
            ranks: of the split.
            macs: cost of a split of this layer, in any unit: what is taken over from the neighbours is time for cost.
        """
        known = self.layers.get(key, {})
        if ranks in known:
            return known[ranks]
        alike = [other for other in known if other.kind == ranks.kind and other != WHOLE]
        near = sorted(((_distance(ranks, other), other) for other in alike), key=lambda pair: pair[0])[:_NEIGHBOURS]
        if not near:
            return None
        weights = [1.0 / max(distance, 1e-9) ** 2 for distance, _ in near]
        pace = sum(w * known[other] / macs(other) for w, (_, other) in zip(weights, near, strict=True)) / sum(weights)
        return pace * macs(ranks)

    def merge(self, other: TimeTable) -> None:
        """Take over what `other` holds."""
        for key, times in other.layers.items():
            self.layers.setdefault(key, {}).update(times)
        self.models.update(other.models)
        self.pairs.update(other.pairs)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "conditions": asdict(self.conditions),
            "models": self.models,
            "pairs": {key: list(astuple(pair)) for key, pair in self.pairs.items()},
            "layers": {
                key: {str(ranks): round(ms, 6) for ranks, ms in times.items()} for key, times in self.layers.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> TimeTable:
        """Rebuild a table from `to_json`'s value.

        Raises:
            RecipeError: the value is none; the message names `where`.
        """
        if not isinstance(value, dict) or value.get("kind") != KIND or value.get("schema") != SCHEMA:
            raise RecipeError(
                f"{where}: is no time table of schema {SCHEMA}; make one with onnxcompress inspect IN --time-table FILE"
            )
        try:
            given = value["conditions"]
            conditions = Conditions(
                str(given["processor"]),
                str(given["machine"]),
                str(given["onnxruntime"]),
                str(given["provider"]),
                {str(name): str(option) for name, option in given["options"].items()},
                *(_count(given[name]) for name in ("threads", "batch", "block")),
            )
            layers = {
                str(key): {Split.parsed(ranks): _milliseconds(ms) for ranks, ms in times.items()}
                for key, times in value["layers"].items()
            }
            models = {
                str(sha256): {str(name): _milliseconds(ms) for name, ms in times.items()}
                for sha256, times in value["models"].items()
            }
            pairs = {
                str(key): PairTime(None if ms is None else _positive(ms), *map(_positive, ratio))
                for key, (ms, *ratio) in value.get("pairs", {}).items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecipeError(
                f"{where}: is a damaged time table ({type(error).__name__}: {error}); make it again with "
                "onnxcompress inspect IN --time-table FILE"
            ) from error
        return cls(conditions, layers, models, pairs)


def read_time_table(path: Location) -> TimeTable:
    """Read a table, here or at an address.

    Raises:
        RecipeError: the file cannot be read or holds none.
    """
    return TimeTable.from_json(read_json(path, "a time table"), str(path))


def check_conditions(table: TimeTable, asked: Conditions, where: str) -> None:
    """Refuse a table of another machine, version or setting.

    Raises:
        RecipeError: it differs; the message says in what.
    """
    differences = table.conditions.differences(asked)
    if differences:
        raise RecipeError(
            f"{where}: its times are of {'; '.join(differences)}; make a table here, "
            "or take it as it is with --force-time-table (its machine is then the target)"
        )


def processor_name() -> str:
    """Return the name of the CPU, as the system gives it."""
    return next(_cpu_names(), "") or platform.processor() or platform.machine()


def _cpu_names() -> Iterator[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith("model name"):
                    yield line.partition(":")[2].strip()
    except OSError:
        return


def _distance(ranks: Split, other: Split) -> float:
    pairs = [(one, two) for one, two in zip(ranks[:2], other[:2], strict=True) if one is not None and two is not None]
    return math.sqrt(sum(math.log(one / two) ** 2 for one, two in pairs))


def _milliseconds(value: Any) -> float:
    ms = float(value)
    if not 0.0 <= ms <= _LONGEST_MS:
        raise ValueError(f"a time of {value} ms")
    return ms


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 1 <= value < 2**31:
        raise ValueError(f"a count of {value!r}")
    return value


def _positive(figure: Any) -> float:
    number = float(figure)
    if not (math.isfinite(number) and number > 0.0):
        raise ValueError(f"a figure of {number}")
    return number


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={option}" for name, option in value.items()) or "none"
    return str(value)
