"""What weights take in the file, in the form in which they are stored at the end: a budget of size is of that file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxcompress.analysis.cost import ModelCost, model_cost
from onnxcompress.analysis.lrn import is_window
from onnxcompress.graph import Model
from onnxcompress.operators import LAYERS
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.quantization.candidates import why_float_is_faster
from onnxcompress.passes.recovery.allocation_choices import Choice

_FLOAT_BYTES = 4.0


@dataclass(frozen=True)
class StoredSize:
    """Bytes of a form.

    Attributes:
        number: of one weight.
        channel: of one output channel with a bias, beside its weights: scales, a bias of 32 bits.
        rank: of one channel between two factors, which has no bias.
        window: of one entry of an LRN's window.
        weighted: of a node with weights beside what the float model has of it; `other`: of another node; `file`: of the
            file as a whole.
        added: of a node that a split adds: its names, attributes and shapes.
        named: of a bias that a layer had not: its name, twice, and its shape.
        integers: whether what is slower in integers stays in float.
    """

    number: float
    channel: float = 0.0
    rank: float = 0.0
    window: float = _FLOAT_BYTES
    weighted: float = 0.0
    other: float = 0.0
    file: float = 0.0
    added: float = 400.0
    named: float = 100.0
    integers: bool = False

    def of_choice(self, choice: Choice) -> float:
        """Return the bytes of a layer that is split so."""
        ranks = [rank for rank in (choice.rank_in, choice.rank_out) if rank is not None]
        return self.number * choice.params + self.rank * sum(ranks) + self.added * len(ranks)

    def of_biases(self, sizes: Sequence[int]) -> float:
        """Return the bytes of further biases of so many numbers each."""
        return sum((self.number + self.channel) * size + self.named for size in sizes)

    def of_file(self, model: Model, context: PassContext) -> float:
        """Return the bytes that a float model's file will take."""
        return model.size_bytes - model.weight_bytes + self._of_constants(model, model_cost(model), context)

    def _of_constants(self, model: Model, cost: ModelCost, context: PassContext) -> float:
        """Return the bytes that a float model's constants, and what is added to them, will take.

        Of what stays in float, that which is known before anything is quantised is counted as such.
        """
        if self == FLOAT32:
            return float(cost.weight_bytes)
        total = self.number * (cost.params - cost.nested_params) + self.file
        params = {layer.node: layer.params for layer in cost.layers}
        for node in model.nodes:
            if is_window(node):
                total += (self.window - self.number) * node.inputs[1].values.size
            elif node.op in LAYERS and self._leaves(node, context):
                total += (_FLOAT_BYTES - self.number) * params.get(node.name, 0)
            elif node.op in LAYERS:
                biases = node.inputs[2].values.size if len(node.inputs) > 2 and model.is_constant(node.inputs[2]) else 0
                total += self.channel * biases + self.weighted
            else:
                total += self.other
        return total

    def _leaves(self, node: gs.Node, context: PassContext) -> bool:
        slower = self.integers and why_float_is_faster(node, context.providers) is not None
        return slower or context.is_excluded(node.name)


FLOAT32 = StoredSize(_FLOAT_BYTES)
FLOAT16 = StoredSize(2.0, file=250.0)
# Measured on GoogLeNet, SqueezeNet and small networks in compact QDQ form.
INT8 = StoredSize(1.0, channel=10.0, rank=5.0, window=0.02, weighted=190.0, other=15.0, added=520.0, integers=True)
