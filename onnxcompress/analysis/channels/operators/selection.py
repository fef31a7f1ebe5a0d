"""Operators that join, cut, pick, pad and repeat along an axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.channels.labels import FIXED, MOST_POSITIONS, Ids, Labels
from onnxcompress.analysis.channels.operators.elementwise import tie_operands
from onnxcompress.analysis.channels.operators.fills import is_fill, shorten_fill
from onnxcompress.analysis.channels.operators.layout import hold_rows, project
from onnxcompress.analysis.channels.operators.registry import operator
from onnxcompress.graph import Shape
from onnxcompress.links import has_input
from onnxcompress.serialization import Array

if TYPE_CHECKING:
    from onnxcompress.analysis.channels.analysis import ChannelAnalysis
    from onnxcompress.analysis.channels.surgery import Surgery
_RANK_OF_MAPS = 4


@operator("Concat")
def concat(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Along the channels, labels stand one behind the other; along another axis the inputs are tied."""
    shape = analysis.shape(node.outputs[0]) or next((s for t in node.inputs if (s := analysis.shape(t))), None)
    labelled = [labels for t in node.inputs if (labels := analysis.of(t)) is not None]
    if shape is None or not (labelled or _joins_maps(node, shape)):
        analysis.freeze_inputs(node, "Concat of unknown rank")
        return
    axis = int(node.attrs["axis"]) % len(shape)
    if labelled and all(axis not in labels.axes for labels in labelled):
        tie_operands(analysis, node, range(len(node.inputs)), broadcast=False)
        return
    parts: list[Ids] = []
    for position, tensor in enumerate(node.inputs):
        ids = _along(analysis, node, position, axis)
        if isinstance(ids, str):
            analysis.freeze_inputs(node, f"Concat with '{tensor.name}', {ids}")
            return
        parts.append(ids)
    analysis.set(node.outputs[0], Labels.along(axis, np.concatenate(parts)))


def _joins_maps(node: gs.Node, shape: Shape) -> bool:
    """Whether known maps stand beside unlabelled ones: a cell's first state beside an image, as later ones will."""
    known = any(isinstance(tensor, gs.Constant) or is_fill(tensor) for tensor in node.inputs)
    return known and len(shape) >= _RANK_OF_MAPS and int(node.attrs["axis"]) % len(shape) > 0


def _along(analysis: ChannelAnalysis, node: gs.Node, position: int, axis: int) -> Ids | str:
    """Return the atoms of an input along `axis`: its labels, new ones for a constant or fill, else fixed; or why not.

    Where a further axis is labelled (a dense layer's output made a map), it stays whole.
    """
    tensor = node.inputs[position]
    labels, shape = analysis.of(tensor), analysis.shape(tensor)
    if labels is not None:
        if axis not in labels.axes:
            return "whose channels lie on another axis"
        expanded = project(analysis, node, labels, axis).expanded()
        return expanded.ids if expanded is not None else "whose channels repeat a number of times not known"
    length = None if shape is None else shape[axis]
    if not isinstance(length, int):
        return "whose length is not known before the run"
    if length > MOST_POSITIONS:
        return f"which claims to be {length} long"
    if isinstance(tensor, gs.Constant):
        ids = analysis.fresh(length)
        analysis.slice(node, position, Labels.along(axis, ids))
        return ids
    if is_fill(tensor):
        ids = analysis.fresh(length)
        shorten_fill(analysis, node, position, Labels.along(axis, ids))
        return ids
    return np.full(length, FIXED, dtype=np.int64)


@operator("Split")
def split(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Each output takes its part of the labels, of every row as many; none may become empty."""
    labels, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    if axis not in labels.axes:
        for output in node.outputs:
            analysis.set(output, labels)
        return
    expanded = labels.expanded()
    sizes = [(analysis.shape(output) or {axis: None})[axis] for output in node.outputs]
    if expanded is None or not all(isinstance(size, int) for size in sizes):
        analysis.freeze(labels.ids, f"'{node.name}' splits them into parts of unknown size")
        return
    bounds, at = np.cumsum([int(size) for size in sizes])[:-1], expanded.axes.index(axis)  # type: ignore[arg-type]
    parts = [Labels(expanded.axes, ids, expanded.inner) for ids in np.split(expanded.ids, bounds, axis=at)]
    if at < len(expanded.axes) - 1:
        hold_rows(analysis, node, expanded)
    for output, part in zip(node.outputs, parts, strict=True):
        analysis.set(output, part)
        hold_rows(analysis, node, part)

    def new_sizes(surgery: Surgery, pruned: gs.Node) -> None:
        kept = [surgery.kept_lengths(part)[at] for part in parts]
        pruned.attrs.pop("num_outputs", None)
        if surgery.model.opset < 13:
            pruned.attrs["split"] = kept
        else:
            while len(pruned.inputs) > 1:
                pruned.inputs.pop()
            pruned.inputs.append(surgery.model.new_constant(f"{pruned.name}_split", np.array(kept, np.int64)))

    analysis.on_removal(node, expanded, new_sizes)


@operator("Slice")
def slice_(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """A range of the labels, with any step."""
    labels, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    axes = _slice_axes(analysis, node, len(shape))
    ranges = None if axes is None else _slice_ranges(analysis, node, axes)
    cut = None if ranges is None else {axis: r for axis, r in ranges.items() if axis in labels.axes}
    if cut == {}:
        analysis.set(node.outputs[0], labels)
        return
    expanded = labels.expanded()
    if cut is None or None in cut.values() or expanded is None or len(cut) > 1:
        several = cut is not None and len(cut) > 1
        why = "along several axes" if several else "that is not known before the run"
        analysis.freeze(labels.ids, f"'{node.name}' cuts a range of them {why}")
        return
    axis = next(iter(cut))
    at = expanded.axes.index(axis)
    picked = np.arange(expanded.ids.shape[at])[cut[axis]]
    if not len(picked):
        analysis.freeze(labels.ids, f"'{node.name}' cuts an empty range of them")
        return
    taken, is_last = Labels(expanded.axes, expanded.ids.take(picked, at), expanded.inner), at == len(expanded.axes) - 1
    if len(expanded.axes) > 1:
        if is_last and not np.array_equal(picked, np.arange(picked[0], picked[0] + len(picked))):
            analysis.freeze(labels.ids, f"'{node.name}' takes scattered ones out of each of several rows")
            return
        before = expanded.ids[..., : picked[0]] if is_last else expanded.ids
        if before.size:
            analysis.balance(node, before.reshape(-1, before.shape[-1]))
    analysis.set(node.outputs[0], taken)
    hold_rows(analysis, node, taken)
    if not is_last:  # every row stays
        return
    entry, only = (axes or []).index(axis), len(axes or []) == 1

    def new_range(surgery: Surgery, pruned: gs.Node) -> None:
        kept = surgery.kept(expanded.ids).reshape(-1, expanded.ids.shape[-1])[0]
        positions = (np.cumsum(kept) - 1)[picked[kept[picked]]]
        _pick(surgery, pruned, axis, entry, positions, only=only)

    analysis.on_removal(node, expanded, new_range)


def _slice_axes(analysis: ChannelAnalysis, node: gs.Node, rank: int) -> list[int] | None:
    """Return which axis each entry of a Slice's vectors belongs to, None if that is not known."""
    axes: tuple[int | None, ...] | None
    if analysis.model.opset < 10:
        axes = tuple(node.attrs.get("axes", range(len(node.attrs["starts"]))))
    elif analysis.input(node, 3) is not None:
        axes = analysis.ints(node, 3)
    else:
        axes = tuple(range(len(analysis.ints(node, 1) or analysis.ints(node, 2) or range(rank))))
    if axes is None or None in axes:
        return None
    return [int(axis or 0) % rank for axis in axes]


def _slice_ranges(analysis: ChannelAnalysis, node: gs.Node, axes: list[int]) -> dict[int, slice | None]:
    """Return {axis: range} of a Slice node, None for a range that is not known."""
    vectors: list[tuple[int | None, ...] | None]
    if analysis.model.opset < 10:
        vectors = [tuple(node.attrs["starts"]), tuple(node.attrs["ends"]), (1,) * len(axes)]
    else:
        steps = analysis.ints(node, 4) if analysis.input(node, 4) is not None else (1,) * len(axes)
        vectors = [analysis.ints(node, 1), analysis.ints(node, 2), steps]
    ranges: dict[int, slice | None] = {}
    for entry, axis in enumerate(axes):
        start, end, step = (None if v is None or entry >= len(v) else v[entry] for v in vectors)
        if start is None or end is None or step is None:
            ranges[axis] = None
            continue
        before_first = step < 0 and end < -(2**31)
        ranges[axis] = slice(start, None if before_first else end, step)
    return ranges


def _pick(surgery: Surgery, node: gs.Node, axis: int, entry: int, positions: Ids, *, only: bool) -> None:
    """Make a Slice node pick `positions`: as a range where they are neighbours, behind a Gather otherwise."""
    start = int(positions[0])
    if not np.array_equal(positions, np.arange(start, start + len(positions))):
        source, output = node.inputs[0], node.outputs[0]
        indices = surgery.model.new_constant(f"{node.name}_positions", positions)
        gathered = output if only else surgery.model.new_variable(f"{output.name}_gathered")
        if only:
            node.outputs.clear()
        name = surgery.model.unique_name(f"{node.name}_gather")
        surgery.model.insert_before(node, [gs.Node("Gather", name, {"axis": axis}, [source, indices], [gathered])])
        if only:
            return
        node.inputs[0], start = gathered, 0
    if surgery.model.opset < 10:
        node.attrs["starts"][entry], node.attrs["ends"][entry] = start, start + len(positions)
        return
    surgery.patch_vector(node, 1, {entry: start})
    surgery.patch_vector(node, 2, {entry: start + len(positions)})
    if has_input(node, 4):
        surgery.patch_vector(node, 4, {entry: 1})


@operator("Gather")
def gather(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Along the channels with known indices: the labels picked; along another axis they are carried."""
    labels, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    if analysis.of(node.inputs[1]) is not None or (labels is not None and shape is None):
        analysis.freeze_inputs(node, "Gather by computed indices")
        return
    if labels is None or shape is None:
        return
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    index_shape = analysis.shape(node.inputs[1])
    indices = analysis.constant(node, 1)
    if axis not in labels.axes and index_shape is not None:
        grown = len(index_shape) - 1
        analysis.set(node.outputs[0], labels.moved(a + grown if a > axis else a for a in labels.axes))
        return
    expanded = labels.expanded()
    if indices is not None and len(indices.shape) < 2 and expanded is not None and axis in expanded.axes[:-1]:
        _pick_rows(analysis, node, expanded, axis, indices.values)
        return
    if indices is None or len(indices.shape) != 1 or expanded is None or len(expanded.axes) > 1:
        count = len(labels.axes)
        several = indices is not None and count > 1
        why = f"along one of the {count} axes that they lie on" if several else "by number"
        analysis.freeze(labels.ids, f"'{node.name}' picks some of them {why}")
        return
    picked = np.asarray(indices.values, np.int64) % len(expanded.ids)
    taken = Labels.along(axis, expanded.ids[picked])
    analysis.set(node.outputs[0], taken)
    analysis.keep_one(taken.ids)

    def new_indices(surgery: Surgery, pruned: gs.Node) -> None:
        kept = surgery.kept(expanded.ids)
        surgery.model.set_input(pruned, 1, (np.cumsum(kept) - 1)[picked[kept[picked]]].astype(indices.dtype))

    analysis.on_removal(node, expanded, new_indices)


def _pick_rows(analysis: ChannelAnalysis, node: gs.Node, labels: Labels, axis: int, picked: Array) -> None:
    """Take rows out of several, all of which stay: one of q, k and v, a scale beside a shift."""
    hold_rows(analysis, node, labels)
    at = labels.axes.index(axis)
    ids = labels.ids.take(np.asarray(picked, np.int64), axis=at)
    if picked.ndim == 1:
        analysis.set(node.outputs[0], Labels(labels.axes, ids, labels.inner))
        return
    others = [each - (each > axis) for each in labels.axes if each != axis]
    analysis.set(node.outputs[0], Labels(tuple(others), ids, (1,) * len(others)))


@operator("Pad")
def pad(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Padding along the channels (a zero-padded shortcut) adds channels that may leave again."""
    labels, shape = analysis.of(node.inputs[0]), analysis.shape(node.inputs[0])
    if labels is None or shape is None:
        return
    known = tuple(node.attrs["pads"]) if analysis.model.opset < 11 else analysis.ints(node, 1)
    axes_known = analysis.ints(node, 3) if analysis.input(node, 3) is not None else tuple(range(len(shape)))
    if known is None or axes_known is None or None in axes_known:
        analysis.freeze(labels.ids, f"the padding of '{node.name}' is computed in the graph")
        return
    axes = [int(a or 0) % len(shape) for a in axes_known]
    amounts = {a: (known[i], known[i + len(axes)]) for i, a in enumerate(axes)}
    touched = [amounts[a] for a in labels.axes if amounts.get(a, (0, 0)) != (0, 0)]
    if not touched:
        analysis.set(node.outputs[0], labels)
        return
    expanded = labels.expanded()
    front, back = touched[0]
    grows = front is not None and back is not None and front >= 0 and back >= 0
    if expanded is None or len(labels.axes) > 1 or node.attrs.get("mode", "constant") != "constant" or not grows:
        analysis.freeze(labels.ids, f"'{node.name}' pads along them")
        return
    axis = labels.axes[0]
    new_front, new_back = analysis.fresh(int(front or 0)), analysis.fresh(int(back or 0))
    padded = Labels.along(axis, np.concatenate([new_front, expanded.ids, new_back]))
    analysis.set(node.outputs[0], padded)
    entry, count = axes.index(axis), len(axes)

    def new_padding(surgery: Surgery, pruned: gs.Node) -> None:
        values = {entry: int(surgery.kept(new_front).sum()), entry + count: int(surgery.kept(new_back).sum())}
        if surgery.model.opset < 11:
            for at, value in values.items():
                pruned.attrs["pads"][at] = value
        else:
            surgery.patch_vector(pruned, 1, values)

    analysis.on_removal(node, padded, new_padding)


@operator("Tile")
def tile(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Repeats along the channels repeat the labels."""
    labels = analysis.of(node.inputs[0])
    if labels is None:
        return
    repeats = analysis.ints(node, 1)
    expanded = labels.expanded()
    if repeats is None or expanded is None or any(_is_open_or_absurd(repeats[axis]) for axis in labels.axes):
        analysis.freeze(labels.ids, f"'{node.name}' repeats them a number of times that is not known before the run")
        return
    if all(repeats[axis] == 1 for axis in labels.axes):
        analysis.set(node.outputs[0], labels)
    elif len(labels.axes) == 1:
        ids = np.tile(expanded.ids, int(repeats[labels.axes[0]] or 1))
        analysis.set(node.outputs[0], Labels.along(labels.axes[0], ids))
    else:
        analysis.freeze(labels.ids, f"'{node.name}' repeats them along several axes")


def _is_open_or_absurd(count: int | None) -> bool:
    return count is None or count > MOST_POSITIONS


@operator("Expand")
def expand(analysis: ChannelAnalysis, node: gs.Node) -> None:
    """Carried; an axis that grows from one to many gets new channels, which may leave with those they meet.

    So do those of a constant that is repeated for each sample, such as a class token: along its last axis.
    """
    before, after = analysis.shape(node.inputs[0]), analysis.shape(node.outputs[0])
    labels = analysis.of(node.inputs[0])
    if before is None or after is None:
        analysis.freeze_inputs(node, "Expand to an unknown rank")
        return
    grown = len(after) - len(before)
    lengths = (1,) * grown + tuple(before)
    new = [i for i, (b, a) in enumerate(zip(lengths, after, strict=True)) if b == 1 and isinstance(a, int) and a > 1]
    if labels is not None:
        carried = labels.shifted(grown)
        if any(axis in new for axis in carried.axes):
            analysis.freeze(labels.ids, f"is broadcast over channels by '{node.name}'")
            return
    elif len(after) >= 3 and 1 in new and len(new) == 1:
        carried = Labels.along(1, analysis.fresh(int(after[1])))  # type: ignore[arg-type]
    elif isinstance(node.inputs[0], gs.Constant) and not new and (own := [i for i, b in enumerate(lengths) if b != 1]):
        carried = Labels.along(own[-1], analysis.fresh(int(lengths[own[-1]] or 0)))
        analysis.slice(node, 0, carried.shifted(-grown))
    else:
        analysis.freeze_counted(node, 1)
        return
    analysis.set(node.outputs[0], carried)
    target = analysis.ints(node, 1)

    def new_shape(surgery: Surgery, pruned: gs.Node) -> None:
        rank = len(target) if target is not None else len(after)
        entries = {}
        for axis, length in zip(carried.axes, surgery.kept_lengths(carried), strict=True):
            at = axis - (len(after) - rank)
            if at >= 0 and length is not None and (target is None or target[at] != 1):
                entries[at] = length
        surgery.patch_vector(pruned, 1, entries)

    analysis.on_removal(node, carried, new_shape)

    def same_shape(surgery: Surgery, pruned: gs.Node) -> None:
        if surgery.kept(carried.ids).all():
            new_shape(surgery, pruned)

    for counted in analysis.counted(node, 1) if labels is None else ():
        analysis.on_removal(node, counted, same_shape)
