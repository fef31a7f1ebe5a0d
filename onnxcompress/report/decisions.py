"""Decisions of a plan as people read them: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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


_WRITERS: Mapping[str, Callable[[Decision], str]] = {"prune": _prune, "tucker": _split, "svd": _split}
