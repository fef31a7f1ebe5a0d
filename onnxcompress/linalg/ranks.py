"""How many components of a matrix to keep: EVBMF, a share of the energy, or a share of the size.

EVBMF is the empirical variational Bayes matrix factorization of S. Nakajima, M. Sugiyama, S. D. Babacan and
R. Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix factorization", JMLR 14 (2013):
the matrix is taken as low rank plus white noise, and both the noise variance and the rank follow from the singular
values alone. With L <= M the sides, a = L / M, and x = s^2 / (M v) a squared singular value in units of the noise v:

    t(x)   = (x - (1 + a) + sqrt((x - (1 + a))^2 - 4 a)) / 2
    a component is kept where x > x* = (1 + t*)(1 + a / t*),   t* = 2.5129 sqrt(a)  (the paper's approximation)
    v minimises  sum_{x <= x*} (x - ln x)
               + sum_{x > x*}  (x - t - ln x + ln(t + 1) + a ln(t / a + 1))

Kim et al. (ICLR 2016) chose the ranks of Tucker-2 by it, on the unfoldings of a kernel along output and input channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxcompress.linalg.spectrum import Matrix

_TAU_PER_SQRT_ASPECT = 2.5129
_RELATIVE_NOISE_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Evbmf:
    """Outcome of EVBMF.

    Attributes:
        rank: number of components told apart from noise; 0 where the matrix looks like noise throughout.
        sigma2: estimated variance of the noise in one entry.
        threshold: singular values above it are kept.
        shrunk: the posterior's singular values of the kept components, descending, shape (rank,).
    """

    rank: int
    sigma2: float
    threshold: float
    shrunk: Matrix


def evbmf(singular_values: Matrix, shape: tuple[int, int]) -> Evbmf:
    """Estimate rank and noise of a fully observed matrix by EVBMF.

    Args:
        singular_values: all of the matrix's singular values, at least `min(shape)` of them, in any order.
        shape: of the matrix, either orientation.

    Raises:
        ValueError: fewer than `min(shape)` values, or values that are NaN, infinite or negative.
    """
    short, long = sorted(shape)
    values = np.sort(np.asarray(singular_values, dtype=np.float64))[::-1][:short]
    if short < 1 or len(values) < short:
        raise ValueError(f"a matrix of shape {shape} has {short} singular values, got {len(values)}")
    if not np.isfinite(values).all() or values[-1] < 0:
        raise ValueError("singular values must be finite and not negative")
    total = float(np.sum((values / values[0]) ** 2)) if values[0] > 0 else 0.0
    if total == 0.0:
        return Evbmf(0, 0.0, 0.0, np.zeros(0))
    aspect = short / long
    critical_tau = _TAU_PER_SQRT_ASPECT * math.sqrt(aspect)
    critical = (1.0 + critical_tau) * (1.0 + aspect / critical_tau)

    # Per entry, in units where the whole matrix is noise of variance 1: the search does not depend on the scale.
    unit = float(values[0]) * math.sqrt(total / (short * long))
    squares = (values / unit) ** 2 / long
    noise = _noise_variance(squares, aspect, critical)
    kept = squares > critical * noise
    rank = int(np.count_nonzero(kept))
    sigma2 = noise * unit**2
    return Evbmf(rank, sigma2, math.sqrt(long * critical * sigma2), _shrink(values[:rank], short, long, sigma2))


def energy_rank(singular_values: Matrix, share: float) -> int:
    """Return the smallest rank whose kept squared singular values are at least `share` of their sum; at least 1.

    Args:
        singular_values: descending, shape (N,).
        share: 0 < share <= 1; 0.98 keeps 98 % of the energy, an error of sqrt(0.02) in the Frobenius norm.

    Raises:
        ValueError: `share` is out of range.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if not len(singular_values) or singular_values[0] <= 0:
        return 1
    if share == 1.0:
        return int(np.count_nonzero(singular_values))
    kept = np.cumsum((singular_values / singular_values[0]) ** 2)
    # Rounding in the sums must not ask for one component more than the exact arithmetic would.
    wanted = share * kept[-1] * (1.0 - 1e-12)
    return int(np.searchsorted(kept, wanted, side="left")) + 1


def ratio_rank(size: int, ratio: float) -> int:
    """Return `ratio` of `size` components, rounded up, at least 1 and at most `size`.

    Raises:
        ValueError: `ratio` is not above 0 and at most 1.
    """
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"ratio must be above 0 and at most 1, got {ratio}")
    return min(size, max(1, math.ceil(ratio * size - 1e-9)))


def _noise_variance(squares: Matrix, aspect: float, critical: float) -> float:
    """Minimise the free energy over the noise variance; `squares` = s^2 / M, descending, (L,), of unit mean entry."""
    from scipy.optimize import minimize_scalar

    short = len(squares)
    # At most ceil(L / (1 + a)) - 1 components can stand above the noise, which bounds the noise from below.
    most = min(math.ceil(short / (1.0 + aspect)) - 1, short)
    upper = float(np.mean(squares))
    lower = max(float(squares[most]) / critical, float(np.mean(squares[most:])))
    # Exactly low-rank matrices have no noise to find: keep the search away from log(0).
    lower = max(lower, np.finfo(np.float64).eps * float(squares[0]))
    if lower >= upper:
        return upper
    result = minimize_scalar(
        _free_energy,
        bounds=(lower, upper),
        args=(squares, aspect, critical),
        method="bounded",
        options={"xatol": _RELATIVE_NOISE_TOLERANCE * upper},
    )
    return float(result.x)


def _free_energy(noise: float, squares: Matrix, aspect: float, critical: float) -> float:
    """The part of the free energy that depends on the noise variance (the paper's objective), up to a constant.

    The terms -ln x of all components sum to L ln(noise) and a constant: vanishing singular values do no harm.
    """
    x = squares / noise
    signal, rest = x[x > critical], x[x <= critical]
    tau = _tau(signal, aspect)
    gain = np.log(tau + 1.0) + aspect * np.log(tau / aspect + 1.0) - tau
    return float(np.sum(rest) + np.sum(signal) + np.sum(gain) + len(squares) * math.log(noise))


def _tau(x: Matrix, aspect: float) -> Matrix:
    centred = x - (1.0 + aspect)
    tau: Matrix = 0.5 * (centred + np.sqrt(centred**2 - 4.0 * aspect))
    return tau


def _shrink(kept: Matrix, short: int, long: int, sigma2: float) -> Matrix:
    ratio = 1.0 - (short + long) * sigma2 / kept**2
    # Non-negative above the threshold; rounding right at it must not make a NaN.
    inner = np.maximum(ratio**2 - 4.0 * short * long * (sigma2 / kept**2) ** 2, 0.0)
    shrunk: Matrix = 0.5 * kept * (ratio + np.sqrt(inner))
    return shrunk
