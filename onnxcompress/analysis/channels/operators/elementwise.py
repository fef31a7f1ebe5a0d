"""Element-wise operators: one operand carries its labels through, several are tied where they are not broadcast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import MOST_POSITIONS, Labels, same_layout
from onnxcompress.analysis.channels.operators.fills import is_fill, shorten_fill
from onnxcompress.analysis.channels.operators.layout import project
from onnxcompress.analysis.channels.operators.registry import operator

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis


@operator(
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Swish",
    "Mish",
    "Softplus",
    "Softsign",
    "Tanh",
    "Erf",
    "Gelu",
    "Exp",
    "Log",
    "Sqrt",
    "Reciprocal",
    "Neg",
    "Abs",
    "Sign",
    "Floor",
    "Ceil",
    "Round",
    "Not",
    "IsNaN",
    "IsInf",
    "Cast",
    "Identity",
    "Shrink",
    "ThresholdedRelu",
    "Sin",
    "Cos",
    "Tan",
    "Asin",
    "Acos",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Acosh",
    "Atanh",
    "Clip",
    "BitwiseNot",
)
def unary(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """The first input carries the labels; further inputs (bounds, types) are scalars."""
    analysis.set(node.outputs[0], analysis.of(node.inputs[0]))


@operator("CastLike")
def cast_like(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """The second input gives its type."""
    analysis.set(node.outputs[0], analysis.of(node.inputs[0]))
    analysis.ignore(node.inputs[1])


@operator("Dropout")
def dropout(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Output and mask have the input's layout."""
    for output in node.outputs:
        analysis.set(output, analysis.of(node.inputs[0]))


@operator(
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Mod",
    "Max",
    "Min",
    "Sum",
    "Mean",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Where",
    "PRelu",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
)
def broadcasting(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Operands aligned at their last axes; what has length one is broadcast and couples nothing."""
    tie_operands(analysis, node, range(len(node.inputs)), broadcast=True)


def tie_operands(
    analysis: ChannelAnalysis,
    node: gs.Node,
    positions: range,
    *,
    broadcast: bool,
    ignored_axis: int | None = None,
) -> Labels | None:
    """Tie the operands' labels position by position, slice constant operands, and label the output.

    Axes are the output's, with operands aligned at their last axis. Returns the output's labels.
    """
    rank = max((len(s) for p in positions if (s := analysis.shape(node.inputs[p])) is not None), default=0)
    if any(analysis.shape(node.inputs[p]) is None for p in positions):
        analysis.freeze_inputs(node, "combined with a tensor of unknown rank")
        return None
    carried: Labels | None = None
    for p in positions:
        labels = analysis.of(node.inputs[p])
        if labels is None:
            continue
        labels = labels.shifted(rank - len(analysis.shape(node.inputs[p]) or ()))
        if broadcast and _is_broadcast(analysis, node, positions, labels, rank):
            analysis.freeze(labels.ids, f"is broadcast over channels by '{node.name}'")
            continue
        if carried is None:
            carried = labels
        elif same_layout(carried, labels):
            analysis.tie(carried.ids, labels.ids, f"combined by '{node.name}' with a channel that stays")
        else:
            carried = _tie_finer(analysis, node, carried, labels)
            if carried is None:
                return None
    if carried is None and broadcast:
        carried = _of_a_constant(analysis, node, positions, rank)
    if carried is None:
        return None
    for p in positions:
        tensor = node.inputs[p]
        if analysis.of(tensor) is None and tensor.name:
            carried = _tie_unlabelled(analysis, node, p, carried, rank)
            if carried is None:
                return None
    if ignored_axis is None or ignored_axis not in carried.axes:
        analysis.set(node.outputs[0], carried)
    return carried


def _of_a_constant(analysis: ChannelAnalysis, node: gs.Node, positions: range, rank: int) -> Labels | None:
    """Return new labels where a constant is spread over what has length one: that axis is the constant's own.

    So a scale for each channel meets a statistic that was taken over them (1 / deviation * scale, which is multiplied
    with the channels after that). Where both are longer on an axis before it, every row has positions of its own.
    """
    shapes = [(1,) * (rank - len(s)) + tuple(s) for p in positions if (s := analysis.shape(node.inputs[p])) is not None]
    constant = [isinstance(node.inputs[p], gs.Constant) for p in positions]
    if constant.count(True) != 1 or len(shapes) != 2:
        return None
    own, other = shapes[constant.index(True)], shapes[constant.index(False)]
    spread = [axis for axis in range(rank) if own[axis] != 1 and other[axis] == 1]
    rows = [axis for axis in range(rank) if own[axis] != 1 and other[axis] == own[axis]]
    if len(spread) != 1 or any(own[axis] != 1 for axis in range(rank) if axis not in spread + rows):
        return None
    lengths = [int(own[axis] or 0) for axis in (*rows, *spread)]
    if len(rows) > 1 or rows > spread or math.prod(lengths) > MOST_POSITIONS:
        return None
    return Labels((*rows, *spread), analysis.fresh(math.prod(lengths)).reshape(lengths), (1,) * len(lengths))


def _is_broadcast(analysis: ChannelAnalysis, node: gs.Node, positions: range, labels: Labels, rank: int) -> bool:
    """Whether an operand has length one along its labels where another operand is longer."""
    if labels.ids.size != 1 or labels.inner != (1,):
        return False
    from_end = labels.axes[0] - rank
    for p in positions:
        shape = analysis.shape(node.inputs[p]) or ()
        if len(shape) >= -from_end and shape[from_end] != 1:
            return True
    return False


def _tie_finer(analysis: ChannelAnalysis, node: gs.Node, first: Labels, second: Labels) -> Labels | None:
    """Tie labels of the same axes but different granularity, one atom for each position.

    Where one operand's channels run along one of the other's two axes (a softmax over branches that weighs a stack of
    their maps), every row of the other keeps the same positions.
    """
    if first.axes != second.axes:
        first, second = _on_one_axis(analysis, node, first, second), _on_one_axis(analysis, node, second, first)
    fine_first, fine_second = first.expanded(), second.expanded()
    if fine_first is None or fine_second is None or not same_layout(fine_first, fine_second):
        for labels in (first, second):
            analysis.freeze(labels.ids, f"combined by '{node.name}' with channels on another axis")
        return None
    analysis.tie(fine_first.ids, fine_second.ids, f"combined by '{node.name}' with a channel that stays")
    return fine_first


def _on_one_axis(analysis: ChannelAnalysis, node: gs.Node, labels: Labels, other: Labels) -> Labels:
    """Return `labels` along the one axis of `other`, if it is one of theirs."""
    if len(other.axes) == 1 and len(labels.axes) > 1 and other.axes[0] in labels.axes:
        return project(analysis, node, labels, other.axes[0])
    return labels


def _tie_unlabelled(
    analysis: ChannelAnalysis, node: gs.Node, position: int, carried: Labels, rank: int
) -> Labels | None:
    """Slice a constant operand along the carried labels; a computed one of full length freezes them, unless a fill."""
    tensor = node.inputs[position]
    shape = analysis.shape(tensor) or ()
    offset = rank - len(shape)
    full = [i for i, axis in enumerate(carried.axes) if axis >= offset and shape[axis - offset] != 1]
    if not full:
        return carried
    if len(carried.axes) == 2 and full == [0]:  # spans only the rows: all stay, or it loses those that leave
        is_constant = isinstance(tensor, gs.Constant)
        analysis.balance(node, carried.ids, or_whole_rows=is_constant)
        if is_constant:
            analysis.slice_rows(node, position, carried.axes[0] - offset, carried.ids, carried.inner[0])
        return carried
    if not isinstance(tensor, gs.Constant):
        if is_fill(tensor) and len(full) == len(carried.axes) and None not in carried.inner:
            shorten_fill(analysis, node, position, carried.shifted(-offset))
            return carried
        analysis.freeze(carried.ids, f"combined by '{node.name}' with '{tensor.name}', which does not come from a Conv")
        return None
    known = carried
    if any(carried.inner[i] is None for i in full):
        inner = list(carried.inner)
        for i in full:
            inner[i] = int(tensor.shape[carried.axes[i] - offset]) // carried.ids.shape[i]
        known = Labels(carried.axes, carried.ids, tuple(inner))
    if len(full) < len(carried.axes):
        return _slice_partial(analysis, node, position, known, offset)
    analysis.slice(node, position, known.shifted(-offset))
    return carried


def _slice_partial(
    analysis: ChannelAnalysis, node: gs.Node, position: int, carried: Labels, offset: int
) -> Labels | None:
    """A constant that spans the second of two labelled axes: every row keeps the same positions."""
    if len(carried.axes) != 2:
        analysis.freeze(carried.ids, f"a constant of '{node.name}' covers some of its channels' axes")
        return None
    rows = carried.ids
    analysis.tie(rows[:1], rows, f"shares a constant of '{node.name}' with a channel that stays")
    analysis.slice(node, position, Labels((carried.axes[1] - offset,), rows[0], (carried.inner[1],)))
    return carried
