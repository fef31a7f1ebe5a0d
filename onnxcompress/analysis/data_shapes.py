"""Tensors whose shape depends on what the data hold: as many boxes as were found, not one row for each sample.

Such tensors of two models cannot be held against each other: a small change adds a row or takes one away. They are
told from the graph: an operator whose output is as long as the values of an input say (NonMaxSuppression, NonZero,
TopK by a computed k), where those values come from data and not from shapes, and all that is computed of its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnxcompress.graph import Model
from onnxcompress.importing import names_read
from onnxcompress.subgraphs import sub_graphs, with_inner_nodes

_SHAPED_BY: Mapping[str, tuple[int, ...]] = {
    "NonMaxSuppression": (0, 1, 2, 3, 4),
    "NonZero": (0,),
    "Unique": (0,),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""{operator: the inputs whose values its outputs' shapes follow}."""

_CHOOSING = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress"})
"""In a sub-graph, whatever they read there."""

_AS_FIRST = frozenset({"Scatter", "ScatterElements", "ScatterND"})
"""Their output has the shape of their first input."""


_WORDS = onnx.TensorProto.STRING


@dataclass(frozen=True)
class DataShapes:
    """What a graph's tensors have of the data; both hold names.

    Attributes:
        valued: their values depend on what the model's inputs hold, not only on their shapes.
        shaped: their shapes do; so count outputs that hold no numbers, but words, sequences or maps.
        reads: {node: names that it reads, those that its sub-graphs take from outside included}.
    """

    valued: frozenset[str]
    shaped: frozenset[str]
    reads: Mapping[str, tuple[str, ...]]


def data_shapes(model: Model) -> DataShapes:
    """Find the tensors whose values, and those whose shapes, depend on the data.

    A tensor all of whose lengths are known has a shape that does not, whatever it is computed by.
    """
    nested = nested_nodes(model)
    reads = {node.name: tuple(names_read(nested[node.name])) for node in model.nodes if node.name in nested}
    valued = {tensor.name for tensor in model.graph.inputs}
    shaped: set[str] = set()
    for node in model.nodes:
        names = reads.setdefault(node.name, tuple(tensor.name for tensor in node.inputs if tensor.name))
        by_shape = node.op in ("Shape", "Size")
        if not shaped.isdisjoint(names) if by_shape else not valued.isdisjoint(names):
            valued.update(tensor.name for tensor in node.outputs)
        if by_shape or not _follows_data(node, names, valued, shaped, nested.get(node.name)):
            continue
        shaped.update(tensor.name for tensor in node.outputs if not _is_known(model, tensor))
    shaped.update(tensor.name for tensor in model.graph.outputs if not holds_numbers(model, tensor))
    return DataShapes(frozenset(valued - {""}), frozenset(shaped - {""}), reads)


def _follows_data(
    node: gs.Node, names: tuple[str, ...], valued: set[str], shaped: set[str], nested: onnx.NodeProto | None
) -> bool:
    """Whether the shape of what a node makes depends on the data."""
    own = names[:1] if node.op in _AS_FIRST else names
    if not shaped.isdisjoint(own):
        return True
    if any(at < len(node.inputs) and node.inputs[at].name in valued for at in _SHAPED_BY.get(node.op, ())):
        return True
    if nested is None or valued.isdisjoint(names):
        return False
    inner = (each for graph in sub_graphs(nested) for each in with_inner_nodes(graph.node))
    return any(each.op_type in _CHOOSING for each in inner)


def _is_known(model: Model, tensor: gs.Tensor) -> bool:
    shape = model.shape_of(tensor)
    return shape is not None and all(isinstance(length, int) for length in shape)


def holds_numbers(model: Model, tensor: gs.Tensor) -> bool:
    """Whether a tensor is one of numbers, and no words, sequence or map."""
    return isinstance(tensor, gs.Constant) or model.dtypes.get(tensor.name, _WORDS) != _WORDS


def nested_nodes(model: Model) -> dict[str, onnx.NodeProto]:
    """Return {node: it as the file has it} of nodes with sub-graphs, which graphsurgeon's nodes do not carry."""
    if not any(node.op in ("If", "Loop", "Scan", "SequenceMap") for node in model.nodes):
        return {}
    return {node.name: node for node in model.skeleton().graph.node if any(sub_graphs(node))}
