"""Weights as a file holds them: large ones are never copied into a protobuf, but written around their bytes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import Message

Array = npt.NDArray[Any]

_SMALL_BYTES = 4096
PACKED_TYPES = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2", "STRING")
    if hasattr(onnx.TensorProto, name)
)


def release_mapped(array: Array) -> None:
    """Let go of the memory of an array that lies in a mapped file; it is read again from there when needed."""
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def array_to_tensor(name: str, array: Array) -> onnx.TensorProto:
    """Return `array` as an onnx tensor, in its own element type."""
    if array.dtype == object:
        return onnx.numpy_helper.from_array(array, name)
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def notes_of(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return what a file says of its weights beside their values.

    A model without its weights carries it in initializers without type and shape: name, documentation and metadata.
    """
    notes = {}
    for tensor in proto.graph.initializer:
        notes[tensor.name] = onnx.TensorProto()
        notes[tensor.name].CopyFrom(tensor)
        notes[tensor.name].ClearField("name")
    return notes


def serialized_size(name: str, array: Array, note: onnx.TensorProto | None = None) -> int:
    """Return the bytes of `array_to_tensor`, with what is said of it, without copying large arrays."""
    return len(_head(name, array)) + _bytes_behind_head(array) + (note.ByteSize() if note is not None else 0)


def with_weights(proto: onnx.ModelProto, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """Put weights into a model; it is changed, and returned."""
    notes = notes_of(proto)
    del proto.graph.initializer[:]
    for name, array in weights.items():
        proto.graph.initializer.append(array_to_tensor(name, array))
        if name in notes:
            proto.graph.initializer[-1].MergeFrom(notes[name])
    return proto


def model_size(proto: onnx.ModelProto, weights: Mapping[str, Array]) -> int:
    """Return how many bytes `serialized` yields, without making them; `proto` loses what it says of the weights."""
    notes = notes_of(proto)
    del proto.graph.initializer[:]
    sizes = (serialized_size(name, array, notes.get(name)) for name, array in weights.items())
    graph = int(proto.graph.ByteSize())
    # A message inside another stands behind a tag of one byte and its own length.
    full = graph + sum(1 + _varint_size(size) + size for size in sizes)
    return int(proto.ByteSize()) - graph - _varint_size(graph) + full + _varint_size(full)


def _head(name: str, array: Array) -> bytes:
    """Return the bytes of `array_to_tensor`: all of them of a small array, those before the values of another."""
    if _is_small(array):
        return bytes(array_to_tensor(name, array).SerializeToString(deterministic=True))
    before = bytes(described(name, array).SerializeToString(deterministic=True))
    return before + _lead(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, array.nbytes)


def _bytes_behind_head(array: Array) -> int:
    return 0 if _is_small(array) else int(array.nbytes)


def _is_small(array: Array) -> bool:
    """Whether an array is copied without a thought, or cannot be written as it lies in memory."""
    return array.nbytes < _SMALL_BYTES or is_packed(array)


def is_one_layers(array: Array) -> bool:
    """Whether a weight that is there twice is one layer's: of equal rows (ones, a blur) two may be alike by chance."""
    return array.ndim > 1 and not bool((array == array[:1]).all())


def is_packed(array: Array) -> bool:
    """Whether a tensor holds strings, or several numbers to a byte, and an array does not."""
    return array.dtype == object or onnx.helper.np_dtype_to_tensor_dtype(array.dtype) in PACKED_TYPES


def described(name: str, array: Array) -> onnx.TensorProto:
    """Return the tensor of an array but for its values, which are the last field of it."""
    return onnx.TensorProto(name=name, dims=array.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def _varint_size(number: int) -> int:
    """Return how many bytes protobuf writes a length in: seven bits each."""
    return max(1, -(-number.bit_length() // 7))


def serialized(proto: onnx.ModelProto, weights: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a model with `weights` as its initializers, piece by piece, without a copy of large ones.

    Together they are what `proto.SerializeToString(deterministic=True)` gives with all of them in it, and with what
    `notes_of` finds. Memory that a mapped weight took is let go of before the next one.
    """
    heads = {name: _head(name, array) for name, array in weights.items()}
    tails = {name: note.SerializeToString(deterministic=True) for name, note in notes_of(proto).items()}
    sizes = {n: len(heads[n]) + _bytes_behind_head(each) + len(tails.get(n, b"")) for n, each in weights.items()}
    model_before, model_after = _parted(proto, onnx.ModelProto.GRAPH_FIELD_NUMBER)
    before, after = _parted(proto.graph, onnx.GraphProto.INITIALIZER_FIELD_NUMBER)
    inner = sum(1 + _varint_size(size) + size for size in sizes.values())
    yield model_before + _lead(onnx.ModelProto.GRAPH_FIELD_NUMBER, len(before) + inner + len(after)) + before
    for name, array in weights.items():
        yield _lead(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, sizes[name]) + heads[name]
        if not _is_small(array):
            yield bytes_of(array)
            release_mapped(array)
        if name in tails:
            yield tails[name]
    yield after + model_after


def _parted(message: Message, field: int) -> tuple[bytes, bytes]:
    """Return the serialized fields of a message before `field`, and those behind it; `field` is in neither."""
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    before.DiscardUnknownFields()
    after.CopyFrom(message)
    for each in message.DESCRIPTOR.fields:
        if each.number >= field:
            before.ClearField(each.name)
        if each.number <= field:
            after.ClearField(each.name)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _lead(field: int, length: int) -> bytes:
    """Return what protobuf writes in front of a field of so many bytes: its tag and length."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    rest = []
    while number > 127:
        rest.append(number & 127 | 128)
        number >>= 7
    return bytes([*rest, number])


def bytes_of(array: Array) -> memoryview:
    """Return the bytes of an array as they lie in memory."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
