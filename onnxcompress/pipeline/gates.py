"""Gates: conditions on the result. A gate whose value was not measured, or is no number, fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from onnxcompress.errors import RecipeError
from onnxcompress.evaluation.accuracy import Accuracy
from onnxcompress.evaluation.intervals import Interval
from onnxcompress.evaluation.latency import Latency
from onnxcompress.recipe import Recipe
from onnxcompress.report.figures import CompressionFigures, GateResult

DROP, ERROR = "max_drop", "max_error"
"""The gates on what is lost: accuracy, and what the outputs hold."""

_ROUNDING = 1e-9
"""Percentages are differences of fractions: 78.5 - 77.5 must pass a limit of 1.0 whatever its last bit."""


def check_gates_can_be_measured(recipe: Recipe, *, has_data: bool) -> None:
    """Refuse a gate on something that will not be measured.

    Raises:
        RecipeError: `max_drop` or `max_error` without data, or `min_speedup` without latency measurement.
    """
    if recipe.max_drop is not None and not has_data:
        raise RecipeError("--max-drop needs accuracy to be measured: give --data PATH")
    if recipe.max_error is not None and not has_data:
        raise RecipeError("--max-error needs the outputs to be compared: give --data PATH")
    if recipe.min_speedup is not None and not recipe.latency:
        raise RecipeError("--min-speedup needs latency to be measured: leave --no-latency out")
    check_latency_can_be_told(recipe)


def check_latency_can_be_told(recipe: Recipe) -> None:
    """Refuse a target of latency that nothing measures or predicts.

    Raises:
        RecipeError: there is one, without latency measurement and without a time table.
    """
    if "latency" in recipe.target and not recipe.latency and recipe.time_table is None:
        where = "" if recipe.plan is None else f"{recipe.plan}: the plan's "
        raise RecipeError(
            f"{where}--target latency needs latency to be measured: leave --no-latency out, or give the target "
            "machine's --time-table"
        )


def gate_results(
    recipe: Recipe,
    accuracy: Accuracy | None,
    latency: Sequence[Latency],
    compression: CompressionFigures | None,
    predicted_latency: float | None = None,
) -> tuple[GateResult, ...]:
    """Return the recipe's gates with what was measured; the slowest provider counts.

    With `strict`, a value that keeps its limit is not enough: the far end of its 95 % confidence interval must keep it
    too, and a measurement too short to have an interval fails. A size has no interval, and is judged as it is. A
    latency so noisy that its interval is missing or useless fails either way.
    `predicted_latency` is the share of the latency where a time table stands for the target machine.
    """
    gates = []
    if recipe.max_drop is not None:
        drop, interval = accuracy_drop(accuracy), accuracy_drop_interval(accuracy)
        gates.append(_loss_gate(DROP, recipe.max_drop, drop, interval, strict=recipe.strict))
    if recipe.max_error is not None:
        error, interval = output_error(accuracy), output_error_interval(accuracy)
        gates.append(_loss_gate(ERROR, recipe.max_error, error, interval, strict=recipe.strict))
    if recipe.min_speedup is not None:
        gates.append(_speedup_gate(recipe.min_speedup, latency, strict=recipe.strict))
    if recipe.min_compression is not None:
        ratio = compression.bytes if compression else None
        passed = _is_at_least(ratio, recipe.min_compression)
        gates.append(GateResult("min_compression", recipe.min_compression, ratio, passed))
    for kind, share in recipe.target.items():
        if kind == "latency":
            gates.append(_latency_gate(share, latency, predicted_latency, strict=recipe.strict))
            continue
        ratio = (
            {"macs": compression.macs, "params": compression.params, "size": compression.bytes}[kind]
            if compression
            else None
        )
        reached = 1.0 / ratio if ratio else None
        gates.append(GateResult(f"target_{kind}", share, reached, _is_at_most(reached, share)))
    return tuple(gates)


def accuracy_drop(accuracy: Accuracy | None) -> float | None:
    """Return by how many points top-1 fell; without labels, how much of the agreement with the original is gone."""
    if accuracy is None:
        return None
    if accuracy.labels:
        return accuracy.drop_top1
    return None if accuracy.agreement is None else 100.0 - accuracy.agreement


def accuracy_drop_interval(accuracy: Accuracy | None) -> Interval | None:
    """Return the 95 % confidence interval of `accuracy_drop`, in points."""
    if accuracy is None:
        return None
    if accuracy.labels:
        return accuracy.drop_top1_interval
    agreement = accuracy.agreement_interval
    return None if agreement is None else (100.0 - agreement[1], 100.0 - agreement[0])


def output_error(accuracy: Accuracy | None) -> float | None:
    """Return the relative error of the outputs in percent."""
    return None if accuracy is None or accuracy.relative_error is None else 100.0 * accuracy.relative_error


def output_error_interval(accuracy: Accuracy | None) -> Interval | None:
    """Return the 95 % confidence interval of `output_error`, in percent."""
    interval = None if accuracy is None else accuracy.relative_error_interval
    return None if interval is None else (100.0 * interval[0], 100.0 * interval[1])


def _loss_gate(name: str, limit: float, value: float | None, interval: Interval | None, *, strict: bool) -> GateResult:
    worst = _upper(interval) if strict else value
    passed = _is_at_most(value, limit) and _is_at_most(worst, limit)
    return GateResult(name, limit, value, passed, interval, strict)


def _speedup_gate(limit: float, latency: Sequence[Latency], *, strict: bool) -> GateResult:
    def judged(figures: Latency) -> float:
        return (-math.inf if figures.interval is None else figures.interval[0]) if strict else figures.speedup

    slowest = min(latency, key=judged, default=None)
    if slowest is None:
        return GateResult("min_speedup", limit, None, False, None, strict)
    # The one whose ratio nobody knows may be the slowest.
    doubtful = next((figures for figures in latency if figures.noisy), None)
    shown = doubtful or slowest
    passed = doubtful is None and _is_at_least(shown.speedup, limit) and _is_at_least(judged(shown), limit)
    return GateResult("min_speedup", limit, shown.speedup, passed, shown.interval, strict, doubtful is not None)


def _latency_gate(share: float, latency: Sequence[Latency], predicted: float | None, *, strict: bool) -> GateResult:
    """Judge a target of latency: measured, or predicted for a machine of which this one tells nothing."""
    if predicted is not None:
        return GateResult("target_latency", share, predicted, _is_at_most(predicted, share))
    speed = _speedup_gate(1.0 / share, latency, strict=strict)
    reached = None if speed.value is None else 1.0 / speed.value
    interval = None if speed.interval is None else (1.0 / speed.interval[1], 1.0 / speed.interval[0])
    return replace(speed, name="target_latency", limit=share, value=reached, interval=interval)


def _upper(interval: Interval | None) -> float | None:
    return None if interval is None else interval[1]


def _is_at_most(value: float | None, limit: float) -> bool:
    return value is not None and math.isfinite(value) and value <= limit + _ROUNDING


def _is_at_least(value: float | None, limit: float) -> bool:
    return value is not None and math.isfinite(value) and value >= limit - _ROUNDING
