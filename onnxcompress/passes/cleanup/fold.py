"""Nodes whose output is the same for every input are replaced by constants: y = f(c).

Two kinds. Shape arithmetic of which every element is static, though it starts from a tensor that is not
(`analysis.shapes`). And nodes that read constants only, computed by onnxruntime's CPU kernels without its optimiser, so
that the constant has the very bits that would have been computed at run time.

A constant may not be larger than what it was computed from, small ones apart: a compressor that unpacks weights helps
nobody. For the same reason weights stored in half precision or quantised stay packed, and scales that are the product
of two others stay so. What is made of the same weight twice is one again. What is random, holds a sub-graph or is of
another domain stays, but for an If whose condition is known (`branches`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxcompress.analysis.shapes import ShapeValues
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.links import cut_links
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.branches import is_decided, take_branches
from onnxcompress.passes.cleanup.constant_values import compute
from onnxcompress.passes.cleanup.rule import Rule, excluded, pinned_names, planned_node, remove_nodes
from onnxcompress.tensor_bytes import is_one_layers

Array = npt.NDArray[Any]

ALWAYS_FOLDED_BYTES = 16 * 1024
"""Outputs up to this size are folded however small the inputs are."""
MAX_FOLDED_BYTES = 512 * 1024 * 1024
"""Larger ones stay: they would be held several times over while they are computed."""

_SMALL_BYTES = 1024
"""Smaller tensors are neither shared nor left packed: a file saves next to nothing by it."""

_RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"})
_WITH_SUB_GRAPHS = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_UNPACKS_WEIGHTS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})
_STATIC, _CONSTANT, _DECIDED = "shape arithmetic", "constants", "condition"


class ConstantFolding(Rule):
    """Computes before the run what does not depend on the input."""

    name: ClassVar[str] = "fold"
    does: ClassVar[str] = "computes constants beforehand"

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the nodes to fold; a node of constants that stays says why."""
        pinned = pinned_names(model)
        shape_values = ShapeValues(model)
        candidates = _Candidates(model, pinned, context)
        static: set[str] = set()
        decided: set[str] = set()
        for node in model.nodes:
            if is_decided(model, node):
                if reason := excluded([node], context):
                    candidates.skipped[node.name] = reason
                else:
                    decided.add(node.name)
                continue
            if candidates.consider(node) or (candidates.skipped.get(node.name) and _unpacks(model, node)):
                continue
            if _is_static(node, shape_values, pinned):
                if reason := excluded([node], context):
                    candidates.skipped[node.name] = reason
                    continue
                static.add(node.name)
                candidates.skipped.pop(node.name, None)
                candidates.constant.update(tensor.name for tensor in node.outputs if tensor.name)
        _, failed = compute(model, candidates.nodes, _known(model, shape_values, static))
        kinds = dict.fromkeys(static, _STATIC) | dict.fromkeys(decided, _DECIDED)
        kinds |= {n.name: _CONSTANT for n in candidates.nodes if n.name not in failed}
        for node in model.nodes:
            if node.name in kinds:
                outputs = [tensor.name for tensor in node.outputs if tensor.name]
                yield {"node": node.name, "op": node.op, "output": outputs, "from": kinds[node.name]}
        for name, reason in {**candidates.skipped, **failed}.items():
            yield Skipped(name, reason)

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Put constants in place of the planned nodes' outputs.

        Raises:
            RecipeError: the plan names nodes that the model does not have or that are not constant in it.
        """
        nodes = {node.name: node for node in model.nodes}
        planned = [(planned_node(nodes, decision), decision["from"]) for decision in plan.decisions]
        shape_values = ShapeValues(model)
        static = {node.name for node, kind in planned if kind == _STATIC}
        known = _known(model, shape_values, static)
        values, failed = compute(model, [node for node, kind in planned if kind == _CONSTANT], known)
        for name, reason in failed.items():
            raise RecipeError(f"plan: clean-up folds node '{name}', which is not constant in this model ({reason})")
        values |= known
        folded = [node for node, kind in planned if kind != _DECIDED]
        outputs = [tensor for node in folded for tensor in node.outputs if tensor.name]
        same = _made_twice(folded, values)
        cut_links(folded)
        remove_nodes(model, folded)
        for tensor in outputs:
            if tensor.name in values:
                tensor.to_constant(np.array(values[tensor.name]))
            elif tensor.outputs:
                raise RecipeError(f"plan: clean-up folds '{tensor.name}', which is not constant in this model")
        for tensor, first in same:
            for reader in list(tensor.outputs):
                for position in [at for at, read in enumerate(reader.inputs) if read is tensor]:
                    reader.inputs[position] = first
        decided = [node for node, kind in planned if kind == _DECIDED]
        for node in decided:
            if not is_decided(model, node):
                raise RecipeError(f"plan: clean-up takes a branch of '{node.name}', which is not decided in this model")
        if decided:
            take_branches(model, {node.name for node in decided})
        return {}


def _made_twice(nodes: Iterable[gs.Node], values: Mapping[str, Array]) -> list[tuple[gs.Tensor, gs.Tensor]]:
    """Return weights that are made once more of what another was made of, each with that one.

    They are a layer's that is applied several times, and stay one: see `importing`. Equal rows may be so by chance.
    """
    sources: dict[str, frozenset[int]] = {}
    first: dict[tuple[Any, ...], gs.Tensor] = {}
    found: list[tuple[gs.Tensor, gs.Tensor]] = []
    for node in nodes:
        own = [frozenset({id(t.values)}) if isinstance(t, gs.Constant) else sources.get(t.name) for t in node.inputs]
        for tensor in node.outputs:
            sources[tensor.name] = frozenset().union(*(each or () for each in own))
            made = values.get(tensor.name)
            if made is None or made.nbytes < _SMALL_BYTES or not is_one_layers(made):
                continue
            other = first.setdefault((sources[tensor.name], made.dtype, made.shape), tensor)
            if other is not tensor and values[other.name].tobytes() == made.tobytes():
                found.append((tensor, other))
    return found


def _is_product_of_scales(node: gs.Node) -> bool:
    """Whether a node multiplies scales of conversions to that of others: so a small file has those of its biases."""
    made = node.outputs[0]
    return (
        node.op == "Mul"
        and bool(made.outputs)
        and all(_reads_scale(reader, made) for reader in made.outputs)
        and all(any(_reads_scale(reader, scale) for reader in scale.outputs) for scale in node.inputs)
    )


def _reads_scale(reader: gs.Node, tensor: gs.Tensor) -> bool:
    return reader.op in _UNPACKS_WEIGHTS and any(read is tensor for read in reader.inputs[1:2])


def _unpacks(model: Model, node: gs.Node) -> bool:
    """Whether a node makes stored numbers wider for arithmetic only, as it does weights in half precision."""
    if node.op not in ("Cast", "CastLike") or not isinstance(node.inputs[0], gs.Constant):
        return False
    return model.dtypes.get(node.outputs[0].name) in _FLOATS and model.dtype_of(node.inputs[0]) != np.dtype(np.bool_)


def _is_static(node: gs.Node, shape_values: ShapeValues, pinned: frozenset[str]) -> bool:
    outputs = [tensor for tensor in node.outputs if tensor.name]
    known = [tensor for tensor in outputs if tensor.name not in pinned and shape_values.array(tensor) is not None]
    is_known = bool(outputs) and len(known) == len(outputs)
    return is_standard(node) and is_known and not _is_product_of_scales(node)


def _known(model: Model, shape_values: ShapeValues, static: Iterable[str]) -> dict[str, Array]:
    """Return {tensor name: values} of the static outputs of these nodes."""
    wanted = set(static)
    found = {}
    for tensor in (t for node in model.nodes if node.name in wanted for t in node.outputs):
        if (values := shape_values.array(tensor)) is not None:
            found[tensor.name] = values
    return found


class _Candidates:
    """Collects, in topological order, the nodes that read constants only and may be folded."""

    def __init__(self, model: Model, pinned: frozenset[str], context: PassContext) -> None:
        self.nodes: list[gs.Node] = []
        self.skipped: dict[str, str] = {}
        self.constant: set[str] = set()
        self._model, self._pinned, self._context = model, pinned, context

    def consider(self, node: gs.Node) -> bool:
        """Take the node if it reads constants only and nothing speaks against it; note why if something does."""
        given = [tensor for tensor in node.inputs if tensor.name]
        if not given or not all(isinstance(t, gs.Constant) or t.name in self.constant for t in given):
            return False
        reason = self._objection(node, given)
        if reason is not None:
            self.skipped[node.name] = reason
            return False
        self.nodes.append(node)
        self.constant.update(tensor.name for tensor in node.outputs if tensor.name)
        return True

    def _objection(self, node: gs.Node, given: list[gs.Tensor]) -> str | None:
        outputs = [tensor.name for tensor in node.outputs if tensor.name]
        if not is_standard(node):
            return f"{node.domain}.{node.op} is of another domain"
        if node.op in _RANDOM:
            return f"{node.op} may be random"
        if node.op in _UNPACKS_WEIGHTS:
            return "quantised weights stay packed"
        if _is_product_of_scales(node):
            return "the scales of a quantised bias stay the product of two that are stored anyway"
        if node.op in _WITH_SUB_GRAPHS:
            return f"{node.op} holds a sub-graph"
        pinned = sorted(self._pinned.intersection(outputs))
        if pinned:
            return f"'{pinned[0]}' is a graph output or read by a sub-graph"
        sizes = [self._size(name) for name in outputs]
        source = sum(self._size(t) or 0 for t in {t.name: t for t in given}.values())
        if None in sizes:
            return "the size of its output is not known"
        total = sum(size for size in sizes if size is not None)
        always = _SMALL_BYTES if _unpacks(self._model, node) else ALWAYS_FOLDED_BYTES
        if total > MAX_FOLDED_BYTES or (total > always and total > source):
            return f"its output of {total} bytes is larger than may be stored for {source} bytes of input"
        return excluded([node], self._context)

    def _size(self, tensor: gs.Tensor | str) -> int | None:
        """Return a tensor's bytes; None if not known."""
        if isinstance(tensor, gs.Constant):
            return int(self._model.values(tensor).nbytes)
        name = tensor if isinstance(tensor, str) else tensor.name
        shape, dtype = self._model.shape_of(name), self._model.dtypes.get(name)
        if shape is None or dtype in (None, onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            return None
        dims = [dim for dim in shape if isinstance(dim, int)]
        if len(dims) != len(shape):
            return None
        return math.prod(dims) * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype)).itemsize)
