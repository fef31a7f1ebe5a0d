"""What a layer can become, and what each choice costs and misses of the layer's response."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcompress.linalg.moments import Covariances
from onnxcompress.linalg.regression import input_spectrum, project_inputs, response_spectrum, solve_ridge
from onnxcompress.linalg.spectrum import Matrix

_SHARES_IN = (0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75)
_SHARES_OUT = (0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5625, 0.625, 0.75, 0.875)
_TINY_RIDGE = 1e-6


@dataclass(frozen=True)
class Choice:
    """One way to split a layer.

    Attributes:
        rank_in, rank_out: None where there is no such factor; both None leaves the layer alone.
        macs, params: of the layer then.
        error: share of the response's energy that is missed.
    """

    rank_in: int | None
    rank_out: int | None
    macs: int
    params: int
    error: float


@dataclass(frozen=True)
class LayerSize:
    """What a layer's cost follows from: channels, positions of the kernel, of its input and of its output."""

    inputs: int
    outputs: int
    kernel: int
    in_positions: int
    out_positions: int

    def cost(self, rank_in: int | None, rank_out: int | None) -> tuple[int, int]:
        """Return MACs and parameters at ranks."""
        into, out = rank_in or self.inputs, rank_out or self.outputs
        first = self.inputs * into if rank_in else 0
        last = out * self.outputs if rank_out else 0
        core = self.kernel * into * out
        macs = first * self.in_positions + (core + last) * self.out_positions
        return macs, first + core + last + self.outputs


def layer_choices(covariances: Covariances, slope: Matrix, size: LayerSize, block: int) -> list[Choice]:
    """Return the choices of a layer that pay, the one that leaves it alone first.

    Args:
        covariances: of the original's patches (targets are what `slope` makes of them).
        slope: the original's weights, (K I, O).
        block: ranks are multiples of it.
    """
    macs, params = size.cost(None, None)
    choices = [Choice(None, None, macs, params, 0.0)]
    xx = covariances.xx
    xy = xx @ slope
    energy = float(np.einsum("do,do->", slope, xy))
    if not energy > 0.0:
        return choices
    ranks_in: list[int | None] = [None]
    directions = None
    if size.kernel > 1:
        ranks_in += _ranks(size.inputs, _SHARES_IN, block)
        directions = input_spectrum(xx, slope, size.kernel)[1]
    for rank_in in ranks_in:
        inner, cross, fitted = xx, xy, slope
        if rank_in is not None and directions is not None:
            basis = np.linalg.qr(directions[:, :rank_in])[0]
            inner, cross = project_inputs(xx, xy, basis, size.kernel)
            fitted = solve_ridge(inner, cross, np.zeros_like(cross), _TINY_RIDGE)
        kept = np.cumsum(response_spectrum(inner, fitted).energies)
        for rank_out in (None, *_ranks(size.outputs, _SHARES_OUT, block)):
            if rank_in is None and rank_out is None:
                continue
            cost = size.cost(rank_in, rank_out)
            if cost[0] < macs and cost[1] < params:
                share = float(kept[-1] if rank_out is None else kept[rank_out - 1]) / energy
                choices.append(Choice(rank_in, rank_out, *cost, max(0.0, 1.0 - share)))
    return _undominated(choices)


def truncated(covariances: Covariances, slope: Matrix, positions: int, choice: Choice) -> Matrix:
    """Return the slope (K I, O) of a choice, multiplied out: the best of its ranks for the original's inputs."""
    inner, cross, fitted = covariances.xx, covariances.xx @ slope, slope
    basis = None
    if choice.rank_in is not None:
        basis = np.linalg.qr(input_spectrum(inner, slope, positions)[1][:, : choice.rank_in])[0]
        inner, cross = project_inputs(inner, cross, basis, positions)
        fitted = solve_ridge(inner, cross, np.zeros_like(cross), _TINY_RIDGE)
    if choice.rank_out is not None:
        first, last = response_spectrum(inner, fitted).factors(fitted, choice.rank_out)
        fitted = first @ last.T
    if basis is None:
        return fitted
    whole: Matrix = np.einsum("ir,kro->kio", basis, fitted.reshape(positions, basis.shape[1], -1))
    return whole.reshape(len(slope), -1)


def _ranks(channels: int, shares: tuple[float, ...], block: int) -> list[int]:
    wished = {max(block, block * round(share * channels / block)) for share in shares}
    return sorted(rank for rank in wished if rank < channels)


def _undominated(choices: list[Choice]) -> list[Choice]:
    def is_beaten(choice: Choice) -> bool:
        return any(
            other.macs <= choice.macs
            and other.params <= choice.params
            and other.error <= choice.error
            and (other.macs, other.params, other.error) != (choice.macs, choice.params, choice.error)
            for other in choices
        )

    return [choice for choice in choices if not is_beaten(choice)]
