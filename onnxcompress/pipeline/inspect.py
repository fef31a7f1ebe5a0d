"""What a model is made of, and what of it can be compressed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from onnxcompress.analysis.channels import ChannelAnalysis, ChannelGroups, Group, find_groups
from onnxcompress.analysis.cost import model_cost
from onnxcompress.analysis.shapes import fold_static_values
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.tucker import (
    SvdConfig,
    SvdDecomposition,
    TuckerConfig,
    TuckerDecomposition,
)
from onnxcompress.pipeline.source import InputShapes, ModelLike, Source, read_source
from onnxcompress.report.inspection import GroupFigures, Inspection, LayerFigures


def inspect(model: ModelLike, *, input_shapes: InputShapes | None = None) -> Inspection:
    """Look at a model without changing it.

    Args:
        model: a path, serialized bytes, an `onnx.ModelProto` or a `Model`.
        input_shapes: full shapes of inputs whose sizes the model leaves open, for the MACs.

    Raises:
        ModelError: the model cannot be read or is invalid.
        RecipeError: `input_shapes` does not fit the model.
    """
    return inspection_of(read_source(model, input_shapes))


def inspection_of(source: Source) -> Inspection:
    """Look at a model that was read; it is not changed."""
    cost = model_cost(source.model)
    groups = channel_groups(source.model)
    group_of = {node: group.name for group in groups.groups for node in group.producers}
    split, not_split = _splits(source.model)
    nodes = {node.name: node for node in source.model.nodes}
    layers = tuple(
        LayerFigures(
            node=layer.node,
            op=layer.op,
            weight=_weight_shape(nodes[layer.node]),
            params=layer.params,
            macs=layer.macs,
            group=group_of.get(layer.node),
            split=split.get(layer.node),
            not_split=None if layer.node in split else not_split.get(layer.node),
        )
        for layer in cost.layers
    )
    return Inspection(source.figures(cost), layers, tuple(_group_figures(group) for group in groups.groups))


def channel_groups(model: Model) -> ChannelGroups:
    """Return the dependency groups that filter pruning works on."""
    prepared = model.copy()
    if fold_static_values(prepared):
        prepared.refresh_shapes()
    return find_groups(ChannelAnalysis(prepared))


def _splits(model: Model) -> tuple[dict[str, str], dict[str, str]]:
    """Return how `auto` would split each node, and why it would not split the others."""
    split: dict[str, str] = {}
    not_split: dict[str, str] = {}
    passes = (TuckerDecomposition(TuckerConfig.from_spec("auto")), SvdDecomposition(SvdConfig.from_spec("auto")))
    for each in passes:
        plan = each.plan(model, PassContext())
        split |= {str(decision["node"]): _described(each.name, decision) for decision in plan.decisions}
        # Of two reasons the later one counts: what Tucker leaves to SVD, SVD has looked at.
        not_split |= {skipped.node: skipped.reason for skipped in plan.skipped}
    return split, not_split


def _described(pass_name: str, decision: Mapping[str, Any]) -> str:
    ranks = decision.get("ranks", decision.get("rank"))
    return f"{pass_name} {'x'.join(map(str, ranks)) if isinstance(ranks, Iterable) else ranks}"


def _weight_shape(node: Any) -> tuple[int, ...]:
    constants = [tensor for tensor in node.inputs[1:2] if Model.is_constant(tensor)]
    return tuple(int(size) for size in constants[0].shape) if constants else ()


def _group_figures(group: Group) -> GroupFigures:
    return GroupFigures(
        name=group.name,
        channels=group.size,
        prunable=int(group.prunable.sum()),
        producers=group.producers,
        consumers=group.consumers,
        kept=dict(Counter(group.frozen.values()).most_common()),
    )
