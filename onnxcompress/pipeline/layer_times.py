"""Where the time goes, layer by layer: onnxruntime's profile of both models, led back to the layers of the report.

onnxruntime fuses nodes and renames them: a fused Conv has its own name or that of the tensor it ends with, and copies
between memory layouts come and go: these count for the layer that they serve. What has no weights and little time is
summed up in one row.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnxcompress.errors import OnnxCompressError
from onnxcompress.evaluation.profile import NodeTime, ProfileComparison, compare_profiles, profile_model
from onnxcompress.graph import Model
from onnxcompress.recipe import Recipe
from onnxcompress.report.layers import LayerChange, origin_of
from onnxcompress.runtime.device import physical_cores
from onnxcompress.runtime.providers import Provider, one_line
from onnxcompress.runtime.session import ModelSource, Session, SessionSettings
from onnxcompress.runtime.tensors import concrete_shapes, random_inputs

OTHERS = "(everything else)"

_RUNS, _WARMUP = 10, 3
_WORTH_A_ROW = 0.01
"""Share of the time of a whole run."""
_ADDED = re.compile(r"(_nchwc)?(_token_\d+)?$")
"""What onnxruntime appends to names."""
_FUSED_BEHIND = frozenset(
    {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Add", "BatchNormalization", "Mul"}
)
_MOST_STEPS = 8


@dataclass(frozen=True)
class Profiled:
    """A model, and what onnxruntime loads of it."""

    model: Model
    content: ModelSource


def with_times(
    layers: Sequence[LayerChange], original: Profiled, compressed: Profiled, provider: Provider, recipe: Recipe
) -> tuple[tuple[LayerChange, ...], ProfileComparison | None, tuple[str, ...]]:
    """Return the layers with their times, both profiles side by side, and nothing.

    Where the provider, the inputs or the disk allow no profile: the layers as they are, None, and a sentence on why.
    """
    try:
        profiles = [profile(each, provider, recipe) for each in (original, compressed)]
    except (OnnxCompressError, OSError) as error:
        return tuple(layers), None, (f"No layer could be timed: {one_line(error, 300)}",)
    names = {layer.node for layer in layers}
    before, after = (
        times_by_layer(nodes, each.model, names) for nodes, each in zip(profiles, (original, compressed), strict=True)
    )
    known = [
        replace(layer, original_ms=before.pop(layer.node, None), compressed_ms=after.pop(layer.node, None))
        for layer in layers
    ]
    rows = (*known, *_weightless(before, after, original.model, compressed.model))
    return rows, compare_profiles(*profiles), ()


def profile(profiled: Profiled, provider: Provider, recipe: Recipe) -> tuple[NodeTime, ...]:
    """Return the nodes of a model as they ran under a recipe's settings.

    Raises:
        DataError: a size of an input is not known.
        ModelError: the model does not run, or the provider's profile holds no node.
    """
    session = Session(profiled.content, provider, SessionSettings(optimize=False))
    shapes = concrete_shapes(session.inputs, recipe.input_shape, recipe.batch)
    feeds = random_inputs(session.inputs, shapes, recipe.seed)
    del session
    threads = recipe.threads or physical_cores()
    return profile_model(profiled.content, feeds, provider, threads=threads, runs=_RUNS, warmup=_WARMUP)


def times_by_layer(nodes: Sequence[NodeTime], model: Model, layers: Collection[str]) -> dict[str, float]:
    """Add the times of profiled nodes up by the layer they belong to, else by the graph's node, else as `OTHERS`."""
    by_name = {node.name: node for node in model.nodes}
    producers = {tensor.name: node for node in model.nodes for tensor in node.outputs}
    known = dict.fromkeys(layers)
    total: defaultdict[str, float] = defaultdict(float)
    for timed in nodes:
        name = timed.serves or timed.name
        stem = _ADDED.sub("", name)
        node = by_name.get(name) or by_name.get(stem) or producers.get(stem)
        total[OTHERS if node is None else _layer_of(node, producers, known)] += timed.ms
    return dict(total)


def _layer_of(node: gs.Node, producers: Mapping[str, gs.Node], layers: Mapping[str, object]) -> str:
    """Return the layer that a node is, is a part of, or was fused into: the first one before it."""
    at: gs.Node | None = node
    for _ in range(_MOST_STEPS):
        if at is None:
            break
        origin = origin_of(at.name, layers)
        if origin in layers:
            return origin
        if at.op not in _FUSED_BEHIND:
            break
        before = [producers[tensor.name] for tensor in at.inputs if tensor.name in producers]
        at = next((each for each in before if origin_of(each.name, layers) in layers), before[0] if before else None)
    return str(node.name)


def _weightless(
    before: Mapping[str, float], after: Mapping[str, float], original: Model, compressed: Model
) -> list[LayerChange]:
    """Return rows for what has no weights: each node that takes its share of the time, and all others together."""
    ops = {node.name: node.op for model in (compressed, original) for node in model.nodes}
    in_original = {node.name for node in original.nodes}
    least = _WORTH_A_ROW * max(sum(before.values()), sum(after.values()), 0.0)
    rows: list[LayerChange] = []
    rest = [0.0, 0.0]
    for name in dict.fromkeys((*before, *after)):
        times = before.get(name, 0.0), after.get(name, 0.0)
        if name == OTHERS or max(times) < least:
            rest = [rest[0] + times[0], rest[1] + times[1]]
            continue
        figure = 0 if name in in_original else None
        rows.append(LayerChange(name, ops[name], figure, 0, figure, 0, (), before.get(name), after.get(name)))
    if any(rest):
        rows.append(LayerChange(OTHERS, "", 0, 0, 0, 0, (), rest[0], rest[1]))
    return rows
