"""What counts at the output: moments of gradients, factors that follow them, and images that no fit sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxcompress.graph import Model
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import PassContext, Plan, Samples
from onnxcompress.passes.recovery import error_metric
from onnxcompress.passes.recovery.allocation_choices import LayerSize, layer_choices, truncated
from onnxcompress.passes.recovery.allocation_samples import layer_covariances
from onnxcompress.passes.recovery.error_metric import _shrunk, gradient_moments, output_metrics, weighable
from onnxcompress.passes.recovery.refit import Refit, RefitConfig
from onnxcompress.passes.recovery.refit_layers import find_refit_layers
from onnxcompress.passes.recovery.refit_solve import ChainShape, fit_chain, held_out
from onnxcompress.passes.recovery.refit_solve import Samples as LayerSamples
from onnxcompress.passes.tucker import TuckerConfig, TuckerDecomposition
from tests.small_models import build, node, run_all

LOUD = 8
"""Filters of the first convolution that answer loudly and hardly matter."""


def calibration(images: int, seed: int) -> Samples:
    data = np.random.default_rng(seed).standard_normal((images, 3, 8, 8)).astype(np.float32)
    return lambda: ({"x": data[at : at + 16]} for at in range(0, images, 16))


def network(*, unknown: bool = False) -> Model:
    """Sixteen filters, half of them loud; the classes are read from the others."""
    generator = np.random.default_rng(5)
    first = 0.3 * generator.standard_normal((16, 3, 3, 3))
    second = generator.standard_normal((5, 16, 1, 1))
    first[:LOUD] *= 3.0
    second[:, :LOUD] *= 1e-3
    behind = [node("ThresholdedRelu" if unknown else "Identity", ["q"], "r")]
    constants = {"w": first, "b": np.zeros(16), "v": second}
    return build(
        [
            node("Conv", ["x", "w", "b"], "h", pads=[1, 1, 1, 1]),
            node("Relu", ["h"], "q"),
            *behind,
            node("Conv", ["r", "v"], "s"),
            node("GlobalAveragePool", ["s"], "p"),
            node("Flatten", ["p"], "y"),
        ],
        {name: values.astype(np.float32) for name, values in constants.items()},
        shape=("n", 3, 8, 8),
    )


def moments(model: Model, images: int, seed: int = 0) -> dict[str, Matrix]:
    layers = find_refit_layers(model, model, PassContext())[0]
    return {layer.output: found for layer in layers if (found := _moment(model, layer, images, seed)) is not None}


def _moment(model: Model, layer, images: int, seed: int) -> Matrix | None:
    return gradient_moments(model, [layer], calibration(images, 3), seed).get(layer.node)


def test_the_moment_at_the_scores_is_the_fisher_information_of_the_classes() -> None:
    model, images = network(), 96
    found = moments(model, images)["s"]
    data = np.concatenate([batch["x"] for batch in calibration(images, 3)()])
    scores = run_all(model, {"x": data})["y"].astype(np.float64)
    probable = np.exp(scores - scores.max(axis=1, keepdims=True))
    probable /= probable.sum(axis=1, keepdims=True)
    positions = 64  # which are averaged
    expected = (np.einsum("nc,cd->cd", probable, np.eye(5)) - probable.T @ probable) / images / positions
    # One label is drawn for each sample: a rough estimate of the sum over all.
    assert np.linalg.norm(found - expected) < 0.3 * np.linalg.norm(expected)


def test_what_the_output_hardly_reads_counts_little() -> None:
    weights = np.diag(moments(network(), 32)["h"]).copy()
    weights -= weights.min()  # what shrinking adds to all of them
    assert weights[:LOUD].max() < 1e-3 * weights[LOUD:].mean()


def test_moments_are_shrunk_as_far_as_images_disagree() -> None:
    def spread(images: int) -> float:
        values = np.linalg.eigvalsh(moments(network(), images)["h"])
        return float(values.max() / values.mean())

    assert spread(1) == pytest.approx(1.0)
    assert 1.0 < spread(4) < spread(256)
    plain = np.diag([3.0, 1.0])
    assert np.array_equal(_shrunk(plain, 10.0, 5), plain)  # five times the same
    np.testing.assert_allclose(_shrunk(plain, 14.0, 5), np.diag([2.5, 1.5]))


def test_behind_an_unknown_operator_nothing_is_weighed() -> None:
    model = network(unknown=True)
    layers = find_refit_layers(model, model, PassContext())[0]
    assert {layer.output for layer in layers if layer.node in weighable(model, layers, calibration(8, 1))} == {"s"}
    assert weighable(model, [], calibration(8, 1)) == frozenset()


def test_gradients_that_are_not_finite_weigh_nothing() -> None:
    model = network()
    layers = find_refit_layers(model, model, PassContext())[0]
    data = np.full((4, 3, 8, 8), np.nan, np.float32)
    assert gradient_moments(model, layers, lambda: [{"x": data}], 0) == {}


def test_what_is_known_of_the_original_serves_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def counted(model: Model, layers, *others) -> dict[str, Matrix]:
        asked.append({layer.output for layer in layers})
        return gradient_moments(model, layers, *others)

    monkeypatch.setattr(error_metric, "gradient_moments", counted)
    original = network()
    layers = find_refit_layers(original, original, PassContext())[0]
    h, s = (next(layer for layer in layers if layer.output == name) for name in "hs")
    context = PassContext(calibration=calibration(16, 1)).with_original(original)
    first = output_metrics(original, [h], context)[h.node]
    # In a pruned network with the names of the original: what is left of the same moment.
    behind = replace(context, provenance={"h": np.array([1, 9, 12])})
    both = output_metrics(original, [h, s], behind)
    assert asked == [{"h", "s"}]
    assert (both[h.node].root.shape, both[s.node].root.shape) == ((3, 3), (5, 5))
    whole = np.square(np.linalg.norm(first.root[:, [9, 12]], axis=0))
    part = np.square(np.linalg.norm(both[h.node].root[:, 1:], axis=0))
    assert part[0] / part[1] == pytest.approx(whole[0] / whole[1], rel=0.05)  # each damped by its own mean
    # Without an original nothing says that the next model asked of is the same.
    for _ in range(2):
        output_metrics(original, [h], replace(context, original=None, measured=None))
    assert len(asked) == 3
    assert output_metrics(original, [h], replace(context, calibration=None)) == {}
    assert output_metrics(original, [replace(h, node="elsewhere")], context) == {}


def test_layers_of_too_many_outputs_are_not_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    layers = find_refit_layers(model, model, PassContext())[0]
    monkeypatch.setattr(error_metric, "_MOST_OUTPUTS", 10)
    assert {layer.output for layer in layers if layer.node in weighable(model, layers, calibration(8, 1))} == {"s"}
    assert set(gradient_moments(model, layers, calibration(8, 1), 0)) == {layers[1].node}


def test_a_rank_is_worth_what_the_output_reads_of_it() -> None:
    """Half of the directions hold almost all of the energy, the other half all that counts."""
    model = network()
    layer = next(each for each in find_refit_layers(model, model, PassContext())[0] if each.output == "h")
    context = PassContext(calibration=calibration(64, 1))
    batches = list(calibration(64, 1)())
    covariances = layer_covariances(model, [layer], batches, 32, 0)[layer.node]
    metric = output_metrics(model, [layer], context)[layer.node]
    slope = layer.original[0].reshape(27, 16)
    size = LayerSize(3, 16, (3, 3), (8, 8), (8, 8))

    def missed(*known) -> Matrix:
        """Return the share of each filter's response that is missed at half of the ranks, (O,)."""
        choices = layer_choices(covariances, slope, size, 1, *known)
        choice = next(each for each in choices if (each.rank_in, each.rank_out) == (None, LOUD))
        errors = slope - truncated(covariances, slope, (3, 3), choice, *known)
        parts = [np.einsum("do,do->o", each, covariances.xx @ each) for each in (errors, slope)]
        weights = np.eye(16) if not known else metric.root @ metric.root
        totals = [np.einsum("do,op,dp->", each, weights, covariances.xx @ each) for each in (errors, slope)]
        assert choice.error == pytest.approx(totals[0] / totals[1], abs=1e-3)
        return parts[0] / parts[1]

    plain, weighed = missed(), missed(metric)
    assert plain[:LOUD].mean() < 0.1 * plain[LOUD:].mean()
    assert weighed[LOUD:].mean() < 0.5 * min(weighed[:LOUD].mean(), plain[LOUD:].mean())


@pytest.fixture(scope="module")
def refitted() -> tuple[Model, Model, Model, Plan]:
    """The original, split and refitted with and without weights, and the plan."""
    original = network()
    tucker = TuckerDecomposition(TuckerConfig.from_spec("ratio=0.5"))
    # The reader stays: fitted anew it would make do with what the loud filters say of its inputs.
    reader = next(each.name for each in original.nodes if each.outputs[0].name == "s")
    context = PassContext(calibration=calibration(160, 1), original=original, exclude=(f"^{reader}$",))
    split = tucker.apply(original, tucker.plan(original, context), context).model
    refit = Refit(RefitConfig())
    plan = refit.plan(split, context)
    plain = replace(plan, decisions=tuple({k: v for k, v in d.items() if k != "weighed"} for d in plan.decisions))
    return original, *(refit.apply(split, each, context).model for each in (plan, plain)), plan


def test_split_layers_alone_are_weighed(refitted: tuple[Model, Model, Model, Plan]) -> None:
    assert [decision.get("weighed") for decision in refitted[3].decisions] == [True]
    original = refitted[0]
    whole = Refit(RefitConfig()).plan(original, PassContext(calibration=calibration(16, 1), original=original))
    assert [decision.get("weighed") for decision in whole.decisions] == [None, None]


def test_a_weighed_factor_keeps_what_the_output_reads(refitted: tuple[Model, Model, Model, Plan]) -> None:
    original, weighed, plain, _ = refitted
    inputs = {"x": np.concatenate([batch["x"] for batch in calibration(64, 9)()])}
    wanted = run_all(original, inputs)["y"]
    errors = [float(np.square(run_all(model, inputs)["y"] - wanted).sum()) for model in (weighed, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_images_held_out_take_part_in_no_fit() -> None:
    generator = np.random.default_rng(4)
    inputs = generator.standard_normal((200, 6)).astype(np.float32)
    targets = generator.standard_normal((200, 3)).astype(np.float32)
    held = np.repeat(held_out(100), 2)
    assert held.sum() == 40
    prior = np.zeros((6, 3))
    # Where targets are noise, the strongest ridge is best on other images; where they are not, the weakest.
    linear = (inputs @ generator.standard_normal((6, 3))).astype(np.float32)
    for wanted, least, most in ((targets, 0.0, 0.1), (linear, 0.9, 1.1)):
        training, judging = (LayerSamples(inputs[rows], wanted[rows], relu=False) for rows in (~held, held))
        fitted = fit_chain(training, judging, ChainShape(1), prior, 0).slope()
        scale = np.linalg.norm(np.linalg.lstsq(inputs, wanted - wanted.mean(axis=0), rcond=None)[0])
        assert least <= np.linalg.norm(fitted) / scale <= most
