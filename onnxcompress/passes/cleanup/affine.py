"""What scales and shifts channels is folded into the linear node before it, else into the one behind it.

Per channel, y = a x + b. BatchNormalization in inference is y = s (x - m) / sqrt(v + e) + t, so a = s / sqrt(v + e) and
b = t - a m (s, t, m, v: the node's scale, bias, mean and variance). So are Mul, Div, Add and Sub with a constant that
is one number, or one for every channel.

Before it: x = W * z + c, for Conv, ConvTranspose (any group) and Gemm. Then y = (a W) * z + (a c + b), each output
channel of W scaled by its a. In Gemm, x = alpha A B + beta C gives y = alpha A (B a) + (a beta C + b).

Behind it: z = W * y + c, for Conv and Gemm. Then z = (W a) * x + (c + sum W b), each input channel of W scaled by its
a. Where a Conv pads with zeros, y is 0 in the padding while a x + b is b: this needs b = 0 there, or no padding.

Products and sums are taken in double precision and rounded once, to the type of the weight. Nodes that shared their
weight, as a layer applied several times does, share what it becomes where that is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.graph import Model
from onnxcompress.links import has_input
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.activations import activation_nodes
from onnxcompress.passes.cleanup.rule import (
    EXCLUDED,
    Rule,
    excluded,
    pinned_names,
    rewrite_pairs,
)
from onnxcompress.passes.recovery.refit_layers import write_bias

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
Side = Literal["before", "behind"]

_FOLDS_BEHIND = ("Conv", "ConvTranspose", "Gemm")
_FOLDS_BEFORE = ("Conv", "Gemm")
SCALES = frozenset({"Mul", "Div", "Add", "Sub"})
_STATISTICS = ("scale", "bias", "mean", "variance")
_DEFAULT_EPSILON = float(np.float32(1e-5))  # attributes are single precision
_WEIGHT_TYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, eq=False)
class Affine:
    """y = scale x + shift, one of each for every channel, shape (C,)."""

    scale: Doubles
    shift: Doubles


class _Folding(Rule):
    """Folds nodes of some operators into the weights of a neighbour.

    Attributes:
        ops: the operators.
        tells: whether a node that stays says why; of operators that often stand elsewhere nobody expects it.
    """

    ops: ClassVar[frozenset[str]]
    tells: ClassVar[bool]

    def spared(self, model: Model) -> frozenset[str]:
        """Return the names of nodes that are left to other rules."""
        return frozenset()

    def found(self, model: Model, context: PassContext) -> Iterator[Decision | Skipped]:
        """Yield the nodes to fold, and for every other the reason."""
        pinned = pinned_names(model)
        taken: set[str] = set()
        spared = cache(lambda: self.spared(model))
        for node in model.nodes:
            if node.op not in self.ops or not is_standard(node):
                continue
            found = _decide(model, node, pinned, context, taken)
            is_told = self.tells or not isinstance(found, str) or EXCLUDED in found
            if not is_told or node.name in spared():
                continue
            if isinstance(found, str):
                yield Skipped(node.name, found)
            else:
                taken.add(str(found["into"]))
                yield found

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Fold the planned nodes.

        Raises:
            RecipeError: the plan names nodes that the model does not have.
        """
        folded: dict[int, list[tuple[Array, gs.Node]]] = {}

        def fold(node: gs.Node, linear: gs.Node, own: Decision) -> gs.Node:
            weight = model.values(linear.inputs[1])
            removed = _fold(model, node, linear, own["side"])
            alike = folded.setdefault(id(weight), [])
            for _, other in alike:
                if all(np.array_equal(other.inputs[at].values, linear.inputs[at].values) for at in (1, 2)):
                    linear.inputs[1], linear.inputs[2] = other.inputs[1], other.inputs[2]
                    break
            else:
                alike.append((weight, linear))  # kept: no other array gets its number
            return removed

        rewrite_pairs(model, plan, "into", fold)
        return {}


class BatchNormFolding(_Folding):
    """Folds BatchNormalization into the weights of a neighbour."""

    name: ClassVar[str] = "batchnorm"
    does: ClassVar[str] = "folds BatchNormalization into a neighbour"
    ops: ClassVar[frozenset[str]] = frozenset({"BatchNormalization"})
    tells: ClassVar[bool] = True


class ScaleFolding(_Folding):
    """Folds factors and summands of channels into the weights of a neighbour."""

    name: ClassVar[str] = "scale"
    does: ClassVar[str] = "folds constant factors and summands into a neighbour"
    ops: ClassVar[frozenset[str]] = SCALES
    tells: ClassVar[bool] = False

    def spared(self, model: Model) -> frozenset[str]:
        """Return the parts of activations: without one of them nobody would know what the others are."""
        return activation_nodes(model)


def _decide(
    model: Model, node: gs.Node, pinned: frozenset[str], context: PassContext, taken: set[str]
) -> Decision | str:
    affine = affine_of(model, node)
    if isinstance(affine, str):
        return affine
    reasons = []
    for side in ("before", "behind"):
        linear, reason = _before(node, pinned) if side == "before" else _behind(model, node, pinned, affine)
        if linear is not None:
            objection = excluded([node, linear], context) or _misfit(model, linear, affine, side)
            if objection is None and node.op != "BatchNormalization" and len(linear.inputs[1].outputs) > 1:
                # A head that all levels of a pyramid share, each with a factor of its own: it would be there for each.
                objection = f"another node reads the weight of '{linear.name}', too"
            if objection is None and linear.name in taken:
                # Its weights are about to change; the next round looks again.
                return f"'{linear.name}' takes another {node.op} first"
            if objection is None:
                return {
                    "node": node.name,
                    "op": node.op,
                    "into": linear.name,
                    "side": side,
                    "weight": linear.inputs[1].name,
                    "input": scaled_tensor(node).name,
                    "output": node.outputs[0].name,
                    **_constants(node),
                }
            reason = objection
        reasons.append(f"{side}: {reason}")
    return "; ".join(reasons)


def scaled_tensor(node: gs.Node) -> gs.Tensor:
    """Return the tensor that is scaled and shifted."""
    if node.op == "BatchNormalization" or not isinstance(node.inputs[0], gs.Constant):
        return node.inputs[0]
    return node.inputs[1]


def _constants(node: gs.Node) -> dict[str, str]:
    """Return the names of the constants that say how a node scales and shifts."""
    if node.op == "BatchNormalization":
        return {key: node.inputs[i].name for i, key in enumerate(_STATISTICS, 1)}
    return {"constant": next(t.name for t in node.inputs if isinstance(t, gs.Constant))}


def affine_of(model: Model, node: gs.Node) -> Affine | str:
    """Return what a node computes of every channel, or why that is not known before the model runs."""
    return _normalization(model, node) if node.op == "BatchNormalization" else _arithmetic(model, node)


def _arithmetic(model: Model, node: gs.Node) -> Affine | str:
    """Return what a Mul, Div, Add or Sub with a constant computes of the channels, which lie along axis 1."""
    constants = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    if len(constants) != 1:
        return "it has no constant operand, or nothing else"
    if _ends_gelu(node) or _ends_layer_norm(node):
        return "runtimes know the Gelu or LayerNormalization that it ends"
    source, shape = scaled_tensor(node), model.shape_of(scaled_tensor(node))
    values = model.values(constants[0])
    if shape is None or len(shape) < 2 or not isinstance(shape[1], int):
        return f"the number of channels of '{source.name}' is not known"
    channels = shape[1]
    axes = (1,) * (len(shape) - values.ndim) + values.shape
    if len(axes) > len(shape) or any(size != 1 for axis, size in enumerate(axes) if axis != 1):
        return f"'{constants[0].name}' differs along other axes than that of the channels"
    if axes[1] not in (1, channels):
        return f"'{constants[0].name}' makes {axes[1]} channels of {channels}"
    own = np.broadcast_to(values.astype(np.float64).reshape(-1), channels)
    ones, zeros = np.ones(channels), np.zeros(channels)
    with np.errstate(all="ignore"):
        if node.op == "Mul":
            affine = Affine(own, zeros)
        elif node.op == "Add":
            affine = Affine(ones, own)
        elif node.op == "Sub":
            affine = Affine(ones, -own) if node.inputs[0] is source else Affine(-ones, own)
        elif node.inputs[0] is source:
            affine = Affine(1.0 / own, zeros)
        else:
            return f"'{node.name}' divides by '{source.name}'"
    if not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
        return f"'{constants[0].name}' is not finite, or a divisor of zero"
    return affine


def _ends_gelu(node: gs.Node) -> bool:
    """Whether a node is the half of x (1 + erf(x / sqrt 2)) / 2, or of its form with a tanh."""

    def makes(tensor: gs.Tensor, *ops: str) -> bool:
        return any(maker.op in ops for maker in tensor.inputs)

    return any(
        before.op == "Mul" and makes(operand, "Add") and any(makes(t, "Erf", "Tanh") for t in operand.inputs[0].inputs)
        for before in scaled_tensor(node).inputs
        for operand in before.inputs
    )


def _ends_layer_norm(node: gs.Node) -> bool:
    """Whether a node is the scale or the shift of rows (N, C) that are divided by a root: x / sqrt(v + e) g + b."""
    for _ in range(2):
        before = scaled_tensor(node).inputs
        if not before or before[0].op not in ("Mul", "Div"):
            return False
        node = before[0]
        if node.op == "Div":
            return any(maker.op == "Sqrt" for maker in node.inputs[1].inputs)
    return False


def _normalization(model: Model, node: gs.Node) -> Affine | str:
    """Return what a BatchNormalization computes in inference."""
    if node.attrs.get("training_mode", 0) or any(t.name for t in node.outputs[1:]):
        return "is in training mode: its statistics are those of the batch"
    if not node.attrs.get("spatial", 1):
        return "normalises every position on its own (spatial=0)"
    statistics = []
    for position, what in enumerate(_STATISTICS, 1):
        tensor = node.inputs[position]
        if not isinstance(tensor, gs.Constant):
            return f"its {what} '{tensor.name}' is computed"
        statistics.append(model.values(tensor).astype(np.float64).reshape(-1))
    scale, bias, mean, variance = statistics
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", _DEFAULT_EPSILON)))
        shift = bias - factor * mean
    if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
        return "its variance plus epsilon is not positive, or its statistics are not finite"
    return Affine(factor, shift)


def _before(node: gs.Node, pinned: frozenset[str]) -> tuple[gs.Node | None, str]:
    """Return the node before that can take the scale and the shift, or why there is none."""
    source = scaled_tensor(node)
    if not source.inputs:
        return None, f"'{source.name}' is computed by no node"
    linear = source.inputs[0]
    if linear.op not in _FOLDS_BEHIND or not is_standard(linear):
        return None, f"'{linear.name}' is a {linear.op}, not one of {', '.join(_FOLDS_BEHIND)}"
    if source.name in pinned:
        return None, f"'{source.name}' is a graph output or read by a sub-graph"
    if len(source.outputs) != 1:
        return None, f"'{source.name}' has {len(source.outputs)} readers"
    return linear, ""


def _behind(model: Model, node: gs.Node, pinned: frozenset[str], affine: Affine) -> tuple[gs.Node | None, str]:
    """Return the node behind that can take the scale and the shift, or why there is none."""
    target = node.outputs[0]
    if target.name in pinned:
        return None, f"'{target.name}' is a graph output or read by a sub-graph"
    if len(target.outputs) != 1:
        return None, f"'{target.name}' has {len(target.outputs)} readers"
    linear = target.outputs[0]
    if linear.op not in _FOLDS_BEFORE or not is_standard(linear) or linear.inputs[0] is not target:
        return None, f"'{linear.name}' ({linear.op}) is not a {' or '.join(_FOLDS_BEFORE)} of '{target.name}'"
    if linear.op == "Gemm" and linear.attrs.get("transA", 0):
        return None, f"'{linear.name}' transposes its input"
    if linear.op == "Conv" and affine.shift.any() and _pads_with_zeros(model, linear):
        return None, f"'{linear.name}' pads with zeros, which are not zero before the {node.op}"
    return linear, ""


def _pads_with_zeros(model: Model, conv: gs.Node) -> bool:
    shape = model.shape_of(conv.inputs[1])
    automatic = conv.attrs.get("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        # A kernel of one position never reaches outside.
        return shape is None or any(size != 1 for size in shape[2:])
    return automatic == "NOTSET" and any(conv.attrs.get("pads", ()))


def _misfit(model: Model, linear: gs.Node, affine: Affine, side: str) -> str | None:
    """Return why a linear node's weights cannot take the factors, None if they can."""
    weight = linear.inputs[1]
    if not isinstance(weight, gs.Constant):
        return f"the weight of '{linear.name}' is computed"
    if has_input(linear, 2) and not isinstance(linear.inputs[2], gs.Constant):
        return f"the bias of '{linear.name}' is computed"
    values = model.values(weight)
    if values.dtype.name not in _WEIGHT_TYPES:
        return f"the weight of '{linear.name}' is of type {values.dtype}"
    channels = _channel_factors(linear, values.shape, affine.scale, side)
    if channels is None:
        return f"'{linear.name}' does not have {affine.scale.size} channels on that side"
    if values.size:
        with np.errstate(over="ignore"):
            limit = np.float64(np.abs(channels).max()) * np.float64(np.abs(values).max())
            fits = np.isfinite(np.asarray([limit, np.abs(affine.shift).max()]).astype(values.dtype).astype(np.float64))
        if not fits.all():
            return f"the folded weight of '{linear.name}' would overflow {values.dtype}"
    return None


def _channel_factors(linear: gs.Node, shape: tuple[int, ...], per_channel: Doubles, side: str) -> Doubles | None:
    """Arrange one number a channel so that it broadcasts against the weight; None if the channels do not match.

    Weights are (O, I/g, k...) for Conv, (I, O/g, k...) for ConvTranspose and (K, N), or (N, K) with transB, for Gemm.
    """
    groups = int(linear.attrs.get("group", 1))
    tail = (1,) * (len(shape) - 2)
    if linear.op == "Gemm":
        axis = 0 if (side == "before") == bool(linear.attrs.get("transB", 0)) else 1
        return per_channel.reshape((-1, 1) if axis == 0 else (1, -1)) if shape[axis] == per_channel.size else None
    if linear.op == "Conv" and side == "before":
        return per_channel.reshape(-1, 1, *tail) if shape[0] == per_channel.size else None
    if shape[1] * groups != per_channel.size or shape[0] % groups:
        return None
    # Each group has its own channels on this side: rows of the weight come in groups, as ConvTranspose's inputs do.
    return np.repeat(per_channel.reshape(groups, shape[1]), shape[0] // groups, axis=0).reshape(*shape[:2], *tail)


def _fold(model: Model, node: gs.Node, linear: gs.Node, side: Side) -> gs.Node:
    """Fold a node into its neighbour; return it, to be removed."""
    affine = affine_of(model, node)
    assert isinstance(affine, Affine), affine
    weight = model.values(linear.inputs[1])
    factors = _channel_factors(linear, weight.shape, affine.scale, side)
    assert factors is not None
    bias = model.values(linear.inputs[2]).astype(np.float64) if has_input(linear, 2) else np.zeros(1)
    bias = bias * float(linear.attrs.get("beta", 1.0))
    if side == "before":
        bias = bias * affine.scale + affine.shift
    else:
        shifts = _channel_factors(linear, weight.shape, affine.shift, side)
        assert shifts is not None
        summed = (weight.astype(np.float64) * shifts).sum(axis=_input_axes(linear, weight.ndim))
        bias = bias + float(linear.attrs.get("alpha", 1.0)) * summed
    linear.attrs.pop("beta", None)
    model.set_input(linear, 1, (weight.astype(np.float64) * factors).astype(weight.dtype))
    write_bias(model, [linear], bias)
    source, target = scaled_tensor(node), node.outputs[0]
    node.inputs.clear()
    node.outputs.clear()
    if side == "before":
        linear.outputs[0] = target
    else:
        linear.inputs[0] = source
    return node


def _input_axes(linear: gs.Node, rank: int) -> tuple[int, ...]:
    """Return the axes of the weight that the node sums over."""
    if linear.op == "Gemm":
        return (1,) if linear.attrs.get("transB", 0) else (0,)
    return tuple(range(1, rank))
