"""What the removal of channels costs: the damage at the model's output once their readers are fitted anew.

A linear layer reads features x (D,) of covariance S, with weights W (D, O). Without a set s of its features, and the
others' weights fitted anew by least squares, it misses

    tr(W_s^T (P_ss)^-1 W_s)   with P = S^-1                     (B. Hassibi, D. Stork, Optimal Brain Surgeon, NIPS 1992)

of the energy tr(W^T S W) of its response. The share, times the layer's sensitivity (`sensitivity`, measured), is the
damage; a channel's is the sum over all layers that read it, times a factor: what they miss is the same channel, and so
their errors add up behind them instead of cancelling. The factor is measured where several layers read the same
channels (the branches of an inception module: 2 to 4): all of them without some of these, against the sum. It compares
across layers, since all of it is damage at one output.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.analysis.lrn import with_banded_lrn
from onnxcompress.graph import Model
from onnxcompress.linalg.moments import Covariances
from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import PassContext, Samples
from onnxcompress.passes.recovery.allocation_samples import batched, layer_covariances, sample_batch, spread
from onnxcompress.passes.recovery.refit_layers import RefitLayer, find_refit_layers
from onnxcompress.passes.recovery.sensitivity import (
    TYPICAL_ERROR,
    Disturbance,
    measure_damages,
    measure_sensitivities,
)

Classes = npt.NDArray[np.int64]
"""The class of every input channel of a layer, (I,); those below 0 cannot leave."""

_IMAGES, _JUDGING_IMAGES, _POSITIONS = 512, 48, 32
_ROUND = 0.04
"""Share of the classes that are left which leave in one round, before all others are judged anew."""

_MOST_FEATURES = 8192
"""Of a layer that is judged: its covariance has the square of it."""

_RIDGE = 1e-2
"""Added to the inputs' covariance, in units of their mean variance: what only few samples show is not believed."""


class Reader:
    """A linear layer of which features leave, set by set, the others fitted anew each time.

    Args:
        classes: of the layer's input channels, (I,).
    """

    def __init__(self, layer: RefitLayer, covariances: Covariances, classes: Classes) -> None:
        self.slope = layer.original[0].reshape(-1, layer.original.shape[-1])
        self.covariances = covariances
        self.energy = float(np.einsum("do,do->", self.slope, covariances.xx @ self.slope))
        self.classes = np.tile(classes, layer.positions)
        self._left = np.arange(len(self.classes))
        self._slope = self.slope
        self._precision = _precision(covariances)

    def errors(self) -> dict[int, float]:
        """Return for each class that is left the share of the response's energy that is missed once it goes, too."""
        return {number: self._missed(part) / self.energy for number, part in self._sets().items()}

    def without(self, numbers: Collection[int]) -> Disturbance:
        """Return the whole layer without some classes, which stay as they are here."""
        gone = np.isin(self.classes[self._left], list(numbers))
        error = self._missed(np.flatnonzero(gone)) / self.energy
        fitted = np.zeros_like(self.slope)
        fitted[self._left[~gone]] = self._fitted(gone)
        return Disturbance(fitted, self.covariances.mean_x @ (self.slope - fitted), max(error, 1e-9))

    def remove(self, numbers: Collection[int]) -> None:
        """Let classes go."""
        gone = np.isin(self.classes[self._left], list(numbers))
        if not gone.any():
            return
        self._slope = self._fitted(gone)
        across = self._precision[np.ix_(~gone, gone)]
        inner = self._precision[np.ix_(gone, gone)]
        self._precision = self._precision[np.ix_(~gone, ~gone)] - across @ np.linalg.solve(inner, across.T)
        self._left = self._left[~gone]

    def _sets(self) -> dict[int, npt.NDArray[np.int64]]:
        present = self.classes[self._left]
        order = np.argsort(present, kind="stable")
        numbers, starts = np.unique(present[order], return_index=True)
        ends = [*starts, len(order)][1:]
        return {int(n): order[start:end] for n, start, end in zip(numbers, starts, ends, strict=True) if n >= 0}

    def _fitted(self, gone: npt.NDArray[np.bool_]) -> Matrix:
        change = np.linalg.solve(self._precision[np.ix_(gone, gone)], self._slope[gone])
        fitted: Matrix = self._slope[~gone] - self._precision[np.ix_(~gone, gone)] @ change
        return fitted

    def _missed(self, part: npt.NDArray[np.int64]) -> float:
        own = self._slope[part]
        return float(np.einsum("do,do->", own, np.linalg.solve(self._precision[np.ix_(part, part)], own)))


def removal_scores(
    model: Model, read: Mapping[str, Classes], saved: Matrix, calibration: Samples, context: PassContext
) -> Matrix:
    """Return a score for each class, (count,): what its removal costs for what it saves, once all of lower score left.

    Args:
        read: {linear node: classes of its input channels}; other nodes' are left out of account.
        saved: what the removal of each class saves, (count,), above 0.

    Returns:
        NaN where no known layer reads a class.

    Raises:
        DataError: a tensor holds NaN or infinity; it is named.
    """
    fast = with_banded_lrn(model)
    layers = [layer for layer in find_refit_layers(fast, fast, PassContext())[0] if layer.groups == 1]
    own = [layer for layer in layers if _fits(layer, read.get(layer.node))]
    samples = spread(calibration, _IMAGES)
    judging = samples[:: max(1, len(samples) // _JUDGING_IMAGES)]
    batch, filled = sample_batch(model)
    covariances = layer_covariances(fast, own, batched(samples, batch, filled=filled), _POSITIONS, context.seed)
    found = parallel_map(lambda layer: Reader(layer, covariances[layer.node], read[layer.node]), own)
    readers = {layer.node: reader for layer, reader in zip(own, found, strict=True) if reader.energy > 0.0}
    disturbed = dict(zip(readers, parallel_map(_disturbance, readers.values()), strict=True))
    judged = batched(judging, batch, filled=filled)
    sensitivities = measure_sensitivities(fast, layers, disturbed, judged, numbers=context.numbers)
    together = _read_together(readers, _damages(readers, sensitivities, len(saved)))
    damages_together = measure_damages(fast, layers, together.disturbances, judged, context.numbers)
    factors = together.factors(sensitivities, damages_together, len(saved))
    scores = np.full(len(saved), np.nan)
    least = 0.0
    while readers:
        damages = factors * _damages(readers, sensitivities, len(saved))
        alive = np.flatnonzero(np.isfinite(damages))
        if not len(alive):
            break
        prices = damages[alive] / saved[alive]
        order = np.lexsort((alive, prices))[: max(1, int(len(alive) * _ROUND))]
        for at in order:
            least = max(least, float(prices[at]))
            scores[alive[at]] = least
        gone = {int(number) for number in alive[order]}
        parallel_map(functools.partial(Reader.remove, numbers=gone), readers.values())
    return scores


@dataclass(frozen=True)
class _Together:
    """Layers that read the same classes.

    Attributes:
        disturbances: {name: {layer: itself without some of these classes}}, several layers each.
        classes: {name: all classes that these layers read}.
    """

    disturbances: Mapping[str, Mapping[str, Disturbance]]
    classes: Mapping[str, Classes]

    def factors(self, sensitivities: Mapping[str, float], damages: Mapping[str, float], count: int) -> Matrix:
        """Return what each class's summed damage is to be multiplied with, (count,)."""
        factors = np.ones(count)
        for name, disturbances in self.disturbances.items():
            summed = sum(sensitivities[node] * each.error for node, each in disturbances.items())
            if summed > 0.0:
                factors[self.classes[name]] = max(damages[name] / summed, 1.0)
        return factors


def _read_together(readers: Mapping[str, Reader], damages: Matrix) -> _Together:
    """Find the layers that read the same classes, and disturb them: without the classes that cost least.

    So many that the layer which misses most misses what is typical.
    """
    read_by: dict[int, tuple[str, ...]] = {}
    for node, reader in readers.items():
        for number in np.unique(reader.classes[reader.classes >= 0]):
            read_by[int(number)] = (*read_by.get(int(number), ()), node)
    classes: dict[tuple[str, ...], list[int]] = {}
    for number, nodes in read_by.items():
        if len(nodes) > 1:
            classes.setdefault(nodes, []).append(number)
    disturbances: dict[str, dict[str, Disturbance]] = {}
    for nodes, own in classes.items():
        errors = [readers[node].errors() for node in nodes]
        order = sorted(own, key=lambda number: (damages[number], number))
        missed = np.cumsum([[each[number] for each in errors] for number in order], axis=0).max(axis=1)
        taken = order[: max(1, int(np.searchsorted(missed, TYPICAL_ERROR, side="right")))]
        disturbances["+".join(nodes)] = {node: readers[node].without(taken) for node in nodes}
    return _Together(disturbances, {"+".join(nodes): np.array(own) for nodes, own in classes.items()})


def _damages(readers: Mapping[str, Reader], sensitivities: Mapping[str, float], count: int) -> Matrix:
    damages = np.full(count, np.nan)
    found = parallel_map(lambda reader: reader.errors(), readers.values())
    for node, errors in zip(readers, found, strict=True):
        for number, error in errors.items():
            damages[number] = np.nan_to_num(damages[number]) + sensitivities[node] * error
    return damages


def _fits(layer: RefitLayer, classes: Classes | None) -> bool:
    _, positions, inputs, _ = layer.original.shape
    is_known = classes is not None and len(classes) == inputs and bool((classes >= 0).any())
    return is_known and positions * inputs <= _MOST_FEATURES


def _precision(covariances: Covariances) -> Matrix:
    from scipy.linalg import inv

    xx = covariances.xx.copy()
    xx[np.diag_indices_from(xx)] += _RIDGE * (float(np.trace(xx)) / len(xx) or 1.0)
    inverse: Matrix = inv(xx, overwrite_a=True, check_finite=False)
    return inverse


def _disturbance(reader: Reader) -> Disturbance:
    """Return the layer without the classes that come first in order of their errors, up to the typical error."""
    errors = reader.errors()
    numbers = sorted(errors, key=lambda number: (errors[number], number))
    taken = int(np.searchsorted(np.cumsum([errors[number] for number in numbers]), TYPICAL_ERROR, side="right"))
    return reader.without(numbers[: max(1, taken)])
