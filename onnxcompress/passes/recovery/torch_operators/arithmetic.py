"""Element-wise arithmetic, comparison and logic with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from onnxcompress.passes.recovery.torch_operators.registry import OPERATORS, Call, operator


def on_one_device(*tensors: Tensor) -> list[Tensor]:
    """Bring tensors together on the accelerator if one of them is there: shape arithmetic stays on the host."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    return list(tensors) if device is None else [t.to(device) for t in tensors]


def _unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    OPERATORS[name] = lambda call, x: function(x)


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    OPERATORS[name] = lambda call, a, b: function(*on_one_device(a, b))


def _variadic(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    OPERATORS[name] = lambda call, *tensors: reduce(function, on_one_device(*tensors))


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Reciprocal": torch.reciprocal,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Not": torch.logical_not,
    "IsNaN": torch.isnan,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Sum": torch.add,
    "Max": torch.maximum,
    "Min": torch.minimum,
}

for _name, _function in _UNARY.items():
    _unary(_name, _function)
for _name, _pair in _BINARY.items():
    _binary(_name, _pair)
for _name, _pair in _VARIADIC.items():
    _variadic(_name, _pair)


@operator("Mean")
def mean(call: Call, *tensors: Tensor) -> Tensor:
    return reduce(torch.add, on_one_device(*tensors)) / len(tensors)


@operator("Div")
def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    a, b = on_one_device(a, b)
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    a, b = on_one_device(a, b)
    return torch.fmod(a, b) if call.whole("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def power(call: Call, base: Tensor, exponent: Tensor) -> Tensor:
    if exponent.numel() == 1:
        # A number instead of a tensor: torch has a faster kernel and a simpler gradient for it.
        shape = torch.broadcast_shapes(base.shape, exponent.shape)
        return torch.pow(base, exponent.item()).to(base.dtype).reshape(shape)
    base, exponent = on_one_device(base, exponent)
    return torch.pow(base, exponent).to(base.dtype)


@operator("Where")
def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = on_one_device(condition, a, b)
    return torch.where(condition, a, b)
