"""Shape values: what is known before the model runs of the integer vectors that a graph computes from shapes.

Exporters spell `x.view(n, groups, c // groups, h, w)` as Shape, Gather, Div and Concat nodes. Some elements are static
(`c`, whatever the batch), others are a dimension of some tensor; both matter to whoever changes channel counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcompress.analysis.elements import MAX_ELEMENTS, Array, Call, Elements
from onnxcompress.analysis.shape_rules import RULES
from onnxcompress.graph import Model
from onnxcompress.operators import is_standard

_MAX_FOLDING_ROUNDS = 8


class ShapeValues:
    """The statically known elements of a model's small tensors, in one pass in topological order.

    Whatever is odd is unknown; nothing here raises. The model is only read, and not followed when it changes.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._elements: dict[str, Elements] = {}
        self._dimensions: list[tuple[str, int]] = []
        self._numbers: dict[tuple[str, int], int] = {}
        self._tensor_attributes: dict[str, Mapping[str, Array]] | None = None
        for node in model.nodes:
            if is_standard(node) and node.op in RULES:
                self._evaluate(node)

    def values(self, tensor: gs.Tensor) -> tuple[int | None, ...] | None:
        """Return the elements of a 0-D or 1-D integer tensor, None for each that is not static.

        None instead of a tuple: nothing is known of the tensor, or it is of another type or rank.
        """
        elements = self._vector(tensor)
        if elements is None:
            return None
        flat = zip(elements.values.reshape(-1).tolist(), elements.known.reshape(-1).tolist(), strict=True)
        return tuple(int(value) if known else None for value, known in flat)

    def array(self, tensor: gs.Tensor) -> Array | None:
        """Return a tensor's values, of any type and rank, if every element is static. Do not write into them."""
        if isinstance(tensor, gs.Constant):
            return self._model.values(tensor)
        elements = self._elements.get(tensor.name)
        return elements.values if elements is not None and elements.static else None

    def origin(self, tensor: gs.Tensor) -> tuple[tuple[str, int] | None, ...] | None:
        """Return, for each element of a 0-D or 1-D integer tensor, the dimension that it is, whatever the input.

        A dimension is (tensor name, axis); None for an element that is computed in any other way or constant, and
        None instead of a tuple as in `values`.
        """
        elements = self._vector(tensor)
        if elements is None:
            return None
        return tuple(self._dimensions[n] if n >= 0 else None for n in elements.origins.reshape(-1).tolist())

    def _vector(self, tensor: gs.Tensor) -> Elements | None:
        if isinstance(tensor, gs.Constant):
            values = self._model.values(tensor)
            return Elements.of(values) if values.dtype.kind in "iu" and values.ndim <= 1 else None
        elements = self._elements.get(tensor.name)
        is_vector = elements is not None and elements.values.dtype.kind in "iu" and elements.values.ndim <= 1
        return elements if is_vector else None

    def _evaluate(self, node: gs.Node) -> None:
        inputs = [self._operand(tensor) for tensor in node.inputs]
        given = [bool(tensor.name) for tensor in node.inputs]
        if inputs and all(e is None for e in inputs) and node.op not in ("Shape", "Size"):
            return

        def origin(position: int, axis: int) -> int:
            return self._number((node.inputs[position].name, axis))

        shapes = [self._model.shape_of(tensor) for tensor in node.inputs]
        try:
            attributes = self._attributes(node)
            with np.errstate(all="ignore"):
                call = Call(inputs, given, shapes, len(node.outputs), attributes, self._model.opset, origin)
                found = RULES[node.op](call)
                parts = found if isinstance(found, list) else [found]
                by_output = list(zip(node.outputs, parts, strict=True))
        except Exception:  # an unusual node is unknown, whatever is unusual about it
            return
        for tensor, elements in by_output:
            small = elements.values.size <= MAX_ELEMENTS
            if tensor.name and small and not elements.empty_of_facts and self._agrees(tensor, elements):
                self._elements[tensor.name] = elements

    def _operand(self, tensor: gs.Tensor) -> Elements | None:
        """Return an input's elements. An integer tensor of known size counts, with none known: Concat can go on."""
        if isinstance(tensor, gs.Constant):
            values = self._model.values(tensor)
            return Elements.of(values) if values.size <= MAX_ELEMENTS and values.dtype.kind in "iubf" else None
        if tensor.name in self._elements:
            return self._elements[tensor.name]
        dtype, shape = self._dtype(tensor.name), self._model.shape_of(tensor)
        if dtype is None or dtype.kind not in "iub" or shape is None:
            return None
        dims = [dim for dim in shape if isinstance(dim, int)]
        if len(dims) != len(shape) or not 0 <= int(np.prod(dims, dtype=np.float64)) <= MAX_ELEMENTS:
            return None
        return Elements.of(np.zeros(dims, dtype), False)

    def _agrees(self, tensor: gs.Tensor, elements: Elements) -> bool:
        """Whether what was computed has the type and shape that shape inference expects."""
        dtype, shape = self._dtype(tensor.name), self._model.shape_of(tensor)
        if dtype is not None and dtype != elements.values.dtype:
            return False
        if shape is None:
            return True
        found = elements.values.shape
        return len(shape) == len(found) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(shape, found, strict=True)
        )

    def _dtype(self, name: str) -> np.dtype[Any] | None:
        element_type = self._model.dtypes.get(name)
        if element_type in (None, onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            return None
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type))

    def _number(self, dimension: tuple[str, int]) -> int:
        if dimension not in self._numbers:
            self._numbers[dimension] = len(self._dimensions)
            self._dimensions.append(dimension)
        return self._numbers[dimension]

    def _attributes(self, node: gs.Node) -> dict[str, Any]:
        attributes = dict(node.attrs)
        if node.op == "Cast" and isinstance(attributes.get("to"), int):
            attributes["to"] = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
        if node.op == "CastLike":
            attributes["to"] = self._dtype(node.outputs[0].name)
        if node.op == "ConstantOfShape":
            attributes.update(self._tensors_of(node))
        return attributes

    def _tensors_of(self, node: gs.Node) -> Mapping[str, Array]:
        """Return a node's tensor attributes, which graphsurgeon's nodes do not carry."""
        if self._tensor_attributes is None:
            self._tensor_attributes = {
                proto.name: {
                    attribute.name: onnx.numpy_helper.to_array(attribute.t)
                    for attribute in proto.attribute
                    if attribute.type == onnx.AttributeProto.TENSOR
                }
                for proto in self._model.skeleton().graph.node
                if proto.op_type == "ConstantOfShape"
            }
        return self._tensor_attributes[node.name]


def fold_static_values(model: Model) -> int:
    """Replace nodes whose output is static by constants of the same name, in place, and remove what is then unused.

    Exact: shapes, integers, and single operations of IEEE arithmetic. Nodes that give a graph output, or what a
    sub-graph reads, stay. Shapes are inferred anew where something was folded, which may make more of them static.

    Returns:
        The number of nodes removed.
    """
    before = len(model.nodes)
    kept = {tensor.name for tensor in model.graph.outputs} | model.captured_names()
    for _ in range(_MAX_FOLDING_ROUNDS):
        shape_values, folded = ShapeValues(model), False
        for node in model.nodes:
            outputs = [tensor for tensor in node.outputs if tensor.name]
            known = [None if tensor.name in kept else shape_values.array(tensor) for tensor in outputs]
            if outputs and all(values is not None for values in known):
                node.outputs.clear()
                for tensor, values in zip(outputs, known, strict=True):
                    tensor.to_constant(np.array(values))
                folded = True
        folded |= settle_reshape_targets(model, shape_values)
        if not folded:
            break
        model.remove_unused()
        model.refresh_shapes()
    return before - len(model.nodes)


def settle_reshape_targets(model: Model, shape_values: ShapeValues) -> bool:
    """Make computed targets of Reshape constant where `settled_target` finds one, in place; return whether it did."""
    changed = False
    for node in model.nodes:
        target = settled_target(model, node, shape_values)
        if target is not None:
            model.set_input(node, 1, np.array(target, np.int64))
            changed = True
    return changed


def settled_target(model: Model, node: gs.Node, shape_values: ShapeValues) -> list[int] | None:
    """Return a constant target for a Reshape whose target is computed but leaves at most one length open, else None.

    A length that is the input's own at the same place becomes 0 (copy), one other open length -1 (what is left): the
    same shapes, which shape inference can follow.
    """
    if node.op != "Reshape" or node.attrs.get("allowzero", 0) or isinstance(node.inputs[1], gs.Constant):
        return None
    known = shape_values.values(node.inputs[1])
    if known is None:
        return None
    origins = shape_values.origin(node.inputs[1]) or (None,) * len(known)
    before = model.shape_of(node.inputs[0]) or ()
    target = []
    for place, (length, origin) in enumerate(zip(known, origins, strict=True)):
        own = place < len(before) and _is_dimension(model, origin, node.inputs[0].name, place)
        target.append(0 if own else (length if length is not None else -1))
    return target if target.count(-1) <= 1 else None


def _is_dimension(model: Model, origin: tuple[str, int] | None, tensor: str, axis: int) -> bool:
    """Whether `origin` is the length of `tensor` along `axis`, itself or by the symbol they share."""
    if origin is None:
        return False
    if origin == (tensor, axis):
        return True
    symbol = (model.shape_of(tensor) or ())[axis]
    theirs = model.shape_of(origin[0])
    return isinstance(symbol, str) and theirs is not None and theirs[origin[1]] == symbol
