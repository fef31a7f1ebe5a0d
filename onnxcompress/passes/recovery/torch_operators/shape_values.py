"""Shape arithmetic: integers that stay on the host, and casts."""

from __future__ import annotations

from typing import Any

import onnx
import onnx.numpy_helper
import torch
from torch import Tensor

from onnxcompress.passes.recovery.torch_operators.layout import integers
from onnxcompress.passes.recovery.torch_operators.registry import Call, operator

_INTEGERS: dict[int, torch.dtype] = {
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    # torch computes little in these.
    onnx.TensorProto.UINT16: torch.int64,
    onnx.TensorProto.UINT32: torch.int64,
    onnx.TensorProto.UINT64: torch.int64,
}
_FLOATS: set[int] = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Every floating-point type is computed in one: training needs the range of float32 whatever is stored."""
    target = call.whole("to", 0)
    if target in _FLOATS:
        return x if x.is_floating_point() else x.to(torch.float32)
    if target not in _INTEGERS:
        raise call.unsupported(f"target type {target}")
    return x.to(_INTEGERS[target])


@operator("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return x if x.is_floating_point() and like.is_floating_point() else x.to(like.dtype)


@operator("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    end = call.attributes.get("end")
    return torch.tensor(list(x.shape)[call.whole("start", 0) : None if end is None else int(end)], dtype=torch.int64)


@operator("Size")
def size(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("ConstantOfShape")
def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value: Any = call.attributes.get("value")
    if value is None:
        return torch.zeros(integers(shape))
    fill = onnx.numpy_helper.to_array(value)
    dtype = torch.float32 if fill.dtype.kind == "f" else torch.bool if fill.dtype.kind == "b" else torch.int64
    return torch.full(integers(shape), fill.item(), dtype=dtype)


@operator("Range")
def range_(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)
