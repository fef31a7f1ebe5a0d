"""Damage of two kinds: bytes changed blindly, and fields of a model changed so that the rest still parses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor

from tests.fuzz.choices import Choices

ABSURD = (0, 1, -1, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63), 7, 255)
NAMES = ("", "x", "y", "\x00", "\x1b[31mred", "<script>", "../../etc/passwd", "/etc/hostname", "é" * 50, "a\nb", "%s{}")


def damage_bytes(content: bytes, c: Choices) -> bytes:
    """Return `content` after one to four blind changes."""
    data = bytearray(content)
    for _ in range(c.integer(1, 4)):
        at = c.integer(0, max(len(data) - 1, 0))
        length = c.pick([1, 2, 8, 64])
        kind = c.pick(["flip", "set", "cut", "remove", "insert", "repeat", "swap", "zero"])
        if kind == "cut":
            del data[at:]
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = bytes(c.integer(0, 255) for _ in range(length))
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * c.pick([1, 3, 100])
        elif kind == "swap":
            other = c.integer(0, max(len(data) - 1, 0))
            data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
        elif kind == "zero":
            data[at : at + length] = b"\x00" * len(data[at : at + length])
        elif data:
            data[at] = c.integer(0, 255) if kind == "set" else data[at] ^ (1 << c.integer(0, 7))
    return bytes(data)


def damage_model(proto: onnx.ModelProto, c: Choices) -> onnx.ModelProto:
    """Return a copy of `proto` after one to three changes of its fields or its structure."""
    damaged = onnx.ModelProto()
    damaged.CopyFrom(proto)
    for _ in range(c.integer(1, 3)):
        c.pick([_any_field, _any_field, *_STRUCTURAL])(damaged, c)
    return damaged


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            for child in value if _is_repeated(value) else [value]:
                yield from _messages(child)


def _is_repeated(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes))


def _any_field(proto: onnx.ModelProto, c: Choices) -> None:
    """Change, clear or add one field anywhere."""
    message = c.pick(list(_messages(proto)))
    descriptor = c.pick(message.DESCRIPTOR.fields)
    if c.chance(30):
        message.ClearField(descriptor.name)
        return
    value = getattr(message, descriptor.name)
    new = _new_value(descriptor, c)
    if new is None:
        if _is_repeated(value) and len(value):
            value.add().CopyFrom(value[c.integer(0, len(value) - 1)])
        elif not _is_repeated(value):
            value.SetInParent()
        return
    try:
        if not _is_repeated(value):
            setattr(message, descriptor.name, new)
        elif len(value) and c.chance(60):
            value[c.integer(0, len(value) - 1)] = new
        else:
            value.append(new)
    except (ValueError, TypeError):  # out of the field's range
        message.ClearField(descriptor.name)


def _new_value(descriptor: Any, c: Choices) -> Any:
    kind = descriptor.type
    if kind == FieldDescriptor.TYPE_STRING:
        return c.pick(NAMES)
    if kind == FieldDescriptor.TYPE_BYTES:
        return bytes(c.integer(0, 255) for _ in range(c.pick([0, 1, 4, 9])))
    if kind in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return c.pick([0.0, -1.0, float("inf"), float("nan"), 1e38])
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return None
    if kind == FieldDescriptor.TYPE_ENUM:
        return c.integer(0, 25)
    return c.pick(ABSURD)


def _cycle(proto: onnx.ModelProto, c: Choices) -> None:
    if proto.graph.node:
        first, last = proto.graph.node[0], proto.graph.node[-1]
        if first.input and last.output:
            first.input[0] = last.output[0]


def _dangle(proto: onnx.ModelProto, c: Choices) -> None:
    nodes = [node for node in proto.graph.node if node.input]
    if nodes:
        node = c.pick(nodes)
        node.input[c.integer(0, len(node.input) - 1)] = c.pick(["nowhere", "", "x"])


def _reorder(proto: onnx.ModelProto, c: Choices) -> None:
    nodes = c.shuffled([n.SerializeToString() for n in proto.graph.node])
    del proto.graph.node[:]
    for content in nodes:
        proto.graph.node.add().ParseFromString(content)


def _same_names(proto: onnx.ModelProto, c: Choices) -> None:
    """Two outputs, two tensors, or two inputs of one name."""
    graph = proto.graph
    lists: list[Any] = [graph.output, graph.initializer, graph.input, graph.node]
    some = c.pick([items for items in lists if len(items)] or [[]])
    if len(some):
        some.add().CopyFrom(some[0])


def _drop(proto: onnx.ModelProto, c: Choices) -> None:
    graph = proto.graph
    lists: list[Any] = [graph.node, graph.initializer, graph.input, graph.output, proto.opset_import]
    some = c.pick([items for items in lists if len(items)] or [[]])
    if len(some):
        del some[c.integer(0, len(some) - 1)]


def _absurd_dims(proto: onnx.ModelProto, c: Choices) -> None:
    tensors = list(proto.graph.initializer)
    if tensors:
        tensor = c.pick(tensors)
        for _ in range(c.integer(1, 3)):
            if tensor.dims and c.chance(70):
                tensor.dims[c.integer(0, len(tensor.dims) - 1)] = c.pick(ABSURD)
            else:
                tensor.dims.append(c.pick(ABSURD))
        if c.chance(30):
            tensor.ClearField("raw_data")


def _external(proto: onnx.ModelProto, c: Choices) -> None:
    tensors = list(proto.graph.initializer)
    if tensors:
        tensor = c.pick(tensors)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        places = ["weights.data", "../weights.data", "/etc/passwd", "link.data", "", ".", "a/../../b", "missing"]
        tensor.external_data.add(key="location", value=c.pick(places))
        if c.chance(60):
            tensor.external_data.add(key="offset", value=str(c.pick([0, 4, -4, 2**40, "x"])))
        if c.chance(60):
            tensor.external_data.add(key="length", value=str(c.pick([0, 4, -4, 2**40, "x"])))


def _operator(proto: onnx.ModelProto, c: Choices) -> None:
    if proto.graph.node:
        node = c.pick(list(proto.graph.node))
        node.op_type = c.pick(["Conv", "Reshape", "Concat", "Loop", "NoSuchOp", "Constant", "Add", "Split", "Gemm", ""])
        if c.chance(30):
            node.domain = c.pick(["com.microsoft", "ai.onnx.ml", "nowhere"])


_STRUCTURAL: tuple[Callable[[onnx.ModelProto, Choices], None], ...] = (
    _cycle,
    _dangle,
    _reorder,
    _same_names,
    _drop,
    _absurd_dims,
    _external,
    _operator,
)
