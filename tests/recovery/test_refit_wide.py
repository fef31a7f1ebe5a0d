"""Layers of very many inputs: the dual form gives the weights that the covariances would."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.recovery import allocation_samples, refit, refit_wide
from onnxcompress.passes.recovery.allocation import Allocation, AllocationConfig
from onnxcompress.passes.recovery.refit import Refit, RefitConfig
from onnxcompress.passes.recovery.refit_solve import ChainShape, Samples, held_out
from onnxcompress.passes.recovery.refit_wide import fit_wide
from onnxcompress.passes.tucker import SvdConfig, SvdDecomposition, TuckerConfig, TuckerDecomposition
from tests.small_models import build, node, run_all

GENERATOR = np.random.default_rng(8)


def problem(rows: int = 30, inputs: int = 60, outputs: int = 7) -> tuple[Samples, np.ndarray]:
    x = GENERATOR.standard_normal((rows, inputs)).astype(np.float32) + 0.5
    y = (x @ GENERATOR.standard_normal((inputs, outputs)) + 2.0).astype(np.float32)
    return Samples(x, y, relu=False), GENERATOR.standard_normal((inputs, outputs))


def parted(samples: Samples) -> tuple[Samples, Samples]:
    held = held_out(len(samples.inputs))
    first, second = (Samples(samples.inputs[rows], samples.targets[rows], samples.relu) for rows in (~held, held))
    return first, second


@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_the_weights_are_those_of_the_covariances(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_wide, "UNJUDGED", strength)
    samples, prior = problem()
    x, y = samples.inputs.astype(np.float64), samples.targets.astype(np.float64)
    centred, variance = x - x.mean(axis=0), (x - x.mean(axis=0)).T @ (x - x.mean(axis=0))
    ridge = strength * np.trace(variance) / len(variance)
    missing = centred.T @ (y - y.mean(axis=0) - centred @ prior)
    expected = prior + np.linalg.solve(variance + ridge * np.eye(len(variance)), missing)
    fitted = fit_wide(samples, None, ChainShape(4), prior)
    assert fitted.core.shape == (4, 15, 7)
    np.testing.assert_allclose(fitted.slope(), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(fitted.constant, y.mean(axis=0) - x.mean(axis=0) @ expected, rtol=0, atol=1e-5)


def test_the_ridge_is_chosen_on_images_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are the prior's and noise: the nearer to the prior, the better on other images."""
    samples, prior = problem(rows=50)
    noise = 20.0 * GENERATOR.standard_normal(samples.targets.shape)
    samples = Samples(samples.inputs, (samples.inputs @ prior + noise).astype(np.float32), relu=False)
    far = np.linalg.norm(fit_wide(*parted(samples), ChainShape(1), prior).slope() - prior)
    monkeypatch.setattr(refit_wide, "RIDGES", (1e-3,))
    assert far < 0.6 * np.linalg.norm(fit_wide(*parted(samples), ChainShape(1), prior).slope() - prior)


def test_an_output_factor_keeps_the_leading_responses() -> None:
    samples, prior = problem(rows=200, inputs=40)
    low = GENERATOR.standard_normal((40, 2)) @ GENERATOR.standard_normal((2, 7))
    samples = Samples(samples.inputs, (samples.inputs @ low + 1.0).astype(np.float32), relu=False)
    fitted = fit_wide(*parted(samples), ChainShape(1, None, 2), 0.0 * prior)
    assert fitted.last is not None
    assert (fitted.core.shape, fitted.last.shape) == ((1, 40, 2), (2, 7))
    got = samples.inputs @ fitted.slope() + fitted.constant
    assert np.abs(got - samples.targets).max() < 0.02 * np.abs(samples.targets).max()


def test_more_rows_than_fit_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_wide, "MOST_ROWS", 50)
    samples, prior = problem(rows=120, inputs=10)
    np.testing.assert_allclose(fit_wide(*parted(samples), ChainShape(1), prior).constant, 2.0, atol=0.2)


def test_inputs_that_never_vary_leave_the_weights() -> None:
    samples = Samples(np.ones((20, 5), np.float32), GENERATOR.standard_normal((20, 3)).astype(np.float32), relu=False)
    prior = GENERATOR.standard_normal((5, 3))
    fitted = fit_wide(samples, None, ChainShape(1), prior)
    np.testing.assert_array_equal(fitted.slope(), prior)
    np.testing.assert_allclose(fitted.constant, samples.targets.mean(axis=0) - prior.sum(axis=0), rtol=1e-6)


def vgg() -> Model:
    """A convolution and a dense layer that reads its whole map, 8 x 6 x 6 = 288 inputs."""
    constants = {"a.w": GENERATOR.standard_normal((8, 6, 3, 3)) / 7, "b.w": GENERATOR.standard_normal((20, 288)) / 17}
    constants |= {"c.w": GENERATOR.standard_normal((4, 20)) / 4}
    nodes = [
        node("Conv", ["x", "a.w"], "a", pads=[1] * 4),
        node("Relu", ["a"], "r"),
        node("Flatten", ["r"], "flat"),
        node("Gemm", ["flat", "b.w"], "b", transB=1),
        node("Relu", ["b"], "s"),
        node("Gemm", ["s", "c.w"], "c", transB=1),
    ]
    return build(nodes, {name: values.astype(np.float32) for name, values in constants.items()}, shape=("n", 6, 6, 6))


def images(seed: int = 0, count: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 6, 6, 6)).astype(np.float32)


def batches() -> Iterator[dict[str, np.ndarray]]:
    yield {"x": images()}


@pytest.mark.parametrize("rank", [None, "ratio=0.5"])
def test_a_wide_layer_of_a_model_is_fitted(rank: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "MOST_INPUTS", 100)
    original = vgg()
    context = PassContext(calibration=batches, original=original)
    damaged = original.copy()
    conv = damaged.nodes[0]
    weight = damaged.values(conv.inputs[1]) + 0.2 * GENERATOR.standard_normal((8, 6, 3, 3)).astype(np.float32)
    damaged.set_input(conv, 1, weight)
    if rank is not None:
        svd = SvdDecomposition(SvdConfig.from_spec(rank))
        damaged = svd.apply(damaged, svd.plan(damaged, context), context).model
    one = Refit(RefitConfig())
    result = one.apply(damaged, one.plan(damaged, context), context)
    assert len(result.plan.decisions) == 3
    unseen = {"x": images(9)}
    wanted, before, after = (run_all(m, unseen)["c"] for m in (original, damaged, result.model))
    assert np.square(after - wanted).mean() < 0.8 * np.square(before - wanted).mean()


def test_wide_layers_with_an_input_factor_and_in_a_budget_say_why_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "MOST_INPUTS", 50)
    monkeypatch.setattr(allocation_samples, "MOST_INPUTS", 50)
    original = vgg()
    context = PassContext(calibration=batches, original=original)
    tucker = TuckerDecomposition(TuckerConfig.from_spec("ratio=0.5"))
    split = tucker.apply(original, tucker.plan(original, context), context).model
    skipped = {each.node: each.reason for each in Refit(RefitConfig()).plan(split, context).skipped}
    assert any(reason.startswith("each output has 54 inputs") for reason in skipped.values())
    budget = Allocation(AllocationConfig({"params": 0.995}))
    reasons = [each.reason for each in budget.plan(original, context).skipped]
    assert sum("their covariance would be too large" in reason for reason in reasons) == 2
