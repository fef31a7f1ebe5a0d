"""Normalisation, activations, and everything that combines tensors position by position."""

from __future__ import annotations

import numpy as np

from tests.fuzz.blocks_layers import Block, convolve
from tests.fuzz.builder import Builder, Unfit, Value
from tests.fuzz.reshapes import fixed, reshape, rest, same, spatial_of

# Large, because float32 noise on constant input must not become a signal.
EPSILON = 1e-2

UNARY: dict[str, int] = {
    "Relu": 6,
    "LeakyRelu": 6,
    "Sigmoid": 6,
    "Tanh": 6,
    "HardSigmoid": 6,
    "Elu": 6,
    "Selu": 6,
    "Softplus": 1,
    "Softsign": 1,
    "Abs": 6,
    "Neg": 6,
    "Erf": 9,
    "Sin": 7,
    "Celu": 12,
    "HardSwish": 14,
    "Mish": 18,
    "Gelu": 20,
    "Identity": 1,
}


def activation(b: Builder) -> None:
    x = b.choose()
    kind = b.choices.pick([kind for kind, since in UNARY.items() if since <= b.opset])
    b.offer(b.op(kind, [x], x.shape))


def composed_activation(b: Builder) -> None:
    """Clip, SiLU, hard-swish and GELU as exporters spell them, Dropout, PRelu."""
    c, x = b.choices, b.choose_map()
    form = c.pick(["clip", "silu", "hardswish", "gelu", "dropout", "prelu"])
    if form == "clip":
        y = b.clip(x, 0.0, 6.0)
    elif form == "silu":
        y = b.op("Mul", [x, b.op("Sigmoid", [x], x.shape)], x.shape)
    elif form == "hardswish":
        y = b.clip(b.op("Add", [x, b.constant(3.0)], x.shape), 0.0, 6.0)
        y = b.op("Div", [b.op("Mul", [x, y], x.shape), b.constant(6.0)], x.shape)
    elif form == "gelu":
        y = b.op("Erf", [b.op("Div", [x, b.constant(1.4142)], x.shape)], x.shape)
        y = b.op("Mul", [x, b.op("Add", [y, b.constant([1.0])], x.shape)], x.shape)
    elif form == "dropout":
        y = b.op("Dropout", [x, b.constant(0.5)] if b.opset >= 12 and c.chance(50) else [x], x.shape)
    else:
        slopes = c.pick([(1,), (x.channels, *[1] * b.rank), (1,) * b.rank])
        y = b.op("PRelu", [x, b.weights(*slopes)], x.shape)
    b.offer(y)


def batch_norm(b: Builder) -> None:
    x = b.choose_map()
    params = [b.positive(x.channels), b.weights(x.channels), b.weights(x.channels), b.positive(x.channels)]
    b.offer(b.op("BatchNormalization", [x, *params], x.shape))


def instance_norm(b: Builder) -> None:
    x = b.choose_map()
    params = [b.positive(x.channels), b.weights(x.channels)]
    b.offer(b.op("InstanceNormalization", [x, *params], x.shape, epsilon=EPSILON))


def group_norm(b: Builder) -> None:
    """The operator, or its decomposition by InstanceNormalization on (N, G, -1)."""
    c, x = b.choices, b.choose_map(lambda v: v.channels > 1)
    groups = c.pick([g for g in range(1, x.channels + 1) if x.channels % g == 0])
    if b.opset >= 21 and c.chance(50):  # the checker refuses the form of opset 18 to 20
        params = [b.positive(x.channels), b.weights(x.channels)]
        b.offer(b.op("GroupNormalization", [x, *params], x.shape, num_groups=groups, epsilon=EPSILON))
        return
    y = reshape(b, x, [same(0), fixed(groups), rest(*range(1, len(x.shape)), by=groups)])
    params = [b.constant(np.ones(groups)), b.constant(np.zeros(groups))]
    if c.chance(20):
        params = [b.positive(groups), b.weights(groups)]
    y = b.op("InstanceNormalization", [y, *params], y.shape, epsilon=EPSILON)
    if c.chance(50):
        y = b.op("Reshape", [y, b.shape_of(x)], x.shape)
    else:
        y = reshape(b, y, [same(0), fixed(x.channels), *spatial_of(x)], like=x)
    ones = [1] * b.rank
    y = b.op("Mul", [y, b.positive(x.channels, *ones)], x.shape)
    b.offer(b.op("Add", [y, b.weights(x.channels, *ones)], x.shape))


def layer_norm_last(b: Builder) -> None:
    """Channels last: Transpose, LayerNormalization (or its parts), MatMul, Gelu, MatMul, Transpose (ConvNeXt)."""
    c, x = b.choices, b.choose_map()
    rank = len(x.shape)
    y = b.transpose(x, [0, *range(2, rank), 1])
    size = x.channels
    if b.opset >= 17 and c.chance(50):
        params = [b.positive(size), b.weights(size)] if c.chance(70) else [b.positive(size)]
        y = b.op("LayerNormalization", [y, *params], y.shape, axis=c.pick([-1, rank - 1]), epsilon=EPSILON)
    else:
        y = normalised(b, y, rank - 1, c.chance(50))
        y = b.op("Mul", [y, b.positive(size)], y.shape)
        y = b.op("Add", [y, b.weights(size)], y.shape)
    if c.chance(60):
        wide = c.integer(2, 16)
        y = b.op("MatMul", [y, b.weights(size, wide, fan=size)], [*y.shape[:-1], wide])
        y = b.op("Relu", [b.op("Add", [b.weights(wide), y], y.shape)], y.shape)
        y = b.op("MatMul", [y, b.weights(wide, size, fan=wide)], [*y.shape[:-1], size])
    y = b.transpose(y, [0, rank - 1, *range(1, rank - 1)])
    b.offer(b.op("Add", [x, y], x.shape) if c.chance(60) else y)


def layer_norm_first(b: Builder) -> None:
    """Normalisation over axis 1, spelled out (LayerNorm2d of ConvNeXt's stem and downsampling)."""
    x = b.choose_map()
    y = normalised(b, x, 1, b.choices.chance(50))
    ones = [1] * b.rank
    y = b.op("Mul", [y, b.positive(x.channels, *ones)], x.shape)
    b.offer(b.op("Add", [y, b.weights(x.channels, *ones)], x.shape))


def normalised(b: Builder, x: Value, axis: int, by_pow: bool) -> Value:
    """Return (x - mean) / sqrt(variance + epsilon) over one axis."""
    centred = b.op("Sub", [x, b.reduce("ReduceMean", x, [axis])], x.shape)
    square = [centred, b.constant(2.0)] if by_pow else [centred, centred]
    variance = b.reduce("ReduceMean", b.op("Pow" if by_pow else "Mul", square, x.shape), [axis])
    deviation = b.op("Sqrt", [b.op("Add", [variance, b.constant(EPSILON)], variance.shape)], variance.shape)
    return b.op("Div", [centred, deviation], x.shape)


def lrn(b: Builder) -> None:
    """onnxruntime has it for images and odd windows only."""
    c, x = b.choices, b.choose_map()
    if b.rank != 2:
        raise Unfit
    size = c.pick([5, 3, 1])
    b.offer(b.op("LRN", [x], x.shape, size=size, alpha=0.1, beta=c.pick([0.75, 0.5]), bias=c.pick([1.0, 2.0])))


def with_constant(b: Builder) -> None:
    """Add, Sub, Mul, Div, Max, Min with a constant of any broadcastable shape, on either side."""
    c, x = b.choices, b.choose()
    spatial = x.shape[2:]
    shapes: list[tuple[int, ...]] = [(), (1,), (x.shape[1], *[1] * len(spatial)), (1, x.shape[1], *[1] * len(spatial))]
    if not b.has_open_space(x):
        shapes += [(1,) * len(x.shape), x.shape[1:], (1, *x.shape[1:]), x.shape[-1:], (1, 1, *spatial)]
    shape = c.pick(shapes)
    kind = c.pick(["Add", "Mul", "Sub", "Div", "Max", "Min"])
    other = b.positive(*shape) if kind == "Div" else b.weights(*shape)
    flip = kind != "Div" and c.chance(40)
    if kind in ("Max", "Min") and b.opset < 8:
        raise Unfit
    b.offer(b.op(kind, [other, x] if flip else [x, other], x.shape))


def combine(b: Builder) -> None:
    """Two or three tensors of one shape: open ones, or a convolution of the first (a residual)."""
    c, x = b.choices, b.choose_map()
    same = b.choose_map(lambda v: v.shape == x.shape) if c.chance(40) else convolve(b, x, x.channels)
    kind = c.pick(["Add", "Mul", "Sub", "Max", "Min", "Sum", "Mean"])
    operands = [x, same] if c.chance(60) else [same, x]
    if kind in ("Max", "Min", "Sum", "Mean") and c.chance(30):
        operands.append(convolve(b, x, x.channels))
    b.offer(b.op(kind, operands, x.shape))


def broadcast(b: Builder) -> None:
    """A map times one that is broadcast over space or channels: (N, C, 1...), (N, 1, S...), (1, C, 1...)."""
    x = b.choose_map()

    def fits(v: Value) -> bool:
        return v.shape != x.shape and all(d in (1, e) for d, e in zip(v.shape, x.shape, strict=True))

    y = b.choose_map(fits)
    b.offer(b.op(b.choices.pick(["Add", "Mul"]), [x, y], x.shape))


def where(b: Builder) -> None:
    """A leaky rectifier by Greater and Where, or a mask of positions that is constant."""
    c, x = b.choices, b.choose_map()
    if c.chance(60):
        inside = b.op("Greater", [x, b.constant(0.0)], x.shape)
        smaller = b.op("Mul", [x, b.constant(0.1)], x.shape)
        b.offer(b.op("Where", [inside, x, smaller], x.shape))
        return
    other = convolve(b, x, x.channels) if c.chance(50) else b.constant(0.5)
    if b.has_open_space(x):
        raise Unfit
    mask = b.constant(b.rng.random((1, c.pick([1, x.channels]), *x.spatial)) > 0.5, np.bool_)
    b.offer(b.op("Where", [mask, x, other], x.shape))


def cast(b: Builder) -> None:
    """Through double precision and back."""
    x = b.choose()
    y = b.op("Cast", [x], x.shape, to=11)
    if b.choices.chance(50):
        per_channel = b.rng.standard_normal((x.shape[1], *[1] * (len(x.shape) - 2)))
        y = b.op("Mul", [y, b.constant(per_channel, np.float64)], x.shape)
    b.offer(b.op("Cast", [y], x.shape, to=1))


POINTWISE: tuple[Block, ...] = (
    activation,
    activation,
    composed_activation,
    batch_norm,
    instance_norm,
    group_norm,
    layer_norm_last,
    layer_norm_first,
    lrn,
    with_constant,
    with_constant,
    combine,
    combine,
    broadcast,
    where,
    cast,
)
