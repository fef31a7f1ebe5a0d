"""Least squares from covariances: ridge towards given weights, and reduced-rank regression.

With x (D,) the inputs, y (O,) the targets, S = cov(x, x), T = cov(x, y), and G (O, O) the metric of the targets, in
which an error e counts e^T G e:

    ridge          B = argmin E|y - B^T x|^2 + l |B - B0|^2        = (S + l)^-1 (T + l B0)
    reduced rank   B G^1/2 V V^T G^-1/2 with V the leading eigenvectors of  G^1/2 B^T S B G^1/2   (A. J. Izenman, J.
                   Multivariate Analysis 5, 1975): of all matrices of that rank the one of the least error in the metric

The input factor of a convolution maps its I channels to R before the kernel sees them. If the channels' covariance A
is the same at every position of the kernel, and two positions are correlated by r_pq, the best subspace is that of the
leading eigenvectors of M A with M = sum_pq r_pq B_p B_q^T: with the Cholesky factor A = L L^T those of L^T M L, seen
through L^-T.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.linalg.moments import Covariances
from onnxcompress.linalg.spectrum import Matrix, descending_eigenpairs

_LEAST_RIDGE = 1e-7
"""Relative to the mean variance of an input: below it, directions without variance are noise amplified."""


def ridge(covariances: Covariances, prior: Matrix, strength: float) -> Matrix:
    """Return the slope (D, O) of least squares, drawn towards `prior` (D, O).

    Args:
        strength: the ridge l in units of the mean variance of an input.
    """
    return solve_ridge(covariances.xx, covariances.xy, prior, strength)


def solve_ridge(xx: Matrix, xy: Matrix, prior: Matrix, strength: float) -> Matrix:
    """As `ridge`, for covariances `xx` (D, D) and `xy` (D, O)."""
    from scipy.linalg import cho_solve

    factored = _factored(xx, strength)
    if factored is None:
        return prior
    factor, added = factored
    slope: Matrix = cho_solve((factor, True), xy + added * prior, check_finite=False)
    return slope


def _factored(xx: Matrix, strength: float) -> tuple[Matrix, float] | None:
    """Return the lower Cholesky factor of `xx` with a ridge, and that ridge, or None where no input varies.

    The ridge is as strong as it must be; above its diagonal the factor holds what `xx` does.
    """
    from scipy.linalg import LinAlgError, cho_factor

    variance = float(np.trace(xx)) / max(len(xx), 1)
    if not variance > 0.0:
        return None
    strength = max(strength, _LEAST_RIDGE)
    while True:
        ridged = xx.copy()
        ridged[np.diag_indices_from(ridged)] += strength * variance
        try:
            return cho_factor(ridged, lower=True, overwrite_a=True, check_finite=False)[0], strength * variance
        except LinAlgError:
            strength *= 10.0


@dataclass(frozen=True)
class Metric:
    """How errors of O targets count together: e (O,) counts e^T G e.

    Attributes:
        root: G^1/2, (O, O), symmetric.
        inverse: G^-1/2.
    """

    root: Matrix
    inverse: Matrix

    @classmethod
    def of(cls, moment: Matrix, damping: float) -> Metric | None:
        """Return the metric of a positive semidefinite matrix (O, O), scaled to trace O; None of one that is zero.

        Args:
            damping: share of the identity that is mixed in.
        """
        size = len(moment)
        trace = float(np.trace(moment))
        if not trace > 0.0:
            return None
        values, vectors = np.linalg.eigh((1.0 - damping) * size / trace * moment + damping * np.eye(size))
        roots = np.sqrt(np.maximum(values, np.finfo(np.float64).eps))
        return cls((vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T)


@dataclass(frozen=True)
class ResponseSpectrum:
    """Eigenvalues of the fitted response's covariance in a metric.

    Attributes:
        energies: descending, (O,); what a rank keeps is the sum of the first ones.
        vectors: in columns, (O, min(D, O)); what lies beyond them has no energy.
        metric: of the targets; None is the identity.
    """

    energies: Matrix
    vectors: Matrix
    metric: Metric | None = None

    def factors(self, slope: Matrix, rank: int) -> tuple[Matrix, Matrix]:
        """Return (D, R) and (O, R): the best approximation of `slope` (D, O) of that rank is `first @ second.T`."""
        basis = self.vectors[:, :rank]
        basis = np.pad(basis, ((0, 0), (0, rank - basis.shape[1])))
        if self.metric is None:
            return slope @ basis, basis
        return slope @ (self.metric.root @ basis), self.metric.inverse @ basis


def response_spectrum(xx: Matrix, slope: Matrix, metric: Metric | None = None) -> ResponseSpectrum:
    """Return the spectrum of the response `slope.T @ x` (O,) for inputs of covariance `xx` (D, D).

    More outputs than inputs, the classes of a text recogniser for one, lie in a space of D dimensions, and it is there
    that the eigenvectors are looked for.
    """
    measured = slope if metric is None else slope @ metric.root
    inputs, outputs = measured.shape
    if outputs <= inputs:
        values, vectors = descending_eigenpairs(measured.T @ (xx @ measured))
    else:
        space, within = np.linalg.qr(measured.T)
        values, turned = descending_eigenpairs(within @ xx @ within.T)
        values, vectors = np.pad(values, (0, outputs - inputs)), space @ turned
    return ResponseSpectrum(np.maximum(values, 0.0), vectors, metric)


def input_spectrum(xx: Matrix, slope: Matrix, positions: int, metric: Metric | None = None) -> tuple[Matrix, Matrix]:
    """Return how much response each direction of the input channels carries.

    Args:
        xx: covariance of patches, (K I, K I), positions of the kernel first.
        slope: (K I, O), rows likewise.
        positions: K.
        metric: of the targets; None is the identity.

    Returns:
        Energies (I,), descending, and directions (I, I) in columns; the first R columns span the best input factor.
    """
    channels = len(xx) // positions
    blocks = xx.reshape(positions, channels, positions, channels)
    covariance = np.einsum("pipj->ij", blocks) / positions
    traces = np.einsum("piqi->pq", blocks)
    correlation = _correlation(traces)
    kernel = slope.reshape(positions, channels, -1)
    if metric is not None:
        kernel = kernel @ metric.root
    mixed = np.tensordot(correlation, kernel, axes=(1, 0))
    inner = np.einsum("pio,pjo->ij", kernel, mixed, optimize=True)
    inner = 0.5 * (inner + inner.T)
    factored = _factored(covariance, _LEAST_RIDGE)
    # Of inputs that do not vary the weights alone tell.
    root = np.eye(channels) if factored is None else np.tril(factored[0])
    energies, directions = descending_eigenpairs(root.T @ inner @ root)
    # L^-T q = M L q / energy: no inverse of a covariance that may be singular.
    spanned = inner @ (root @ directions)
    norms = np.linalg.norm(spanned, axis=0)
    fallback = directions / np.maximum(np.linalg.norm(directions, axis=0), 1e-300)
    spanned = np.where(
        norms > 1e-12 * max(float(norms.max(initial=0.0)), 1e-300), spanned / np.maximum(norms, 1e-300), fallback
    )
    return np.maximum(energies, 0.0), spanned


def _correlation(traces: Matrix) -> Matrix:
    """Return how far positions are correlated, (K, K); one that does not vary goes with no other."""
    variances = np.diag(traces)
    varies = variances > np.finfo(np.float64).eps * max(float(variances.max(initial=0.0)), 0.0)
    scale = np.sqrt(np.where(varies, variances, 1.0))
    correlation: Matrix = np.where(np.outer(varies, varies), traces / np.outer(scale, scale), 0.0)
    np.fill_diagonal(correlation, 1.0)
    return correlation


def project_inputs(xx: Matrix, xy: Matrix, basis: Matrix, positions: int) -> tuple[Matrix, Matrix]:
    """Return covariances (K R, K R) and (K R, O) after the channels of every position were mapped by `basis` (I, R)."""
    channels, rank = basis.shape
    left = np.tensordot(basis, xx.reshape(positions, channels, -1), axes=(0, 1))  # (R, K, K I)
    left = left.transpose(1, 0, 2).reshape(positions * rank, positions, channels)
    both = (left @ basis).reshape(positions * rank, positions * rank)
    cross = np.tensordot(basis, xy.reshape(positions, channels, -1), axes=(0, 1))
    return both, cross.transpose(1, 0, 2).reshape(positions * rank, -1)


def energies_by_rank(
    xx: Matrix, xy: Matrix, basis: Matrix, positions: int, ranks: Sequence[int], metric: Metric | None = None
) -> Iterator[Matrix]:
    """Yield what the inputs keep of the response when leading columns of a basis map the channels of every position.

    With the rows in the order (R, K) the problem of fewer columns is the leading block of that of more, and so is its
    Cholesky factor L: with Z = L^-1 T one solution serves all ranks, and the fitted response's covariance is that of
    the leading rows, Z^T Z.

    Args:
        xx, xy: covariances of patches, (K I, K I) and (K I, O), positions of the kernel first.
        basis: (I, R).
        positions: K.
        ranks: ascending, R at most.
        metric: of the targets; None is the identity.

    Yields:
        For each rank the response's energies, descending, (O,).
    """
    from scipy.linalg import solve_triangular

    inner, cross = project_inputs(xx, xy, basis, positions)
    order = np.arange(len(inner)).reshape(positions, -1).T.reshape(-1)
    factored = _factored(inner[np.ix_(order, order)], _LEAST_RIDGE)
    rows = np.zeros_like(cross)
    if factored is not None:
        rows = solve_triangular(factored[0], cross[order], lower=True, check_finite=False)
    if metric is not None:
        rows = rows @ metric.root
    covariance, taken = np.zeros((rows.shape[1], rows.shape[1])), 0
    for rank in ranks:
        added = rows[positions * taken : positions * rank]
        covariance += added.T @ added
        taken = rank
        yield np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0)
