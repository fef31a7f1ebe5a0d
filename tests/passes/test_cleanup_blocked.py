"""PRelu and affine pairs as BatchNormalization: exact, only where a race is won, and no statistics to training."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analysis.channels import ChannelAnalysis, find_groups
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.passes.pruning import FilterPruning, PruningConfig, verify_pruning
from onnxcompress.passes.race import RaceResult
from onnxcompress.passes.recovery.trainable import statistics_names, weight_names
from onnxcompress.passes.verification import sample_feeds
from tests.passes.cleanup_models import CPU, WON, assert_close, clean, ops, reasons, weight, won
from tests.small_models import build, node

TOLERANCE = 1e-6


def slopes(*shape: int) -> Any:
    return np.random.default_rng(3).uniform(-0.5, 1.5, shape).astype(np.float32)


def network(*middle: onnx.NodeProto, shape: tuple[Any, ...] = ("n", 6, 9, 8), **constants: Any) -> Model:
    """Conv, some nodes from `a` to `b`, and a Conv that pads."""
    kernel = (3,) * (len(shape) - 2)
    nodes = [
        node("Conv", ["x", "w"], "a", name="first"),
        *middle,
        node("Conv", ["b", "v"], "y", name="second", pads=[1] * 2 * len(kernel)),
    ]
    return build(nodes, {"w": weight(8, 6, *kernel), "v": weight(4, 8, *kernel), **constants}, shape=shape)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1)])
def test_a_prelu_becomes_what_stays_in_blocks(shape: tuple[int, ...]) -> None:
    model = network(node("PRelu", ["a", "s"], "b", name="prelu"), s=slopes(*shape))
    cleaned, plan = clean(model, context=WON)
    assert ops(cleaned) == ["Conv", "BatchNormalization", "Relu", "BatchNormalization", "Add", "Conv"]
    assert plan.decisions == (
        {
            "step": "blocked",
            "round": 1,
            "node": "prelu",
            "op": "PRelu",
            "nodes": ["prelu"],
            "channels": 8,
            "why": "1.30 x on CPU, timed in the network",
        },
    )
    assert plan.skipped == ()  # of the nodes that it wrote nobody asks
    assert_close(model, cleaned, TOLERANCE)


@pytest.mark.parametrize("first", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("second", ["Mul", "Div", "Add", "Sub"])
def test_a_factor_and_a_summand_become_one(first: str, second: str) -> None:
    middle = [
        node("Relu", ["a"], "r"),
        node(first, ["r", "s"], "m", name="one"),
        node(second, ["t", "m"], "b", name="two"),
    ]
    if second == "Div":
        middle[-1] = node(second, ["m", "t"], "b", name="two")
    model = network(*middle, s=slopes(8, 1, 1) + 1.0, t=np.float32(0.7))
    cleaned, plan = clean(model, "blocked", context=WON)
    assert ops(cleaned) == ["Conv", "Relu", "BatchNormalization", "Conv"]
    assert plan.decisions[0]["nodes"] == ["one", "two"]
    assert_close(model, cleaned, TOLERANCE)


def test_constants_of_many_nodes_are_there_once() -> None:
    middle = [node("PRelu", ["a", "s"], "p"), node("PRelu", ["p", "t"], "q"), node("PRelu", ["q", "s"], "b")]
    cleaned, _ = clean(network(*middle, s=slopes(8, 1, 1), t=slopes(8, 1, 1) / 2), context=WON)
    assert ops(cleaned).count("BatchNormalization") == 6
    assert sum(name.startswith("8_times_") for name in cleaned.constants()) == 3


@pytest.mark.parametrize(
    ("middle", "constants"),
    [
        ([node("PRelu", ["a", "s"], "b")], {"s": slopes(8, 7, 6)}),
        ([node("PRelu", ["a", "s"], "b")], {"s": np.full((8, 1, 1), np.nan, np.float32)}),
        ([node("PRelu", ["a", "a"], "b")], {}),
        ([node("Relu", ["a"], "r"), node("Mul", ["r", "s"], "b")], {"s": slopes(8, 1, 1)}),
        (
            [node("Relu", ["a"], "r"), node("Mul", ["r", "s"], "m"), node("Add", ["m", "m"], "b")],
            {"s": slopes(8, 1, 1)},
        ),
    ],
)
def test_what_has_no_such_form_stays(middle: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    model = network(*middle, **constants)
    cleaned, plan = clean(model, "blocked", context=WON)
    assert ops(cleaned) == ops(model)
    assert plan == Plan("cleanup")


def test_what_is_in_no_blocks_stays() -> None:
    prelu = node("PRelu", ["a", "s"], "b")
    line = network(prelu, s=slopes(8, 1), shape=("n", 6, 9))
    assert "PRelu" in ops(clean(line, "blocked", context=WON)[0])
    assert "PRelu" not in ops(clean(line, context=WON)[0])  # a plane by then
    on_input = [node("PRelu", ["x", "s"], "p"), node("Mul", ["x", "s"], "m"), node("Add", ["m", "s"], "q")]
    model = build([*on_input, node("Add", ["p", "q"], "y")], {"s": slopes(6, 1, 1)}, shape=("n", 6, 4, 4))
    assert ops(clean(model, "blocked", context=WON)[0]) == ops(model)


def test_one_slope_for_all_channels_is_a_leaky_relu() -> None:
    model = network(node("PRelu", ["a", "s"], "b"), s=np.full((1, 1, 1), 0.25, np.float32))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv", "LeakyRelu", "Conv"]
    assert_close(model, cleaned, TOLERANCE)


@pytest.mark.parametrize("race", [None, lambda before, after: (RaceResult(CPU, 1.0, (0.97, 1.03)),)])
def test_without_a_won_race_nothing_changes(race: Any) -> None:
    model = network(node("PRelu", ["a", "s"], "b", name="prelu"), s=slopes(8, 1, 1))
    cleaned, plan = clean(model, context=PassContext(race=race))
    assert ops(cleaned) == ops(model)
    assert reasons(plan)["prelu"].startswith("blocked: left as it is: ")


@pytest.mark.parametrize("change", [{"node": "second"}, {"node": "gone"}, {"nodes": ["first", "prelu"]}])
def test_a_plan_of_another_model_is_refused(change: dict[str, Any]) -> None:
    model = network(node("PRelu", ["a", "s"], "b", name="prelu"), s=slopes(8, 1, 1))
    (decision,) = Cleanup().plan(model, WON).decisions
    with pytest.raises(RecipeError, match=r"plan: clean-up .*another's"):
        Cleanup().apply(model, Plan("cleanup", ({**decision, **change},)), WON)


def test_exclude_keeps_it() -> None:
    model = network(node("PRelu", ["a", "s"], "b", name="prelu"), s=slopes(8, 1, 1))
    cleaned, plan = clean(model, context=PassContext(race=won, exclude=("prelu",)))
    assert ops(cleaned) == ops(model)
    assert reasons(plan) == {"prelu": "blocked: 'prelu' is excluded by --exclude"}


def test_pruning_sees_the_same_groups_and_stays_exact() -> None:
    model = network(node("PRelu", ["a", "s"], "b", name="prelu"), s=slopes(8, 1, 1))
    cleaned = Cleanup().apply(model, Cleanup().plan(model, WON), WON).model
    sizes = [
        [(g.size, int(g.prunable.sum())) for g in find_groups(ChannelAnalysis(each)).groups]
        for each in (model, cleaned)
    ]
    assert sizes[0] == sizes[1]
    pruning, context = FilterPruning(PruningConfig(0.5)), PassContext()
    result = pruning.apply(cleaned, pruning.plan(cleaned, context), context)
    assert result.modified
    verify_pruning(cleaned, result, sample_feeds(cleaned, {"x": (2, 6, 9, 8)}, 0))


def test_training_takes_it_for_no_statistics() -> None:
    model = network(node("PRelu", ["a", "s"], "b", name="prelu"), s=slopes(8, 1, 1))
    cleaned = Cleanup().apply(model, Cleanup().plan(model, WON), WON).model
    assert statistics_names(cleaned) == frozenset()
    assert {"w", "v", "prelu_rest"} <= weight_names(cleaned)
    assert not {"8_times_0", "8_times_1"} & weight_names(cleaned)
