"""What a layer can become, and what each choice costs and misses of the layer's response."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxcompress.analysis.split import Split
from onnxcompress.graph import Shape
from onnxcompress.linalg.moments import Covariances
from onnxcompress.linalg.regression import (
    Metric,
    energies_by_rank,
    input_spectrum,
    project_inputs,
    response_spectrum,
    solve_ridge,
)
from onnxcompress.linalg.spanning import spannable, spanned_axes, spanned_last, spanned_positions
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.recovery.families import Family
from onnxcompress.passes.recovery.refit_layers import RefitLayer
from onnxcompress.passes.tucker.sites import positions_of

_SHARES_IN = (0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75)
_SHARES_SPANNING = (0.08, 0.11, 0.14, 0.17, 0.2, 0.23, 0.26, 0.29, 0.32, 0.35, 0.38, 0.42, 0.46, 0.5, 0.6)
_SHARES_OUT = tuple(step / 32 for step in range(1, 29))
_CLEARLY = 0.95
"""Of the error of what costs as much: what a split along the last axes must stay below to be a choice."""

_TINY_RIDGE = 1e-6


@dataclass(frozen=True)
class Choice:
    """One way to split a layer.

    Attributes:
        rank_in, rank_out: None where there is no such factor; both None leaves the layer alone.
        spans: axes of the kernel that the input factor spans, as in `linalg.spanning`.
        macs, params: of the layer then.
        error: share of the response's energy that is missed, in the metric of the outputs where one is known.
    """

    rank_in: int | None
    rank_out: int | None
    macs: int
    params: int
    error: float
    spans: int = 0

    @property
    def split(self) -> Split:
        """The split alone, as times are asked for."""
        return Split(self.rank_in, self.rank_out, self.spans)


@dataclass(frozen=True)
class LayerSize:
    """What a layer's cost follows from.

    Attributes:
        inputs, outputs: channels.
        kernel: sizes of its axes.
        given, made: spatial sizes of input and output, one for each axis of the kernel, or one product for all.
        others: the same of layers that share its weight.
        transposed: whether the kernel is applied to each place of the input, not for each of the output.
        times: how many inputs of a convolution one sample of the model makes, as where it is cut into windows.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    given: tuple[int, ...]
    made: tuple[int, ...]
    others: tuple[LayerSize, ...] = ()
    times: int = 1
    transposed: bool = False

    @property
    def positions(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel)

    @property
    def spannable(self) -> tuple[int, ...]:
        """What an input factor may span of the kernel: none, and what leaves another part."""
        return (0,) if self.transposed else (0, *spannable(self.kernel))

    def cost(self, rank_in: int | None, rank_out: int | None, spans: int = 0) -> tuple[int, int]:
        """Return MACs and parameters at ranks."""
        spanned, axes = spanned_positions(self.kernel, spans), spanned_axes(spans, len(self.kernel))
        into, out = rank_in or self.inputs, rank_out or self.outputs
        first = spanned * self.inputs * into if rank_in else 0
        last = out * self.outputs if rank_out else 0
        core = self.positions // spanned * into * out
        macs = 0
        for each in (self, *self.others):
            sizes = zip(each.given, each.made, strict=True)
            behind = math.prod(own[axis in axes] for axis, own in enumerate(sizes))
            made, given = math.prod(each.made), math.prod(each.given)
            macs += each.times * (first * behind + core * (given if self.transposed else made) + last * made)
        return macs, first + core + last + self.outputs


def size_of(family: Family, shapes: Mapping[str, Shape], batch: int) -> LayerSize | None:
    """Return what the cost of layers that share a weight follows from, None where it is not known."""
    sizes = [size for layer in family if (size := _size_of(layer, shapes, batch))]
    return replace(sizes[0], others=tuple(sizes[1:])) if len(sizes) == len(family) else None


def _size_of(layer: RefitLayer, shapes: Mapping[str, Shape], batch: int) -> LayerSize | None:
    inputs, outputs = layer.original.shape[2:]
    ends = shapes.get(layer.input), shapes.get(layer.output)
    given, made = (positions_of(shape, batch, features=1 if layer.is_convolution else -1) for shape in ends)
    if given is None or made is None:
        return None
    if not layer.is_convolution:
        return LayerSize(inputs, outputs, (), (given,), (made,))
    spaces = [tuple(int(size) for size in (shape or ())[2:] if isinstance(size, int)) for shape in ends]
    times = made // max(math.prod(spaces[1]), 1)
    transposed = layer.op == "ConvTranspose"
    return LayerSize(inputs, outputs, layer.kernel_shape, spaces[0], spaces[1], times=times, transposed=transposed)


def layer_choices(
    covariances: Covariances, slope: Matrix, size: LayerSize, block: int, metric: Metric | None = None
) -> list[Choice]:
    """Return the choices of a layer that pay, the one that leaves it alone first.

    Args:
        covariances: of the original's patches (targets are what `slope` makes of them).
        slope: the original's weights, (K I, O).
        block: ranks are multiples of it.
        metric: of the outputs' errors; None is the identity.
    """
    macs, params = size.cost(None, None)
    choices = [Choice(None, None, macs, params, 0.0)]
    xx = covariances.xx
    xy = xx @ slope
    whole = np.cumsum(response_spectrum(xx, slope, metric).energies)
    energy = float(whole[-1])
    if not energy > 0.0:
        return choices
    # A layer with more outputs than inputs has no more directions than these: shares of its outputs would all be above.
    ranks_out = (None, *_ranks(min(size.outputs, len(xx)), _SHARES_OUT, block))

    def add(rank_in: int | None, spans: int, kept: Matrix) -> None:
        for rank_out in ranks_out:
            cost = size.cost(rank_in, rank_out, spans)
            if cost[0] < macs and cost[1] < params:
                share = float(kept[-1] if rank_out is None else kept[rank_out - 1]) / energy
                choices.append(Choice(rank_in, rank_out, *cost, max(0.0, 1.0 - share), spans))

    add(None, 0, whole)
    for spans in size.spannable if size.positions > 1 else ():
        problem = _spanning(xx, xy, slope, size, spans)
        directions = input_spectrum(problem.xx, problem.slope, problem.positions, metric)[1]
        # Beyond the cost of the whole kernel no rank can pay.
        full = min(len(directions), problem.positions * size.outputs)
        ranks_in = [
            rank_in
            for rank_in in _ranks(full, _SHARES_SPANNING if spans else _SHARES_IN, block)
            if min(size.cost(rank_in, rank_out, spans)[0] for rank_out in ranks_out) < macs
        ]
        if ranks_in:
            basis = np.linalg.qr(directions[:, : ranks_in[-1]])[0]
            kept = energies_by_rank(problem.xx, problem.xy, basis, problem.positions, ranks_in, metric)
            for rank_in, energies in zip(ranks_in, kept, strict=True):
                add(rank_in, spans, np.cumsum(energies))
    return _undominated(_clearly_better(choices))


def _clearly_better(choices: list[Choice]) -> list[Choice]:
    """Leave out splits along the last axes that are hardly better than what costs as much.

    Their errors are measured on samples, as all are, and of many alike choices the least is picked: with all of these,
    GoogLeNet at 0.55 of its MACs ends further from its answers than without any.
    """
    others = [choice for choice in choices if choice.spans >= 0]
    figures = np.array([(choice.macs, choice.params, choice.error) for choice in others])
    kept = list(others)
    for choice in choices:
        if choice.spans < 0:
            affordable = (figures[:, :2] <= (choice.macs, choice.params)).all(axis=1)
            if choice.error < _CLEARLY * figures[affordable, 2].min(initial=1.0):
                kept.append(choice)
    return kept


@dataclass(frozen=True)
class _Spanning:
    """A layer's problem in the order of an input factor that spans a part of the kernel: see `spanned_last`."""

    xx: Matrix
    xy: Matrix
    slope: Matrix
    positions: int
    order: npt.NDArray[np.int64]


def _spanning(xx: Matrix, xy: Matrix, slope: Matrix, size: LayerSize, spans: int) -> _Spanning:
    positions = size.positions // spanned_positions(size.kernel, spans)
    order = spanned_last(np.arange(len(xx)), size.kernel, spans)
    if spans <= 0:
        return _Spanning(xx, xy, slope, positions, order)
    return _Spanning(xx[np.ix_(order, order)], xy[order], slope[order], positions, order)


def truncated(
    covariances: Covariances, slope: Matrix, kernel: tuple[int, ...], choice: Choice, metric: Metric | None = None
) -> Matrix:
    """Return the slope (K I, O) of a choice, multiplied out: the best of its ranks for the original's inputs."""
    size = LayerSize(len(slope) // math.prod(kernel), slope.shape[1], kernel, (), ())
    problem = _spanning(covariances.xx, covariances.xx @ slope, slope, size, choice.spans)
    inner, cross, fitted, positions = problem.xx, problem.xy, problem.slope, problem.positions
    basis = None
    if choice.rank_in is not None:
        basis = np.linalg.qr(input_spectrum(inner, fitted, positions, metric)[1][:, : choice.rank_in])[0]
        inner, cross = project_inputs(inner, cross, basis, positions)
        fitted = solve_ridge(inner, cross, np.zeros_like(cross), _TINY_RIDGE)
    if choice.rank_out is not None:
        first, last = response_spectrum(inner, fitted, metric).factors(fitted, choice.rank_out)
        fitted = first @ last.T
    if basis is None:
        return fitted
    whole: Matrix = basis @ fitted.reshape(positions, basis.shape[1], -1)
    restored = np.empty_like(slope)
    restored[problem.order] = whole.reshape(len(slope), -1)
    return restored


def _ranks(channels: int, shares: tuple[float, ...], block: int) -> list[int]:
    wished = {max(block, block * round(share * channels / block)) for share in shares}
    return sorted(rank for rank in wished if rank < channels)


def _undominated(choices: list[Choice]) -> list[Choice]:
    """Return the choices than which none is better in all; the first stays, as that is what the layer costs now."""
    figures = np.array([(choice.macs, choice.params, choice.error) for choice in choices])
    no_worse = (figures[None] <= figures[:, None]).all(axis=2)
    beaten = (no_worse & ~no_worse.T).any(axis=1)
    beaten[:1] = False
    return [choice for choice, is_beaten in zip(choices, beaten, strict=True) if not is_beaten]
