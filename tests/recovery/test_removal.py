"""What the removal of channels costs, and the importance `response` that is made of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcompress
from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.linalg.moments import accumulate
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from onnxcompress.passes.recovery import removal
from onnxcompress.passes.recovery.refit_layers import find_refit_layers
from onnxcompress.passes.recovery.removal import Reader
from onnxcompress.pipeline.request import make_request
from tests.small_models import build, node
from tests.tiny_models import conv_net, samples

QUICK: dict[str, Any] = {"latency": False, "round_to": 1}


def twins() -> Model:
    """Return a chain of 3x3 Convs, 6 -> 8 -> 5, in which filter 1 is filter 0 twice as large, and 7 is small."""
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal((o, i, 3, 3)) / np.sqrt(9 * i) for i, o in ((6, 8), (8, 5))]
    weights[0][1] = 2 * weights[0][0]
    weights[0][7] *= 0.1
    weights[1][:, 7] *= 50.0  # small, and read with large weights
    constants = {f"w{at}": weight.astype(np.float32) for at, weight in enumerate(weights)}
    first = helper.make_node("Conv", ["x", "w0"], ["a"], "c0", pads=[1, 1, 1, 1])
    second = helper.make_node("Conv", ["r", "w1"], ["y"], "c1", pads=[1, 1, 1, 1])
    return build([first, node("Relu", ["a"], "r"), second], constants)


def context(images: int = 64) -> PassContext:
    drawn = np.random.default_rng(3).standard_normal((images, 6, 7, 5)).astype(np.float32)
    return PassContext(calibration=lambda: iter([{"x": drawn}]))


def removed(model: Model, ratio: float, importance: str) -> list[int]:
    pruning = FilterPruning(PruningConfig(ratio, importance=importance))
    (decision,) = pruning.plan(model, context()).decisions
    return list(decision["removed"]["c0"])


def test_of_two_channels_that_stand_in_for_each_other_one_leaves() -> None:
    model = twins()
    assert removed(model, 1 / 8, "response") in ([0], [1])
    both = removed(model, 2 / 8, "response")
    assert len({0, 1} & set(both)) == 1
    assert removed(model, 1 / 8, "l1") == [7]
    assert 7 not in both


@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_is_that_of_least_squares_without_the_channels(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(removal, "_RIDGE", 1e-12)
    generator = np.random.default_rng(seed)
    model = twins()
    layer = next(each for each in find_refit_layers(model, model, PassContext())[0] if each.node == "c1")
    slope = generator.standard_normal((9, 8, 5))
    layer = replace(layer, original=slope[None])
    x = generator.standard_normal((400, 72)) @ generator.standard_normal((72, 72))
    reader = Reader(layer, accumulate(x, x[:, :1]).centred(), np.arange(8))

    centred = x - x.mean(axis=0)
    wanted = centred @ slope.reshape(72, 5)

    def missed(gone: set[int]) -> float:
        stay = centred[:, [at for at in range(72) if at % 8 not in gone]]
        fitted = stay @ np.linalg.lstsq(stay, wanted, rcond=None)[0]
        return float(np.square(wanted - fitted).sum() / np.square(wanted).sum())

    np.testing.assert_allclose(reader.errors()[3], missed({3}), rtol=1e-6)
    disturbance = reader.without({2, 5})
    np.testing.assert_allclose(disturbance.error, missed({2, 5}), rtol=1e-6)
    seen = centred @ disturbance.slope
    np.testing.assert_allclose(np.square(wanted - seen).sum() / np.square(wanted).sum(), missed({2, 5}), rtol=1e-6)
    assert not disturbance.slope.reshape(9, 8, 5)[:, [2, 5]].any()
    reader.remove({2, 5})
    # From what is left, what goes on top of it.
    np.testing.assert_allclose(missed({2, 5}) + reader.errors()[3], missed({2, 3, 5}), rtol=1e-6)


def test_errors_of_layers_that_miss_the_same_channel_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal layers of which the sum is the output: together they miss twice what one does, four times in energy."""
    seen: list[np.ndarray] = []
    factors = removal._Together.factors

    def watched(*given: Any) -> np.ndarray:
        seen.append(factors(*given))
        return seen[-1]

    monkeypatch.setattr(removal._Together, "factors", watched)
    generator = np.random.default_rng(0)
    constants = {
        "w0": generator.standard_normal((8, 6, 1, 1)).astype(np.float32),
        "w1": generator.standard_normal((5, 8, 1, 1)).astype(np.float32),
    }
    constants["w2"] = constants["w1"].copy()
    nodes = [
        node("Conv", ["x", "w0"], "a"),
        node("Relu", ["a"], "r"),
        node("Conv", ["r", "w1"], "b"),
        node("Conv", ["r", "w2"], "c"),
        node("Add", ["b", "c"], "y"),
    ]
    pruning = FilterPruning(PruningConfig(0.25, importance="response"))
    assert pruning.plan(build(nodes, constants), context()).decisions
    (found,) = seen
    np.testing.assert_allclose(found[:8], 2.0, rtol=0.02)


def test_it_needs_data_and_gives_the_same_answer_again() -> None:
    model = twins()
    pruning = FilterPruning(PruningConfig(0.5, importance="response"))
    with pytest.raises(DataError, match="'response' needs calibration data"):
        pruning.plan(model, PassContext())
    plans = [pruning.plan(model, replace(context(), memory=memory)) for memory in (None, {}, None)]
    assert plans[0] == plans[1] == plans[2]


def test_what_is_measured_serves_every_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(removal, "removal_scores", lambda *given: measured.append(1) or given[2])
    kept = replace(context(), memory={})
    for ratio in (0.25, 0.5):
        FilterPruning(PruningConfig(ratio, importance="response")).plan(twins(), kept)
    assert len(measured) == 1


def test_prune_auto_ranks_by_it_and_from_all_layers_together() -> None:
    def settled(**options: Any) -> tuple[str | None, str | None]:
        request = make_request(None, options, model=conv_net(), output=None, data="data.npz", calib=None)
        return request.recipe.importance, request.recipe.prune_scope

    assert settled(prune="auto", max_drop=1.0) == ("response", "global")
    assert settled(prune="auto", max_drop=1.0, importance="l2", prune_scope="uniform") == ("l2", "uniform")
    assert settled(prune=0.3) == ("l1", "uniform")


def test_through_the_whole_command(tmp_path: Any) -> None:
    onnx.save(conv_net(), tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", x=samples(120, seed=5))
    result = onnxcompress.compress(
        tmp_path / "in.onnx", prune=0.3, importance="response", calib=tmp_path / "calib.npz", recover="refit", **QUICK
    )
    prune = next(stage for stage in result.report.stages if stage.pass_name == "prune")
    assert prune.decisions
    assert result.report.self_checks
    assert not [line for line in result.report.warnings if "not used" in line]
