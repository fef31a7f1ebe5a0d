"""Rewriting the graph: one node becomes a chain of nodes with the same output tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_graphsurgeon as gs

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg.spanning import spanned_axes
from onnxcompress.links import has_input
from onnxcompress.passes.tucker.factors import SplitShape, SplitWeights
from onnxcompress.passes.tucker.sites import (
    ConvSite,
)


@dataclass(frozen=True)
class Link:
    """One node of a chain.

    Attributes:
        suffix: appended to the replaced node's name.
        op: operator.
        attributes: of the node.
        operands: its inputs after the first, which is the chain's previous tensor.
    """

    suffix: str
    op: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    operands: Sequence[gs.Tensor] = ()


def replace_by_chain(model: Model, node: gs.Node, links: Sequence[Link]) -> None:
    """Put a chain of nodes where `node` stood, from its first input to its output tensor, which stay."""
    tensor, output = node.inputs[0], node.outputs[0]
    # A tensor has one producer: the old node lets go of its output before the last new one takes it.
    node.outputs.clear()
    built = []
    for link in links:
        name = model.unique_name(node.name + link.suffix)
        result = output if link is links[-1] else model.new_variable(f"{name}_output")
        inputs = [tensor, *link.operands]
        built.append(gs.Node(link.op, name, dict(link.attributes), inputs=inputs, outputs=[result]))
        tensor = result
    model.replace_node(node, built)


def require_distinct(nodes: Iterable[str]) -> None:
    """Refuse a plan that splits a node twice.

    Raises:
        RecipeError: a name stands twice.
    """
    twice = [node for node, count in Counter(nodes).items() if count > 1]
    if twice:
        raise RecipeError(f"plan: node '{twice[0]}' is split twice")


def split_constants(model: Model, site: ConvSite, weights: SplitWeights) -> list[gs.Constant]:
    """Add the weights of a split to the model: one constant for each of its convolutions, in their order."""
    return [
        model.new_constant(f"{site.node}_tucker_{factor}_weight", array)
        for factor, array in (("in", weights.first), ("core", weights.core), ("out", weights.last))
        if array is not None
    ]


def replace_conv(model: Model, node: gs.Node, groups: int, split: SplitShape, constants: Sequence[gs.Constant]) -> None:
    """Put the convolutions of a split in a node's place, the bias on the last.

    Zero padding commutes with the first convolution, which has no bias: pads stay with the core, like strides,
    dilations and whatever else the node has, but for the axes of the kernel that the first one spans.
    """
    bias = [node.inputs[2]] if has_input(node, 2) else []
    kernel = [int(size) for size in node.inputs[1].shape[2:]]
    spanned = spanned_axes(split.spans, len(kernel))
    rest = [axis for axis in range(len(kernel)) if axis not in spanned]
    of_core = _along(node.attrs, rest, kernel) if split.spans else dict(node.attrs)
    attributes = {
        "in": _along(node.attrs, spanned, kernel) if split.spans else {},
        "core": of_core,
        "out": {"kernel_shape": [1] * len(kernel), "group": groups},
    }
    attributes["in"] = attributes["in"] or attributes["out"]
    links = []
    for factor, constant in zip(split.factors, constants, strict=True):
        is_core, is_last = factor == "core", factor == split.factors[-1]
        links.append(
            Link(
                suffix=f"_tucker_{factor}",
                op=node.op if is_core else "Conv",
                attributes=attributes[factor],
                operands=[constant, *(bias if is_last else [])],
            )
        )
    replace_by_chain(model, node, links)


def _along(attributes: Mapping[str, Any], axes: Collection[int], kernel: Sequence[int]) -> dict[str, Any]:
    """Return a convolution's attributes for some axes of its kernel; along the others nothing happens."""
    count = len(kernel)
    kept = dict(attributes)
    kept["kernel_shape"] = [size if axis in axes else 1 for axis, size in enumerate(kernel)]
    for name, idle in (("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in kept:
            kept[name] = [value if at % count in axes else idle for at, value in enumerate(kept[name])]
    return kept
