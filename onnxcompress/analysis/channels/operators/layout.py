"""Operators that only re-arrange axes: labels move as the data does, whatever is split, merged or swapped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import MOST_POSITIONS, Labels
from onnxcompress.analysis.channels.operators.registry import operator
from onnxcompress.graph import Dim, Shape

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis
    from onnxcompress.analysis.channels.surgery import Surgery

_MOVES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


@operator("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Axes are split and merged in row-major order; a permutation of channels spread over several nodes is one."""
    labels = analysis.of(node.inputs[0])
    if labels is None:
        analysis.freeze_counted(node, 1)
        return
    if _follow_permutation(analysis, node, labels):
        return
    moved = _moved(analysis, node, labels)
    if moved is None:
        analysis.freeze(labels.ids, f"'{node.name}' ({node.op}) mixes their axis with others in a way not known")
        return
    if len(moved.axes) > 2 and not _is_picked_apart(analysis, node.outputs[0], moved):
        moved = project(analysis, node, moved, _channel_axis(node, moved))
    if len(moved.axes) > 1:
        rows = moved.ids.reshape(-1, moved.ids.shape[-1])
        analysis.balance(node, rows, or_whole_rows=len(moved.axes) == 2)
    analysis.set(node.outputs[0], moved)
    if node.op == "Reshape":
        _resize_target(analysis, node, moved)


@operator("Transpose")
def transpose(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Axes are permuted. Where labelled axes change places, every row has to keep the same positions."""
    labels, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    perm = [int(axis) for axis in node.attrs.get("perm", range(len(shape))[::-1])]
    if not _keeps_order(perm, labels.axes):
        labels = project(analysis, node, labels, labels.axes[-1])
    analysis.set(node.outputs[0], labels.moved(perm.index(axis) for axis in labels.axes))


def project(analysis: ChannelAnalysis, node: gs.Node, labels: Labels, axis: int) -> Labels:
    """Tie what stands at the same place of `axis`, so that this axis alone carries the labels."""
    if labels.axes == (axis,):
        return labels
    at = labels.axes.index(axis)
    rows = np.moveaxis(labels.ids, at, 0).reshape(labels.ids.shape[at], -1)
    analysis.tie(rows[:, :1], rows, f"'{node.name}' ({node.op}) keeps the same positions beside a channel that stays")
    return Labels((axis,), np.ascontiguousarray(rows[:, 0]), (labels.inner[at],))


def hold_rows(analysis: ChannelAnalysis, node: gs.Node, labels: Labels) -> None:
    """Require that every row along the last labelled axis stays, and keeps the same number as the others."""
    rows = labels.ids.reshape(-1, labels.ids.shape[-1])
    analysis.balance(node, rows)
    analysis.keep_one(rows[0])


def on_channel_axis(analysis: ChannelAnalysis, node: gs.Node, labels: Labels) -> Labels:
    """Return the labels of an operator that takes axis 1 for channels and the rest for space."""
    return project(analysis, node, labels, 1) if 1 in labels.axes else labels


def _keeps_order(perm: list[int], axes: tuple[int, ...]) -> bool:
    places = [perm.index(axis) for axis in axes]
    return places == sorted(places)


def _is_picked_apart(analysis: ChannelAnalysis, tensor: gs.Tensor, labels: Labels) -> bool:
    """Whether all that reads a tensor takes parts along a labelled axis: q, k and v of all heads in one tensor."""
    rank = len(analysis.shape(tensor) or ())
    for reader in tensor.outputs:
        axes: tuple[int | None, ...] | None = None
        if reader.op == "Transpose" and "perm" in reader.attrs:
            perm = [int(axis) for axis in reader.attrs["perm"]]
            moved = labels.moved(perm.index(axis) for axis in labels.axes)
            if not _keeps_order(perm, labels.axes) or not _is_picked_apart(analysis, reader.outputs[0], moved):
                return False
            continue
        if reader.op in ("Split", "Gather"):
            axes = (int(reader.attrs.get("axis", 0)),)
        elif reader.op == "Slice":
            axes = analysis.ints(reader, 3)
        if axes is None or not all(axis is not None and axis % rank in labels.axes[:-1] for axis in axes):
            return False
    return bool(tensor.outputs)


def _channel_axis(node: gs.Node, labels: Labels) -> int:
    """Return which of three or more axes are the channels (a dense layer's output made a map): 1, as read."""
    readers = node.outputs[0].outputs
    perm = readers[0].attrs.get("perm") if len(readers) == 1 and readers[0].op == "Transpose" else None
    axis = 1 if perm is None else int(perm[1])
    return axis if axis in labels.axes else labels.axes[0]


def _resize_target(analysis: ChannelAnalysis, node: gs.Node, labels: Labels) -> None:
    """On removal, write the new lengths into Reshape's target where it names them."""
    target = analysis.ints(node, 1)

    def new_target(surgery: Surgery, pruned: gs.Node) -> None:
        lengths = dict(zip(labels.axes, surgery.kept_lengths(labels), strict=True))
        named = {a: n for a, n in lengths.items() if target is None or target[a] is None or target[a] > 0}  # type: ignore[operator]
        surgery.patch_vector(pruned, 1, {axis: length for axis, length in named.items() if length is not None})

    if any(count is None for count in labels.inner) and (
        target is None or any(t is None or t > 0 for t in (target[a] for a in _unknown_axes(labels)))
    ):
        analysis.freeze(labels.ids, f"the target of '{node.name}' names a length that is not known before the run")
        return
    analysis.on_removal(node, labels, new_target)


def _unknown_axes(labels: Labels) -> list[int]:
    return [axis for axis, count in zip(labels.axes, labels.inner, strict=True) if count is None]


def _moved(analysis: ChannelAnalysis, node: gs.Node, labels: Labels) -> Labels | None:
    before, after = analysis.shape(node.inputs[0]), analysis.shape(node.outputs[0])
    if before is None:
        return None
    if node.op == "Transpose":
        perm = [int(axis) for axis in node.attrs.get("perm", range(len(before))[::-1])]
        return labels.moved(perm.index(axis) for axis in labels.axes)
    if node.op in ("Squeeze", "Unsqueeze"):
        return _squeezed(analysis, node, labels, before)
    return None if after is None else reshaped(labels, before, after)


def _squeezed(analysis: ChannelAnalysis, node: gs.Node, labels: Labels, before: Shape) -> Labels | None:
    given = node.attrs.get("axes") if analysis.model.opset < 13 else analysis.ints(node, 1)
    if given is None and node.op == "Squeeze" and all(isinstance(dim, int) for dim in before):
        given = [axis for axis, dim in enumerate(before) if dim == 1]
    if given is None or None in given:
        return None
    rank = len(before) + (len(given) if node.op == "Unsqueeze" else 0)
    changed = {int(axis or 0) % rank for axis in given}
    if node.op == "Unsqueeze":
        places = [axis for axis in range(rank) if axis not in changed]
        return labels.moved(places[axis] for axis in labels.axes)
    single = [at for at, axis in enumerate(labels.axes) if axis in changed]
    if len(single) == len(labels.axes) or any(labels.ids.shape[at] * (labels.inner[at] or 0) != 1 for at in single):
        return None
    others = [at for at in range(len(labels.axes)) if at not in single]
    ids = labels.ids.reshape([labels.ids.shape[at] for at in others])
    labels = Labels(tuple(labels.axes[at] for at in others), ids, tuple(labels.inner[at] for at in others))
    return labels.moved(axis - sum(c < axis for c in changed) for axis in labels.axes)


def _follow_permutation(analysis: ChannelAnalysis, start: gs.Node, labels: Labels) -> bool:
    """Recognise moves that only permute channels (a channel shuffle) and treat them as one node.

    The pruned network gets one Gather in their place, so no position is tied to any other.
    """
    if len(labels.axes) != 1 or labels.inner != (1,):
        return False
    positions = Labels(labels.axes, np.arange(labels.ids.size, dtype=np.int64), (1,))
    node, chain, captured = start, [start], analysis.model.captured_names()
    moved = _moved(analysis, node, positions)
    if moved is None or len(moved.axes) == 1:
        return False
    while len(moved.axes) > 1:
        output = node.outputs[0]
        read_elsewhere = output.name in captured or any(output is t for t in analysis.model.graph.outputs)
        if len(output.outputs) != 1 or read_elsewhere:
            return False
        node = output.outputs[0]
        if node.op not in _MOVES or output is not node.inputs[0] or not _keeps_other_axes(node, moved):
            return False
        chain.append(node)
        if (step := _moved(analysis, node, moved)) is None:
            return False
        moved = step
    before, after = analysis.shape(start.inputs[0]), analysis.shape(node.outputs[0])
    if moved.axes != labels.axes or moved.inner != (1,) or not _same_shape(before, after, labels.axes[0]):
        return False
    order = moved.ids
    if not np.array_equal(np.sort(order), np.arange(labels.ids.size)):
        return False
    source, axis, final = labels, labels.axes[0], Labels(labels.axes, labels.ids[order], (1,))
    analysis.set(node.outputs[0], final)
    analysis.absorbed.update(member.name for member in chain[1:])
    end = node.name

    def one_gather(surgery: Surgery, first: gs.Node) -> None:
        last = surgery.node(end)
        kept = surgery.kept(source.ids)
        place = np.cumsum(kept) - 1
        indices = surgery.model.new_constant(f"{first.name}_order", place[order[kept[order]]])
        output = last.outputs[0]
        last.outputs.clear()
        name = surgery.model.unique_name(f"{first.name}_gather")
        gather = gs.Node("Gather", name, {"axis": axis}, [first.inputs[0], indices], [output])
        surgery.model.insert_before(last, [gather])

    analysis.on_removal(start, labels, one_gather)
    return True


def _keeps_other_axes(node: gs.Node, labels: Labels) -> bool:
    if node.op != "Transpose":
        return True
    perm = [int(axis) for axis in node.attrs.get("perm", [])]
    others = [axis for axis in perm if axis not in labels.axes]
    return bool(perm) and others == sorted(others)


def _same_shape(before: Shape | None, after: Shape | None, axis: int) -> bool:
    """Whether ranks agree and known lengths do (a length lost to inference cannot disagree with itself)."""
    if before is None or after is None or len(before) != len(after) or before[axis] != after[axis]:
        return False
    known = [(b, a) for b, a in zip(before, after, strict=True) if isinstance(b, int) and isinstance(a, int)]
    return all(b == a for b, a in known)


@dataclass(frozen=True)
class _Digit:
    """A factor of a flat position: a labelled dimension of `ids`, or unlabelled neighbours."""

    size: Dim
    labelled: bool


def reshaped(labels: Labels, before: Shape, after: Shape) -> Labels | None:
    """Return labels after a row-major reshape, None where the axes cannot be matched.

    A flat position is a number whose digits are the input's axes; the output's axes take the same digits, from the left
    as far as lengths are known, then from the right; one axis in between may take what is left, and several may take
    what is left without labels.
    """
    digits: list[_Digit] = []
    # A labelled axis of length one keeps its place among others of length one.
    single = max((a for a, size in zip(labels.axes, labels.ids.shape, strict=True) if size == 1), default=-1)
    for axis, dim in enumerate(before):
        if axis in labels.axes:
            at = labels.axes.index(axis)
            digits.append(_Digit(int(labels.ids.shape[at]), True))
            if labels.inner[at] != 1:
                digits.append(_Digit(labels.inner[at], False))
        elif dim != 1 or axis < single:
            digits.append(_Digit(dim, False))
    taken: list[list[_Digit]] = [[] for _ in after]
    left, right = 0, len(after) - 1
    while left <= right and (part := _take(digits, after[left], from_left=True)) is not None:
        taken[left] = part
        left += 1
    while right >= left and (part := _take(digits, after[right], from_left=False)) is not None:
        taken[right] = part
        right -= 1
    if left == right:
        taken[left] = digits
    elif any(digit.labelled for digit in digits):
        return None
    return _assemble(labels, taken, after)


def _take(digits: list[_Digit], size: Dim, *, from_left: bool) -> list[_Digit] | None:
    """Take digits whose product is `size` off one end of `digits`, splitting one if need be; None if impossible."""
    end = 0 if from_left else -1
    if not isinstance(size, int):
        if digits and size is not None and digits[end].size == size:
            return [digits.pop(end)]
        return None
    pending, rest = list(digits), size
    part: list[_Digit] = []
    while rest > 1 or (size == 1 and not part and pending and pending[end].size == 1):
        if not pending or not isinstance(pending[end].size, int):
            return None
        digit = pending.pop(end)
        length = int(digit.size)  # type: ignore[arg-type]
        if length == 0:
            return None
        if rest % length == 0:
            part.append(digit)
            rest //= length
        elif length % rest == 0:
            part.append(_Digit(rest, digit.labelled))
            remainder = _Digit(length // rest, digit.labelled)
            pending.insert(0 if from_left else len(pending), remainder)
            rest = 1
        else:
            return None
        if size == 1:
            break
    digits[:] = pending
    return part if from_left else part[::-1]


def _assemble(labels: Labels, taken: list[list[_Digit]], after: Shape) -> Labels | None:
    axes: list[int] = []
    inner: list[int | None] = []
    shape: list[int] = []
    spread: list[int] = []
    lengths: list[int] = []
    for axis, part in enumerate(taken):
        last = max((i for i, digit in enumerate(part) if digit.labelled), default=None)
        if last is None:
            continue
        head, tail = part[: last + 1], part[last + 1 :]
        if not all(isinstance(digit.size, int) for digit in head):
            return None
        sizes = [int(digit.size) for digit in head]  # type: ignore[arg-type]
        axes.append(axis)
        shape += [size if digit.labelled else 1 for size, digit in zip(sizes, head, strict=True)]
        spread += sizes
        lengths.append(math.prod(sizes))
        known = [digit.size for digit in tail if isinstance(digit.size, int)]
        length = after[axis]
        if len(known) == len(tail):
            inner.append(math.prod(known))
        else:
            inner.append(length // lengths[-1] if isinstance(length, int) else None)
    if math.prod(lengths) > MOST_POSITIONS:
        return None
    ids = np.broadcast_to(labels.ids.reshape(shape), spread).reshape(lengths)
    return Labels(tuple(axes), np.ascontiguousarray(ids), tuple(inner))
