"""Moments, ridge and reduced-rank regression against brute force and planted solutions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onnxcompress.linalg import moments
from onnxcompress.linalg.moments import accumulate, accumulate_made, in_blocks, joint_moments
from onnxcompress.linalg.regression import (
    Metric,
    energies_by_rank,
    input_spectrum,
    project_inputs,
    response_spectrum,
    ridge,
    solve_ridge,
)


def _samples(seed: int, rows: int = 5000, inputs: int = 12, outputs: int = 7):
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((inputs, inputs))
    x = (generator.standard_normal((rows, inputs)) @ mixing + 3.0).astype(np.float32)
    slope = generator.standard_normal((inputs, outputs))
    return x, slope


def test_covariances_are_numpys() -> None:
    x, slope = _samples(0)
    y = (x @ slope).astype(np.float32)
    own = accumulate(x, y).centred()
    double = x.astype(np.float64)
    np.testing.assert_allclose(own.xx, np.cov(double.T, bias=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(own.mean_y, y.mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_moments_of_parts_add_up() -> None:
    x, slope = _samples(1)
    y = (x @ slope).astype(np.float32)
    whole = accumulate(x, y).centred()
    sums = accumulate(x[:1234], y[:1234])
    sums.take(x[1234:], y[1234:])
    parts = sums.centred()
    for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-4)
    assert parts.count == whole.count == len(x)


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 1000])
def test_sums_of_columns_are_as_close_as_those_in_float64(rows: int) -> None:
    x = np.random.default_rng(rows).normal(1000.0, 1.0, (rows, 3)).astype(np.float32)
    np.testing.assert_allclose(moments.column_sums(x), x.sum(axis=0, dtype=np.float64), rtol=1e-6)


def test_what_several_problems_need_of_their_inputs_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, slope = _samples(3)
    targets = [(x @ (slope + shift)).astype(np.float32) for shift in range(3)]
    squares, squared = moments._squares, list[int]()
    monkeypatch.setattr(moments, "_squares", lambda rows: squared.append(len(rows)) or squares(rows))
    inputs = moments.Inputs(x)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda y: joint_moments(inputs, y), targets))
    assert squared == [len(x)]
    for own, y in zip(found, targets, strict=True):
        alone = accumulate(x, y)
        for name in ("sum_x", "sum_y", "xx", "xy", "yy"):
            np.testing.assert_array_equal(getattr(own, name), getattr(alone, name))
    assert inputs.distinct() == len(x)
    huge = moments.Inputs(np.full((4, 2), 1e30, np.float32))
    for _ in range(2):
        with pytest.raises(OverflowError, match="overflow"):
            joint_moments(huge, np.zeros((4, 1), np.float32))


def test_no_samples_are_an_error() -> None:
    empty = np.zeros((0, 3), np.float32)
    with pytest.raises(ValueError, match="no samples"):
        accumulate(empty, empty).centred()


def test_ridge_recovers_a_planted_solution() -> None:
    x, slope = _samples(2)
    own = accumulate(x, (x @ slope + 5.0).astype(np.float32)).centred()
    found = ridge(own, np.zeros_like(slope), 1e-9)
    np.testing.assert_allclose(found, slope, atol=2e-3)
    np.testing.assert_allclose(own.constant(found), 5.0, atol=2e-2)


def test_a_strong_ridge_keeps_the_prior() -> None:
    x, slope = _samples(3)
    own = accumulate(x, (x @ slope).astype(np.float32)).centred()
    prior = np.ones_like(slope)
    np.testing.assert_allclose(ridge(own, prior, 1e6), prior, atol=1e-3)


def test_ridge_without_variance_keeps_the_prior() -> None:
    constant = np.ones((50, 4), np.float32)
    prior = np.arange(8.0).reshape(4, 2)
    own = accumulate(constant, constant[:, :2]).centred()
    np.testing.assert_array_equal(ridge(own, prior, 1e-3), prior)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_reduced_rank_error_is_the_discarded_energy(rank: int) -> None:
    x, slope = _samples(4)
    own = accumulate(x, (x @ slope).astype(np.float32)).centred()
    spectrum = response_spectrum(own.xx, slope)
    first, last = spectrum.factors(slope, rank)
    assert first.shape == (12, rank)
    error = np.einsum("do,do->", slope - first @ last.T, own.xx @ (slope - first @ last.T))
    np.testing.assert_allclose(error, spectrum.energies[rank:].sum(), atol=1e-8 * spectrum.energies.sum())


@pytest.mark.parametrize("metric", [None, Metric.of(np.diag(np.arange(1.0, 31.0)), 0.1)])
def test_more_outputs_than_inputs_are_told_apart_by_the_inputs(metric: Metric | None) -> None:
    generator = np.random.default_rng(8)
    half, slope = generator.standard_normal((5, 5)), generator.standard_normal((5, 30))
    xx = half @ half.T
    spectrum = response_spectrum(xx, slope, metric)
    root = np.eye(30) if metric is None else metric.root
    whole = np.linalg.eigvalsh(root @ slope.T @ xx @ slope @ root)[::-1]
    np.testing.assert_allclose(spectrum.energies, whole, atol=1e-9 * whole[0])
    assert spectrum.energies[5:].max() == 0.0
    for rank in (1, 3, 5, 12):
        first, last = spectrum.factors(slope, rank)
        assert (first.shape, last.shape) == ((5, rank), (30, rank))
        missed = (slope - first @ last.T) @ root
        error = np.einsum("do,do->", missed, xx @ missed)
        np.testing.assert_allclose(error, whole[rank:].sum(), atol=1e-9 * whole[0])


def test_reduced_rank_regression_beats_any_other_factorisation() -> None:
    x, slope = _samples(5)
    own = accumulate(x, (x @ slope).astype(np.float32)).centred()
    best = response_spectrum(own.xx, slope).energies[3:].sum()
    u, s, v = np.linalg.svd(slope, full_matrices=False)
    generator = np.random.default_rng(6)
    for _ in range(50):
        other = (u[:, :3] * s[:3] + 0.1 * generator.standard_normal((12, 3))) @ v[:3]
        error = np.einsum("do,do->", slope - other, own.xx @ (slope - other))
        assert error >= best * (1.0 - 1e-9)


def test_directions_that_count_are_kept() -> None:
    x, slope = _samples(7)
    own = accumulate(x, (x @ slope).astype(np.float32)).centred()
    direction = np.random.default_rng(70).standard_normal(7)
    metric = Metric.of(np.outer(direction, direction), 1e-6)
    assert metric is not None
    first, last = response_spectrum(own.xx, slope, metric).factors(slope, 1)
    missed = (slope - first @ last.T) @ direction
    assert np.abs(missed).max() < 1e-2 * np.abs(slope @ direction).max()


def test_no_approximation_of_a_rank_errs_less_in_the_metric() -> None:
    x, slope = _samples(71)
    own = accumulate(x, (x @ slope).astype(np.float32)).centred()
    generator = np.random.default_rng(72)
    half = generator.standard_normal((7, 7))
    metric = Metric.of(half @ half.T, 0.1)
    assert metric is not None
    np.testing.assert_allclose(metric.root @ metric.inverse, np.eye(7), atol=1e-9)
    np.testing.assert_allclose(np.square(metric.root).sum(), 7.0)

    def error(approximation: np.ndarray) -> float:
        missed = (slope - approximation) @ metric.root
        return float(np.einsum("do,do->", missed, own.xx @ missed))

    spectrum = response_spectrum(own.xx, slope, metric)
    first, last = spectrum.factors(slope, 3)
    np.testing.assert_allclose(error(first @ last.T), spectrum.energies[3:].sum(), atol=1e-8 * spectrum.energies[0])
    plain_first, plain_last = response_spectrum(own.xx, slope).factors(slope, 3)
    assert error(first @ last.T) < error(plain_first @ plain_last.T)
    for _ in range(50):
        other = first @ (last + 0.05 * generator.standard_normal(last.shape)).T
        assert error(other) >= error(first @ last.T) * (1.0 - 1e-9)


def test_no_gradient_is_no_metric() -> None:
    assert Metric.of(np.zeros((3, 3)), 0.1) is None


def test_input_spectrum_finds_the_channels_that_matter() -> None:
    generator = np.random.default_rng(8)
    positions, channels, planted = 4, 6, 2
    basis = np.linalg.qr(generator.standard_normal((channels, planted)))[0]
    kernel = np.einsum("ir,kro->kio", basis, generator.standard_normal((positions, planted, 5)))
    xx = np.eye(positions * channels)
    energies, directions = input_spectrum(xx, kernel.reshape(-1, 5), positions)
    assert energies[planted:].max() < 1e-10 * energies[0]
    spanned = np.linalg.qr(directions[:, :planted])[0]
    np.testing.assert_allclose(spanned @ spanned.T, basis @ basis.T, atol=1e-8)


def test_projected_covariances_are_those_of_projected_inputs() -> None:
    generator = np.random.default_rng(9)
    x = generator.standard_normal((4000, 3 * 5)).astype(np.float32)
    y = generator.standard_normal((4000, 2)).astype(np.float32)
    basis = generator.standard_normal((5, 2))
    own = accumulate(x, y).centred()
    xx, xy = project_inputs(own.xx, own.xy, basis, 3)
    z = (x.reshape(-1, 3, 5) @ basis).reshape(-1, 6).astype(np.float32)
    wanted = accumulate(z, y).centred()
    np.testing.assert_allclose(xx, wanted.xx, atol=1e-4)
    np.testing.assert_allclose(xy, wanted.xy, atol=1e-4)


@pytest.mark.parametrize("weighed", [False, True])
def test_energies_of_all_ranks_are_those_of_each_alone(weighed: bool) -> None:
    generator = np.random.default_rng(10)
    positions, channels, outputs = 3, 6, 4
    mixing = generator.standard_normal((18, 18))
    x = (generator.standard_normal((4000, 18)) @ mixing).astype(np.float32)
    slope = generator.standard_normal((18, outputs))
    own = accumulate(x, (x @ slope).astype(np.float32)).centred()
    root = generator.standard_normal((outputs, 9))
    metric = Metric.of(root @ root.T, 0.02) if weighed else None
    basis = np.linalg.qr(generator.standard_normal((channels, channels)))[0]
    ranks = [1, 3, 4, 6]
    found = list(energies_by_rank(own.xx, own.xy, basis, positions, ranks, metric))
    for rank, energies in zip(ranks, found, strict=True):
        xx, xy = project_inputs(own.xx, own.xy, basis[:, :rank], positions)
        fitted = solve_ridge(xx, xy, np.zeros_like(xy), 0.0)
        np.testing.assert_allclose(energies, response_spectrum(xx, fitted, metric).energies, rtol=1e-4, atol=1e-6)
    whole = response_spectrum(own.xx, slope, metric).energies
    np.testing.assert_allclose(found[-1], whole, rtol=1e-3)


def test_inputs_that_do_not_vary_keep_nothing() -> None:
    energies = list(energies_by_rank(np.zeros((6, 6)), np.zeros((6, 2)), np.eye(3), 2, [1, 2]))
    np.testing.assert_array_equal(energies, np.zeros((2, 2)))


def test_targets_made_a_block_at_a_time_give_the_sums_of_all() -> None:
    x, slope = _samples(11)
    y = (x @ slope).astype(np.float32)
    sum_y, xy = accumulate_made(x, lambda at: y[at], y.shape[1])
    whole = accumulate(x, y)
    np.testing.assert_allclose(sum_y, whole.sum_y, rtol=1e-6)
    np.testing.assert_allclose(xy, whole.xy, rtol=1e-6)
    np.testing.assert_array_equal(in_blocks(lambda at: y[at], len(y), y.shape[1]), y)
