"""Activations of inner tensors, batch after batch, from onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxcompress.errors import DataError, ModelError
from onnxcompress.graph import Model
from onnxcompress.importing import names_read
from onnxcompress.runtime.providers import CPU_PROVIDER, Provider
from onnxcompress.runtime.session import ModelSource, Session, SessionSettings
from onnxcompress.runtime.tensors import Array
from onnxcompress.serialization import IN_MEMORY_BYTES, PROTOBUF_LIMIT_BYTES, external_files, parse_proto, read_proto

if TYPE_CHECKING:
    import onnx


class Capture:
    """A model that also returns inner tensors.

    Args:
        model: is not changed. Above 256 MB of weights onnxruntime maps them from a temporary file.
        tensors: names of graph inputs, outputs, or tensors in between.

    Raises (constructor):
        ModelError: the model has no such tensor, or onnxruntime cannot load it.
    """

    def __init__(
        self,
        model: Model,
        tensors: Sequence[str],
        provider: Provider = CPU_PROVIDER,
        settings: SessionSettings | None = None,
    ) -> None:
        # In the order in which the network computes them, so that a failure names the layer where it began.
        order = [i.name for i in model.graph.inputs] + [t.name for node in model.nodes for t in node.outputs]
        place = {name: number for number, name in enumerate(order)}
        unknown = [name for name in tensors if name not in place]
        if unknown:
            raise ModelError(f"tensor '{unknown[0]}' is neither an input of the model nor computed by a node")
        self.tensors = tuple(sorted(dict.fromkeys(tensors), key=lambda name: place[name]))
        self._session = _open(model, self.tensors, provider, settings)
        self._fed = {info.name for info in self._session.inputs}
        self._batch = 0

    def run(self, inputs: Mapping[str, Array], size: int | None = None, *, checked: bool = True) -> dict[str, Array]:
        """Return {tensor: array (B, ...)} of one batch; of a filled-up batch only the first `size` samples.

        Raises:
            DataError: a tensor holds NaN or infinity, which is named, if `checked`, or the inputs do not fit.
        """
        computed = [name for name in self.tensors if name not in self._fed]
        arrays = self._session.run(inputs, computed) if computed else {}
        rows = next(iter(inputs.values())).shape[0]
        captured: dict[str, Array] = {}
        for name in self.tensors:
            array = inputs[name] if name in self._fed else arrays[name]
            if size is not None and size < rows and array.ndim and array.shape[0] == rows:
                array = array[:size]
            if checked:
                check_finite(array, f"tensor '{name}', batch {self._batch}")
            captured[name] = array
        self._batch += 1
        return captured


def capture_activations(
    model: Model,
    tensors: Sequence[str],
    batches: Iterable[Mapping[str, Array]],
    provider: Provider = CPU_PROVIDER,
    settings: SessionSettings | None = None,
) -> Iterator[dict[str, Array]]:
    """Stream {tensor: array (B, ...)} for each batch of inputs; one batch is in memory at a time.

    Raises:
        ModelError: as `Capture`.
        DataError: as `Capture.run`, or there are no batches.
    """
    capture = Capture(model, tensors, provider, settings)
    empty = True
    for inputs in batches:
        empty = False
        yield capture.run(inputs)
    if empty:
        raise DataError("no calibration samples")


def check_finite(array: Array, where: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        DataError: begins with `where`.
    """
    # A finite sum has finite summands, and costs no array of flags; one that overflowed is looked at value by value.
    if array.dtype.kind != "f" or np.isfinite(_sum(array)) or np.isfinite(array).all():
        return
    nans = int(np.isnan(array).sum())
    infinities = int(np.isinf(array).sum())
    raise DataError(
        f"{where}: {nans} NaN and {infinities} infinite values of {array.size}; look at the layer before it"
    )


def _sum(array: Array) -> float:
    # Infinities of both signs make an invalid operation of the sum, which is what this looks for.
    with np.errstate(invalid="ignore", over="ignore"):
        return float(array.sum(dtype=np.float32 if array.dtype.itemsize <= 4 else np.float64))


def _open(model: Model, tensors: Sequence[str], provider: Provider, settings: SessionSettings | None) -> Session:
    """Return a session of a model that gives `tensors`, too."""
    if model.weight_bytes <= IN_MEMORY_BYTES:
        return Session(_with_outputs(model.to_proto(), tensors), provider, settings)
    with tempfile.TemporaryDirectory(prefix="onnxcompress-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        model.save(path, external=True)
        path.write_bytes(_with_outputs(read_proto(path), tensors))
        # Packed for its kernels every weight would be there twice.
        return Session(path, provider, replace(settings or SessionSettings(), prepacking=False))


def _with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> bytes:
    """Serialise the model with `tensors` as further outputs.

    Concatenated messages are merged by protobuf's definition, repeated fields appended: the outputs are added without a
    second copy of the weights. An output without a type gets the one that onnxruntime infers.
    """
    import onnx

    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    graph = onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in tensors if name not in present])
    return bytes(model.SerializeToString() + onnx.ModelProto(graph=graph).SerializeToString())


def exposing(model: ModelSource, tensors: Sequence[str]) -> ModelSource:
    """Return a model that gives those of `tensors`, too, which its nodes make; one of more than 2 GB as it is.

    What is given is what the nodes behind it read: see `as_read`.
    """
    if not tensors:
        return model
    proto = parse_proto(model, "the model") if isinstance(model, bytes) else _read_whole(Path(model))
    if proto is None:
        return model
    nodes = proto.graph.node
    made = {name for node in nodes for name in node.output}
    wanted = [name for name in tensors if name in made]
    for name in wanted:
        read = as_read(nodes, name)
        other = {name: read, read: name}
        for node in nodes if read != name else ():
            node.input[:] = [other.get(each, each) for each in node.input]
            node.output[:] = [other.get(each, each) for each in node.output]
    return _with_outputs(proto, wanted)


def _read_whole(path: Path) -> onnx.ModelProto | None:
    """Return a model with the weights beside it in it, None where these are more than it can hold."""
    proto = read_proto(path)
    if not external_files(proto):
        return proto
    model = Model.load(path)
    return None if model.weight_bytes > PROTOBUF_LIMIT_BYTES else model.to_proto()


def as_read(nodes: Sequence[onnx.NodeProto], name: str) -> str:
    """Return the tensor that the nodes behind `name` read: itself, or what eight bits make of it.

    A quantizer leaves a Relu to the rounding, which knows no number below zero: before it the tensor is another.
    """
    found = name
    for op in ("QuantizeLinear", "DequantizeLinear"):
        readers = [node for node in nodes if found in names_read(node)]
        if not readers or any(node.op_type != op for node in readers):
            return name
        found = readers[0].output[0]
    return found
