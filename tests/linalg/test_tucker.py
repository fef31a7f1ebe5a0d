"""Tucker-2: what it reproduces, how far off it may be, and against tensorly's own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorly
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker

from onnxcompress.linalg import kernel_spectra, spectrum, tucker2
from onnxcompress.linalg.tucker import mode_products, unfold

SHAPES = [(8, 6, 3, 3), (12, 5, 7), (6, 7, 3, 2, 3), (64, 3, 3, 3), (5, 30), (1, 1, 3, 3), (9, 1, 5, 5), (1, 9, 3)]


def kernel_of(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def norm_error(kernel, approximation):
    return float(np.linalg.norm(kernel - approximation) / np.linalg.norm(kernel))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_full_rank_reproduces_the_kernel(shape, dtype):
    kernel = kernel_of(shape, dtype=dtype)
    found = tucker2(kernel, rank_out=shape[0], rank_in=shape[1])
    assert found.core.shape == shape
    np.testing.assert_allclose(found.reconstruct(), kernel.astype(np.float64), atol=1e-12)
    assert found.relative_error < 1e-7


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_orthonormal_factors(shape):
    rank_out, rank_in = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    found = tucker2(kernel_of(shape), rank_out=rank_out, rank_in=rank_in)
    assert found.core.shape == (rank_out, rank_in, *shape[2:])
    for factor, size, rank in ((found.output_factor, shape[0], rank_out), (found.input_factor, shape[1], rank_in)):
        assert factor.shape == (size, rank)
        np.testing.assert_allclose(factor.T @ factor, np.eye(rank), atol=1e-12)


@settings(max_examples=40)
@given(data=st.data())
def test_error_lies_within_the_bounds_of_the_discarded_singular_values(data):
    size = st.integers(1, 9)
    shape = (data.draw(size), data.draw(size), *data.draw(st.lists(st.integers(1, 3), max_size=3)))
    rank_out, rank_in = data.draw(st.integers(1, shape[0])), data.draw(st.integers(1, shape[1]))
    kernel = kernel_of(shape, seed=data.draw(st.integers(0, 99)))
    found = tucker2(kernel, rank_out=rank_out, rank_in=rank_in, sweeps=data.draw(st.integers(0, 3)))
    squared = np.linalg.norm(kernel - found.reconstruct()) ** 2
    discarded = [
        np.sum(np.linalg.svd(np.moveaxis(kernel, mode, 0).reshape(shape[mode], -1), compute_uv=False)[rank:] ** 2)
        for mode, rank in ((0, rank_out), (1, rank_in))
    ]
    slack = 1e-9 * np.linalg.norm(kernel) ** 2
    assert max(discarded) - slack <= squared <= sum(discarded) + slack


def test_the_reported_error_is_the_error():
    kernel = kernel_of((20, 16, 3, 3))
    found = tucker2(kernel, rank_out=7, rank_in=5)
    assert found.relative_error == pytest.approx(norm_error(kernel, found.reconstruct()), rel=1e-9)


def test_a_planted_core_is_found():
    rng = np.random.default_rng(3)
    core = rng.standard_normal((3, 4, 3, 3))
    kernel = mode_products(core, {0: rng.standard_normal((20, 3)), 1: rng.standard_normal((15, 4))})
    found = tucker2(kernel, rank_out=3, rank_in=4)
    assert norm_error(kernel, found.reconstruct()) < 1e-10


def test_sweeps_lower_the_error_and_end():
    kernel = kernel_of((24, 20, 3, 3), seed=4)
    errors = [tucker2(kernel, rank_out=5, rank_in=4, sweeps=n, tolerance=0.0).relative_error for n in range(6)]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors))
    assert errors[1] < errors[0]
    assert tucker2(kernel, rank_out=5, rank_in=4, sweeps=500, tolerance=1e-3).sweeps < 50
    assert tucker2(kernel, rank_out=24, rank_in=4, sweeps=500).sweeps == 0


def test_as_good_as_tensorlys_partial_tucker():
    kernel = kernel_of((32, 24, 3, 3), seed=5) + 2 * mode_products(
        kernel_of((6, 5, 3, 3), seed=6), {0: kernel_of((32, 6), 7) / 4, 1: kernel_of((24, 5), 8) / 4}
    )
    (core, factors), _ = partial_tucker(kernel, rank=[10, 8], modes=[0, 1], init="svd", n_iter_max=100, tol=1e-8)
    reference = norm_error(kernel, tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1]))
    one_sweep = tucker2(kernel, rank_out=10, rank_in=8)
    many = tucker2(kernel, rank_out=10, rank_in=8, sweeps=100, tolerance=1e-9)
    assert one_sweep.relative_error == pytest.approx(reference, rel=5e-3)
    assert many.relative_error == pytest.approx(reference, rel=1e-4)


def test_the_same_kernel_gives_the_same_bits_and_is_not_written_to():
    kernel = kernel_of((16, 12, 3, 3), dtype=np.float32)
    kernel.flags.writeable = False
    spectra = kernel_spectra(kernel)
    one, two = (tucker2(kernel, rank_out=6, rank_in=5, spectra=s) for s in (spectra, None))
    for name in ("core", "output_factor", "input_factor"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()


def test_signs_do_not_depend_on_the_solver():
    for factor in (f(tucker2(kernel_of((9, 8, 3, 3)), rank_out=4, rank_in=3)) for f in (_out, _in)):
        assert np.all(factor[np.abs(factor).argmax(axis=0), np.arange(factor.shape[1])] > 0)


def _out(found):
    return found.output_factor


def _in(found):
    return found.input_factor


def test_large_kernels_are_worked_on_in_float32(monkeypatch):
    kernel = kernel_of((24, 20, 3, 3), dtype=np.float32)
    exact = tucker2(kernel, rank_out=8, rank_in=7)
    monkeypatch.setattr(spectrum, "_LARGEST_IN_DOUBLE", 100)
    monkeypatch.setattr(spectrum, "_BLOCK", 64)
    found = tucker2(kernel, rank_out=8, rank_in=7)
    assert found.core.dtype == np.float32
    assert found.relative_error == pytest.approx(exact.relative_error, abs=1e-5)
    np.testing.assert_allclose(found.reconstruct(), exact.reconstruct(), atol=1e-5)


def test_the_callers_tensorly_backend_is_left_alone():
    pytest.importorskip("torch")
    with tensorly.backend_context("pytorch"):
        assert unfold(kernel_of((4, 3, 2)), 1).shape == (3, 8)
        assert tucker2(kernel_of((4, 3, 2)), rank_out=2, rank_in=2).core.shape == (2, 2, 2)
        assert tensorly.get_backend() == "pytorch"


@pytest.mark.parametrize(("rank_out", "rank_in", "name"), [(0, 1, "rank_out"), (5, 1, "rank_out"), (1, 4, "rank_in")])
def test_ranks_out_of_range_are_refused(rank_out, rank_in, name):
    with pytest.raises(ValueError, match=f"{name} must be from 1 to"):
        tucker2(kernel_of((4, 3, 3, 3)), rank_out=rank_out, rank_in=rank_in)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    kernel = kernel_of((4, 3, 3, 3))
    kernel[1, 2, 0, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        kernel_spectra(kernel)


@pytest.mark.parametrize("shape", [(4,), (0, 3, 3, 3), (4, 0, 3)])
def test_what_is_no_kernel_is_refused(shape):
    with pytest.raises(ValueError, match="expected a kernel"):
        kernel_spectra(np.ones(shape))


def test_a_kernel_of_zeros_has_no_error():
    found = tucker2(np.zeros((4, 3, 3, 3)), rank_out=2, rank_in=2)
    assert found.relative_error == 0.0
    assert not found.reconstruct().any()
