"""Running a model on the CPU for the self-check: in stretches of its nodes, so that few weights are there at a time.

A reference of a split has weights that are made anew, products of factors. Of a model of gigabytes they are never
all there: each is made when its stretch runs, and mapped weights are let go of after theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxcompress.declarations import array_info
from onnxcompress.graph import Model
from onnxcompress.importing import names_read
from onnxcompress.runtime.session import Session, SessionSettings
from onnxcompress.serialization import array_to_tensor, is_packed

Array = npt.NDArray[Any]

WeightMakers = Mapping[str, Callable[[], Array]]
"""{name of a constant: makes its values}, in the shape and type of what the model holds in its place."""

NONE_MADE: WeightMakers = MappingProxyType({})

WIDENED = frozenset({onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE})
"""Element types that onnxruntime's CPU kernels lack, or have for some operators only: computed in float32."""

_WEIGHT_BYTES_AT_A_TIME = 2**28
# What fails is told by an error, not also by onnxruntime's log.
_SETTINGS = SessionSettings(spinning="never", log_severity=4)


@dataclass
class _Stretch:
    """Nodes that run in one session.

    Attributes:
        nodes: in topological order.
        reads: names that they read from before.
        makes: names that they make.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)
    makes: set[str] = field(default_factory=set)


def run_model(
    model: Model,
    feeds: Mapping[str, Array],
    tensors: Sequence[str],
    made: WeightMakers = NONE_MADE,
    *,
    integers: bool = True,
) -> dict[str, Array]:
    """Return the values of `tensors` (outputs or not), computed by onnxruntime on the CPU.

    The weights are fed like inputs, so that a model of any size runs without a second copy of them; above 256 MB they
    are fed to one stretch of nodes after the other. Those of less than a byte cannot be fed. Types that onnxruntime's
    CPU kernels lack (bfloat16, float64) are computed in float32.

    Args:
        model: what runs.
        feeds: one batch of inputs.
        tensors: the names of the tensors that are returned.
        made: weights that are made when they are fed, whatever stands in their place in the model.
        integers: as in `SessionSettings`; without, a quantised model answers the same however it is written.
    """
    proto = model.skeleton()
    _keep_packed(proto.graph, model)
    for tensor in proto.graph.initializer:
        if tensor.name in made:
            tensor.CopyFrom(array_to_tensor(tensor.name, made[tensor.name]()))
    stored = {tensor.name for tensor in proto.graph.initializer}
    weights = {name: tensor.values for name, tensor in model.constants().items() if name not in stored}
    if any(onnx.helper.np_dtype_to_tensor_dtype(values.dtype) in WIDENED for values in weights.values()) or any(
        tensor.data_type in WIDENED and tensor.dims for tensor in proto.graph.initializer
    ):
        _widen(proto)
    nodes = needed_nodes(proto.graph.node, tensors)
    stretches = _stretches(nodes, {name: values.nbytes for name, values in weights.items()}, model.dtypes)
    values: dict[str, Any] = {name: t.values for name, t in model.constants().items() if name in tensors} | dict(feeds)
    for at, stretch in enumerate(stretches):
        later = set(tensors).union(*(each.reads for each in stretches[at + 1 :]))
        alone = len(stretches) == 1
        wanted = list(tensors) if alone else sorted(stretch.makes & later)
        if wanted:
            session = _session(proto if alone else _part(proto, stretch, values), wanted, integers=integers)
            values.update(zip(wanted, session.raw.run(wanted, _fed(session, values, weights, made)), strict=True))
            del session
        values = {name: value for name, value in values.items() if name in later}
        if not alone:
            model.release_mapped()
    return {name: values[name] for name in tensors}


def _keep_packed(graph: onnx.GraphProto, model: Model) -> None:
    """Put weights that hold several numbers to a byte in the place of the inputs that stand for them."""
    inputs = {info.name: info for info in graph.input}
    stored = {tensor.name for tensor in graph.initializer}
    for name, constant in model.constants().items():
        if name not in stored and is_packed(constant.values):
            graph.input.remove(inputs[name])
            graph.initializer.append(array_to_tensor(name, constant.values))


def _fed(
    session: Session, values: Mapping[str, Any], weights: Mapping[str, Array], made: WeightMakers
) -> dict[str, Array]:
    """Return what a session reads, in its types."""
    fed = {}
    for info in session.inputs:
        name = info.name
        array = made[name]() if name in made else weights[name] if name in weights else values[name]
        fed[name] = np.asarray(array).astype(info.dtype, copy=False)
    return fed


def needed_nodes(
    nodes: Sequence[onnx.NodeProto], tensors: Sequence[str], given: Sequence[str] = ()
) -> list[onnx.NodeProto]:
    """Return the nodes that `tensors` depend on where those in `given` are there already, in their order."""
    needed, names = [], set(tensors)
    for node in reversed(nodes):
        if names.intersection(node.output):
            needed.append(node)
            names.update(name for name in names_read(node) if name not in given)
    return needed[::-1]


def _stretches(nodes: Sequence[onnx.NodeProto], nbytes: Mapping[str, int], dtypes: Mapping[str, int]) -> list[_Stretch]:
    """Cut the nodes where 256 MB of weights (names and bytes: `nbytes`) have been read.

    A cut lies where all that is handed over is a tensor whose type is known (no sequence).
    """
    stretches = [_Stretch()]
    reading, sizes = 0, dict(nbytes)
    last = {name: at for at, node in enumerate(nodes) for name in names_read(node)}
    open_until: dict[str, int] = {}
    for at, node in enumerate(nodes):
        names = set(names_read(node))
        size = sum(nbytes[name] for name in names & sizes.keys())
        full = reading and size and reading + size > _WEIGHT_BYTES_AT_A_TIME
        if full and all(name in dtypes for name, until in open_until.items() if until >= at):
            stretches.append(_Stretch())
            reading, sizes = 0, dict(nbytes)
            size = sum(nbytes[name] for name in names & sizes.keys())
        stretch = stretches[-1]
        stretch.nodes.append(node)
        stretch.reads |= names - stretch.makes
        stretch.makes.update(name for name in node.output if name)
        open_until.update({name: last[name] for name in node.output if name in last})
        reading += size
        for name in names:
            sizes.pop(name, None)
    return stretches


def _part(proto: onnx.ModelProto, stretch: _Stretch, values: Mapping[str, Any]) -> onnx.ModelProto:
    """Return the model of a stretch; what it reads of `values` are its inputs."""
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    for field_name in ("node", "input", "output", "initializer", "value_info"):
        part.graph.ClearField(field_name)
    whole = proto.graph
    part.graph.node.extend(stretch.nodes)
    part.graph.initializer.extend(tensor for tensor in whole.initializer if tensor.name in stretch.reads)
    part.graph.value_info.extend(info for info in whole.value_info if info.name in stretch.makes)
    known = {info.name for info in whole.input} | {tensor.name for tensor in whole.initializer}
    part.graph.input.extend(info for info in whole.input if info.name in stretch.reads)
    handed_over = sorted(stretch.reads - known)
    part.graph.input.extend(array_info(name, np.asarray(values[name])) for name in handed_over if name in values)
    return part


def _session(proto: onnx.ModelProto, tensors: Sequence[str], *, integers: bool) -> Session:
    """Return a session of a model that gives `tensors`."""
    present = {info.name for info in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in tensors if n not in present)
    return Session(proto.SerializeToString(deterministic=True), settings=replace(_SETTINGS, integers=integers))


def _widen(proto: onnx.ModelProto) -> None:
    """Turn bfloat16 and float64 into float32 throughout."""
    for tensor in proto.graph.initializer:
        _widen_tensor(tensor)
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if info.type.tensor_type.elem_type in WIDENED:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i in WIDENED:
                attribute.i = onnx.TensorProto.FLOAT


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in WIDENED:
        wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
