"""LSTM, step by step: recurrent heads on convolutional networks (text recognition)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.passes.recovery.torch_operators.registry import Call, operator

_ACTIVATIONS = ("Sigmoid", "Tanh", "Tanh")


@operator("LSTM")
def lstm(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Y (T, D, B, H), Y_h (D, B, H), Y_c (D, B, H) of X (T, B, I); D directions.

    weight (D, 4H, I), recurrence (D, 4H, H), bias (D, 8H); gates in the order input, output, forget, cell.
    """
    if lengths is not None or peepholes is not None or call.whole("layout", 0) or call.whole("input_forget", 0):
        raise call.unsupported("sequence_lens, peepholes, layout or input_forget")
    activations = call.attributes.get("activations") or _ACTIVATIONS
    if "clip" in call.attributes or any(each != _ACTIVATIONS[n % 3] for n, each in enumerate(activations)):
        raise call.unsupported("clip or other activations")
    directions, size = weight.shape[0], recurrence.shape[2]
    reverse = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[call.text("direction", "forward")]
    start = x.new_zeros(directions, x.shape[1], size)
    hidden = start if hidden is None else hidden
    cell = start if cell is None else cell
    runs = []
    for number, backwards in enumerate(reverse):
        added = None if bias is None else bias[number, : 4 * size] + bias[number, 4 * size :]
        gates = functional.linear(x, weight[number], added)
        runs.append(_run(gates, recurrence[number], hidden[number], cell[number], backwards))
    outputs, last_hidden, last_cell = zip(*runs, strict=True)
    return torch.stack(outputs, 1), torch.stack(last_hidden), torch.stack(last_cell)


def _run(gates: Tensor, recurrence: Tensor, h: Tensor, c: Tensor, backwards: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run one direction over `gates` (T, B, 4H), the part of the gates that the inputs give."""
    steps = list(range(gates.shape[0]))
    outputs: list[Tensor] = [h] * len(steps)
    for step in reversed(steps) if backwards else steps:
        i, o, f, g = (gates[step] + functional.linear(h, recurrence)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs[step] = h
    return torch.stack(outputs), h, c
