"""Backward rules of nodes that slide a window: convolution, pooling, local response normalisation.

With g the gradient of the output:

- Convolution: the transposed convolution of g with the same weights. At stride 1 this is a convolution with the kernel
  turned round and its channels swapped, for which onnxruntime has the faster kernels.
- Average pooling: a convolution whose weights are ones, divided by how many places each window counts.
- Maximum pooling: each element of g is added at the place where its window found the maximum.
- LRN, y = x s^-b with s = bias + a/n W x^2, W the banded matrix of the window over channels:
  dx = g s^-b - 2 a b / n x W^T (g x s^(-b-1)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from onnxcompress.analysis.lrn import band_matrix
from onnxcompress.passes.recovery.backward_nodes import Array, Site
from onnxcompress.runtime.patches import Window


def conv(site: Site) -> Mapping[int, str]:
    """The input's gradient; weights and bias have none."""
    shape, size = site.shape(1), site.size
    kernel = None if shape is None else tuple(dim for dim in shape[2:] if isinstance(dim, int))
    if shape is None or kernel is None or len(kernel) != len(shape) - 2 or size is None or len(size) != len(kernel):
        return {}
    window = Window.of(kernel, site.attributes, size)
    group = int(site.attributes.get("group", 1))
    known = site.constant(1)
    weight = site.node.input[1] if known is None else known
    return {0: _transposed(site, site.g, weight, group, window, window.output_size(size))}


def average_pool(site: Site) -> Mapping[int, str]:
    shape, size = site.shape(0) or (), site.size
    outputs = (site.tape.shapes.get(site.y) or ())[2:]
    sizes = tuple(dim for dim in outputs if isinstance(dim, int))
    if size is None or len(shape) < 3 or not isinstance(shape[1], int) or len(sizes) != len(size):
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
    return {0: _transposed(site, scaled, ones, shape[1], window, sizes)}


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


def lrn(site: Site) -> Mapping[int, str]:
    shape, tape = site.shape(0), site.tape
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return {}
    length, beta = int(site.attributes["size"]), float(site.attributes.get("beta", 0.75))
    scale = float(site.attributes.get("alpha", 1e-4)) / length
    band = band_matrix(shape[1], length, scale).reshape(shape[1], shape[1], *[1] * (len(shape) - 2))
    bias = np.full(shape[1], float(site.attributes.get("bias", 1.0)), np.float32)
    sums = tape.add("Conv", tape.add("Mul", site.x, site.x), band.astype(np.float32), bias)
    if beta == 0.75:  # two roots are several times faster than a power
        root = tape.add("Sqrt", sums)
        power = tape.add("Mul", root, tape.add("Sqrt", root))
    else:
        power = tape.add("Pow", sums, beta)
    direct = tape.add("Div", site.g, power)
    share = tape.add("Div", tape.add("Mul", direct, site.x), sums)
    back = (2.0 * beta * band.swapaxes(0, 1)).astype(np.float32)
    return {0: tape.add("Sub", direct, tape.add("Mul", site.x, tape.add("Conv", share, back)))}


def _transposed(
    site: Site, g: str, weight: Array | str, group: int, window: Window, outputs: tuple[int, ...]
) -> str:
    """Return what a convolution by `weight` (O, C / group, ...) to a spatial shape of `outputs` gives back of `g`."""
    rank, size = window.spatial, site.size or ()
    begins = [reach - 1 - pad for reach, pad in zip(window.reach, window.pads[:rank], strict=True)]
    ends = [size[d] + window.reach[d] - 1 - outputs[d] - begins[d] for d in range(rank)]
    if isinstance(weight, np.ndarray) and math.prod(window.strides) == 1 and min(*begins, *ends) >= 0:
        geometry = {"pads": [*begins, *ends], "dilations": list(window.dilations), "group": group}
        return site.tape.add("Conv", g, _turned(weight, group), **geometry)
    full = [(outputs[d] - 1) * window.strides[d] + window.reach[d] for d in range(rank)]
    surplus = [full[d] - window.pads[d] - size[d] for d in range(rank)]
    return site.tape.add(
        "ConvTranspose",
        g,
        weight,
        group=group,
        kernel_shape=list(window.kernel),
        strides=list(window.strides),
        dilations=list(window.dilations),
        pads=[*window.pads[:rank], *(max(0, each) for each in surplus)],
        output_padding=[max(0, -each) for each in surplus],
    )


def _turned(weight: Array, group: int) -> Array:
    """Return (C, O / group, ...) of weights (O, C / group, ...), the kernel turned round."""
    outputs, inputs, *kernel = weight.shape
    swapped = weight.reshape(group, outputs // group, inputs, *kernel).swapaxes(1, 2)
    turned = np.flip(swapped, tuple(range(3, swapped.ndim)))
    return np.ascontiguousarray(turned.reshape(group * inputs, outputs // group, *kernel))
