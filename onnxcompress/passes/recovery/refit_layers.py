"""Layers that can be refitted: a linear node of the original, and the chain that stands for it in the compressed model.

A layer keeps its input and output tensors through every pass; what lies between them may be one node, the two of an
SVD or the three of a Tucker split. The bias of a MatMul is the constant of the Add behind it: the layer's output is the
sum. Its weights, in one layout for all operators, are a slope (K, I, O): positions of
the kernel, input channels, outputs; of a grouped convolution one for each group. An input factor may span leading axes
of the kernel: the positions of the first node and of the core then multiply to K. An output of a transposed convolution
is such a sum, too: of the positions of its kernel that meet no input there, the inputs are zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.analysis.bias import adder_behind, constant_position, differs_by_row
from onnxcompress.analysis.lrn import is_window
from onnxcompress.graph import Model
from onnxcompress.linalg.spanning import joined_kernel, parted_kernel, spannable, spanned_positions
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.links import has_input
from onnxcompress.operators import CONVOLUTIONS, LAYERS, is_standard
from onnxcompress.passes.base import PassContext, Skipped
from onnxcompress.passes.tucker.sites import (
    why_no_float_constant,
)
from onnxcompress.runtime.patches import TransposedWindow, Window

_LONGEST_CHAIN = 3

Patches = tuple[str, bool, tuple[int, ...], str]
"""What is read: the tensor, whether by a transposed convolution, the kernel and how it moves."""


@dataclass(frozen=True)
class RefitLayer:
    """A linear layer of the original and its counterpart.

    Attributes:
        node: the original's name.
        op: `Conv`, `ConvTranspose`, `Gemm` or `MatMul`.
        input, output: tensor names, the same in both models.
        chain: names of the compressed model's nodes from input to output.
        core: position in the chain of the node with the original's kernel, but for the axes that the first one spans.
        spans: axes of the kernel that the input factor spans, as in `linalg.spanning`.
        adder: name of the compressed model's Add that holds a MatMul's bias, None where there is none.
        groups: of the original's convolution, of which some may have left; above 1 only for a chain of one node.
        attributes: the original's strides, pads, dilations, auto_pad, output_padding.
        kernel_shape: spatial, empty for a matrix.
        original: the original's slope of every group, (G, K, I / G, O / G), float64.
        follows_relu: whether nothing but a Relu reads the output.
    """

    node: str
    op: str
    input: str
    output: str
    chain: tuple[str, ...]
    core: int
    groups: int
    attributes: Mapping[str, object]
    kernel_shape: tuple[int, ...]
    original: Matrix
    follows_relu: bool
    spans: int = 0
    adder: str | None = None

    @property
    def patches(self) -> Patches:
        """What tells its patches from those of other layers."""
        return self.input, self.op == "ConvTranspose", self.kernel_shape, repr(sorted(self.attributes.items()))

    @property
    def has_constant(self) -> bool:
        """Whether a constant can be added to the outputs: a MatMul has no place for one without an Add behind it."""
        return self.op != "MatMul" or self.adder is not None

    @property
    def spanned(self) -> int:
        """Positions of the kernel that the input factor spans."""
        return spanned_positions(self.kernel_shape, self.spans)

    @property
    def is_convolution(self) -> bool:
        """Whether channels are axis 1, and axes to slide along follow; of a matrix they are the last axis."""
        return self.op in CONVOLUTIONS

    @property
    def positions(self) -> int:
        """K: positions of the kernel."""
        return math.prod(self.kernel_shape)

    @property
    def features(self) -> int:
        """K I / G: how many inputs each output of the original has."""
        return int(self.original.shape[1] * self.original.shape[2])

    @property
    def outputs(self) -> int:
        """O: how many outputs the original has."""
        return int(self.original.shape[0] * self.original.shape[3])

    @property
    def has_input_factor(self) -> bool:
        """Whether a node of its own maps the input channels before the core."""
        return self.core > 0

    @property
    def has_output_factor(self) -> bool:
        """Whether a node of its own maps the core's outputs."""
        return self.core < len(self.chain) - 1

    def window(self, spatial: tuple[int, ...]) -> Window:
        """Return the convolution's geometry for an input of a spatial size."""
        kind = TransposedWindow if self.op == "ConvTranspose" else Window
        return kind.of(self.kernel_shape, self.attributes, spatial)


def find_refit_layers(
    original: Model, compressed: Model, context: PassContext
) -> tuple[list[RefitLayer], list[Skipped]]:
    """Return the layers of `original` that `compressed` still has, in graph order, and the others with the reason."""
    producers = {t.name: node for node in compressed.nodes for t in node.outputs if t.name}
    layers: list[RefitLayer] = []
    skipped: list[Skipped] = []
    for node in original.nodes:
        if node.op not in LAYERS or not is_standard(node):
            continue
        if is_window(node):
            continue  # an LRN, no layer
        found = _layer(original, compressed, node, producers, context)
        if isinstance(found, str):
            skipped.append(Skipped(node.name, found))
        else:
            layers.append(found)
    return layers, skipped


def slope_of(model: Model, node: gs.Node) -> Matrix:
    """Return a linear node's weight as (G, K, I / G, O / G) in float64, a Gemm's alpha multiplied in."""
    weight = np.asarray(model.values(node.inputs[1]), np.float64)
    if node.op == "Conv":
        groups = int(node.attrs.get("group", 1))
        grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return np.ascontiguousarray(grouped.transpose(0, 3, 2, 1))
    if node.op == "ConvTranspose":
        groups = int(node.attrs.get("group", 1))
        grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return np.ascontiguousarray(grouped.transpose(0, 3, 1, 2))
    matrix = weight.T if node.op == "Gemm" and node.attrs.get("transB", 0) else weight
    scale = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
    return scale * matrix[None, None]


def weight_of(slope: Matrix, node: gs.Node, like: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return a slope (G, K, I, O) laid out as the weight of `node`, in the element type of `like`."""
    if node.op == "Conv":
        kernel = slope.transpose(0, 3, 2, 1)
        weight = kernel.reshape(-1, kernel.shape[2], *like.shape[2:])
    elif node.op == "ConvTranspose":
        kernel = slope.transpose(0, 2, 3, 1)
        weight = kernel.reshape(-1, kernel.shape[2], *like.shape[2:])
    else:
        scale = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
        matrix = slope[0, 0] / scale
        weight = matrix.T if node.op == "Gemm" and node.attrs.get("transB", 0) else matrix
    return np.ascontiguousarray(weight.astype(like.dtype))


def bias_of(model: Model, node: gs.Node, outputs: int) -> Matrix:
    """Return a linear node's bias, a Gemm's beta multiplied in, zeros where it has none; shape (outputs,)."""
    if not has_input(node, 2):
        return np.zeros(outputs)
    scale = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    values = np.asarray(model.values(node.inputs[2]), np.float64).reshape(-1)
    return np.array(np.broadcast_to(scale * values, (outputs,)))


def bias_place(layer: RefitLayer, nodes: Mapping[str, gs.Node]) -> tuple[gs.Node, int] | None:
    """Return the node that reads a layer's bias and at which input, None where it has none."""
    if layer.adder is not None:
        return nodes[layer.adder], constant_position(nodes[layer.adder])
    return (nodes[layer.chain[-1]], 2) if has_input(nodes[layer.chain[-1]], 2) else None


def bias_tensor(layer: RefitLayer, nodes: Mapping[str, gs.Node]) -> gs.Tensor | None:
    """Return the bias of a layer, None where it has none."""
    place = bias_place(layer, nodes)
    return place[0].inputs[place[1]] if place else None


def biases_to_come(model: Model, layers: Sequence[RefitLayer]) -> list[int]:
    """Return how many numbers each bias has that a refit of these layers adds: it writes one where there is none."""
    nodes = {node.name: node for node in model.nodes}
    bare = [layer for layer in layers if nodes[layer.node].op != "MatMul" and not has_input(nodes[layer.node], 2)]
    return [layer.groups * layer.original.shape[3] for layer in bare]


def write_bias(model: Model, nodes: Sequence[gs.Node], constant: Matrix) -> None:
    """Give linear nodes that are alike one bias, shape (O,)."""
    first = nodes[0]
    dtype = model.values(first.inputs[1]).dtype
    if has_input(first, 2):
        bias = model.set_input(first, 2, constant.astype(dtype))
    elif first.op == "MatMul":
        return
    else:
        bias = model.new_constant(f"{first.name}_bias", constant.astype(dtype))
    for node in nodes:
        if len(node.inputs) == 2:
            node.inputs.append(bias)
        elif node.inputs[2] is not bias:  # an input that is not given has no name
            node.inputs[2] = bias
        if node.op == "Gemm":
            node.attrs.pop("beta", None)


def layer_bias(model: Model, layer: RefitLayer, outputs: int) -> Matrix:
    """Return what the compressed `model` adds to the outputs of a layer's chain, zeros where it is nothing."""
    nodes = {node.name: node for node in model.nodes}
    place = bias_place(layer, nodes)
    if place is None or layer.adder is None:
        return bias_of(model, nodes[layer.chain[-1]], outputs)
    return np.array(model.values(place[0].inputs[place[1]]), np.float64).reshape(outputs)


def write_layer_bias(model: Model, layers: Sequence[RefitLayer], constant: Matrix) -> None:
    """Give layers that share their weight one bias, shape (O,); a MatMul that has no place for one gets none."""
    nodes = {node.name: node for node in model.nodes}
    places = [place for layer in layers if layer.adder is not None and (place := bias_place(layer, nodes))]
    if not places:
        write_bias(model, [nodes[layer.chain[-1]] for layer in layers], constant)
        return
    (adder, at), *others = places
    present = model.values(adder.inputs[at])
    bias = model.set_input(adder, at, constant.astype(present.dtype).reshape(present.shape))
    for other, there in others:
        other.inputs[there] = bias


def chain_slope(model: Model, nodes: list[gs.Node], core: int) -> Matrix:
    """Return the slope (G, K, I, O) of a chain: the product of its nodes' weights."""
    slope = slope_of(model, nodes[core])
    if core > 0:
        slope = np.einsum("air,gkro->gakio", slope_of(model, nodes[0])[0], slope)
        slope = joined_kernel(slope, 1, *(node.inputs[1].shape[2:] for node in (nodes[0], nodes[core])))
    if core < len(nodes) - 1:
        slope = slope @ slope_of(model, nodes[-1])[0, 0]
    return slope


def _layer(
    original: Model, compressed: Model, node: gs.Node, producers: Mapping[str, gs.Node], context: PassContext
) -> RefitLayer | str:
    if context.is_excluded(node.name):
        return "excluded by --exclude"
    if original.is_constant(node.inputs[0]):
        return "its constant stands on the left" if node.op == "MatMul" else "its input is a constant"
    reason = why_no_float_constant(original, node, position=1)
    if reason:
        return reason
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return "its input is transposed (transA)"
    if len(node.inputs[1].shape) != 2 and node.op not in CONVOLUTIONS:
        return f"its weight has {len(node.inputs[1].shape)} axes, expected 2"
    if has_input(node, 2) and not original.is_constant(node.inputs[2]):
        return "its bias is not a constant"
    if differs_by_row(node):
        return "its bias differs from row to row"
    if "output_shape" in node.attrs:
        return "a transposed convolution to a given output_shape"
    tensor, made, adder = node.inputs[0].name, node.outputs[0], None
    chain = _chain(compressed, producers, tensor, made.name)
    if isinstance(chain, str):
        return chain
    if node.op == "MatMul" and (own := adder_behind(original, node)) is not None:
        adder = adder_behind(compressed, chain[-1])
        if adder is not None and adder.outputs[0].name == own.outputs[0].name:
            made, adder = own.outputs[0], adder.name
        else:
            adder = None
    groups = int(node.attrs.get("group", 1))
    if groups > 1 and len(chain) > 1:
        return "a grouped convolution that was split"
    kernel = tuple(int(size) for size in node.inputs[1].shape[2:])
    found = _core_of(chain, kernel, node.op)
    if found is None:
        return "no node between its input and output has its kernel"
    core, spans = found
    readers = made.outputs
    only_relu = bool(readers) and all(reader.op == "Relu" for reader in readers)
    return RefitLayer(
        node=node.name,
        op=node.op,
        input=tensor,
        output=made.name,
        chain=tuple(each.name for each in chain),
        core=core,
        groups=groups,
        attributes=dict(node.attrs),
        kernel_shape=kernel,
        original=slope_of(original, node),
        follows_relu=only_relu and not any(made is out for out in original.graph.outputs),
        spans=spans,
        adder=adder,
    )


def _core_of(chain: list[gs.Node], kernel: tuple[int, ...], op: str) -> tuple[int, int] | None:
    """Return which node of a chain holds the kernel, and which axes of it the first one spans."""
    shapes = [tuple(int(size) for size in node.inputs[1].shape[2:]) for node in chain]
    whole = [at for at, shape in enumerate(shapes) if shape == kernel]
    if op == "ConvTranspose":  # its factors are none
        return next(((at, 0) for at in whole if chain[at].op == op), None)
    if whole:
        # Of a split matrix any node could be the core: the first keeps strides and pads, the other is the factor.
        return (whole[0] if math.prod(kernel) == 1 or len(chain) < _LONGEST_CHAIN else 1), 0
    spanning = (spans for spans in spannable(kernel) if tuple(shapes[:2]) == parted_kernel(kernel, spans))
    return next(((1, spans) for spans in spanning), None)


def _chain(model: Model, producers: Mapping[str, gs.Node], tensor: str, output: str) -> list[gs.Node] | str:
    """Return the linear nodes from one tensor to another, or why there is no such chain."""
    nodes: list[gs.Node] = []
    name = output
    while not nodes or name != tensor:
        node = producers.get(name)
        if node is None or node.op not in LAYERS or len(nodes) == _LONGEST_CHAIN:
            return "the compressed model has no chain of linear nodes in its place"
        if not model.is_constant(node.inputs[1]) or (has_input(node, 2) and not model.is_constant(node.inputs[2])):
            return "its weight or bias is no longer a constant"
        if nodes and len(node.outputs[0].outputs) != 1:
            return "something else reads a tensor inside its split"
        nodes.append(node)
        name = node.inputs[0].name
    return nodes[::-1]
