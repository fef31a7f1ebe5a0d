"""Where the time goes, as rows of text: one source for the terminal, the Markdown summary and the HTML report."""

from __future__ import annotations

from collections import Counter

from onnxcompress.evaluation.profile import NodeTimes, OpTimes, ProfileComparison
from onnxcompress.report.text import milliseconds

MOST_NODES = 20

OP_HEADER = ("operator", "nodes", "ms", "nodes then", "ms then", "change")
NODE_HEADER = ("node", "operator", "ms", "ms then", "ran on")
NOTE = (
    "Of one run in the runtime's profile, after its fusions: what was fused into a node counts as that node, and the "
    "sum is not the latency."
)


def op_rows(profile: ProfileComparison) -> list[tuple[str, ...]]:
    """Return a row for each operator, and the sums, as in `OP_HEADER`."""
    first = [row.original_ms or 0.0 for row in profile.by_op]
    second = [row.compressed_ms or 0.0 for row in profile.by_op]
    whole = OpTimes(
        "(all)",
        sum(row.original_nodes or 0 for row in profile.by_op),
        sum(first),
        sum(row.compressed_nodes or 0 for row in profile.by_op) or None,
        sum(second) or None,
    )
    return [_op_row(row) for row in (*profile.by_op, whole)]


def node_rows(profile: ProfileComparison) -> list[tuple[str, ...]]:
    """Return the most expensive nodes, as in `NODE_HEADER`."""
    return [_node_row(row) for row in profile.by_node[:MOST_NODES]]


def providers_line(profile: ProfileComparison) -> str:
    """Return how many nodes of each model ran on which provider."""
    sides = []
    for name, ran in (
        ("original", [row.original_provider for row in profile.by_node if row.original_provider]),
        ("compressed", [row.compressed_provider for row in profile.by_node if row.compressed_provider]),
    ):
        if ran:
            counted = ", ".join(f"{number} on {provider}" for provider, number in Counter(ran).most_common())
            sides.append(f"{name}: {counted}")
    return "; ".join(sides)


def _op_row(row: OpTimes) -> tuple[str, ...]:
    change = ""
    if row.original_ms and row.compressed_ms is not None:
        change = f"{100 * (row.compressed_ms / row.original_ms - 1):+.0f} %"
    return (
        row.op_type,
        _whole(row.original_nodes),
        _ms(row.original_ms),
        _whole(row.compressed_nodes),
        _ms(row.compressed_ms),
        change,
    )


def _node_row(row: NodeTimes) -> tuple[str, ...]:
    ran_on = dict.fromkeys(each for each in (row.original_provider, row.compressed_provider) if each)
    return row.name, row.op_type, _ms(row.original_ms), _ms(row.compressed_ms), ", ".join(ran_on)


def _ms(value: float | None) -> str:
    return "" if value is None else milliseconds(value)


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)
