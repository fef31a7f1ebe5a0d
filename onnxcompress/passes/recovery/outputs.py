"""Which outputs of a network are compared, or trained on, and the tensor that stands for each."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxcompress.graph import Model


@dataclass(frozen=True)
class Output:
    """One floating-point output and the tensor that is compared for it.

    Attributes:
        name: of the graph's output, or of the tensor that stands for outputs of whole numbers.
        compared: the scores that a last Softmax makes probabilities of, else the output itself.
    """

    name: str
    compared: str


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
        if name in given or compared in known:
            outputs.append(Output(name, compared))
    return tuple(outputs)


def judged_tensors(model: Model) -> tuple[str, ...]:
    """Return the tensors by which a network's answers are judged: its floating-point outputs.

    Where there are none, as of a segmentation that ends with ArgMax, those from which its outputs are made: a small
    change says nothing of whole numbers until one of them turns over.
    """
    floating = tuple(tensor.name for tensor in model.graph.outputs if _is_floating(model, tensor))
    if floating:
        return floating
    producers = _producers(model)
    found: dict[str, None] = {}
    seen: set[str] = set()
    pending = list(model.graph.outputs)
    while pending:
        node = producers.get(pending.pop().name)
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        for tensor in node.inputs:
            if tensor.name in producers and _is_floating(model, tensor):
                found[tensor.name] = None
            else:
                pending.append(tensor)
    return tuple(found)


def _producers(model: Model) -> dict[str, gs.Node]:
    return {tensor.name: node for node in model.nodes for tensor in node.outputs if tensor.name}


def _is_floating(model: Model, tensor: gs.Tensor) -> bool:
    if tensor.name not in model.dtypes:
        return False
    dtype = model.dtype_of(tensor)
    return dtype.kind == "f" or dtype.name == "bfloat16"
