"""What a model costs: parameters, multiply-accumulates (MACs), bytes of weights.

MACs are those of Conv, ConvTranspose, Gemm and MatMul for one sample: an open batch dimension counts as 1, and what a
model with a fixed batch costs is divided by that batch. A figure whose sizes are not known is None.

The window of a banded LRN (`analysis.lrn`) is a Conv that stands for an operator whose arithmetic is in no count of
MACs: its MACs are counted apart, so that the exact rewrite makes no model look larger, and eats up no budget of MACs.
Its weights are parameters like others: they are in the file.

So are those in sub-graphs (If, Loop, Scan). MACs there are not counted: how often they run is told by the data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcompress.analysis.data_shapes import nested_nodes
from onnxcompress.analysis.lrn import is_window
from onnxcompress.analysis.shapes import fold_static_values
from onnxcompress.errors import ModelError, RecipeError
from onnxcompress.graph import Dim, Model, Shape
from onnxcompress.operators import is_standard
from onnxcompress.serialization import tensor_dtype
from onnxcompress.subgraphs import sub_graphs, with_sub_graphs

Shapes = Mapping[str, Shape]
"""{tensor name: shape} of everything that is not constant."""

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_MAX_FOLDING_ROUNDS = 4
_BATCHED_RANK = 3
"""From three axes on, the first axis of an input is taken as its batch; of fewer only where no input has three, or
where it goes by the same symbol."""


@dataclass(frozen=True)
class LayerCost:
    """One node that has weights or multiplies.

    Attributes:
        node: its name.
        op: operator.
        params: numbers in its constants, floating-point or quantised; a constant that several nodes read counts at the
            first. What a DequantizeLinear makes of a constant counts where it is read.
        macs: for one sample; None where a size is not known, 0 for operators that are not counted.
        lrn_macs: of the window of a banded LRN, which is not counted in `macs`; None where a size is not known.
    """

    node: str
    op: str
    params: int
    macs: int | None
    lrn_macs: int | None = 0


@dataclass(frozen=True)
class ModelCost:
    """A whole model.

    Attributes:
        params: elements of all floating-point and quantised constants; scales and zero points are none. Of these
            `nested_params` are in sub-graphs.
        macs: for one sample; None where a layer's are not known.
        weight_bytes: bytes of all constants, of whatever type.
        ops: {operator: how many nodes}, sorted by name.
        layers: in graph order.
        lrn_macs: for one sample, of the windows of banded LRNs, which are not in `macs`; None where not known.
    """

    params: int
    macs: int | None
    weight_bytes: int
    ops: Mapping[str, int]
    layers: tuple[LayerCost, ...]
    lrn_macs: int | None = 0
    nested_params: int = 0

    def layer(self, node: str) -> LayerCost | None:
        """Return the layer of a node, None where it has neither weights nor MACs."""
        return next((layer for layer in self.layers if layer.node == node), None)


def model_cost(model: Model) -> ModelCost:
    """Count parameters and MACs, layer by layer.

    Args:
        model: is only read. Sizes that it leaves open are those of its `input_shapes`, whose batch is divided out.

    Raises:
        RecipeError: `input_shapes` names no input, or a shape does not fit it.
    """
    shapes, batch = sample_shapes(model)
    layers = []
    nested = {name: _nested_params(node) for name, node in nested_nodes(model).items()}
    for node, own in _params_of_nodes(model):
        params = own + nested.get(node.name, 0)
        counts_macs = node.op in _MACS and is_standard(node)
        if params or counts_macs:
            macs = node_macs(node, shapes) if counts_macs else 0
            macs = None if macs is None else _per_sample(macs, batch)
            counts = (0, macs) if is_window(node, stored=True) else (macs, 0)
            layers.append(LayerCost(node.name, node.op, params, *counts))
    return ModelCost(
        params=_params(model) + sum(nested.values()),
        macs=_sum([layer.macs for layer in layers]),
        weight_bytes=model.weight_bytes,
        ops=dict(sorted(Counter(node.op for node in model.nodes).items())),
        layers=tuple(layers),
        lrn_macs=_sum([layer.lrn_macs for layer in layers]),
        nested_params=sum(nested.values()),
    )


def _params_of_nodes(model: Model) -> Iterator[tuple[gs.Node, int]]:
    """Yield every node but the conversions of quantised constants, with the parameters that it is the first to read."""
    counted: set[str] = set()
    for node in model.nodes:
        if _quantised_constant(node) is not None:
            continue
        params = 0
        for position, tensor in enumerate(node.inputs):
            maker = tensor.inputs[0] if isinstance(tensor, gs.Variable) and tensor.inputs else None
            source = _quantised_constant(maker) if maker is not None else tensor
            if isinstance(source, gs.Constant) and source.name not in counted:
                counted.add(source.name)
                of_conversion = node.op in _CONVERSIONS and position > 0
                params += 0 if of_conversion else _elements(model, source, quantised=source is not tensor)
        yield node, params


def _params(model: Model) -> int:
    """Return the elements of all parameters, those among them that only sub-graphs or outputs read."""
    quantised = {c.name for node in model.nodes if (c := _quantised_constant(node)) is not None}
    settings = {t.name for node in model.nodes if node.op in _CONVERSIONS for t in node.inputs[1:]}
    return sum(
        _elements(model, tensor, quantised=name in quantised)
        for name, tensor in model.constants().items()
        if name not in settings or name in quantised
    )


def _nested_params(node: onnx.NodeProto) -> int:
    """Return the elements of the floating-point constants in a node's sub-graphs."""
    total = 0
    for graph in (each for own in sub_graphs(node) for each in with_sub_graphs(own)):
        tensors = [*graph.initializer]
        for inner in graph.node:
            if inner.op_type == "Constant":
                tensors += [attribute.t for attribute in inner.attribute if attribute.name == "value"]
                total += sum(len(a.floats) + (a.name == "value_float") for a in inner.attribute)
        total += sum(math.prod(each.dims) for each in tensors if _is_float(tensor_dtype(each.data_type)))
    return total


def _quantised_constant(node: gs.Node) -> gs.Constant | None:
    """Return the constant that a node turns into floating-point numbers again, None where it does not."""
    if node.op != "DequantizeLinear" or not isinstance(node.inputs[0], gs.Constant):
        return None
    return node.inputs[0]


def open_inputs(model: Model) -> list[str]:
    """Return the graph's inputs with a length, other than the batch, that is not known."""
    shapes = {tensor.name: model.shape_of(tensor) for tensor in model.graph.inputs}
    batched = _batched(shapes)
    known = {name: (shape or ())[name in batched :] for name, shape in shapes.items()}
    return [name for name, shape in known.items() if not all(isinstance(length, int) for length in shape)]


def _batched(inputs: Mapping[str, Shape | None]) -> set[str]:
    """Return the inputs whose first axis is the batch: those of many axes, and those that share their symbol for it.

    What else has an open first axis beside them may be anything (regions of interest, ids); data or a shape tell.
    """
    smallest = _BATCHED_RANK if any(len(shape or ()) >= _BATCHED_RANK for shape in inputs.values()) else 2
    large = {name for name, shape in inputs.items() if shape is not None and len(shape) >= smallest}
    symbols = {shape[0] for name in large if isinstance((shape := inputs[name] or ())[0], str)}
    return large | {name for name, shape in inputs.items() if shape and shape[0] in symbols}


def sample_shapes(model: Model) -> tuple[dict[str, Shape], int]:
    """Return all shapes with every open batch set to 1 and `input_shapes` applied, and the batch that is left in them.

    Raises:
        RecipeError: `input_shapes` names no input, or a shape does not fit it.
    """
    given = model.input_shapes
    inputs = {tensor.name: model.shape_of(tensor) for tensor in model.graph.inputs}
    for name, asked in given.items():
        _check_fits(name, asked, inputs)
    batched = _batched(inputs)
    asked_batch: dict[Dim, int] = {
        own[0]: given[name][0] for name, own in inputs.items() if own and own[0] and name in given
    }
    concrete = {name: tuple(shape) for name, shape in given.items() if inputs[name] is not None}
    batches: set[int] = set()
    for name in batched:
        own = given[name][0] if name in given else (inputs[name] or (None,))[0]
        if not isinstance(own, int):
            own = asked_batch.get(own, 1)
            concrete[name] = (own,)  # `shapes_for` sets leading dimensions and leaves the others as they are
        batches.add(own)
    batch = batches.pop() if len(batches) == 1 else 1
    try:
        shapes = model.shapes_for(concrete) if concrete else dict(model.shapes)
    except ModelError as error:
        if given:
            raise RecipeError(f"input shape: the model cannot run at these shapes: {error}") from error
        return dict(model.shapes), 1
    return _completed(model, shapes, concrete), max(batch, 1)


def _completed(model: Model, shapes: dict[str, Shape], inputs: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Fill in what shape inference leaves open behind shape arithmetic (Shape, Gather, Slice, …) by folding it."""
    folded: Model | None = None
    for _ in range(_MAX_FOLDING_ROUNDS):
        if all(node_macs(node, shapes) is not None for node in model.nodes):
            break
        folded = folded or model.copy()
        # What folds depends on these shapes: with the batch known, more does.
        folded.shapes = shapes
        try:
            if not fold_static_values(folded):
                break
            made = {name: tuple(map(int, tensor.shape)) for name, tensor in folded.constants().items()}
            shapes = {**shapes, **folded.shapes_for(inputs), **made}
        except ModelError:  # a declared output shape may contradict this batch
            break
    return shapes


def node_macs(node: gs.Node, shapes: Shapes) -> int | None:
    """Return the multiply-accumulates of one node at the given shapes, None where a size is not known.

    Zero for every operator but Conv, ConvTranspose, Gemm and MatMul.
    """
    count = _MACS.get(node.op)
    if count is None or not is_standard(node):
        return 0
    operands = [_sizes(tensor, shapes) for tensor in (*node.inputs[:2], node.outputs[0])]
    if any(sizes is None for sizes in operands):
        return None
    return count(node, *(sizes for sizes in operands if sizes is not None))


Sizes = tuple[int | None, ...]


def _conv(node: gs.Node, data: Sizes, weight: Sizes, out: Sizes) -> int | None:
    # Every output position of a filter costs the filter's own size, (I / group) times the kernel.
    return _product((*weight, out[0], *out[2:]))


def _conv_transpose(node: gs.Node, data: Sizes, weight: Sizes, out: Sizes) -> int | None:
    # Every input position is spread by its channel's weights, (O / group) times the kernel.
    return _product((*weight, data[0], *data[2:]))


def _gemm(node: gs.Node, left: Sizes, right: Sizes, out: Sizes) -> int | None:
    inner = left[0] if node.attrs.get("transA", 0) else left[-1]
    return _product((*out, inner))


def _matmul(node: gs.Node, left: Sizes, right: Sizes, out: Sizes) -> int | None:
    return _product((*out, left[-1])) if left else None


_MACS: Mapping[str, Callable[[gs.Node, Sizes, Sizes, Sizes], int | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def _product(sizes: Sizes) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _sum(figures: Sequence[int | None]) -> int | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None


def _sizes(tensor: gs.Tensor, shapes: Shapes) -> Sizes | None:
    shape = tuple(tensor.shape) if isinstance(tensor, gs.Constant) else shapes.get(tensor.name)
    return None if shape is None else tuple(int(d) if isinstance(d, (int, np.integer)) else None for d in shape)


def _per_sample(macs: int, batch: int) -> int:
    # A layer that the batch does not reach (it multiplies constants) is not a multiple of it, and counts whole.
    return macs // batch if macs % batch == 0 else macs


def _elements(model: Model, tensor: gs.Constant, *, quantised: bool) -> int:
    values = model.values(tensor)
    return int(values.size) if quantised or _is_float(values.dtype) else 0


def _is_float(dtype: np.dtype[Any]) -> bool:
    # By name: bfloat16 and the 8-bit floats are extension types of numpy, and so are 4-bit integers.
    return "float" in dtype.name


def _check_fits(name: str, shape: Sequence[int], inputs: Mapping[str, Shape | None]) -> None:
    if name not in inputs:
        raise RecipeError(f"input shape: the model has no input '{name}'; its inputs are {', '.join(inputs) or 'none'}")
    own = inputs[name]
    if own is None:
        return
    fits = len(own) == len(shape) and all(
        not isinstance(size, int) or size == asked for size, asked in zip(own, shape, strict=True)
    )
    if not fits or any(size < 1 for size in shape):
        described = "x".join(str(size) if size is not None else "?" for size in own)
        raise RecipeError(
            f"input shape: '{name}' is {described} in the model, {'x'.join(map(str, shape))} does not fit it"
        )
