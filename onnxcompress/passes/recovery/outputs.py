"""Which outputs of a network are compared, or trained on, and the tensor that stands for each."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcompress.graph import Model


@dataclass(frozen=True)
class Output:
    """One floating-point output and the tensor that is compared for it.

    Attributes:
        name: of the graph's output.
        compared: the scores that a last Softmax makes probabilities of, else the output itself.
    """

    name: str
    compared: str


def compared_outputs(model: Model, original: Model) -> tuple[Output, ...]:
    """Return the outputs that can be compared: the model's graph outputs of floating-point type."""
    known = {tensor.name for node in original.nodes for tensor in node.outputs}
    producers = {tensor.name: node for node in model.nodes for tensor in node.outputs}
    outputs = []
    for tensor in model.graph.outputs:
        if model.dtype_of(tensor).kind != "f" and model.dtype_of(tensor).name != "bfloat16":
            continue
        node = producers.get(tensor.name)
        is_softmax = node is not None and node.op in ("Softmax", "LogSoftmax")
        scores = node.inputs[0].name if node is not None and is_softmax else tensor.name
        outputs.append(Output(tensor.name, scores if scores in known else tensor.name))
    return tuple(outputs)
