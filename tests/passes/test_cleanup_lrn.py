"""LRN as a banded convolution: exact, only where a race is won, and no layer to anything that comes after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnxcompress.analysis.channels import ChannelAnalysis, find_groups
from onnxcompress.analysis.cost import model_cost
from onnxcompress.analysis.lrn import banded_nodes, is_window
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.cleanup import Cleanup, CleanupConfig
from onnxcompress.passes.pruning import FilterPruning, PruningConfig, verify_pruning
from onnxcompress.passes.quantization import Float16Conversion
from onnxcompress.passes.race import RaceResult
from onnxcompress.passes.recovery.refit_layers import find_refit_layers
from onnxcompress.passes.recovery.trainable import weight_names
from onnxcompress.passes.verification import sample_feeds
from tests.passes.cleanup_models import assert_close, clean, ops, random_input, reasons
from tests.small_models import build, node, run_all

RELATIVE = 2e-6
"""Of the range: float32 sums in another order."""


def network(*, channels: int = 12, spatial: Sequence[int | str] = (6, 5), **attributes: Any) -> Model:
    """Conv, LRN, Relu, Conv on inputs of six channels."""
    random = np.random.default_rng(0)
    kernel = (3,) * len(spatial)
    constants = {
        "w": random.standard_normal((channels, 6, *kernel)).astype(np.float32),
        "v": random.standard_normal((4, channels, *kernel)).astype(np.float32),
    }
    nodes = [
        node("Conv", ["x", "w"], "a", name="first"),
        node("LRN", ["a"], "b", name="lrn", **{"size": 5, "alpha": 0.5, **attributes}),
        node("Relu", ["b"], "c"),
        node("Conv", ["c", "v"], "y", name="second"),
    ]
    return build(nodes, constants, shape=("n", 6, *spatial))


def lrn_of(x: Any, size: int, alpha: float, beta: float, bias: float) -> Any:
    """Return LRN as the standard defines it, window by window, in double precision."""
    x = x.astype(np.float64)
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1]
        y[:, c] = x[:, c] / (bias + alpha / size * (window**2).sum(axis=1)) ** beta
    return y


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.0, 0.6])
@pytest.mark.parametrize(
    ("size", "channels", "spatial"), [(5, 12, (6, 5)), (4, 9, (7,)), (1, 3, (5, 5)), (9, 5, (5, 5, 5)), (2, 8, (5, 6))]
)
def test_it_computes_what_lrn_computes(beta: float, size: int, channels: int, spatial: tuple[int, ...]) -> None:
    model = network(channels=channels, spatial=spatial, size=size, beta=beta, bias=2.0)
    cleaned, plan = clean(model)
    assert [(d["step"], d["channels"], d["size"]) for d in plan.decisions] == [("lrn", channels, size)]
    assert "LRN" not in ops(cleaned)
    assert ops(cleaned).count("Conv") == 3
    seen = run_all(cleaned, random_input(model, n=2))
    expected = lrn_of(seen["a"], size, 0.5, beta, 2.0)
    np.testing.assert_allclose(seen["b"], expected, rtol=0, atol=RELATIVE * np.ptp(expected))


def test_onnxruntime_computes_the_same_lrn() -> None:
    model = network()
    assert_close(model, clean(model)[0], RELATIVE, n=2)


def test_what_has_no_band_stays_with_a_reason() -> None:
    nodes = [
        node("LRN", ["x"], "a", name="open", size=3),
        node("Cast", ["x"], "h", to=TensorProto.FLOAT16),
        node("LRN", ["h"], "b", name="half", size=3),
        node("LRN", ["x"], "c", name="flat", size=3, alpha=0.0),
        node("LRN", ["x"], "d", name="kept", size=3),
    ]
    model = build(nodes[:1], shape=("n", "c", 4, 4))
    assert "number of channels is not known" in reasons(clean(model)[1])["open"]
    model = build(nodes[1:], shape=("n", 6, 4, 4), outputs=["b", "c", "d"])
    cleaned, plan = clean(model, context=PassContext(exclude=("^kept",)))
    assert ops(cleaned) == ops(model)
    assert reasons(plan) == {
        "half": "lrn: it computes in float16, and only float32 is rewritten",
        "flat": "lrn: its alpha is not positive",
        "kept": "lrn: 'kept' is excluded by --exclude",
    }


def race_of(*results: RaceResult) -> Any:
    """Return a race with a result that stands before the start, and the list of what raced."""
    raced: list[tuple[Model, Model]] = []

    def race(before: Model, after: Model) -> tuple[RaceResult, ...]:
        raced.append((before, after))
        return results

    return race, raced


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("results", "wins"),
    [
        ([RaceResult(CPU, 1.8, (1.7, 1.9))], True),
        ([RaceResult(CPU, 1.8, (1.7, 1.9)), RaceResult(CUDA, 1.0, (0.99, 1.01))], True),
        ([RaceResult(CPU, 1.8, (1.7, 1.9)), RaceResult(CUDA, 0.9, (0.85, 0.95))], False),
        ([RaceResult(CPU, 1.01, (0.98, 1.04))], False),
        ([RaceResult(CPU, 0.6, None)], False),
        ([RaceResult(CPU, 1.6, None)], True),
    ],
)
def test_a_race_decides(results: list[RaceResult], wins: bool) -> None:
    race, raced = race_of(*results)
    model = network()
    plan = Cleanup().plan(model, PassContext(race=race))
    assert len(raced) == 1
    assert [ops(each).count("LRN") for each in raced[0]] == [1, 0]
    assert bool(plan.decisions) == wins
    if wins:
        assert plan.decisions[0]["why"].startswith(f"{results[0].speedup:.2f} x on CPU, ")
        assert plan.decisions[0]["why"].endswith(", timed in the network")
    else:
        assert reasons(plan)["lrn"].startswith(f"lrn: left as it is: {results[0].speedup:.2f} x on CPU, ")


@pytest.mark.parametrize(("providers", "taken"), [((CPU,), True), ((CUDA,), False), ((CPU, CUDA), False)])
def test_without_a_race_the_provider_decides(providers: tuple[str, ...], taken: bool) -> None:
    for race in (None, race_of()[0]):
        plan = Cleanup().plan(network(), PassContext(race=race, providers=providers))
        assert bool(plan.decisions) == taken
        why = plan.decisions[0]["why"] if taken else reasons(plan)["lrn"]
        assert "not timed" in why
        assert all(provider.removesuffix("ExecutionProvider") in why for provider in providers)


def banded(model: Model) -> Model:
    return clean(model, "lrn")[0]


def test_the_window_costs_no_macs_and_says_what_it_costs() -> None:
    model = network().at({"x": (1, 6, 6, 5)})
    before, after = model_cost(model), model_cost(banded(model))
    assert (before.macs, before.lrn_macs) == (after.macs, 0)
    assert after.lrn_macs == 12 * 12 * 4 * 3
    assert after.params == before.params + 12 * 12 + 12
    window = after.layer("lrn_band_window")
    assert window is not None
    assert (window.macs, window.lrn_macs) == (0, after.lrn_macs)
    assert model_cost(banded(network(spatial=("h", "w")))).lrn_macs is None


def test_pruning_sees_the_groups_that_it_sees_with_lrn() -> None:
    first, second = (find_groups(ChannelAnalysis(each)).groups for each in (network(), banded(network())))
    assert [(g.name, g.size, g.producers, int(g.prunable.sum())) for g in first] == [
        (g.name, g.size, g.producers, int(g.prunable.sum())) for g in second
    ]


def test_pruning_behind_it_is_exact_and_the_same_as_before_it() -> None:
    pruning, context = FilterPruning(PruningConfig(0.5)), PassContext()
    feeds = sample_feeds(network(), {"x": (2, 6, 6, 5)}, 0)
    found = []
    for model in (network(), banded(network())):
        result = pruning.apply(model, pruning.plan(model, context), context)
        verification = verify_pruning(model, result, feeds)
        assert verification.passed
        assert verification.difference < RELATIVE
        (window,) = [each for each in result.model.nodes if is_window(each)]
        assert window.inputs[1].shape == (6, 6, 1, 1)
        assert ops(result.model).count("Conv") == 3
        found.append((run_all(result.model, feeds)["y"], result.provenance))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=RELATIVE * np.ptp(found[0][0]))
    for one, other in zip(*(provenance.values() for _, provenance in found), strict=False):
        np.testing.assert_array_equal(one, other)


def test_it_is_told_by_what_it_is_after_saving_and_pruning_again() -> None:
    model = banded(network())
    pruning, context = FilterPruning(PruningConfig(0.25)), PassContext()
    for _ in range(2):
        model = Model.from_bytes(pruning.apply(model, pruning.plan(model, context), context).model.to_bytes())
        assert [each.name for each in model.nodes if is_window(each)] == ["lrn_band_window"]


def test_nothing_fits_trains_or_quantizes_it() -> None:
    model = banded(network())
    layers, skipped = find_refit_layers(model, model, PassContext())
    assert [layer.node for layer in layers] == ["first", "second"]
    assert skipped == []
    assert weight_names(model) == {"w", "v"}
    assert banded_nodes(model) == {each.name for each in model.nodes} - {"first", "second", "Relu_2"}
    assert banded_nodes(network()) == frozenset()
    plan = Float16Conversion().plan(model, PassContext())
    assert {skipped.node for skipped in plan.skipped} == banded_nodes(model)
    assert [decision["node"] for decision in plan.decisions] == ["first", "Relu_2", "second"]


def test_a_convolution_of_squares_is_no_window() -> None:
    weights = {
        "banded": np.eye(6, dtype=np.float32).reshape(6, 6, 1, 1),
        "free": np.arange(36, dtype=np.float32).reshape(6, 6, 1, 1),
        "wide": np.ones((8, 6, 1, 1), np.float32),
        "kernel": np.ones((6, 6, 3, 3), np.float32),
    }
    for name, weight in weights.items():
        nodes = [node("Mul", ["x", "x"], "s"), node("Conv", ["s", "w"], "c"), node("Sqrt", ["c"], "y")]
        assert is_window(build(nodes, {"w": weight}).nodes[1]) == (name == "banded")
        nodes[2] = node("Relu", ["c"], "y")
        assert not is_window(build(nodes, {"w": weight}).nodes[1])


def test_the_step_can_be_left_out() -> None:
    plan = Cleanup(CleanupConfig(("identity", "fold"))).plan(network(), PassContext())
    assert plan.decisions == ()
