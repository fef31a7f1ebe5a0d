"""Where the time goes: onnxruntime's profile by node and by operator, of one model or of two side by side."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.runtime.providers import CPU_PROVIDER, Provider
from onnxcompress.runtime.session import ModelSource, Session, SessionSettings
from onnxcompress.runtime.tensors import Array

_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """A node as onnxruntime ran it, after its fusions.

    Attributes:
        ms: typical time of it in one run.
        serves: of a change of memory layout that onnxruntime put in: the node whose result or input it lays out anew.
    """

    name: str
    op_type: str
    provider: str
    ms: float
    serves: str | None = None


@dataclass(frozen=True)
class ElsewhereNode:
    """A node that another provider than the one asked for had to run."""

    name: str
    op_type: str
    provider: str


@dataclass(frozen=True)
class OpTimes:
    """All nodes of one operator: how many, and the milliseconds of one run; None where a model has none."""

    op_type: str
    original_nodes: int | None
    original_ms: float | None
    compressed_nodes: int | None
    compressed_ms: float | None


@dataclass(frozen=True)
class NodeTimes:
    """One node of either model, in ms, and the provider that ran it.

    None where a model has no node of this name: it was split, fused or removed.
    """

    name: str
    op_type: str
    original_ms: float | None
    compressed_ms: float | None
    original_provider: str | None = None
    compressed_provider: str | None = None


@dataclass(frozen=True)
class ProfileComparison:
    """Two profiles side by side, or one, whose other side is then None; the most expensive first."""

    by_op: tuple[OpTimes, ...]
    by_node: tuple[NodeTimes, ...]


def profile_model(
    model: ModelSource,
    feeds: Mapping[str, Array],
    provider: Provider = CPU_PROVIDER,
    *,
    threads: int = 0,
    runs: int = 10,
    warmup: int = 3,
    undisturbed: bool = False,
) -> tuple[NodeTime, ...]:
    """Profile `runs` runs; return the nodes in the order in which they ran.

    Args:
        undisturbed: a node's time is the mean of the faster half of its runs, not the median: what another process
            disturbs is left out, and the mean is finer than the profile's microseconds.

    Raises:
        ModelError: the model does not run, or onnxruntime's profile holds no node.
        DataError: the feeds do not fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Providers that compile parts of the graph cannot write it.
        graph = Path(folder, "optimized.onnx") if provider.is_cpu else None
        settings = SessionSettings(
            threads=threads,
            deterministic=False,
            profile=str(Path(folder, "profile")),
            optimized=None if graph is None else str(graph),
        )
        session = Session(model, provider, settings)
        for _ in range(warmup + runs):
            session.run(feeds)
        file = session.end_profiling()
        events = json.loads(file.read_text(encoding="utf-8"))
        # Windows cannot delete the folder while the session holds its file.
        del session
        served = {} if graph is None else _served_by_reorders(graph)
    nodes = node_times(events, skipped_runs=warmup, undisturbed=undisturbed)
    return tuple(replace(node, serves=served.get(node.name)) for node in nodes)


def node_times(
    events: Sequence[Mapping[str, Any]], *, skipped_runs: int = 0, undisturbed: bool = False
) -> tuple[NodeTime, ...]:
    """Read the events of onnxruntime's profile; the first `skipped_runs` are left out.

    Raises:
        ModelError: there is no event of a node in the remaining runs.
    """
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")[skipped_runs:]
    durations: dict[str, dict[int, float]] = {}
    about: dict[str, tuple[str, str, str]] = {}
    kernels = [e for e in events if e.get("cat") == "Node" and str(e.get("name", "")).endswith(_KERNEL)]
    for event in sorted(kernels, key=lambda e: e["ts"]):
        run = int(np.searchsorted(starts, event["ts"], side="right"))
        if run == 0:
            continue
        args = event.get("args", {})
        name = str(event["name"]).removesuffix(_KERNEL)
        # Nodes that onnxruntime inserts itself may share a name; the index tells them apart.
        key = f"{args.get('node_index', '')} {name}"
        about.setdefault(key, (name, str(args.get("op_name", "?")), str(args.get("provider", "?"))))
        in_run = durations.setdefault(key, {})
        in_run[run] = in_run.get(run, 0.0) + float(event["dur"]) / 1e3
    if not durations:
        raise ModelError("onnxruntime's profile holds no node: a provider that runs the whole graph as one has none")
    typical = _mean_of_faster_half if undisturbed else np.median
    return tuple(NodeTime(*about[key], ms=float(typical(list(runs.values())))) for key, runs in durations.items())


def _mean_of_faster_half(times: Sequence[float]) -> float:
    return float(np.mean(sorted(times)[: (len(times) + 1) // 2]))


def _served_by_reorders(file: Path) -> dict[str, str]:
    """Return {change of layout: node it serves} of the graph that onnxruntime wrote: what it follows or leads to."""
    import onnx

    nodes = onnx.load(str(file), load_external_data=False).graph.node
    producers = {name: node.name for node in nodes for name in node.output}
    readers = {name: node.name for node in nodes for name in node.input}
    served: dict[str, str] = {}
    for node in nodes:
        if node.op_type == "ReorderOutput" and node.input[0] in producers:
            served[node.name] = producers[node.input[0]]
        elif node.op_type == "ReorderInput" and node.output[0] in readers:
            served[node.name] = readers[node.output[0]]
    return served


def nodes_elsewhere(nodes: Sequence[NodeTime], provider: Provider) -> tuple[ElsewhereNode, ...]:
    """Return the nodes that did not run on `provider`."""
    return tuple(ElsewhereNode(n.name, n.op_type, n.provider) for n in nodes if n.provider != provider.name)


def compare_profiles(original: Sequence[NodeTime], compressed: Sequence[NodeTime]) -> ProfileComparison:
    """Put two profiles side by side, nodes by name."""
    ops = {node.op_type for node in (*original, *compressed)}
    by_op = [OpTimes(op, *_of_op(op, original), *_of_op(op, compressed)) for op in sorted(ops)]
    before, after = _by_name(original), _by_name(compressed)
    by_node = [
        NodeTimes(
            name,
            (before.get(name) or after[name]).op_type,
            before[name].ms if name in before else None,
            after[name].ms if name in after else None,
            before[name].provider if name in before else None,
            after[name].provider if name in after else None,
        )
        for name in dict.fromkeys((*before, *after))
    ]
    return ProfileComparison(
        tuple(sorted(by_op, key=lambda row: -_larger(row.original_ms, row.compressed_ms))),
        tuple(sorted(by_node, key=lambda row: -_larger(row.original_ms, row.compressed_ms))),
    )


def _of_op(op_type: str, nodes: Sequence[NodeTime]) -> tuple[int | None, float | None]:
    times = [node.ms for node in nodes if node.op_type == op_type]
    return (len(times), sum(times)) if times else (None, None)


def _by_name(nodes: Sequence[NodeTime]) -> dict[str, NodeTime]:
    """Return nodes by name; those that share one (inserted reorders) are added up."""
    named: dict[str, NodeTime] = {}
    for node in nodes:
        known = named.get(node.name)
        ms = node.ms + (known.ms if known else 0.0)
        named[node.name] = NodeTime(node.name, node.op_type, node.provider, ms)
    return named


def _larger(first: float | None, second: float | None) -> float:
    return max(first or 0.0, second or 0.0)
