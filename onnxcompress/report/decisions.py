"""Decisions of a plan as people read them: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxcompress.report.figures import SelfCheck
from onnxcompress.report.text import count

Decision = Mapping[str, Any]

_MOST_VALUES = 8


def decision_line(decision: Decision) -> str:
    """Return a decision on one line; of a kind that is not known here, all its entries."""
    writer = _WRITERS.get(str(decision.get("kind", "")))
    return _entries(decision) if writer is None else writer(decision)


def outcome_line(pass_name: str, outcome: Mapping[str, Any]) -> str:
    """Return what a training came to on one line: its samples, epochs and score."""
    samples, (before, after) = outcome["samples"], outcome["score"]
    epochs = len(outcome["epochs"]) - 1  # the start stands among them
    return (
        f"{pass_name}: {epochs} epochs on {samples['trained']} samples; score on {samples['held_out']} others "
        f"{before:.4g} -> {after:.4g} (lower is better)"
    )


def is_loose(check: SelfCheck) -> bool:
    """Whether a self-check only says that a quantised model still answers: its difference is no error."""
    return check.pass_name in ("int8", "fp16")


def loose_check_line(check: SelfCheck) -> str:
    """Return what the self-check of a quantisation came to, on one line."""
    return (
        f"{check.pass_name}: the outputs differ from those of the model before it by {check.difference:.2g} of their "
        f"spread (at most {check.tolerance:g} is accepted)"
    )


def _quantize(decision: Decision) -> str:
    ranges = ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in decision["ranges"].items())
    return f"{decision['node']}: {decision['op']} in 8 bits{f' ({ranges})' if ranges else ''}"


def _prune(decision: Decision) -> str:
    before, after = decision["filters"]
    others = [node for node in decision["removed"] if node != decision["node"]]
    with_others = f", and with them those of {', '.join(others)}" if others else ""
    return f"{decision['node']}: {before} -> {after} filters{with_others}"


def _split(decision: Decision) -> str:
    ranks, channels = ("x".join(map(str, decision[key])) for key in ("ranks", "channels"))
    costs = [f"{_change(decision.get('macs'))} MACs", f"{_change(decision.get('params'))} parameters"]
    return f"{decision['node']}: rank {ranks} of {channels}, {', '.join(costs)}, error {decision['error']:.3f}"


def _change(pair: Any) -> str:
    if not pair:
        return "unknown"
    before, after = pair
    return f"{count(before)} -> {count(after, before)}"


def _entries(decision: Decision) -> str:
    return ", ".join(f"{key}: {_value(value)}" for key, value in decision.items())


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple, dict)) and len(value) > _MOST_VALUES:
        return f"({len(value)} values)"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_WRITERS: Mapping[str, Callable[[Decision], str]] = {
    "prune": _prune,
    "tucker": _split,
    "svd": _split,
    "int8": _quantize,
}
