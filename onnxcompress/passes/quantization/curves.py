"""What becomes of a tensor's values, one by one: the function that the nodes behind it compute of each alone.

A convolution's output before a HardSwish may reach far below zero, where the HardSwish makes nothing of it. Bits spent
there are lost: what counts is how far off the function's value is, not its argument. It may be one operator or several
(x * Sigmoid(x); Add, Clip, Mul and Div by constants), as long as nothing else reads the tensors in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxcompress.graph import Model
from onnxcompress.operators import is_standard
from onnxcompress.passes.tucker.sites import pinned_tensors
from onnxcompress.runtime.session import Session, SessionSettings
from onnxcompress.serialization import array_to_tensor

Numbers = npt.NDArray[np.float64]

_POINTWISE = frozenset(
    {
        "Abs",
        "Add",
        "Celu",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "Pow",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Softsign",
        "Sub",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    }
)
_MOST_NODES = 16


@dataclass(frozen=True)
class Curve:
    """A function of numbers, as nodes of a model compute it."""

    content: bytes
    source: str

    def __call__(self, points: Numbers) -> Numbers:
        """Return the value at each point, (n,)."""
        session = Session(self.content, settings=SessionSettings(threads=1))
        (values,) = session.run({self.source: points.astype(np.float32)[None]}).values()
        return np.asarray(values, np.float64).reshape(-1)


def curves(model: Model, tensors: Iterable[str]) -> dict[str, Curve]:
    """Return the function that stands behind each tensor; those that something reads as they are have none."""
    pinned = pinned_tensors(model)
    made = {tensor.name: tensor for node in model.nodes for tensor in node.outputs}
    whole = model.skeleton()
    found = {}
    for name in tensors:
        if name in made and (part := _behind(made[name], pinned)) is not None:
            found[name] = Curve(_as_model(whole, name, *part), name)
    return found


def _behind(tensor: gs.Tensor, pinned: Mapping[str, str]) -> tuple[list[gs.Node], str] | None:
    """Return the nodes that compute something of a tensor's values alone, and the one tensor that others read of it."""
    nodes: list[gs.Node] = []
    inside = {tensor.name: tensor}
    pending = [tensor]
    while pending and len(nodes) < _MOST_NODES:
        for node in pending.pop().outputs:
            if node in nodes or not _is_function(node, inside):
                continue
            nodes.append(node)
            inside[node.outputs[0].name] = node.outputs[0]
            pending.append(node.outputs[0])
    read = [
        each.name
        for each in inside.values()
        if each.name in pinned or not each.outputs or any(reader not in nodes for reader in each.outputs)
    ]
    return (nodes, read[0]) if len(read) == 1 and nodes and read[0] != tensor.name else None


def _is_function(node: gs.Node, inside: Mapping[str, gs.Tensor]) -> bool:
    if node.op not in _POINTWISE or not is_standard(node) or len(node.outputs) != 1:
        return False
    return all(
        not tensor.name or tensor.name in inside or (isinstance(tensor, gs.Constant) and tensor.values.size == 1)
        for tensor in node.inputs
    )


def _as_model(whole: onnx.ModelProto, name: str, nodes: list[gs.Node], wanted: str) -> bytes:
    chosen = {node.name for node in nodes}
    graph = onnx.GraphProto(name="curve")
    graph.node.extend(node for node in whole.graph.node if node.name in chosen)
    constants = {t.name: t.values for node in nodes for t in node.inputs if isinstance(t, gs.Constant)}
    graph.initializer.extend(array_to_tensor(each, values) for each, values in constants.items())
    graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, None]))
    graph.output.append(onnx.ValueInfoProto(name=wanted))
    proto = onnx.ModelProto(ir_version=max(whole.ir_version, 4), graph=graph, opset_import=whole.opset_import)
    return bytes(proto.SerializeToString())
