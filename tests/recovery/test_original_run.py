"""What is measured on the original: one run of it serves the covariances and the refit, or two do, to the same end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.linalg.moments import Covariances
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.recovery import original_run
from onnxcompress.passes.recovery.allocation import Allocation, AllocationConfig
from onnxcompress.passes.recovery.allocation_samples import batched, layer_covariances, numbered
from onnxcompress.passes.recovery.original_run import answers_of_original, counted, seen_by
from onnxcompress.passes.recovery.refit import Refit, RefitConfig
from onnxcompress.passes.recovery.refit_layers import RefitLayer, find_refit_layers
from tests.small_models import build, node, windows_net
from tests.tiny_models import SIZE, conv_net

POSITIONS = 10
IMAGES = 40


def calibration() -> Iterator[dict[str, np.ndarray]]:
    data = np.random.default_rng(4).standard_normal((IMAGES, 3, SIZE, SIZE)).astype(np.float32)
    return ({"x": data[at : at + 16]} for at in range(0, IMAGES, 16))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs the original, in its order."""
    found: list[str] = []
    for name in ("Targets", "layer_covariances"):
        function = getattr(original_run, name)

        def told(*given, name=name, function=function):
            found.append(name)
            return function(*given)

        monkeypatch.setattr(original_run, name, told)
    return found


def seen(
    model: Model, context: PassContext, answers: dict[str, int] | None = None
) -> tuple[list[RefitLayer], dict[str, Covariances]]:
    layers = find_refit_layers(model, model, PassContext())[0]
    wanted = {layer.node: 6 for layer in layers} if answers is None else answers
    return layers, seen_by(model, layers, numbered(calibration, 30), POSITIONS, context, wanted)


def expected(model: Model, layers: list[RefitLayer]) -> dict[str, Covariances]:
    samples = batched(list(numbered(calibration, 30).values()), 16, filled=False)
    return layer_covariances(model, layers, samples, POSITIONS, 0)


def assert_same(first: dict[str, Covariances], second: dict[str, Covariances]) -> None:
    assert first.keys() == second.keys()
    assert first
    for name, own in first.items():
        assert own.count == second[name].count
        np.testing.assert_allclose(own.xx, second[name].xx, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own.mean_x, second[name].mean_x, rtol=1e-4, atol=1e-5)


def test_one_run_serves_both(runs: list[str]) -> None:
    model = Model.from_proto(conv_net())
    context = PassContext(calibration=calibration).with_original(model)
    layers, found = seen(model, context)
    wanted = {layer.node: 6 for layer in layers}
    answers = answers_of_original(model, layers, calibration, wanted, context)
    assert runs == ["Targets"]
    assert_same(found, expected(model, layers))
    alone = answers_of_original(model, layers, calibration, wanted, PassContext(calibration=calibration))
    assert runs == ["Targets", "Targets"]
    assert answers.sizes == alone.sizes == [16, 16, 8]
    for layer in layers:
        np.testing.assert_array_equal(answers.rows(layer), alone.rows(layer))


def test_what_is_known_already_is_not_asked_for_again(runs: list[str]) -> None:
    model = Model.from_proto(conv_net())
    context = PassContext(calibration=calibration).with_original(model)
    _, first = seen(model, context)
    assert_same(seen(model, context)[1], first)
    assert runs == ["Targets", "layer_covariances"]


def test_of_tensors_with_other_rows_than_samples_nothing_tells_which_were_chosen(runs: list[str]) -> None:
    model = windows_net(SIZE)
    context = PassContext(calibration=calibration).with_original(model)
    layers, found = seen(model, context)
    assert runs == ["Targets", "layer_covariances"]
    assert_same(found, expected(model, layers))
    answers_of_original(model, layers, calibration, {layer.node: 6 for layer in layers}, context)
    assert runs == ["Targets", "layer_covariances"]


@pytest.mark.parametrize("why", ["memory", "no refit", "another original", "nothing stays"])
def test_else_the_chosen_samples_run_alone(runs: list[str], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.from_proto(conv_net())
    context = PassContext(calibration=calibration)
    if why != "nothing stays":
        context = context.with_original(model.copy() if why == "another original" else model)
    if why == "memory":
        monkeypatch.setattr(original_run, "_MOST_BYTES", 1000)
    layers, found = seen(model, context, {} if why == "no refit" else None)
    assert runs == ["layer_covariances"]
    assert_same(found, expected(model, layers))


def test_a_target_and_its_refit_run_the_original_once(runs: list[str]) -> None:
    model = Model.from_proto(conv_net())
    context = PassContext(calibration=calibration, memory={}).with_original(model)
    allocation, refit = Allocation(AllocationConfig({"macs": 0.8}, refit=RefitConfig())), Refit(RefitConfig())
    split = allocation.apply(model, allocation.plan(model, context), context).model
    fitted = refit.apply(split, refit.plan(split, context), context)
    assert fitted.modified
    assert runs == ["Targets"]


def test_samples_are_counted_once() -> None:
    model = Model.from_proto(conv_net())
    streams: list[int] = []

    def told() -> Iterator[dict[str, np.ndarray]]:
        streams.append(1)
        return ({"x": np.repeat(batch["x"][:1], 2, axis=0)} for batch in calibration())

    context = PassContext(calibration=told).with_original(model)
    assert counted(model, told, context) == counted(model, told, context) == (6, 3)
    assert len(streams) == 1


def test_a_batch_that_was_filled_up_counts_its_samples_once() -> None:
    model = build([node("Relu", ["x"], "y")], {}, shape=(4, 2))
    rows = np.array([[[1, 1], [2, 2], [3, 3], [4, 4]], [[5, 5], [6, 6], [6, 6], [6, 6]]], np.float32)
    assert counted(model, lambda: iter([{"x": batch} for batch in rows]), PassContext()) == (6, 6)
    with pytest.raises(DataError, match="no calibration samples"):
        counted(model, lambda: iter(()), PassContext())
