"""Blocks that the channel analysis has to leave alone, whole or in part, in the middle of what it prunes."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.blocks_layers import Block, convolve, flattened
from tests.fuzz.builder import FLOAT, Builder, Unfit, Value
from tests.fuzz.reshapes import fixed, reshape, rest, same, spatial_of


def cumulative_sum(b: Builder) -> None:
    if b.opset < 11:
        raise Unfit
    x = b.choose_map()
    axis = b.constant(b.choices.pick([2, 1]), np.int64)
    b.offer(b.op("CumSum", [x, axis], x.shape))


def top_k(b: Builder) -> None:
    if b.opset < 11:
        raise Unfit
    x = b.choose_map()
    values, _ = b.ops("TopK", [x, b.ints(1)], [[*x.shape[:2], 1, *x.shape[3:]]] * 2, axis=2)
    b.offer(values)


def einsum(b: Builder) -> None:
    if b.opset < 12:
        raise Unfit
    x = b.choose_map()
    letters = "nchwd"[: len(x.shape)]
    weight = b.weights(x.channels, x.channels, fan=x.channels)
    b.offer(b.op("Einsum", [x, weight], x.shape, equation=f"{letters},cx->{letters.replace('c', 'x')}"))


def normalise_channels(b: Builder) -> None:
    """Softmax or an L2 norm over the channels."""
    x = b.choose_map()
    if b.choices.chance(50):
        b.offer(b.op("LpNormalization", [b.op("Add", [x, b.constant(0.1)], x.shape)], x.shape, axis=1, p=2))
    else:
        b.offer(b.op("Softmax", [x], x.shape, axis=1))


def attention(b: Builder) -> None:
    """Scores of all positions against each other, from the map itself."""
    x = b.choose_map()
    positions = int(np.prod(x.spatial))
    flat = reshape(b, x, [same(0), fixed(x.channels), rest(*range(2, len(x.shape)))])
    turned = b.transpose(flat, [0, 2, 1])
    scores = b.op("MatMul", [turned, flat], [x.shape[0], positions, positions])
    weights = b.op("Softmax", [scores], scores.shape, axis=2)
    y = b.op("MatMul", [flat, weights], flat.shape)
    b.offer(reshape(b, y, [same(0), fixed(x.channels), *spatial_of(x)], like=x))


def condition(b: Builder) -> None:
    """An If whose branches read a map, and a weight, from outside."""
    x = b.choose_map()
    weight = b.constant(b.rng.standard_normal((x.channels, *[1] * b.rank)), form="initializer")
    names = [b.fresh("branch") for _ in range(2)]
    nodes = [
        helper.make_node("Mul", [x.name, weight], [names[0]]),
        helper.make_node("Abs", [x.name], [names[1]]),
    ]
    branches = [
        helper.make_graph([n], name, [], [helper.make_tensor_value_info(name, FLOAT, [None] * len(x.shape))])
        for n, name in zip(nodes, names, strict=True)
    ]
    b.read.add(x.name)
    chosen = b.constant(b.choices.chance(50), np.bool_, form="initializer")
    b.offer(b.op("If", [chosen], x.shape, then_branch=branches[0], else_branch=branches[1]))


def quantised_weight(b: Builder) -> None:
    """A convolution whose weight is computed by DequantizeLinear."""
    if b.opset < 10:
        raise Unfit
    x = b.choose_map()
    filters = b.choices.integer(2, 8)
    shape = (filters, x.channels, *[1] * b.rank)
    stored = b.constant(b.rng.integers(-100, 100, shape), np.int8)
    weight = b.op("DequantizeLinear", [stored, b.constant(0.01), b.constant(0, np.int8)], shape)
    b.offer(convolve(b, x, filters, weight=weight.name))


def recurrent(b: Builder) -> None:
    """A GRU over the positions, channels as features: its inputs may leave, its state stays."""
    x = b.choose_map()
    n, channels = x.shape[:2]
    positions, hidden = int(np.prod(x.spatial)), b.choices.integer(1, 4)
    flat = reshape(b, x, [same(0), fixed(channels), rest(*range(2, len(x.shape)))])
    sequence = b.transpose(flat, [2, 0, 1])
    weights = [b.weights(1, 3 * hidden, channels, fan=channels), b.weights(1, 3 * hidden, hidden, fan=hidden)]
    y = b.op("GRU", [sequence, *weights], [positions, 1, n, hidden], hidden_size=hidden)
    last = b.transpose(b.squeeze(y, [1]), [1, 2, 0])
    b.offer(reshape(b, last, [same(0), fixed(hidden), *spatial_of(x)], like=x))


def foreign_operand(b: Builder) -> None:
    """A map combined with what no layer made: an input's own channels, or noise of its shape."""
    x = b.choose_map()
    other = b.op(
        "ConstantOfShape", [b.shape_of(x)], x.shape, value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])
    )
    b.offer(b.op(b.choices.pick(["Add", "Mul"]), [x, other], x.shape))


def positions_of_maxima(b: Builder) -> None:
    """MaxPool with indices, or ArgMax over the channels."""
    x = b.choose_map(lambda v: min(v.spatial) >= 2)
    if b.choices.chance(50):
        shape = [*x.shape[:2], *[d - 1 for d in x.spatial]]
        y, places = b.ops("MaxPool", [x], [shape, shape], kernel_shape=[2] * b.rank)
        cast = b.op("Cast", [places], places.shape, to=1)
        b.offer(b.op("Add", [y, b.op("Mul", [cast, b.constant(0.01)], cast.shape)], y.shape))
        return
    b.offer(b.op("Cast", [b.op("ArgMax", [x], [x.shape[0], 1, *x.spatial], axis=1)], [x.shape[0], 1, *x.spatial], to=1))


def flat_middle(b: Builder) -> None:
    """A graph that goes on from a flattened map without a layer."""
    x = b.choose_map()
    y = flattened(b, x)
    b.offer(b.op("Relu", [y], y.shape))


def mixed_batch(b: Builder) -> Value:
    """Channels and batch merged into one axis, and back."""
    x = b.choose_map()
    y = reshape(b, x, [rest(0, 1), fixed(1), *spatial_of(x)])
    y = b.op("Relu", [y], y.shape)
    y = reshape(b, y, [same(0), fixed(x.channels), *spatial_of(x)], like=x)
    b.offer(y)
    return y


UNKNOWN: tuple[Block, ...] = (
    cumulative_sum,
    top_k,
    einsum,
    normalise_channels,
    attention,
    condition,
    quantised_weight,
    recurrent,
    foreign_operand,
    positions_of_maxima,
    flat_middle,
    mixed_batch,
)
