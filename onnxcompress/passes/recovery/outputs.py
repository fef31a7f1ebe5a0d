"""Which outputs of a network are compared, or trained on, and the tensor that stands for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxcompress.analysis.data_shapes import DataShapes, data_shapes
from onnxcompress.graph import Model
from onnxcompress.lengths import may_agree
from onnxcompress.serialization import tensor_dtype

_MOVING = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Output:
    """One floating-point output and the tensor that is compared for it.

    Attributes:
        name: of the graph's output, or of the tensor that stands for outputs of whole numbers.
        compared: the scores that a last Softmax makes probabilities of, else the output itself.
        apart: whether a last Sigmoid made them: each is the probability of its own class, whatever the others are.
    """

    name: str
    compared: str
    apart: bool = False


def compared_outputs(model: Model, original: Model) -> tuple[Output, ...]:
    """Return the outputs that can be compared: the model's tensors by which its answers are judged."""
    known = {tensor.name for node in original.nodes for tensor in node.outputs}
    producers = _producers(model)
    given = {tensor.name for tensor in model.graph.outputs}
    outputs = []
    for name in judged_tensors(model):
        node = producers.get(name)
        is_softmax = node is not None and node.op in ("Softmax", "LogSoftmax")
        scores = node.inputs[0].name if node is not None and is_softmax else name
        compared = scores if scores in known else name
        # A tensor inside may have lost channels.
        if name in given or (compared in known and may_agree(model.shape_of(compared), original.shape_of(compared))):
            maker = producers.get(_unmoved(name, producers)) if name in producers else None
            outputs.append(Output(name, compared, apart=maker is not None and maker.op == "Sigmoid"))
    return tuple(outputs)


def compared_tensors(model: Model, original: Model) -> list[str]:
    """Return the names of the tensors that stand for `compared_outputs`."""
    return [output.compared for output in compared_outputs(model, original)]


def judged_tensors(model: Model) -> tuple[str, ...]:
    """Return the tensors by which a network's answers are judged: its floating-point outputs.

    Where there are none, as of a segmentation that ends with ArgMax, those from which its outputs are made: a small
    change says nothing of whole numbers until one of them turns over. So also in place of each output whose shape
    depends on the data, as of the boxes that a NonMaxSuppression leaves: two models leave other rows, or fewer.
    """
    shapes = data_shapes(model)
    floating = [tensor for tensor in model.graph.outputs if is_floating(model, tensor)]
    fixed = tuple(tensor.name for tensor in floating if tensor.name not in shapes.shaped)
    if len(fixed) == len(floating) > 0:
        return fixed
    open_ones = [tensor for tensor in floating if tensor.name in shapes.shaped]
    made_from = _made_from(model, shapes, [t.name for t in (open_ones if fixed else model.graph.outputs)])
    return tuple(dict.fromkeys((*fixed, *made_from))) or tuple(tensor.name for tensor in floating)


def stand_ins(model: Model) -> tuple[str, ...]:
    """Return the tensors that are judged in place of outputs whose shape depends on the data, where there are any."""
    given = {tensor.name for tensor in model.graph.outputs}
    if data_shapes(model).shaped.isdisjoint(given):
        return ()
    return tuple(name for name in judged_tensors(model) if name not in given)


def nodes_for(model: Model, wanted: Iterable[str]) -> list[gs.Node]:
    """Return the nodes without which tensors cannot be computed, in the model's order."""
    missing = set(wanted)
    needed = []
    for node in reversed(model.nodes):
        if missing.isdisjoint(tensor.name for tensor in node.outputs):
            continue
        needed.append(node)
        missing.update(model.names_read(node))
    return needed[::-1]


def _made_from(model: Model, shapes: DataShapes, outputs: Sequence[str]) -> tuple[str, ...]:
    """Return the last floating-point tensors of a shape that the data do not decide, on each path to the outputs."""
    producers = _producers(model)
    found: dict[str, None] = {}
    seen: set[str] = set()
    pending = list(outputs)
    while pending:
        node = producers.get(pending.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        is_open = any(tensor.name in shapes.shaped for tensor in node.outputs)
        for name in shapes.reads[node.name]:
            if name in producers and is_floating(model, name) and name not in shapes.shaped:
                # What does not depend on the data says nothing.
                if name in shapes.valued:
                    found[_unmoved(name, producers) if is_open else name] = None
            else:
                pending.append(name)
    return tuple(found)


def _unmoved(name: str, producers: Mapping[str, gs.Node]) -> str:
    """Return the tensor that `name` is another layout of: boxes without their batch are not one row a sample."""
    node = producers[name]
    while node.op in _MOVING and node.inputs[0].name in producers:
        name = node.inputs[0].name
        node = producers[name]
    return name


def _producers(model: Model) -> dict[str, gs.Node]:
    return {tensor.name: node for node in model.nodes for tensor in node.outputs if tensor.name}


def is_floating(model: Model, tensor: gs.Tensor | str) -> bool:
    """Whether a tensor's numbers are known to be floating-point."""
    element_type = model.dtypes.get(tensor if isinstance(tensor, str) else tensor.name)
    if element_type is None:
        return False
    dtype = tensor_dtype(element_type)
    return dtype.kind == "f" or dtype.name == "bfloat16"
