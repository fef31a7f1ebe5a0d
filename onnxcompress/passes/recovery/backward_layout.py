"""Backward rules of nodes that move, select or average values: what was read from a place is given back to it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnxcompress.passes.recovery.backward_nodes import Site

_END = np.iinfo(np.int64).max


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
    """Of steps of 1 along axes of known length: zeros around the gradient."""
    shape = site.shape(0)
    starts, ends = site.listed("starts", 1), site.listed("ends", 2)
    axes, steps = site.listed("axes", 3), site.listed("steps", 4)
    if shape is None or starts is None or ends is None or axes is None or steps is None or set(steps) - {1}:
        return {}
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, start, end in zip(axes or range(len(starts)), starts, ends, strict=True):
        length = shape[axis]
        if not isinstance(length, int):
            return {}
        first, last, _ = slice(start, end).indices(length)
        before[axis], after[axis] = first, length - max(first, last)
    return {0: site.tape.add("Pad", site.g, [*before, *after])}


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
    """ReduceMean and ReduceSum."""
    shape, axes = site.shape(0), site.listed("axes", 1)
    if shape is None or axes is None or (not axes and site.attributes.get("noop_with_empty_axes", 0)):
        return {}
    g = _mean(site) if site.node.op_type == "ReduceMean" else site.g
    if not site.attributes.get("keepdims", 1):
        g = site.tape.add("Unsqueeze", g, axes or list(range(len(shape))))
    return {0: site.tape.expanded_as(g, site.x)}
