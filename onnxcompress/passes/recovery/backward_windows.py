"""Backward rules of nodes that slide a window: convolution and pooling.

With g the gradient of the output:

- Convolution: the transposed convolution of g with the same weights. At stride 1 this is a convolution with the kernel
  turned round and its channels swapped, for which onnxruntime has the faster kernels.
- Average pooling: a convolution whose weights are ones, divided by how many places each window counts.
- Maximum pooling: each element of g is added at the place where its window found the maximum.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcompress.passes.recovery.backward_nodes import Array, Site, lengths
from onnxcompress.runtime.patches import Window


def conv(site: Site) -> Mapping[int, str]:
    """The input's gradient; weights and bias have none."""
    shape = site.shape(1)
    kernel = None if shape is None else lengths(shape[2:])
    if not kernel:
        return {}
    weight = site.constant(1)
    group = int(site.attributes.get("group", 1))
    return _transposed(site, site.g, site.node.input[1] if weight is None else weight, group, kernel, None)


def conv_transpose(site: Site) -> Mapping[int, str]:
    """The convolution of g with the same weights."""
    attributes = site.attributes
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in attributes:
        return {}
    geometry = {name: value for name, value in attributes.items() if name != "output_padding"}
    return {0: site.tape.add("Conv", site.g, site.node.input[1], **geometry)}


def average_pool(site: Site) -> Mapping[int, str]:
    shape, size = site.shape(0) or (), site.size
    outputs = (site.tape.shapes.get(site.y) or ())[2:]
    sizes = lengths(outputs)
    if not size or not sizes or not isinstance(shape[1], int):
        return {}
    window = Window.of(tuple(site.attributes["kernel_shape"]), site.attributes, size)
    includes = bool(site.attributes.get("count_include_pad", 0))
    rank = len(size)
    counts = np.ones((1, 1, *sizes))
    for axis in range(rank):
        begin, end = window.pads[axis], window.pads[axis + rank]
        starts = np.arange(sizes[axis]) * window.strides[axis] - begin
        if includes and starts[-1] + window.reach[axis] > size[axis] + end:
            return {}  # a last window that sticks out (`ceil_mode`) counts its places differently in every runtime
        places = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        valid = np.ones(places.shape, bool) if includes else (places >= 0) & (places < size[axis])
        counts *= valid.sum(1).reshape(-1, *[1] * (rank - 1 - axis))
    scaled = site.tape.add("Mul", site.g, (1.0 / counts).astype(np.float32))
    ones = np.ones((shape[1], 1, *window.kernel), np.float32)
    return _transposed(site, scaled, ones, shape[1], window.kernel, sizes)


def max_pool(site: Site) -> Mapping[int, str]:
    """onnxruntime counts `Indices` over the whole tensor (B, C, ...), row by row."""
    tape, node = site.tape, site.node
    if site.attributes.get("storage_order", 0):
        return {}
    if len(node.output) < 2:
        node.output.append("")
    node.output[1] = node.output[1] or tape.name("backward_indices")
    zeros = tape.add("Expand", 0.0, tape.add("Reshape", tape.add("Size", site.x), [1]))
    flat = [tape.add("Reshape", each, [-1]) for each in (node.output[1], site.g)]
    return {0: tape.reshaped_as(tape.add("ScatterElements", zeros, *flat, axis=0, reduction="add"), site.x)}


def _transposed(
    site: Site,
    g: str,
    weight: Array | str,
    group: int,
    kernel: tuple[int, ...],
    outputs: tuple[int, ...] | None,
) -> Mapping[int, str]:
    """Return what a convolution gives back of `g`.

    Args:
        weight: (O, C / group, ...), or the name of a tensor that is computed.
        outputs: its spatial output shape, None for the usual one.
    """
    rank, size = len(kernel), site.size
    # At stride 1 neither the padding nor the way back depends on the size.
    window = Window.of(kernel, site.attributes, size or [0] * rank)
    margins = [reach - 1 - pad for reach, pad in zip(2 * window.reach, window.pads, strict=True)]
    if isinstance(weight, np.ndarray) and set(window.strides) == {1} and min(margins) >= 0:
        geometry = {"pads": margins, "dilations": list(window.dilations), "group": group}
        return {0: site.tape.add("Conv", g, _turned(weight, group), **geometry)}
    if not size:
        return {}
    outputs = outputs or window.output_size(size)
    full = [(outputs[d] - 1) * window.strides[d] + window.reach[d] for d in range(rank)]
    surplus = [full[d] - window.pads[d] - size[d] for d in range(rank)]
    geometry = {
        "group": group,
        "strides": list(window.strides),
        "dilations": list(window.dilations),
        "pads": [*window.pads[:rank], *(max(0, each) for each in surplus)],
        "output_padding": [max(0, -each) for each in surplus],
    }
    return {0: site.tape.add("ConvTranspose", g, weight, **geometry)}


def _turned(weight: Array, group: int) -> Array:
    """Return (C, O / group, ...) of weights (O, C / group, ...), the kernel turned round."""
    outputs, inputs, *kernel = weight.shape
    swapped = weight.reshape(group, outputs // group, inputs, *kernel).swapaxes(1, 2)
    turned = np.flip(swapped, tuple(range(3, swapped.ndim)))
    return np.ascontiguousarray(turned.reshape(group * inputs, outputs // group, *kernel))
