"""What a file declares of tensors: names, types and shapes, some of them open, and some wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx

from onnxcompress.errors import ModelError
from onnxcompress.lengths import Dim, Shape, may_agree


def declared_shape(info: onnx.ValueInfoProto) -> Shape | None:
    """Return the shape that a declaration gives a tensor, None if it gives none."""
    if not (info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape")):
        return None
    return tuple(_dim(dim) for dim in info.type.tensor_type.shape.dim)


def opened(info: onnx.ValueInfoProto, what: str) -> onnx.ValueInfoProto:
    """Return a copy of a declaration, in which a length of -1 (PaddlePaddle's way to say so) is an open one.

    Args:
        what: the kind of tensor, for the message.

    Raises:
        ModelError: another length is negative.
    """
    copy = _copied(info)
    if not copy.type.HasField("tensor_type"):
        return copy
    for dim in copy.type.tensor_type.shape.dim:
        if dim.dim_value == -1:
            dim.ClearField("dim_value")
        elif dim.dim_value < 0:
            raise ModelError(
                f"{what} '{info.name}' declares a negative length ({dim.dim_value}); a length that is open has a name, "
                f"or nothing, in its place: export it again"
            )
    return copy


def with_lengths(info: onnx.ValueInfoProto, lengths: Sequence[int | None]) -> onnx.ValueInfoProto:
    """Return a declaration with the lengths that are given: the leading ones, less those that are None."""
    copy = _copied(info)
    for dim, length in zip(copy.type.tensor_type.shape.dim, lengths, strict=False):
        if length is not None:
            dim.dim_value = int(length)
    return copy


def corrected(info: onnx.ValueInfoProto, shape: Shape | None, kind: int = 0) -> onnx.ValueInfoProto:
    """Return a declaration, of the inferred element type and shape where it declares none, or a shape against it."""
    declared, has_kind = declared_shape(info), not _is_untyped(info)
    if shape is None or (has_kind and declared is not None and may_agree(declared, shape)):
        return info
    copy = _copied(info)
    copy.type.CopyFrom(onnx.helper.make_tensor_type_proto(info.type.tensor_type.elem_type or kind, shape))
    return copy


def check_outputs_are_known(
    outputs: Iterable[onnx.ValueInfoProto], shapes: Mapping[str, Shape], kinds: Mapping[str, int]
) -> None:
    """Refuse a graph output whose element type, or number of dimensions, neither the file nor inference tell.

    Raises:
        ModelError: there is one; it is named.
    """
    for info in outputs:
        missing = ""
        if _is_untyped(info) and not (kinds.get(info.name) and info.name in shapes):
            missing, wanted = "an element type", "it"
        elif info.type.HasField("tensor_type") and declared_shape(info) is None and info.name not in shapes:
            missing, wanted = "a shape", "its number of dimensions, which onnx demands; lengths may stay open"
        if missing:
            raise ModelError(
                f"graph output '{info.name}' is declared without {missing}, and none follows from the nodes before it: "
                f"declare {wanted}"
            )


def _is_untyped(info: onnx.ValueInfoProto) -> bool:
    """Whether a declaration tells nothing, not even of what kind a value is; onnxruntime infers it."""
    kind = info.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not info.type.tensor_type.elem_type)


def array_info(name: str, array: npt.NDArray[Any]) -> onnx.ValueInfoProto:
    """Return the declaration of a tensor of an array's type and shape."""
    dtype = onnx.TensorProto.STRING if array.dtype == object else onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, dtype, array.shape)


def _copied(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    return copy


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None
