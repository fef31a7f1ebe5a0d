"""Blocks that join, cut, pick, pad, repeat, reduce and re-arrange."""

from __future__ import annotations

import numpy as np

from tests.fuzz.blocks_layers import Block, convolve
from tests.fuzz.builder import Builder, Unfit, Value
from tests.fuzz.reshapes import computed, fixed, reshape, rest, same, spatial_of


def concat(b: Builder) -> None:
    """Along the channels, with a repeated input or a constant now and then."""
    c, x = b.choices, b.choose_map()
    parts: list[Value | str] = [x]
    channels = x.channels
    for _ in range(c.integer(1, 3)):
        other = b.choose_map(lambda v: v.spatial == x.spatial) if c.chance(70) else convolve(b, x, c.integer(1, 8))
        parts.append(other)
        channels += other.channels
    if c.chance(10) and not b.open_batch and not b.has_open_space(x):
        parts.insert(c.integer(0, len(parts)), b.weights(x.shape[0], 2, *x.spatial))
        channels += 2
    if channels > 48:
        raise Unfit
    axis = c.pick([1, 1 - len(x.shape)]) if b.opset >= 11 else 1
    b.offer(b.op("Concat", parts, [x.shape[0], channels, *x.spatial], axis=axis))


def concat_space(b: Builder) -> None:
    """Along a spatial axis: the channels are tied."""
    x = b.choose_map()
    axis = b.choices.integer(2, len(x.shape) - 1)
    other = convolve(b, x, x.channels) if b.choices.chance(60) else x
    shape = [2 * d if a == axis else d for a, d in enumerate(x.shape)]
    b.offer(b.op("Concat", [x, other], shape, axis=axis))


def split(b: Builder) -> None:
    """Along the channels; the parts go different ways (ShuffleNetV2, C2f)."""
    c, x = b.choices, b.choose_map(lambda v: v.channels >= 2)
    count = c.integer(2, min(3, x.channels))
    if x.channels % count == 0 and c.chance(60):
        sizes = [x.channels // count] * count
    else:
        first = c.integer(1, x.channels - count + 1)
        rest = x.channels - first
        sizes = [first, rest] if count == 2 else [first, 1, rest - 1]
    parts = b.split(x, 1, [s for s in sizes if s])
    if c.chance(50):
        y = convolve(b, parts[0], parts[0].channels)
        joined = [y, *parts[1:]] if c.chance(50) else [*parts, y]
        channels = sum(v.channels for v in joined)
        b.offer(b.op("Concat", joined, [x.shape[0], channels, *x.spatial], axis=1))
        return
    b.offer(*parts)


def chunk_by_slices(b: Builder) -> None:
    """Two halves by Slice, one gated by the other (GLU, GhostNet)."""
    x = b.choose_map(lambda v: v.channels >= 2 and v.channels % 2 == 0)
    half = x.channels // 2
    first, second = b.cut(x, [1], [slice(0, half)]), b.cut(x, [1], [slice(half, 2**31 - 1)])
    b.offer(b.op("Mul", [first, b.op("Sigmoid", [second], second.shape)], first.shape))


def cut(b: Builder) -> None:
    """Any range of channels and space, also backwards and with steps."""
    c, x = b.choices, b.choose_map(lambda v: v.channels >= 2)
    low = c.integer(0, x.channels - 1)
    options = [slice(low, x.channels), slice(0, low + 1), slice(low - x.channels, 2**63 - 1), slice(0, x.channels, 2)]
    options += [slice(x.channels - 1, None, -1), slice(x.channels - 1, None, -2)] if b.opset >= 10 else []
    axes, cuts = [1], [c.pick(options)]
    if c.chance(40):
        axes.append(2)
        cuts.append(slice(0, max(1, x.shape[2] - 1)))
    if c.chance(30):
        axes, cuts = axes[::-1], cuts[::-1]
    b.offer(b.cut(x, axes, cuts))


def gather(b: Builder) -> None:
    """A permutation, a subset or a repetition of the channels by number."""
    c, x = b.choices, b.choose_map(lambda v: v.channels >= 2)
    order = c.shuffled(range(x.channels))
    taken = c.pick(
        [order, order[: len(order) // 2 + 1], [*order[:2], *order[:2]], sorted(order[: len(order) // 2 + 1])]
    )
    if c.chance(20) and b.opset >= 11:
        taken = [t - x.channels for t in taken]
    kind = np.int64 if c.chance(70) else np.int32
    b.offer(b.op("Gather", [x, b.constant(taken, kind)], [x.shape[0], len(taken), *x.spatial], axis=1))


def pad(b: Builder) -> None:
    """Space in any mode, or zero channels behind (a shortcut of ResNet's option A)."""
    c, x = b.choices, b.choose_map()
    rank = len(x.shape)
    if c.chance(60):
        mode = c.pick(["constant", "reflect", "edge"])
        if mode != "constant" and min(x.spatial) < 2:
            raise Unfit
        pads = [0, 0, *[c.integer(0, 1) for _ in x.spatial]] * 2
        b.offer(b.pad(x, pads, mode))
        return
    front, back = c.integer(0, 2), c.integer(0, 4)
    pads = [0] * (2 * rank)
    pads[1], pads[rank + 1] = front, back
    y = b.pad(x, pads)
    if c.chance(60):
        y = b.op("Add", [convolve(b, x, y.channels), y], y.shape)
    b.offer(y)


def resize(b: Builder) -> None:
    """By scales or sizes, to twice the size."""
    c, x = b.choices, b.choose_map(lambda v: max(v.spatial) <= 8)
    rank = len(x.shape)
    spatial = [2 * d for d in x.spatial]
    scales, sizes = [1.0, 1.0, *[2.0] * b.rank], [*x.shape[:2], *spatial]
    mode = c.pick(["nearest", "linear"]) if b.rank < 3 else "nearest"
    shape = [*x.shape[:2], *spatial]
    if b.opset < 10:
        b.offer(b.op("Upsample", [x, b.constant(scales)], shape, mode=mode))
        return
    if b.opset == 10:
        b.offer(b.op("Resize", [x, b.constant(scales)], shape, mode=mode))
        return
    how = {"mode": mode, "coordinate_transformation_mode": c.pick(["half_pixel", "asymmetric"])}
    roi = None if b.opset >= 13 else b.constant(np.zeros(0))
    empty = None if b.opset >= 13 else b.constant(np.zeros(0))
    forms = ["scales", "computed", "axes"] if b.has_open_space(x) else ["scales", "computed", "axes", "sizes"]
    form = c.pick([f for f in forms if not (f == "sizes" and b.open_batch)])
    if form == "scales":
        inputs = [x, roi, b.constant(scales)]
    elif form == "sizes":
        inputs = [x, roi, empty, b.ints(*sizes)]
    elif form == "axes" and b.opset >= 18:
        how["axes"] = list(range(2, rank))
        inputs = [x, roi, empty, b.ints(*spatial)]
    else:
        front = b.cut(b.shape_of(x), [0], [slice(0, 2)])
        inputs = [x, roi, empty, b.op("Concat", [front, b.ints(*spatial)], [rank], axis=0)]
    b.offer(b.op("Resize", inputs, shape, **how))


def pool(b: Builder) -> None:
    c, x = b.choices, b.choose_map()
    if min(x.spatial) < 2:
        raise Unfit
    kind = c.pick(["MaxPool", "AveragePool", "LpPool"])
    stride = c.pick([2, 1])
    attributes: dict[str, object] = {"kernel_shape": [2] * b.rank, "strides": [stride] * b.rank}
    ceil = kind != "LpPool" and b.opset >= 10 and c.chance(30)
    if ceil:
        attributes["ceil_mode"] = 1
    spatial = [(-(-(d - 2) // stride) if ceil else (d - 2) // stride) + 1 for d in x.spatial]
    b.offer(b.op(kind, [x], [*x.shape[:2], *spatial], **attributes))


def global_pool(b: Builder) -> None:
    x = b.choose_map()
    kind = b.choices.pick(["GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceSum", "ReduceL2"])
    if kind.startswith("Global"):
        b.offer(b.op(kind, [x], [*x.shape[:2], *[1] * b.rank]))
    else:
        b.offer(b.reduce(kind, x, range(2, b.rank + 2), keepdims=b.choices.chance(50)))


def reduce_channels(b: Builder) -> None:
    """Over the channels: they are consumed. Without keepdims the map is put back together."""
    c, x = b.choices, b.choose_map()
    kinds = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp"]
    keep = c.chance(50)
    axes = c.pick([[1], [1, 2]])
    y = b.reduce(c.pick(kinds), x, axes, keepdims=keep)
    b.offer(y if keep else b.unsqueeze(y, axes))


def channels_last(b: Builder) -> None:
    """Channels last and back, with something per channel on the way."""
    c, x = b.choices, b.choose_map()
    rank = len(x.shape)
    y = b.transpose(x, [0, *range(2, rank), 1])
    if c.chance(60):
        y = b.op(c.pick(["Mul", "Add"]), [y, b.weights(x.channels)], y.shape)
    b.offer(b.transpose(y, [0, rank - 1, *range(1, rank - 1)]))


def transpose_space(b: Builder) -> None:
    if b.rank < 2:
        raise Unfit
    x = b.choose_map()
    rank = len(x.shape)
    b.offer(b.transpose(x, [0, 1, *reversed(range(2, rank))]))


def shuffle(b: Builder) -> None:
    """Reshape, Transpose, Reshape (ShuffleNet)."""
    c, x = b.choices, b.choose_map(lambda v: v.channels >= 4)
    divisors = [g for g in range(2, x.channels) if x.channels % g == 0]
    if not divisors:
        raise Unfit
    group = c.pick(divisors)
    if c.chance(30):
        y = reshape(b, x, [same(0), fixed(group), same(1, group), rest(*range(2, len(x.shape)))])
    else:
        y = reshape(b, x, [same(0), fixed(group), same(1, group), *spatial_of(x)])
    y = b.transpose(y, [0, 2, 1, *range(3, len(y.shape))])
    b.offer(reshape(b, y, [same(0), fixed(x.channels), *spatial_of(x)], like=x))


def split_axis(b: Builder) -> None:
    """(N, C, ...) as (N, G, C / G, ...), an operator along one of the parts, and back: some have to keep rows equal."""
    c, x = b.choices, b.choose_map(lambda v: v.channels >= 4)
    divisors = [g for g in range(2, x.channels) if x.channels % g == 0]
    if not divisors:
        raise Unfit
    group = c.pick(divisors)
    y = reshape(b, x, [same(0), fixed(group), same(1, group), *spatial_of(x)])
    form = c.pick(["relu", "scale rows", "scale columns", "sum rows", "sum columns", "softmax"])
    ones = [1] * b.rank
    if form == "relu":
        y = b.op("Relu", [y], y.shape)
    elif form == "scale rows":
        y = b.op("Mul", [y, b.weights(group, 1, *ones)], y.shape)
    elif form == "scale columns":
        y = b.op("Mul", [y, b.weights(x.channels // group, *ones)], y.shape)
    elif form == "softmax":
        y = b.op("Mul", [y, b.op("Softmax", [y], y.shape, axis=len(y.shape) - 1)], y.shape)
    else:
        b.offer(b.reduce("ReduceSum", y, [1 if form == "sum rows" else 2], keepdims=False))
        return
    b.offer(reshape(b, y, [same(0), fixed(x.channels), *spatial_of(x)], like=x))


def extra_axis(b: Builder) -> None:
    """Unsqueeze, something, Squeeze; or stacking two maps on a new axis and reducing it."""
    c, x = b.choices, b.choose_map()
    axis = c.pick([2, 1, 0, len(x.shape)])
    y = b.unsqueeze(x, [axis])
    if c.chance(50):
        other = b.unsqueeze(convolve(b, x, x.channels), [axis])
        shape = [2 if a == axis else d for a, d in enumerate(y.shape)]
        stacked = b.op("Concat", [y, other], shape, axis=axis)
        b.offer(b.reduce(c.pick(["ReduceSum", "ReduceMax", "ReduceMean"]), stacked, [axis], keepdims=False))
        return
    b.offer(b.squeeze(b.op("Relu", [y], y.shape), [axis]))


def depth_to_space(b: Builder) -> None:
    if b.rank != 2:
        raise Unfit
    c, x = b.choices, b.choose_map()
    n, channels, *spatial = x.shape
    if channels % 4 == 0 and max(spatial) <= 6:
        mode = c.pick(["DCR", "CRD"]) if b.opset >= 11 else None
        shape = [n, channels // 4, *[2 * d for d in spatial]]
        b.offer(b.op("DepthToSpace", [x], shape, blocksize=2, mode=mode))
    elif all(d % 2 == 0 for d in spatial) and channels <= 8:
        b.offer(b.op("SpaceToDepth", [x], [n, 4 * channels, *[d // 2 for d in spatial]], blocksize=2))
    else:
        raise Unfit


def expand(b: Builder) -> None:
    """A pooled map grown to space again; the target constant, from Shape, or with ones."""
    c, x = b.choices, b.choose_map()
    spatial = list(x.spatial)
    y = b.op("GlobalAveragePool", [x], [*x.shape[:2], *[1] * b.rank])
    forms = ["shape", "computed"] if b.has_open_space(x) else ["shape", "computed", "ones"]
    form = c.pick(forms if b.open_batch or b.has_open_space(x) else [*forms, "constant"])
    if form == "constant":
        target: Value | str = b.ints(*x.shape)
    elif form == "ones":
        target = b.ints(1, 1, *spatial)
    elif form == "shape":
        target = b.shape_of(x)
    else:
        target = computed(b, x, [same(a) for a in range(len(x.shape))])
    b.offer(b.op("Expand", [y, target], x.shape))


def tile(b: Builder) -> None:
    """Over space or over channels."""
    c, x = b.choices, b.choose_map(lambda v: v.channels <= 12 and max(v.spatial) <= 6)
    repeats = c.pick([[1, 1, *[2] * b.rank], [1, 2, *[1] * b.rank]])
    shape = [d * r for d, r in zip(x.shape, repeats, strict=True)]
    b.offer(b.op("Tile", [x, b.ints(*repeats)], shape))


def upsample_to(b: Builder) -> None:
    """A smaller map resized to a larger one's height and width, taken from Shape, and joined to it (FPN, U-Net)."""
    if b.opset < 13:
        raise Unfit
    x = b.choose_map(lambda v: min(v.spatial) >= 2)
    y = convolve(b, x, b.choices.integer(2, 8), strides=[2] * b.rank)
    size = b.cut(b.shape_of(x), [0], [slice(2, b.rank + 2)])
    front = b.cut(b.shape_of(y), [0], [slice(0, 2)])
    sizes = b.op("Concat", [front, size], [b.rank + 2], axis=0)
    up = b.op("Resize", [y, None, None, sizes], [*y.shape[:2], *x.spatial], mode="nearest")
    b.offer(b.op("Concat", [up, x], [x.shape[0], up.channels + x.channels, *x.spatial], axis=1))


MOVEMENT: tuple[Block, ...] = (
    concat,
    concat,
    concat_space,
    split,
    split,
    chunk_by_slices,
    cut,
    gather,
    pad,
    resize,
    pool,
    global_pool,
    reduce_channels,
    channels_last,
    transpose_space,
    shuffle,
    split_axis,
    extra_axis,
    depth_to_space,
    expand,
    tile,
    upsample_to,
)
