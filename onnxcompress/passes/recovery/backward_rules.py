"""Backward rules: the gradient of an operator's inputs from the gradient g of its output, as ONNX nodes.

For y = f(x, ...) a rule appends the nodes of the vector-Jacobian product g df/dx. Where operands were broadcast, the
product is summed over the axes along which they were. A smooth operator of one operand needs no rule of its own:
(f(x + h) - f(x - h)) / 2h is its slope up to h^2 f'''(x) / 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from onnxcompress.graph import Shape
from onnxcompress.passes.recovery.backward_layout import (
    concat,
    depth_to_space,
    gather,
    global_average_pool,
    global_max_pool,
    pad,
    passed_on,
    reduce,
    reshaped,
    slices,
    space_to_depth,
    split,
    transpose,
)
from onnxcompress.passes.recovery.backward_nodes import Rule, Site
from onnxcompress.passes.recovery.backward_resize import resize
from onnxcompress.passes.recovery.backward_windows import average_pool, conv, conv_transpose, max_pool

_STEP = 2.0**-7
"""h of the symmetric difference: its error and the rounding of float32 are both about 1e-5 of the values."""

Slope = Callable[[Site], str]


def _times(slope: Slope) -> Rule:
    """Return the rule of an elementwise operator with this slope dy/dx."""
    return lambda site: {0: site.tape.add("Mul", site.g, slope(site))}


def _difference(site: Site) -> str:
    tape = site.tape
    ahead, behind = (
        tape.add(site.node.op_type, tape.add("Add", site.x, step), **site.attributes) for step in (_STEP, -_STEP)
    )
    return tape.add("Mul", tape.add("Sub", ahead, behind), 0.5 / _STEP)


def _sigmoid(site: Site) -> str:
    return site.tape.add("Mul", site.y, site.tape.add("Sub", 1.0, site.y))


def _tanh(site: Site) -> str:
    return site.tape.add("Sub", 1.0, site.tape.add("Mul", site.y, site.y))


def _erf(site: Site) -> str:
    square = site.tape.add("Mul", site.x, site.x)
    return site.tape.add("Mul", site.tape.add("Exp", site.tape.add("Neg", square)), 2.0 / math.sqrt(math.pi))


def _hard_swish(site: Site) -> str:
    """x h(x) with h(x) = clip(x / 6 + 1 / 2, 0, 1): h(x) + x h'(x)."""
    tape = site.tape
    hard = tape.add("HardSigmoid", site.x, alpha=1.0 / 6.0, beta=0.5)
    bent = tape.add("Add", hard, tape.add("Mul", site.x, 1.0 / 6.0))
    return tape.add("Where", _inside(site, hard), bent, hard)


def _hard_sigmoid(site: Site) -> str:
    return site.tape.add("Where", _inside(site, site.y), float(site.attributes.get("alpha", 0.2)), 0.0)


def _inside(site: Site, hard: str) -> str:
    return site.tape.add("And", site.tape.add("Greater", hard, 0.0), site.tape.add("Less", hard, 1.0))


def _elu(site: Site) -> str:
    """Below zero y = gamma alpha (exp(x) - 1), whose slope is y + gamma alpha; gamma is 1 but for Selu."""
    is_selu = site.node.op_type == "Selu"
    gamma = float(site.attributes.get("gamma", 1.05070102)) if is_selu else 1.0
    below = site.tape.add("Add", site.y, gamma * float(site.attributes.get("alpha", 1.67326319 if is_selu else 1.0)))
    return site.tape.add("Where", site.tape.add("Greater", site.x, 0.0), gamma, below)


def _sqrt(site: Site) -> str:
    return site.tape.add("Div", 0.5, site.y)


def _relu(site: Site) -> Mapping[int, str]:
    # 1 where y is above 0: onnxruntime's HardSigmoid takes a third of the time of its Sign.
    return {0: site.tape.add("Mul", site.g, site.tape.add("HardSigmoid", site.y, alpha=1e30, beta=0.0))}


def _leaky_relu(site: Site) -> Mapping[int, str]:
    leak = site.tape.add("Mul", site.g, float(site.attributes.get("alpha", 0.01)))
    return {0: site.tape.add("Where", site.tape.add("Greater", site.x, 0.0), site.g, leak)}


def _prelu(site: Site) -> Mapping[int, str]:
    leak = site.tape.add("Mul", site.g, site.node.input[1])
    return {0: site.tape.add("Where", site.tape.add("Greater", site.x, 0.0), site.g, leak)}


def _clip(site: Site) -> Mapping[int, str]:
    tape, g = site.tape, site.g
    for position, outside in ((1, "Less"), (2, "Greater")):
        if position < len(site.node.input) and site.node.input[position]:
            g = tape.add("Where", tape.add(outside, site.x, site.node.input[position]), 0.0, g)
    return {0: g}


def _softmax(site: Site) -> Mapping[int, str]:
    """y (g - sum of g y), the sum along the axis."""
    tape, axis = site.tape, int(site.attributes.get("axis", -1))
    total = tape.add("ReduceSum", tape.add("Mul", site.g, site.y), [axis])
    return {0: tape.add("Mul", site.y, tape.add("Sub", site.g, total))}


def _log_softmax(site: Site) -> Mapping[int, str]:
    """g - exp(y) times the sum of g along the axis."""
    tape = site.tape
    total = tape.add("ReduceSum", site.g, [int(site.attributes.get("axis", -1))])
    return {0: tape.add("Sub", site.g, tape.add("Mul", tape.add("Exp", site.y), total))}


def _where(site: Site) -> Mapping[int, str]:
    tape, condition = site.tape, site.node.input[0]
    found = {1: tape.add("Where", condition, site.g, 0.0)} if 1 in site.wanted else {}
    if 2 in site.wanted:
        found[2] = tape.add("Where", condition, 0.0, site.g)
    return _summed(site, found)


def _extreme(site: Site) -> Mapping[int, str]:
    """Max and Min: to each operand where it is the result."""
    tape, found = site.tape, {}
    for position in site.wanted:
        reached = tape.add("Equal", site.node.input[position], site.y)
        found[position] = tape.add("Where", reached, site.g, 0.0)
    return _summed(site, found)


def _add(site: Site) -> Mapping[int, str]:
    return _summed(site, dict.fromkeys(site.wanted, site.g))


def _sub(site: Site) -> Mapping[int, str]:
    return _summed(site, {p: site.tape.add("Neg", site.g) if p else site.g for p in site.wanted})


def _mul(site: Site) -> Mapping[int, str]:
    return _summed(site, {p: site.tape.add("Mul", site.g, site.node.input[1 - p]) for p in site.wanted})


def _div(site: Site) -> Mapping[int, str]:
    """g / b, and -g y / b."""
    tape, by_divisor = site.tape, site.tape.add("Div", site.g, site.node.input[1])
    negative = tape.add("Neg", tape.add("Mul", by_divisor, site.y)) if 1 in site.wanted else ""
    return _summed(site, {p: negative if p else by_divisor for p in site.wanted})


def _pow(site: Site) -> Mapping[int, str]:
    exponent, tape = site.constant(1), site.tape
    if exponent is None:
        return {}
    lower = tape.add("Pow", site.x, np.asarray(exponent - 1, np.float32))
    slope = tape.add("Mul", lower, np.asarray(exponent, np.float32))
    return _summed(site, {0: tape.add("Mul", site.g, slope)})


def _summed(site: Site, gradients: Mapping[int, str]) -> dict[int, str]:
    """Sum gradients of the output's shape over the axes along which each operand was repeated."""
    output = site.tape.shapes.get(site.y)
    found = {}
    for position, gradient in gradients.items():
        axes = _repeated(site.shape(position), output)
        if axes is None:
            continue
        name = site.node.input[position]
        found[position] = site.tape.reshaped_as(site.tape.add("ReduceSum", gradient, axes), name) if axes else gradient
    return found


def _repeated(operand: Shape | None, output: Shape | None) -> list[int] | None:
    """Return the output's axes along which an operand is broadcast, None where that is not known.

    A batch of unknown length is that of the other operand.
    """
    if operand is None or output is None:
        return None
    added = len(output) - len(operand)
    axes = list(range(added))
    for axis, (own, full) in enumerate(zip(operand, output[added:], strict=True), added):
        if own == 1 and full != 1:
            axes.append(axis)
        elif own != full or own is None:
            is_batch = axis == 0 and not isinstance(own, int) and not isinstance(full, int)
            if not is_batch:
                return None
    return axes


def _gemm(site: Site) -> Mapping[int, str]:
    if site.attributes.get("transA", 0):
        return {}
    turned = 1 - int(site.attributes.get("transB", 0))
    alpha = float(site.attributes.get("alpha", 1.0))
    return {0: site.tape.add("Gemm", site.g, site.node.input[1], transB=turned, alpha=alpha)}


def _matmul(site: Site) -> Mapping[int, str]:
    """g B^T; of stacks of matrices that are not broadcast A^T g, too."""
    left, right = site.shape(0), site.shape(1)
    if left is None or right is None or min(len(left), len(right)) < 2:
        return {}
    is_stack = left[:-2] == right[:-2] and None not in left[:-2]
    if not is_stack and len(right) > 2:
        return {}
    turned = {p: _turned(site, p, len(right if p else left)) for p in (0, 1) if 1 - p in site.wanted}
    found = {0: site.tape.add("MatMul", site.g, turned[1])} if 0 in site.wanted else {}
    if 1 in site.wanted and is_stack:
        found[1] = site.tape.add("MatMul", turned[0], site.g)
    return found


def _turned(site: Site, position: int, rank: int) -> str:
    return site.tape.add("Transpose", site.node.input[position], perm=[*range(rank - 2), rank - 1, rank - 2])


def _batch_normalization(site: Site) -> Mapping[int, str]:
    """In inference a scale for each channel."""
    scale, variance, shape = site.constant(1), site.constant(4), site.shape(0)
    if scale is None or variance is None or shape is None or site.attributes.get("training_mode", 0):
        return {}
    factor = scale / np.sqrt(variance.astype(np.float64) + float(site.attributes.get("epsilon", 1e-5)))
    return {0: site.tape.add("Mul", site.g, factor.reshape(-1, *[1] * (len(shape) - 2)).astype(np.float32))}


def _layer_normalization(site: Site) -> Mapping[int, str]:
    shape, axis = site.shape(0), int(site.attributes.get("axis", -1))
    if shape is None:
        return {}
    g = site.tape.add("Mul", site.g, site.node.input[1])
    return _normalised(site, g, list(range(axis % len(shape), len(shape))))


def _instance_normalization(site: Site) -> Mapping[int, str]:
    shape = site.shape(0)
    if shape is None or len(shape) < 3:
        return {}
    scale = site.tape.add("Reshape", site.node.input[1], [-1, *[1] * (len(shape) - 2)])
    return _normalised(site, site.tape.add("Mul", site.g, scale), list(range(2, len(shape))))


def _group_normalization(site: Site) -> Mapping[int, str]:
    """With a scale for each channel: that of opset 18, for each group, is read as InstanceNormalization."""
    shape, tape = site.shape(0), site.tape
    if shape is None:
        return {}
    groups = [0, int(site.attributes["num_groups"]), -1]
    scale = tape.add("Reshape", site.node.input[1], [-1, *[1] * (len(shape) - 2)])
    g = tape.add("Reshape", tape.add("Mul", site.g, scale), groups)
    (found,) = _normalised(site, g, [2], tape.add("Reshape", site.x, groups)).values()
    return {0: tape.reshaped_as(found, site.x)}


def _normalised(site: Site, g: str, axes: list[int], x: str = "") -> Mapping[int, str]:
    """z = (x - mean) / sigma over `axes`: (g - mean of g - z times the mean of g z) / sigma."""
    tape, x = site.tape, x or site.x
    count = tape.add("ReduceSum", tape.expanded_as(1.0, x), axes)

    def mean(value: str) -> str:
        return tape.add("Div", tape.add("ReduceSum", value, axes), count)

    centred = tape.add("Sub", x, mean(x))
    variance = tape.add("Add", mean(tape.add("Mul", centred, centred)), float(site.attributes.get("epsilon", 1e-5)))
    sigma = tape.add("Sqrt", variance)
    z = tape.add("Div", centred, sigma)
    parallel = tape.add("Mul", z, mean(tape.add("Mul", g, z)))
    return {0: tape.add("Div", tape.add("Sub", tape.add("Sub", g, mean(g)), parallel), sigma)}


_SMOOTH = ("Gelu", "Mish", "Celu", "Softsign", "Softplus", "Sin", "Cos")

RULES: dict[str, Rule] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "GroupNormalization": _group_normalization,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "ReduceMean": reduce,
    "ReduceSum": reduce,
    **dict.fromkeys(("ReduceL2", "ReduceMax", "ReduceMin"), reduce),
    "Relu": _relu,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Clip": _clip,
    "Sigmoid": _times(_sigmoid),
    "Tanh": _times(_tanh),
    "Erf": _times(_erf),
    "HardSigmoid": _times(_hard_sigmoid),
    "HardSwish": _times(_hard_swish),
    **dict.fromkeys(("Elu", "Selu"), _times(_elu)),
    "Exp": _times(lambda site: site.y),
    "Sqrt": _times(_sqrt),
    "Log": lambda site: {0: site.tape.add("Div", site.g, site.x)},
    "Reciprocal": _times(lambda site: site.tape.add("Neg", site.tape.add("Mul", site.y, site.y))),
    "Neg": lambda site: {0: site.tape.add("Neg", site.g)},
    "Abs": _times(lambda site: site.tape.add("Sign", site.x)),
    **dict.fromkeys(_SMOOTH, _times(_difference)),
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "Add": _add,
    "Sum": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Pow": _pow,
    "Where": _where,
    "Max": _extreme,
    "Min": _extreme,
    "Expand": lambda site: _summed(site, {0: site.g}),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshaped),
    **dict.fromkeys(("Identity", "Dropout", "Cast"), passed_on),
    "Transpose": transpose,
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Gather": gather,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Resize": resize,
    "Pad": pad,
}
"""{operator of the default domain: its rule}."""

FLAT = frozenset({"Shape", "Size", "ArgMax", "ArgMin", "NonZero", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
FLAT |= {"Equal", "Not", "And", "Or", "Xor", "IsNaN", "IsInf", "ConstantOfShape", "EyeLike"}
"""Operators whose outputs do not change with small changes of their inputs: the way back ends there, as it should."""
