"""Which convolutions can be split, as arrays and sizes, and why the others cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.analysis.cost import sample_shapes
from onnxcompress.graph import Model, Shape
from onnxcompress.linalg.spanning import spanned_axes
from onnxcompress.linalg.spectrum import Matrix, working
from onnxcompress.links import has_input
from onnxcompress.operators import CONVOLUTIONS, is_standard
from onnxcompress.passes.base import PassContext, Skipped
from onnxcompress.tensor_bytes import release_mapped

Array = npt.NDArray[Any]

_FLOATS = ("float16", "bfloat16", "float32", "float64")

LARGEST_FACTOR = 2.0**64
"""Two such factors, one behind the other, reach the end of float32."""


@dataclass(frozen=True)
class ConvSite:
    """A convolution with constant floating-point weights.

    Attributes:
        node: its name.
        op: `Conv` or `ConvTranspose`.
        groups: G.
        weight: as stored: (O, I / G, k...) of a Conv, (I, O / G, k...) of a ConvTranspose.
        has_bias: whether it adds one.
        in_positions, out_positions: of one sample: product of the sizes of input and output but the channels, None
            where one is not known.
        stride: product of the strides: input positions for one output position of a Conv, the reverse where transposed.
        sizes: spatial sizes of input and output, None where one is not known.
        weight_name: of the weight tensor.
        sharers: what else reads the same weight tensor: nodes, "a sub-graph", "an output of the graph".
    """

    node: str
    op: str
    groups: int
    weight: Array
    has_bias: bool
    in_positions: int | None
    out_positions: int | None
    stride: int
    weight_name: str
    sharers: tuple[str, ...] = ()
    sizes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def in_channels(self) -> int:
        """I, of all groups."""
        return int(self.weight.shape[0]) if self.op == "ConvTranspose" else int(self.weight.shape[1]) * self.groups

    @property
    def out_channels(self) -> int:
        """O, of all groups."""
        return int(self.weight.shape[1]) * self.groups if self.op == "ConvTranspose" else int(self.weight.shape[0])

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Spatial size of the kernel."""
        return tuple(int(d) for d in self.weight.shape[2:])

    @property
    def kernel_size(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel_shape)

    @property
    def is_depthwise(self) -> bool:
        """Whether each group has only one input or one output channel, so that one factor would be a mere scale."""
        return self.groups > 1 and 1 in (self.in_channels // self.groups, self.out_channels // self.groups)

    def positions_behind(self, spans: int) -> int | None:
        """Return the positions behind an input factor that spans axes of the kernel, None if not known."""
        if spans == 0 or self.sizes is None:
            return None if spans else self.in_positions
        given, made = self.sizes
        axes = spanned_axes(spans, len(given))
        of_each = math.prod(made[axis] if axis in axes else given[axis] for axis in range(len(given)))
        # One sample of the model may be several of the layer, as where it is cut into windows.
        return None if self.in_positions is None else self.in_positions // max(math.prod(given), 1) * of_each

    def kernels(self) -> Matrix:
        """Return each group's kernel, shape (G, O / G, I / G, k...)."""
        weight = working(self.weight)
        if self.op == "ConvTranspose":
            grouped = weight.reshape(self.groups, self.in_channels // self.groups, *weight.shape[1:])
            return np.swapaxes(grouped, 1, 2)
        return weight.reshape(self.groups, self.out_channels // self.groups, *weight.shape[1:])


def as_stored(factor: Matrix, dtype: np.dtype[Any]) -> Array:
    """Return a factor in the element type of the weight that it stands for.

    Raises:
        ValueError: it holds values that the type cannot, or so large that sums overflow between the factors which do
            not in the whole.
    """
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(factor.astype(dtype))
    within = factor.min(initial=0.0) >= -LARGEST_FACTOR and factor.max(initial=0.0) <= LARGEST_FACTOR
    if not (within and np.isfinite(stored).all()):
        raise ValueError(f"a factor of it holds values too large for {dtype}")
    return stored


def find_conv_sites(model: Model, context: PassContext) -> tuple[list[ConvSite], list[Skipped]]:
    """Return the convolutions a pass may work on, in graph order, and the others with the reason."""
    sites: list[ConvSite] = []
    skipped: list[Skipped] = []
    nodes = [node for node in model.nodes if node.op in CONVOLUTIONS and is_standard(node)]
    shapes, batch = sample_shapes(model) if nodes else ({}, 1)
    pinned = pinned_tensors(model)
    for node in nodes:
        reason = (
            "excluded by --exclude"
            if context.is_excluded(node.name)
            else why_no_float_constant(model, node, position=1)
        )
        reason = reason or _why_malformed(node)
        if reason:
            skipped.append(Skipped(node.name, reason))
        else:
            sites.append(_conv_site(model, node, shapes, batch, pinned))
    return sites, skipped


def _conv_site(
    model: Model, node: gs.Node, shapes: dict[str, Shape], batch: int, pinned: Mapping[str, str]
) -> ConvSite:
    tensor = node.inputs[1]
    given, made = (_spatial_sizes(shapes.get(each.name)) for each in (node.inputs[0], node.outputs[0]))
    return ConvSite(
        node=node.name,
        op=node.op,
        groups=int(node.attrs.get("group", 1)),
        weight=model.values(tensor),
        has_bias=has_input(node, 2),
        in_positions=positions_of(shapes.get(node.inputs[0].name), batch, features=1),
        out_positions=positions_of(shapes.get(node.outputs[0].name), batch, features=1),
        stride=math.prod(int(s) for s in node.attrs.get("strides", (1,))),
        weight_name=tensor.name,
        sharers=other_readers(node, tensor, pinned),
        sizes=None if given is None or made is None else (given, made),
    )


def _spatial_sizes(shape: Shape | None) -> tuple[int, ...] | None:
    sizes = tuple(size for size in (shape or ())[2:] if isinstance(size, int))
    return sizes if shape is not None and len(sizes) == len(shape) - 2 else None


def why_no_float_constant(model: Model, node: gs.Node, position: int) -> str | None:
    """Return why an input is not a constant that can be decomposed, None if it is one."""
    tensor = node.inputs[position]
    if not model.is_constant(tensor):
        producer = f"computed by {tensor.inputs[0].op}" if tensor.inputs else "an input of the graph"
        quantized = " (a quantized model)" if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear" else ""
        return f"its weight is not a constant but {producer}{quantized}"
    values = model.values(tensor)
    if values.dtype.name not in _FLOATS:
        return f"its weight is {values.dtype.name}, expected one of {', '.join(_FLOATS)}"
    if not values.size:
        return f"its weight of shape {'x'.join(map(str, values.shape))} is empty"
    # The sum of finite values may overflow, but one that is not finite always shows in it: look closer only then.
    total = values.sum(dtype=np.float64)
    release_mapped(values)
    if not np.isfinite(total):
        return "its weight holds NaN or infinite values"
    return None


def pinned_tensors(model: Model) -> dict[str, str]:
    """Return the tensors that something else than a node of the graph reads, and what that is."""
    outputs = {tensor.name: "an output of the graph" for tensor in model.graph.outputs}
    return {**outputs, **dict.fromkeys(model.captured_names(), "a sub-graph")}


def other_readers(node: gs.Node, tensor: gs.Tensor, pinned: Mapping[str, str]) -> tuple[str, ...]:
    """Return what else reads a tensor besides `node`; `pinned` is `pinned_tensors(model)`."""
    readers = [reader.name for reader in tensor.outputs if reader is not node]
    return tuple(dict.fromkeys([*readers, *([pinned[tensor.name]] if tensor.name in pinned else [])]))


def _why_malformed(node: gs.Node) -> str | None:
    shape: Sequence[int] = node.inputs[1].shape
    groups = int(node.attrs.get("group", 1))
    if len(shape) < 3:
        return f"its weight has {len(shape)} axes, expected filters, channels and a kernel"
    if groups < 1 or shape[0] % groups:
        return f"its {shape[0]} filters do not divide into {groups} groups"
    return None


def positions_of(shape: Shape | None, batch: int, *, features: int) -> int | None:
    """Return the product of all sizes but that of axis `features`, for one sample; None where one is not known."""
    if not shape:
        return None
    others = [size for axis, size in enumerate(shape) if axis != features % len(shape)]
    sizes = [size for size in others if isinstance(size, int)]
    if len(sizes) < len(others):
        return None
    positions = math.prod(sizes)
    return positions // batch if positions % batch == 0 else positions
