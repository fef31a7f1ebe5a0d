"""LRN in its banded form: as a 1x1 convolution of squares, exact but for rounding.

    y = x / (bias + alpha / size * sum over the window of x^2)^beta

The sum over the window is a 1x1 convolution of x^2 with a banded matrix; `bias` is its bias. Two uses. Removing
channels slices the band's rows and columns: what is summed stays what was summed, less the channels that are gone, so
the window keeps its place. And where convolutions are fast it is several times faster than the operator itself: for the
usual beta = 0.75 the power is two square roots, s^0.75 = sqrt(s) * sqrt(sqrt(s)), where LRN takes a power of every
element.

The window is no layer. Its weights say what LRN is: they are not pruned for their own sake, approximated, refitted or
trained, and its MACs are counted apart (`analysis.cost`), as LRN's own arithmetic is in no count of MACs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.graph import Model

PART = "_band_"
"""What stands between the name of an LRN and the parts of its banded form."""

_POWERS = ("Sqrt", "Pow", "Div")
"""What reads the window: the power of its sums, or the quotient where beta is 1."""


def band_matrix(channels: int, size: int, scale: float) -> npt.NDArray[np.float64]:
    """Return the window sums of LRN as a matrix, shape (channels, channels): `scale` inside the window."""
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    inside = (offset >= -((size - 1) // 2)) & (offset <= size // 2)
    return np.where(inside, scale, 0.0)


def is_window(node: gs.Node, *, stored: bool = False) -> bool:
    """Whether `node` is the window sum of an LRN in its banded form, pruned or not.

    Told by what it is, not by its name: a square 1x1 Conv of squares, one weight or zero everywhere and never zero on
    the diagonal, whose output is rooted, raised to a power or divided by.

    Args:
        stored: also where the weights stand in the file as integers behind a DequantizeLinear, or are computed from
            the places of a band.
    """
    if node.op != "Conv" or len(node.inputs) < 2:
        return False
    constant = node.inputs[1]
    if stored and constant.inputs:
        if constant.inputs[0].op == "Where":
            return _is_square(node) and _is_computed_band(constant.inputs[0])
        if constant.inputs[0].op == "DequantizeLinear":
            constant = constant.inputs[0].inputs[0]
    if not isinstance(constant, gs.Constant) or not _is_square(node):
        return False
    shape = constant.shape
    if len(shape) < 3 or shape[0] != shape[1] or any(size != 1 for size in shape[2:]):
        return False
    weight = np.asarray(constant.values).reshape(shape[0], shape[1])
    scale = weight.max(initial=0)
    return bool(weight.size and scale > 0 and np.diag(weight).all() and np.isin(weight, (0, scale)).all())


def band_reach(window: npt.NDArray[np.generic]) -> int | None:
    """Return how far from the diagonal a window (C, C, 1, ...) reaches, None where it is no whole symmetric band."""
    inside = np.asarray(window).reshape(len(window), -1) != 0
    places = np.arange(len(inside))
    distance = np.abs(places[:, None] - places)
    reach = int(distance[inside].max(initial=0))
    return reach if np.array_equal(inside, distance <= reach) else None


def _is_square(node: gs.Node) -> bool:
    """Whether a node reads squares, and powers or a quotient are all that read it."""
    square = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if square is None or square.op != "Mul" or square.inputs[0] is not square.inputs[1]:
        return False
    readers = node.outputs[0].outputs
    return bool(readers) and all(reader.op in _POWERS for reader in readers)


def _is_computed_band(node: gs.Node) -> bool:
    """Whether a Where gives a band: one value where the distance of two constants' entries is below a limit."""
    for op in ("Less", "Abs", "Sub"):
        node = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
        if node is None or node.op != op:
            return False
    return all(isinstance(tensor, gs.Constant) for tensor in node.inputs)


def banded_nodes(model: Model) -> frozenset[str]:
    """Return the names of all nodes of banded LRNs, squares, powers and quotients included.

    For passes that lower the precision: the squares' range is the input's, squared.
    """
    found: set[str] = set()
    for window in (node for node in model.nodes if is_window(node)):
        found |= {window.name, window.inputs[0].inputs[0].name}
        ahead = list(window.outputs[0].outputs)
        while ahead:
            reader = ahead.pop()
            found.add(reader.name)
            if reader.op != "Div":
                ahead += reader.outputs[0].outputs
    return frozenset(found)


def why_no_band(model: Model, node: gs.Node) -> str | None:
    """Return why an LRN node has no banded form, None if it has one."""
    shape = model.shape_of(node.inputs[0])
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return "its number of channels is not known, or it has no spatial axis"
    return None


def band_convolution(model: Model, node: gs.Node, kept: npt.NDArray[np.int64] | None = None) -> None:
    """Replace an LRN node by its banded form.

    Args:
        model: is changed; its shapes must be those before any channel of the node's input was removed.
        node: an LRN of which `why_no_band` has nothing to say.
        kept: original numbers of the channels that are left, None for all of them.
    """
    before = model.shape_of(node.inputs[0]) or ()
    channels, spatial_rank = before[1], len(before) - 2
    assert isinstance(channels, int), f"'{node.name}' has no known channels"
    kept = np.arange(channels) if kept is None else kept
    size = int(node.attrs["size"])
    alpha, beta = float(node.attrs.get("alpha", 1e-4)), float(node.attrs.get("beta", 0.75))
    dtype = model.dtype_of(node.inputs[0])
    band = band_matrix(channels, size, alpha / size)[np.ix_(kept, kept)]
    weight = model.new_constant(f"{node.name}_band", band.reshape(*band.shape, *[1] * spatial_rank).astype(dtype))
    bias = np.full(len(kept), float(node.attrs.get("bias", 1.0))).astype(dtype)
    bias_constant = model.new_constant(f"{node.name}_band_bias", bias)
    x, y = node.inputs[0], node.outputs[0]
    nodes: list[gs.Node] = []

    def add(op: str, suffix: str, inputs: list[gs.Tensor], output: gs.Tensor | None = None) -> gs.Tensor:
        result = output if output is not None else model.new_variable(f"{y.name}{PART}{suffix}")
        nodes.append(gs.Node(op, model.unique_name(f"{node.name}{PART}{suffix}"), {}, inputs, [result]))
        return result

    square = add("Mul", "square", [x, x])
    window = add("Conv", "window", [square, weight, bias_constant])
    if beta == 0.75:
        root = add("Sqrt", "root", [window])
        power = add("Mul", "power", [root, add("Sqrt", "fourth_root", [root])])
    elif beta == 0.5:
        power = add("Sqrt", "power", [window])
    elif beta == 1.0:
        power = window
    else:
        exponent = model.new_constant(f"{node.name}_beta", np.array(beta, dtype))
        power = add("Pow", "power", [window, exponent])
    node.outputs.clear()
    add("Div", "quotient", [x, power], y)
    model.replace_node(node, nodes)


def with_banded_lrn(model: Model) -> Model:
    """Return a copy in which every LRN is in its banded form, where it has one."""
    copy = model.copy()
    for node in [node for node in copy.nodes if node.op == "LRN" and why_no_band(copy, node) is None]:
        band_convolution(copy, node)
    copy.refresh_shapes()
    return copy
