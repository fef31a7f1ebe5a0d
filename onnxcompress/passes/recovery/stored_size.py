"""What weights take in the file, in the form in which they are stored at the end: a budget of size is of that file."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcompress.analysis.cost import ModelCost
from onnxcompress.analysis.lrn import is_window
from onnxcompress.graph import Model
from onnxcompress.passes.recovery.allocation_choices import Choice

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FLOAT_BYTES = 4.0


@dataclass(frozen=True)
class StoredSize:
    """Bytes of a form.

    Attributes:
        number: of one weight.
        channel: of one output channel beside its weights: scales, zero points, a bias of 32 bits.
        weighted: of a node with weights beside what the float model has of it; `other`: of another node.
        added: of a node that a split adds: its names, attributes and shapes.
    """

    number: float
    channel: float = 0.0
    weighted: float = 0.0
    other: float = 0.0
    added: float = 400.0

    def of_choice(self, choice: Choice) -> float:
        """Return the bytes of a layer that is split so."""
        ranks = [rank for rank in (choice.rank_in, choice.rank_out) if rank is not None]
        return self.number * choice.params + self.channel * sum(ranks) + self.added * len(ranks)

    def of_model(self, model: Model, cost: ModelCost) -> float:
        """Return the bytes that a float model's constants, and what is added to them, will take."""
        if self == FLOAT32:
            return float(cost.weight_bytes)
        total = self.number * cost.params
        for node in model.nodes:
            if is_window(node):  # stays in float
                total += (_FLOAT_BYTES - self.number) * node.inputs[1].values.size
            elif node.op in _WEIGHTED:
                biases = node.inputs[2].values.size if len(node.inputs) > 2 and model.is_constant(node.inputs[2]) else 0
                total += self.channel * biases + self.weighted
            else:
                total += self.other
        return total


FLOAT32 = StoredSize(_FLOAT_BYTES)
FLOAT16 = StoredSize(2.0)
# Measured on GoogLeNet in QDQ form; names that a split makes are longer.
INT8 = StoredSize(1.0, channel=16.0, weighted=1300.0, other=340.0, added=1900.0)
