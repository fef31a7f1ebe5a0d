"""EVBMF against planted matrices, its own objective searched by hand, and the published ranks; energy and ratio."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.linalg import energy_rank, evbmf, kernel_spectra, ratio_rank

# Of the reference implementation of the paper (VBMF.py, by which Kim et al. are usually reproduced) on the unfoldings
# of GoogLeNet's kernels scaled to unit variance: (output, input).
PUBLISHED = {
    "conv1/7x7_s2": (25, 2),
    "conv2/3x3": (41, 32),
    "inception_3a/3x3": (42, 41),
    "inception_3a/5x5": (18, 10),
    "inception_3b/3x3": (38, 42),
    "inception_3b/5x5": (24, 19),
    "inception_4a/3x3": (39, 35),
    "inception_4a/5x5": (14, 9),
    "inception_4b/3x3": (75, 54),
    "inception_4b/5x5": (24, 13),
    "inception_4c/3x3": (87, 63),
    "inception_4c/5x5": (29, 14),
    "inception_4d/3x3": (105, 66),
    "inception_4d/5x5": (27, 17),
    "inception_4e/3x3": (131, 96),
    "inception_4e/5x5": (45, 21),
    "inception_5a/3x3": (139, 91),
    "inception_5a/5x5": (55, 22),
    "inception_5b/3x3": (178, 107),
    "inception_5b/5x5": (68, 32),
}


def planted(rng: np.random.Generator, shape: tuple[int, int], rank: int, signal: float, noise: float) -> np.ndarray:
    """A matrix whose `rank` singular values are `signal`, under white noise of a standard deviation."""
    left = np.linalg.qr(rng.standard_normal((shape[0], rank)))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], rank)))[0]
    return signal * left @ right.T + noise * rng.standard_normal(shape)


def evbmf_of(matrix: np.ndarray):
    return evbmf(np.linalg.svd(matrix, compute_uv=False), matrix.shape)


@pytest.mark.parametrize("shape", [(64, 64), (40, 300), (300, 40), (16, 400), (96, 97)])
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_evbmf_recovers_a_planted_rank_and_noise(shape, rank):
    noise = 0.3
    # Well above the largest singular value of the noise, noise * (sqrt(L) + sqrt(M)).
    signal = 3 * noise * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    found = evbmf_of(planted(np.random.default_rng(rank), shape, rank, signal, noise))
    assert found.rank == rank
    assert found.sigma2 == pytest.approx(noise**2, rel=0.08)
    assert len(found.shrunk) == rank


@pytest.mark.parametrize("scale", [1e-20, 1e-5, 1.0, 1e6, 1e20])
def test_evbmf_does_not_depend_on_the_scale(scale):
    matrix = planted(np.random.default_rng(0), (30, 90), 6, 20.0, 0.5)
    expected, found = evbmf_of(matrix), evbmf_of(matrix * scale)
    assert found.rank == expected.rank
    assert found.sigma2 == pytest.approx(expected.sigma2 * scale**2, rel=1e-6)
    np.testing.assert_allclose(found.shrunk, expected.shrunk * scale, rtol=1e-5)


def test_evbmf_does_not_depend_on_the_orientation():
    matrix = planted(np.random.default_rng(1), (20, 70), 4, 12.0, 0.5)
    assert evbmf_of(matrix).rank == evbmf_of(matrix.T).rank == 4
    assert evbmf_of(matrix).sigma2 == pytest.approx(evbmf_of(matrix.T).sigma2, rel=1e-6)


def test_evbmf_finds_nothing_in_noise():
    found = evbmf_of(np.random.default_rng(2).standard_normal((50, 200)))
    assert found.rank == 0
    assert found.sigma2 == pytest.approx(1.0, rel=0.05)


def test_evbmf_of_zeros_has_rank_zero():
    found = evbmf(np.zeros(5), (5, 9))
    assert (found.rank, found.sigma2, found.shrunk.size) == (0, 0.0, 0)


def test_evbmf_of_an_exactly_low_rank_matrix_keeps_all_of_it():
    matrix = planted(np.random.default_rng(3), (24, 60), 7, 5.0, 0.0)
    found = evbmf_of(matrix)
    assert found.rank == 7
    np.testing.assert_allclose(found.shrunk, 5.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 2), (3, 100)])
def test_evbmf_survives_tiny_matrices(shape):
    found = evbmf_of(np.random.default_rng(4).standard_normal(shape))
    assert 0 <= found.rank <= min(shape)
    assert math.isfinite(found.sigma2)


@pytest.mark.parametrize("shape", [(30, 30), (20, 80)])
def test_evbmf_keeps_what_exceeds_the_papers_threshold(shape):
    found = evbmf_of(planted(np.random.default_rng(8), shape, 3, 30.0, 1.0))
    tau = 2.5129 * math.sqrt(shape[0] / shape[1])
    threshold = (1 + tau) * (1 + shape[0] / shape[1] / tau)
    assert found.threshold == pytest.approx(math.sqrt(shape[1] * found.sigma2 * threshold), rel=1e-12)


def test_evbmf_minimises_the_free_energy_of_the_posterior():
    """The variational free energy from the posterior's closed form, not from the objective that is minimised."""
    short, long = 30, 80
    values = np.linalg.svd(planted(np.random.default_rng(5), (short, long), 5, 18.0, 1.0), compute_uv=False)
    aspect = short / long
    critical_tau = 2.5129 * math.sqrt(aspect)
    threshold = (1 + critical_tau) * (1 + aspect / critical_tau)

    def free_energy(sigma2):
        kept = values[values**2 > long * sigma2 * threshold]
        ratio = 1 - (short + long) * sigma2 / kept**2
        shrunk = kept / 2 * (ratio + np.sqrt(ratio**2 - 4 * short * long * sigma2**2 / kept**4))
        tau = shrunk * kept / (long * sigma2)
        per_component = long * np.log(tau + 1) + short * np.log(tau / aspect + 1) - long * tau
        return short * long * math.log(2 * math.pi * sigma2) + np.sum(values**2) / sigma2 + np.sum(per_component)

    grid = np.linspace(0.6, 1.8, 3001)
    best = grid[np.argmin([free_energy(s) for s in grid])]
    found = evbmf(values, (short, long))
    assert found.sigma2 == pytest.approx(best, abs=2 * (grid[1] - grid[0]))
    assert free_energy(found.sigma2) <= free_energy(best) + 1e-6


def test_shrunk_values_denoise():
    rng = np.random.default_rng(6)
    clean = planted(rng, (40, 120), 4, 14.0, 0.0)
    noisy = clean + 0.5 * rng.standard_normal(clean.shape)
    left, values, right = np.linalg.svd(noisy, full_matrices=False)
    found = evbmf(values, noisy.shape)
    shrunk = (left[:, : found.rank] * found.shrunk) @ right[: found.rank]
    truncated = (left[:, : found.rank] * values[: found.rank]) @ right[: found.rank]
    assert np.all(found.shrunk < values[: found.rank])
    assert np.linalg.norm(shrunk - clean) < 0.95 * np.linalg.norm(truncated - clean)


@pytest.mark.parametrize(
    ("values", "shape"),
    [(np.ones(3), (4, 9)), (np.array([1.0, np.nan]), (2, 2)), (np.array([1.0, -1.0]), (2, 2)), (np.ones(0), (0, 4))],
)
def test_evbmf_refuses_what_is_no_spectrum(values, shape):
    with pytest.raises(ValueError, match="singular values"):
        evbmf(values, shape)


def test_evbmf_gives_the_published_ranks_of_googlenet(shared_data: Path):
    from onnxcompress.graph import Model

    model = Model.load(shared_data / "googlenet-bvlc.onnx")
    found = {}
    for node in model.nodes:
        if node.name in PUBLISHED:
            spectra = kernel_spectra(model.values(node.inputs[1]))
            found[node.name] = tuple(evbmf(s.values, s.shape).rank for s in (spectra.output, spectra.input))
    assert found == PUBLISHED


def test_energy_rank_keeps_the_share_and_not_more():
    values = np.array([4.0, 3.0, 2.0, 1.0])  # squares 16, 9, 4, 1 of 30
    assert [energy_rank(values, share) for share in (0.5, 16 / 30, 0.54, 25 / 30, 0.9, 29 / 30, 1.0)] == [
        *(1, 1, 2, 2, 3, 3),
        4,
    ]
    assert energy_rank(np.array([2.0, 0.0, 0.0]), 1.0) == 1
    assert energy_rank(np.zeros(3), 0.9) == 1


@given(
    values=st.lists(st.floats(0, 1e6), min_size=1, max_size=30),
    share=st.floats(1e-6, 1, exclude_min=True),
)
def test_energy_rank_is_the_smallest_that_keeps_the_share(values, share):
    squares = np.sort(np.array(values))[::-1]
    rank = energy_rank(squares, share)
    kept = np.cumsum(squares**2)
    assert 1 <= rank <= len(values)
    assert kept[rank - 1] >= share * kept[-1] * (1 - 1e-9)
    if rank > 1 and share < 1:
        assert kept[rank - 2] < share * kept[-1] * (1 + 1e-9)


def test_ratio_rank_rounds_up_within_the_size():
    assert [ratio_rank(10, ratio) for ratio in (0.01, 0.1, 0.11, 0.5, 0.7, 1.0)] == [1, 1, 2, 5, 7, 10]
    assert ratio_rank(3, 0.5) == 2


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(ValueError, match="share must be"):
        energy_rank(np.ones(3), share)
    with pytest.raises(ValueError, match="ratio must be"):
        ratio_rank(3, share)
