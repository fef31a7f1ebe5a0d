"""Confidence intervals: paired differences of accuracy, proportions, relative errors, and ratios of latencies."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]

_Z95 = 1.959963984540054
_RESAMPLES = 2000
_LAGS = 8
_FEWEST_ROUNDS = 6
"""With fewer, a bootstrap of the median has no 95 % to speak of."""


def paired_difference(only_first: int, only_second: int, samples: int) -> Interval:
    """Return the 95 % interval of the difference of two proportions on the same samples, as fractions.

    `only_first` samples are right with the first model only, `only_second` with the second only. The adjusted Wald
    interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37): one success is added to each discordant count, which
    keeps the coverage with few samples and gives equal models an interval of more than a point.
    """
    total = samples + 2
    first, second = (only_first + 1) / total, (only_second + 1) / total
    difference = first - second
    half = _Z95 * math.sqrt(max(first + second - difference**2, 0.0) / total)
    return max(difference - half, -1.0), min(difference + half, 1.0)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of 'both models are right equally often' (McNemar 1947)."""
    discordant = only_first + only_second
    fewer = min(only_first, only_second)
    # In logarithms: the binomial coefficients of thousands overflow.
    log_half = discordant * math.log(0.5)
    tail = sum(
        math.exp(math.lgamma(discordant + 1) - math.lgamma(k + 1) - math.lgamma(discordant - k + 1) + log_half)
        for k in range(fewer + 1)
    )
    return min(1.0, 2.0 * tail)


def proportion(successes: int, samples: int) -> Interval:
    """Return the 95 % interval of a proportion, as fractions (Wilson 1927)."""
    share = successes / samples
    spread = _Z95**2 / samples
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(share * (1 - share) / samples + spread / (4 * samples)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def positive(value: float, standard_error: float) -> Interval:
    """Return the 95 % interval of a positive figure that is known to within a standard error.

    Taken on a logarithmic scale, on which neither end can be negative.
    """
    spread = math.exp(_Z95 * standard_error / value)
    return value / spread, value * spread


def ratio_of_medians(log_ratios: npt.NDArray[np.float64], seed: int = 0) -> Interval | None:
    """Return the 95 % interval of exp(median) of the rounds' log-ratios, or None with too few rounds.

    A percentile bootstrap over rounds (Efron 1979), which on a quiet machine do not depend on each other. Where they do
    (on a crowded one, a thread can stay on a worse core than the other model's for seconds), whole blocks of rounds are
    drawn (Politis and Romano 1992), which widens the interval.
    """
    rounds = len(log_ratios)
    if rounds < _FEWEST_ROUNDS or not np.isfinite(log_ratios).all():
        return None
    length = _block_length(log_ratios)
    starts = np.random.default_rng(seed).integers(0, rounds, (_RESAMPLES, -(-rounds // length)))
    chosen = (starts[:, :, None] + np.arange(length)).reshape(_RESAMPLES, -1)[:, :rounds] % rounds
    medians = np.median(log_ratios[chosen], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.exp(low)), float(np.exp(high))


def _block_length(series: npt.NDArray[np.float64]) -> int:
    """Return 1 for values that do not depend on those before, else a tenth of their number.

    Judged by the signs of the deviations from the median, which outliers cannot blur: the sum of their first
    autocorrelations has the standard deviation sqrt(lags / n) if there is none.
    """
    count = len(series)
    signs = np.sign(series - np.median(series))
    lags = min(_LAGS, count // 4)
    total = sum(float(np.mean(signs[lag:] * signs[:-lag])) for lag in range(1, lags + 1))
    return 1 if total <= 2 * math.sqrt(lags / count) else max(2, count // 10)
