"""LRN as a banded 1x1 convolution: the form in which its window keeps its place when channels leave.

    y = x / (bias + alpha / size * sum over the window of x^2)^beta

The sum over the window is a 1x1 convolution of x^2 with a banded matrix; `bias` is its bias. Removing channels slices
the band's rows and columns: what is summed stays what was summed, less the channels that are gone. For the usual
beta = 0.75 the power is two square roots, s^0.75 = sqrt(s) * sqrt(sqrt(s)), several times cheaper than Pow.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.graph import Model


def band_matrix(channels: int, size: int, scale: float) -> npt.NDArray[np.float64]:
    """Return the window sums of LRN as a matrix, shape (channels, channels): `scale` inside the window."""
    offset = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    inside = (offset >= -((size - 1) // 2)) & (offset <= size // 2)
    return np.where(inside, scale, 0.0)


def is_window(node: gs.Node) -> bool:
    """Whether `node` is the window sum of an LRN in its banded form: a 1x1 Conv of squares with one weight in a band.

    Such a node is an exact rewrite, not a layer: it is neither pruned for its own sake nor approximated.
    """
    if node.op != "Conv" or len(node.inputs) < 2 or not isinstance(node.inputs[1], gs.Constant):
        return False
    square = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if square is None or square.op != "Mul" or square.inputs[0] is not square.inputs[1]:
        return False
    weight = np.asarray(node.inputs[1].values)
    scale = weight.max(initial=0)
    return bool(weight.size and scale > 0 and np.isin(weight, (0, scale)).all())


def band_convolution(
    model: Model, node: gs.Node, channels: int, kept: npt.NDArray[np.int64], spatial_rank: int
) -> None:
    """Replace an LRN node over `channels` channels by its banded form over the `kept` ones (original numbers)."""
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
        result = output if output is not None else model.new_variable(f"{y.name}_{suffix}")
        nodes.append(gs.Node(op, model.unique_name(f"{node.name}_{suffix}"), {}, inputs, [result]))
        return result

    square = add("Mul", "square", [x, x])
    window = add("Conv", "window", [square, weight, bias_constant])
    if beta == 0.75:
        root = add("Sqrt", "root", [window])
        power = add("Mul", "power", [root, add("Sqrt", "fourth_root", [root])])
    else:
        exponent = model.new_constant(f"{node.name}_beta", np.array(beta, dtype))
        power = add("Pow", "power", [window, exponent])
    node.outputs.clear()
    add("Div", "quotient", [x, power], y)
    model.replace_node(node, nodes)
