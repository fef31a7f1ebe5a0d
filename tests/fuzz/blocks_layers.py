"""Layers with weights: convolutions of all kinds, fully connected layers, squeeze-excite, attention over space."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.fuzz.builder import MAX_CHANNELS, Builder, Unfit, Value
from tests.fuzz.reshapes import fixed, reshape, rest, same

Block = Callable[[Builder], None]


def convolve(
    b: Builder,
    x: Value,
    filters: int,
    *,
    group: int = 1,
    kernel: Sequence[int] | None = None,
    weight: str | None = None,
    **attributes: object,
) -> Value:
    """Add a Conv that keeps the spatial size unless attributes say otherwise."""
    kernel = list(kernel or [1] * b.rank)
    attributes.setdefault("pads", [k // 2 for k in kernel] + [(k - 1) // 2 for k in kernel])
    dilations = attributes.get("dilations") or [1] * b.rank
    strides = attributes.get("strides") or [1] * b.rank
    auto = attributes.get("auto_pad")
    if auto:
        attributes["pads"] = None
    spatial = []
    for a, size in enumerate(x.spatial):
        reach = dilations[a] * (kernel[a] - 1) + 1  # type: ignore[index]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            spatial.append(-(-size // strides[a]))  # type: ignore[index]
            continue
        pads = attributes["pads"] or [0] * (2 * b.rank)
        length = size + pads[a] + pads[a + b.rank] - reach  # type: ignore[index]
        if length < 0:
            raise Unfit
        spatial.append(length // strides[a] + 1)  # type: ignore[index]
    fan = x.channels // group * int(np.prod(kernel))
    weight = weight or b.weights(filters, x.channels // group, *kernel, fan=fan)
    inputs: list[Value | str | None] = [x, weight]
    if b.choices.chance(60):
        inputs.append(b.weights(filters))
    shape = [x.shape[0], filters, *spatial]
    described = {"kernel_shape": kernel} if b.choices.chance(70) else {}
    if group != 1 or b.choices.chance(30):
        attributes["group"] = group
    return b.op("Conv", inputs, shape, **described, **attributes)


def _kernel(b: Builder, x: Value) -> list[int]:
    return [b.choices.pick([1, 3, 2]) if size >= 3 else 1 for size in x.spatial]


def conv(b: Builder) -> None:
    """Any group, kernel, stride, dilation and padding."""
    c, x = b.choices, b.choose_map()
    divisors = [g for g in range(1, x.channels + 1) if x.channels % g == 0]
    group = c.pick([1, 1, x.channels, c.pick(divisors)])
    filters = group * c.integer(1, max(1, MAX_CHANNELS // group // 2))
    kernel, extra = _kernel(b, x), {}
    style = c.pick(["same", "valid", "stride", "dilated", "auto", "asymmetric"])
    if style == "valid":
        extra["pads"] = [0] * (2 * b.rank) if c.chance(50) else None
    elif style == "stride":
        extra["strides"] = [c.pick([2, 1]) for _ in x.spatial]
    elif style == "dilated":
        extra["dilations"] = [2] * b.rank
        extra["pads"] = [k - 1 for k in kernel] * 2
    elif style == "auto":
        extra["auto_pad"] = c.pick(["SAME_UPPER", "SAME_LOWER", "VALID"])
        if c.chance(40):
            extra["strides"] = [2] * b.rank
    elif style == "asymmetric":
        extra["pads"] = [1] + [0] * (2 * b.rank - 1)
    b.offer(convolve(b, x, filters, group=group, kernel=kernel, **extra))


def depthwise(b: Builder) -> None:
    """Depthwise (with a multiplier) and pointwise."""
    x = b.choose_map()
    times = b.choices.pick([1, 1, 2])
    y = convolve(b, x, times * x.channels, group=x.channels, kernel=_kernel(b, x))
    b.offer(convolve(b, b.op("Relu", [y], y.shape), b.choices.integer(2, 16)))


def grouped_bottleneck(b: Builder) -> None:
    """1x1, grouped 3x3, 1x1 with a residual, as in ResNeXt."""
    c, x = b.choices, b.choose_map()
    group = c.pick([2, 4, 3])
    width = group * c.integer(1, 4)
    y = convolve(b, x, width)
    y = convolve(b, b.op("Relu", [y], y.shape), group * c.integer(1, 4), group=group, kernel=_kernel(b, x))
    y = convolve(b, y, x.channels)
    b.offer(b.op("Add", [x, y], x.shape))


def conv_transpose(b: Builder) -> None:
    c, x = b.choices, b.choose_map()
    divisors = [g for g in range(1, x.channels + 1) if x.channels % g == 0]
    group = c.pick([1, c.pick(divisors), x.channels])
    per_group = c.integer(1, max(1, MAX_CHANNELS // group // 2))
    kernel, stride = c.pick([2, 3, 1]), c.pick([2, 1])
    pad = c.integer(0, 1) if kernel == 3 else 0
    extra = c.integer(0, 1) if stride == 2 else 0
    spatial = [(size - 1) * stride + kernel - 2 * pad + extra for size in x.spatial]
    if min(spatial) < 1:
        raise Unfit
    weight = b.weights(x.channels, per_group, *[kernel] * b.rank, fan=x.channels // group * kernel)
    inputs: list[Value | str | None] = [x, weight]
    if c.chance(60):
        inputs.append(b.weights(group * per_group))
    attributes = {"strides": [stride] * b.rank, "pads": [pad] * (2 * b.rank), "group": group}
    if extra:
        attributes["output_padding"] = [extra] * b.rank
    b.offer(b.op("ConvTranspose", inputs, [x.shape[0], group * per_group, *spatial], **attributes))


def shared_weight(b: Builder) -> None:
    """Two convolutions that read one weight, in a row or side by side on two maps."""
    c, x = b.choices, b.choose_map()
    filters = x.channels if c.chance(50) else c.integer(2, 12)
    weight = b.weights(filters, x.channels, *[1] * b.rank, fan=x.channels)
    y = convolve(b, x, filters, weight=weight)
    if filters == x.channels and c.chance(60):
        b.offer(convolve(b, b.op("Relu", [y], y.shape), filters, weight=weight))
        return
    other = b.choose_map(lambda v: v.channels == x.channels)
    b.offer(y, convolve(b, other, filters, weight=weight))


def squeeze_excite(b: Builder) -> None:
    c, x = b.choices, b.choose_map(lambda v: v.channels > 1)
    y = pooled(b, x)
    y = convolve(b, y, max(1, x.channels // 2))
    y = convolve(b, b.op("Relu", [y], y.shape), x.channels)
    y = b.op(c.pick(["Sigmoid", "HardSigmoid"]), [y], y.shape)
    b.offer(b.op("Mul", [x, y] if c.chance(70) else [y, x], x.shape))


def squeeze_excite_dense(b: Builder) -> None:
    """Squeeze-excite by Gemm, as Keras and SENet exports write it."""
    x = b.choose_map(lambda v: v.channels > 1)
    y = pooled(b, x)
    y = b.squeeze(y, range(2, b.rank + 2)) if b.choices.chance(50) else b.op("Flatten", [y], y.shape[:2], axis=1)
    y = fully_connected(b, y, max(1, x.channels // 2))
    y = fully_connected(b, b.op("Relu", [y], y.shape), x.channels)
    y = b.op("Sigmoid", [y], y.shape)
    y = b.unsqueeze(y, range(2, b.rank + 2))
    b.offer(b.op("Mul", [x, y], x.shape))


def pooled(b: Builder, x: Value) -> Value:
    """Return the mean over space, (N, C, 1...)."""
    if b.choices.chance(50):
        return b.op(b.choices.pick(["GlobalAveragePool", "GlobalMaxPool"]), [x], [*x.shape[:2], *[1] * b.rank])
    return b.reduce("ReduceMean", x, range(2, b.rank + 2))


def one_channel_mask(b: Builder) -> None:
    """A map of one channel that multiplies all channels."""
    x = b.choose_map()
    mask = convolve(b, b.choose_map(lambda v: v.spatial == x.spatial), 1)
    b.offer(b.op("Mul", [x, b.op("Sigmoid", [mask], mask.shape)], x.shape))


def spatial_attention(b: Builder) -> None:
    """Mean and maximum over the channels, joined, weigh the positions (CBAM)."""
    x = b.choose_map()
    parts = [b.reduce("ReduceMean", x, [1]), b.reduce("ReduceMax", x, [1])]
    joined = b.op("Concat", parts, [x.shape[0], 2, *x.spatial], axis=1)
    mask = convolve(b, joined, 1, kernel=_kernel(b, x))
    b.offer(b.op("Mul", [x, b.op("Sigmoid", [mask], mask.shape)], x.shape))


def fully_connected(b: Builder, x: Value, outputs: int) -> Value:
    """Add Gemm, or MatMul and Add, on (N, F)."""
    c, size = b.choices, x.shape[1]
    if c.chance(35):
        y = b.op("MatMul", [x, b.weights(size, outputs, fan=size)], [x.shape[0], outputs])
        if not c.chance(70):
            return y
        bias = b.weights(*c.pick([(outputs,), (1, outputs)]))
        return b.op("Add", [y, bias] if c.chance(60) else [bias, y], y.shape)
    if c.chance(60):
        weight, attributes = b.weights(outputs, size, fan=size), {"transB": 1}
    else:
        weight, attributes = b.weights(size, outputs, fan=size), {}
    if c.chance(20):
        attributes |= {"alpha": 0.5, "beta": 2.0}
    inputs: list[Value | str | None] = [x, weight]
    if c.chance(70) or b.opset < 11:
        inputs.append(b.weights(*c.pick([(outputs,), (1, outputs), (1,), ()])))
    return b.op("Gemm", inputs, [x.shape[0], outputs], **attributes)


def flattened(b: Builder, x: Value) -> Value:
    """Return a map as (N, F)."""
    features = int(np.prod(x.shape[1:]))
    if b.choices.chance(50):
        return b.op(
            "Flatten", [x], [x.shape[0], features], axis=b.choices.pick([1, -len(x.shape) + 1]) if b.opset >= 11 else 1
        )
    return reshape(b, x, [same(0), rest(*range(1, len(x.shape)))])


def flatten_to_dense(b: Builder) -> None:
    """Flatten (H * W > 1 too), fully connected layers, sometimes back to a map."""
    c, x = b.choices, b.choose_map()
    if b.has_open_space(x):
        x = pooled(b, x)
    y = fully_connected(b, flattened(b, x), c.integer(2, 12))
    if c.chance(50):
        y = b.op("Relu", [y], y.shape)
    if c.chance(50):
        y = fully_connected(b, y, c.integer(2, 12))
    if c.chance(40):
        back = [2] * b.rank
        z = fully_connected(b, y, 4 * int(np.prod(back)))
        b.offer(reshape(b, z, [same(0), fixed(4), *[fixed(d) for d in back]]))
    b.offer(y)


def dense(b: Builder) -> None:
    """A fully connected layer on an open vector."""
    x = b.choose(lambda v: len(v.shape) == 2)
    y = fully_connected(b, x, b.choices.integer(2, 12))
    if b.choices.chance(40):
        params = [b.positive(y.shape[1]), b.weights(y.shape[1]), b.weights(y.shape[1]), b.positive(y.shape[1])]
        y = b.op("BatchNormalization", [y, *params], y.shape)
    b.offer(b.op("Relu", [y], y.shape))


LAYERS: tuple[Block, ...] = (
    conv,
    conv,
    depthwise,
    grouped_bottleneck,
    conv_transpose,
    shared_weight,
    squeeze_excite,
    squeeze_excite_dense,
    one_channel_mask,
    spatial_attention,
    flatten_to_dense,
    dense,
)
