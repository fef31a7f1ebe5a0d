"""What is measured in runs of the original: what its layers see and what they answer, in one run where both are wanted.

An allocation of budgets decides from the covariances of what layers see of some of the samples; the refit behind it
fits to what the same layers answer to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from onnxcompress.analysis.cost import sample_shapes
from onnxcompress.analysis.lrn import with_banded_lrn
from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.linalg.moments import Covariances
from onnxcompress.passes.base import PassContext, Samples
from onnxcompress.passes.recovery.allocation_samples import PatchMoments, batched, layer_covariances, sample_batch
from onnxcompress.passes.recovery.refit_layers import RefitLayer
from onnxcompress.passes.recovery.refit_targets import Onlooker, Targets
from onnxcompress.passes.recovery.sample_files import sample_keys

Array = npt.NDArray[Any]

_COUNTED = f"{__name__}.counted"

_MOST_BYTES = 2**29
"""What layers see and answer of one batch, at most, for both to be in memory together."""


def counted(model: Model, calibration: Samples, context: PassContext) -> tuple[int, int]:
    """Return how many samples there are, and how many of them differ from each other: looked at once.

    Where the model fixes its batch, the last one is filled up with its last sample, which counts once.

    Raises:
        DataError: there are none.
    """
    measured = {} if context.measured is None else context.measured
    if _COUNTED not in measured:
        batches = [sample_keys(batch) for batch in calibration()]
        keys = [key for batch in batches for key in batch]
        if not keys:
            raise DataError("no calibration samples")
        last = batches[-1] if sample_batch(model)[1] else []
        filling = next((n for n, key in enumerate(reversed(last[:-1])) if key != last[-1]), max(len(last) - 1, 0))
        measured[_COUNTED] = len(keys) - filling, len(set(keys))
    found: tuple[int, int] = measured[_COUNTED]
    return found


def answers_of_original(
    model: Model,
    layers: Sequence[RefitLayer],
    calibration: Samples,
    positions: Mapping[str, int],
    context: PassContext,
    onlooker: Onlooker | None = None,
) -> Targets:
    """Return what the original answers: measured once for all refits to it and these data.

    Args:
        model: the present one, where the context has no original.
        layers: of it.
        calibration: all samples.
        positions: {layer: how many of its output are sampled}.
        context: what is measured stays there.
        onlooker: looks at the run, if there has to be one.
    """
    measured = {} if context.measured is None else context.measured
    known = _known(layers, positions, context)
    if known is None:
        measured.pop(__name__, None)  # its files go before others are written
        original = with_banded_lrn(context.original or model)
        known = Targets(original, layers, calibration(), positions, context.seed, onlooker)
    measured[__name__] = known
    return known


def seen_by(
    model: Model,
    layers: Sequence[RefitLayer],
    samples: Mapping[int, Mapping[str, Array]],
    positions: int,
    context: PassContext,
    answers: Mapping[str, int],
) -> dict[str, Covariances]:
    """Return the covariance of every layer's patches.

    Args:
        model: the present one.
        layers: of it.
        samples: {number among the calibration data: sample, a batch of one}.
        positions: how many patches of each.
        context: what is measured on the original stays there.
        answers: {layer: positions of its output} that will be asked for, none where none are: of the original they are
            sampled in the same run, if that fits into memory.

    Raises:
        DataError: a tensor holds NaN, infinity, or values whose squares overflow; it is named.
    """
    moments = PatchMoments(layers, positions, context.seed)
    chosen = _ChosenRows(moments, samples)
    stays = answers and context.original is model and context.measured is not None
    if context.calibration and stays and _known(layers, answers, context) is None:
        if _bytes_of({*moments.tensors, *(layer.output for layer in layers)}, model) <= _MOST_BYTES:
            answers_of_original(model, layers, context.calibration, answers, context, chosen)
        if chosen.count and chosen.are_known:
            return moments.covariances()
    size, filled = sample_batch(model)
    batches = batched(list(samples.values()), size, filled=filled)
    return layer_covariances(with_banded_lrn(model), layers, batches, positions, context.seed)


class _ChosenRows:
    """Takes in what layers see of some samples of a stream.

    Attributes:
        tensors: what the layers read.
        count: how many samples there were.
        are_known: whether all tensors had one row for each of them; else nothing tells which are of the chosen ones.
    """

    def __init__(self, moments: PatchMoments, numbers: Collection[int]) -> None:
        self.tensors: Sequence[str] = moments.tensors
        self.are_known = True
        self._moments = moments
        self._numbers = numbers
        self.count = 0

    def take(self, captured: Mapping[str, Array], images: int) -> None:
        """Take in the next so many samples of the stream, as far as they were chosen."""
        own = {name: captured[name] for name in self.tensors}
        self.are_known &= all(len(array) == images for array in own.values())
        rows = [row for row in range(images) if self.count + row in self._numbers]
        self.count += images
        if self.are_known and rows:
            self._moments.take({name: array[rows] for name, array in own.items()}, len(rows))


def _known(layers: Sequence[RefitLayer], positions: Mapping[str, int], context: PassContext) -> Targets | None:
    known: Targets | None = (context.measured or {}).get(__name__)
    return known if known is not None and known.serve(layers, positions) else None


def _bytes_of(tensors: Collection[str], model: Model) -> float:
    """Return the size of a batch of tensors, infinity where it is not known."""
    shapes, batch = sample_shapes(model)
    total = 0.0
    for name in tensors:
        shape = shapes.get(name)
        if shape is None or not all(isinstance(size, int) for size in shape):
            return math.inf
        total += 4.0 * math.prod(int(size) for size in shape if isinstance(size, int))
    return total * sample_batch(model)[0] / batch
