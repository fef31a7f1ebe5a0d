"""Ranges of a network's inner tensors on calibration data, streamed: a batch in memory, histograms kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.linalg.histogram import Histogram
from onnxcompress.passes.base import Samples, Tell
from onnxcompress.runtime.capture import capture_activations

Array = npt.NDArray[Any]

_ROWS = 4
_MOST_VALUES = 2**15
"""Values of a tensor that are counted of each batch: the histograms' shape needs no more."""
_PASS_INFINITY_ON = frozenset(
    {"Add", "Concat", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where"}
)


def tensor_histograms(
    model: Model, tensors: Sequence[str], calibration: Samples, *, samples: int, tell: Tell
) -> dict[str, Histogram]:
    """Return the histogram of each tensor over about `samples` calibration samples, spread evenly over the stream.

    Tensors that hold no numbers have none, nor have those that a constant gives infinities, as masks of attention do.

    Raises:
        DataError: there are no samples, or a tensor holds NaN or infinity; it is named.
        ModelError: onnxruntime cannot run the model.
    """
    masked = masked_tensors(model)
    tensors = [name for name in tensors if name not in masked]
    if not tensors:
        return {}
    histograms = {name: Histogram() for name in tensors}
    first = (model.shape_of(model.graph.inputs[0]) or (None,))[0]
    # Every tensor of a batch is in memory at once: few rows, where the model leaves their number open.
    batches = spread_batches(calibration(), samples, first if isinstance(first, int) else None)
    for done, captured in enumerate(capture_activations(model, list(tensors), batches)):
        tell("ranges of the tensors", done, len(batches))
        for name, values in captured.items():
            histograms[name].add(values, _MOST_VALUES)
    counted = {name: histogram for name, histogram in histograms.items() if histogram.count > 0}
    if not counted:
        raise DataError(f"tensor '{tensors[0]}' held no values on the calibration data")
    return counted


def masked_tensors(model: Model) -> frozenset[str]:
    """Return the tensors that infinities of constants reach: what a Softmax behind them is not to see."""
    reached = {
        name
        for name, constant in model.constants().items()
        if constant.dtype.kind == "f" and np.isinf(model.values(constant)).any()
    }
    for node in model.nodes if reached else ():
        if node.op in _PASS_INFINITY_ON and any(tensor.name in reached for tensor in node.inputs):
            reached.update(tensor.name for tensor in node.outputs)
    return frozenset(reached)


def spread_batches(
    batches: Iterable[Mapping[str, Array]], samples: int, fixed_batch: int | None
) -> list[dict[str, Array]]:
    """Return about `samples` samples (half as many at least, where there are) of a stream of any length.

    Args:
        fixed_batch: the batch that the model fixes; then whole batches are taken.
    """
    rows = fixed_batch or 1
    wanted = max(1, samples // rows)
    chosen: list[dict[str, Array]] = []
    stride, number = 1, 0
    for batch in batches:
        for start in range(0, min(len(array) for array in batch.values()), rows):
            if number % stride == 0:
                chosen.append({name: array[start : start + rows].copy() for name, array in batch.items()})
            number += 1
            # Files are often sorted by class: the stride doubles until all of the stream is covered.
            if len(chosen) >= 2 * wanted:
                chosen, stride = chosen[::2], 2 * stride
    chosen = chosen[:: -(-len(chosen) // wanted)] if len(chosen) > wanted else chosen
    if fixed_batch is not None:
        return chosen
    parts = [chosen[at : at + _ROWS] for at in range(0, len(chosen), _ROWS)]
    return [{name: np.concatenate([sample[name] for sample in part]) for name in part[0]} for part in parts]
