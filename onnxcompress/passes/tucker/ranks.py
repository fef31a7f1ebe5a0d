"""Choosing ranks: a rule applied to spectra, floors, multiples. Arrays and numbers only, no graph."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnxcompress.linalg import KernelSpectra, Spectrum, energy_rank, evbmf, ratio_rank
from onnxcompress.passes.tucker.spec import RankSpec

DEFAULT_FLOOR = 0.125
DEFAULT_MIN_RANK = 8


def kernel_ranks(
    spectra: Sequence[KernelSpectra], spec: RankSpec, *, floor: float, min_rank: int, round_to: int
) -> tuple[int, int]:
    """Return (rank_in, rank_out) for the groups of a convolution, one pair for all of them.

    Args:
        spectra: of each group's kernel; the group that needs the most decides.
        spec: any rule but `off` and `ranks`.
        floor, min_rank: see `mode_rank`.
        round_to: the ranks of all groups together become a multiple of it, where there are that many channels.
    """
    groups = len(spectra)
    rank_in, rank_out = (
        rounded_up(
            max(mode_rank(spectrum, spec, floor=floor, min_rank=min_rank) for spectrum in mode),
            size=mode[0].shape[0],
            round_to=round_to // math.gcd(round_to, groups),
        )
        for mode in ([each.input for each in spectra], [each.output for each in spectra])
    )
    return rank_in, rank_out


def mode_rank(spectrum: Spectrum, spec: RankSpec, *, floor: float, min_rank: int) -> int:
    """Return the rank that a rule gives one mode of a kernel, whose unfolding has `spectrum.shape[0]` rows.

    EVBMF takes what it cannot tell from noise as noise, and finds rank 0 or 1 in small or noisy matrices: its rank is
    raised to `min_rank` and to `floor` (a share) of the rows. A share of energy or size is taken as asked.
    """
    rows = spectrum.shape[0]
    if spec.rule == "ratio":
        return ratio_rank(rows, spec.share)
    if spec.rule == "energy":
        return energy_rank(spectrum.values, spec.share)
    found = evbmf(spectrum.values, spectrum.shape).rank
    return min(rows, max(found, min_rank, math.ceil(floor * rows), 1))


def rounded_up(rank: int, *, size: int, round_to: int) -> int:
    """Return `rank` rounded up to a multiple of `round_to`, at most `size`."""
    return min(size, -(-rank // round_to) * round_to)
