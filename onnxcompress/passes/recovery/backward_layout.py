"""Backward rules of nodes that move, select or average values: what was read from a place is given back to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx

from onnxcompress.graph import Shape
from onnxcompress.passes.recovery.backward_nodes import Site

_END = np.iinfo(np.int64).max

_SMALLEST = 1e-30
"""A norm that is divided by: of zeros the gradient is zero."""


Picked = npt.NDArray[np.int64]
"""Places along an axis, in the order in which they were read; none of them twice."""


def reshaped(site: Site) -> Mapping[int, str]:
    return {0: site.tape.reshaped_as(site.g, site.x)}


def passed_on(site: Site) -> Mapping[int, str]:
    """Identity, Dropout in inference, Cast to the type that the operand has."""
    op, attributes = site.node.op_type, site.attributes
    if op == "Cast" and attributes["to"] != onnx.TensorProto.FLOAT:
        return {}
    if op == "Dropout" and len(site.node.input) > 2 and site.node.input[2]:
        training = site.constant(2)
        if training is None or training.any():
            return {}
    return {0: site.g}


def transpose(site: Site) -> Mapping[int, str]:
    perm = site.attributes.get("perm")
    if perm is None:
        return {0: site.tape.add("Transpose", site.g)}
    return {0: site.tape.add("Transpose", site.g, perm=[int(each) for each in np.argsort(perm)])}


def concat(site: Site) -> Mapping[int, str]:
    axis, start, found = int(site.attributes["axis"]), 0, {}
    for position in range(len(site.node.input)):
        shape = site.shape(position)
        length = None if shape is None else shape[axis]
        if not isinstance(length, int):
            break  # where the next ones start is not known
        if position in site.wanted:
            found[position] = site.tape.add("Slice", site.g, [start], [start + length], [axis])
        start += length
    return found


def split(site: Site) -> Mapping[int, str]:
    """An output that nothing comes back from has a gradient of zero."""
    axis = int(site.attributes.get("axis", 0))
    parts = [
        site.tape.expanded_as(0.0, output) if gradient is None else gradient
        for output, gradient in zip(site.node.output, site.gradients, strict=True)
    ]
    return {0: site.tape.add("Concat", *parts, axis=axis)}


def slices(site: Site) -> Mapping[int, str]:
    """Along axes of known length: zeros around the gradient, or between where a slice takes steps."""
    shape = site.shape(0)
    starts, ends = site.listed("starts", 1), site.listed("ends", 2)
    axes, steps = site.listed("axes", 3), site.listed("steps", 4)
    if shape is None or starts is None or ends is None or axes is None or steps is None:
        return {}
    picked: dict[int, Picked] = {}
    for axis, start, end, step in zip(
        axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True
    ):
        length = shape[axis]
        if not isinstance(length, int):
            return {}
        picked[axis % len(shape)] = np.arange(length)[slice(start, end, step)]
    return {0: _given_back(site, site.g, shape, picked)}


def gather(site: Site) -> Mapping[int, str]:
    """By constant numbers that pick nothing twice."""
    shape, numbers = site.shape(0), site.constant(1)
    if shape is None or numbers is None or numbers.ndim > 1:
        return {}
    axis = int(site.attributes.get("axis", 0)) % len(shape)
    length = shape[axis]
    if not isinstance(length, int):
        return {}
    picked = numbers.reshape(-1) % length
    if len(np.unique(picked)) < len(picked):
        return {}
    g = site.g if numbers.ndim else site.tape.add("Unsqueeze", site.g, [axis])
    return {0: _given_back(site, g, shape, {axis: picked})}


def _given_back(site: Site, g: str, shape: Shape, picked: Mapping[int, Picked]) -> str:
    """Return a gradient at the places that were picked along some axes, and zeros elsewhere."""
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, places in picked.items():
        length, count = int(shape[axis] or 0), len(places)
        first = int(places[0]) if count else 0
        if np.array_equal(places, np.arange(first, first + count)):
            before[axis], after[axis] = first, length - first - count
            continue
        # One more, which is zero, stands for all that were not picked.
        behind = [int(other == axis) for other in range(len(shape))]
        sources = np.full(length, count, np.int64)
        sources[places] = np.arange(count)
        padded = site.tape.add("Pad", g, [*[0] * len(shape), *behind])
        g = site.tape.add("Gather", padded, sources, axis=axis)
    return site.tape.add("Pad", g, [*before, *after]) if any((*before, *after)) else g


def depth_to_space(site: Site) -> Mapping[int, str]:
    shape, block = site.shape(0), int(site.attributes["blocksize"])
    if site.attributes.get("mode", "DCR") == "DCR":
        return {0: site.tape.add("SpaceToDepth", site.g, blocksize=block)}
    if shape is None or not site.size or not isinstance(shape[1], int):
        return {}
    height, width = site.size
    apart = site.tape.add("Reshape", site.g, [0, shape[1] // block**2, height, block, width, block])
    return {0: site.tape.reshaped_as(site.tape.add("Transpose", apart, perm=[0, 1, 3, 5, 2, 4]), site.x)}


def space_to_depth(site: Site) -> Mapping[int, str]:
    if site.attributes.get("mode", "DCR") != "DCR":
        return {}
    return {0: site.tape.add("DepthToSpace", site.g, blocksize=int(site.attributes["blocksize"]))}


def pad(site: Site) -> Mapping[int, str]:
    """Of constants: they are cut off again."""
    shape, pads, axes = site.shape(0), site.listed("pads", 1), site.listed("axes", 3)
    if shape is None or not pads or axes is None or site.attributes.get("mode", "constant") != "constant":
        return {}
    axes = axes or list(range(len(shape)))
    begins, ends = pads[: len(axes)], pads[len(axes) :]
    if min(pads) < 0:
        return {}
    return {0: site.tape.add("Slice", site.g, begins, [-end if end else _END for end in ends], axes)}


def global_average_pool(site: Site) -> Mapping[int, str]:
    return {0: site.tape.expanded_as(_mean(site), site.x)}


def _mean(site: Site) -> str:
    """Return the gradient divided by how many elements each mean is of."""
    counts = (
        site.tape.add("Cast", site.tape.add("Size", each), to=onnx.TensorProto.FLOAT) for each in (site.y, site.x)
    )
    return site.tape.add("Mul", site.g, site.tape.add("Div", *counts))


def global_max_pool(site: Site) -> Mapping[int, str]:
    """Equal maxima share the gradient."""
    size, tape = site.size, site.tape
    if not size:
        return {}
    largest = tape.add("Cast", tape.add("Equal", site.x, site.y), to=onnx.TensorProto.FLOAT)
    count = tape.add("ReduceSum", largest, list(range(2, 2 + len(size))))
    return {0: tape.add("Mul", largest, tape.add("Div", site.g, count))}


def reduce(site: Site) -> Mapping[int, str]:
    """ReduceMean, ReduceSum, ReduceL2, ReduceMax and ReduceMin; equal extremes share the gradient."""
    shape, axes, tape, op = site.shape(0), site.listed("axes", 1), site.tape, site.node.op_type
    if shape is None or axes is None or (not axes and site.attributes.get("noop_with_empty_axes", 0)):
        return {}
    axes = axes or list(range(len(shape)))
    g, y = _mean(site) if op == "ReduceMean" else site.g, site.y
    if not site.attributes.get("keepdims", 1):
        g, y = tape.add("Unsqueeze", g, axes), tape.add("Unsqueeze", y, axes)
    if op == "ReduceL2":
        return {0: tape.add("Mul", site.x, tape.add("Div", g, tape.add("Max", y, _SMALLEST)))}
    if op in ("ReduceMax", "ReduceMin"):
        reached = tape.add("Cast", tape.add("Equal", site.x, y), to=onnx.TensorProto.FLOAT)
        return {0: tape.add("Mul", reached, tape.add("Div", g, tape.add("ReduceSum", reached, axes)))}
    return {0: tape.expanded_as(g, site.x)}
