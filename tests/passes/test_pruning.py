"""Filter pruning as a pass: how many filters leave, which, what a plan holds, and that the proof can fail."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcompress.errors import DataError, ModelError, PassError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult, Plan
from onnxcompress.passes.pruning import IMPORTANCES, FilterPruning, PruningConfig, verify_pruning
from onnxcompress.passes.pruning.importance import filter_scores
from onnxcompress.passes.verification import relative_difference, sample_feeds, verify
from onnxcompress.recipe.recipe import RANKED_BY_DATA
from tests.small_models import build, node
from tests.tiny_models import conv_net

Constants = dict[str, Any]
EXACT = 1e-5


def chain(widths: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Model:
    """Return a chain of 3x3 Convs `c0`, `c1`, … with biases and Relu, from 6 channels to `widths`."""
    generator = np.random.default_rng(seed)
    constants: Constants = {}
    nodes: list[onnx.NodeProto] = []
    x, inputs = "x", 6
    if dtype != np.float32:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        nodes.append(node("Cast", ["x"], "cast", to=kind))
        x = "cast"
    for number, width in enumerate(widths):
        scale = np.sqrt(inputs * 9)
        constants[f"w{number}"] = (generator.standard_normal((width, inputs, 3, 3)) / scale).astype(dtype)
        constants[f"b{number}"] = generator.standard_normal(width).astype(dtype)
        inner = [x, f"w{number}", f"b{number}"]
        nodes.append(helper.make_node("Conv", inner, [f"y{number}"], f"c{number}", pads=[1, 1, 1, 1]))
        nodes.append(node("Relu", [f"y{number}"], f"r{number}"))
        x, inputs = f"r{number}", width
    if dtype != np.float32:
        nodes.append(node("Cast", [x], "out", to=onnx.TensorProto.FLOAT))
    return build(nodes, constants)


def pruned(model: Model, ratio: float, *, context: PassContext | None = None, **config: Any) -> PassResult:
    one, context = FilterPruning(PruningConfig(ratio, **config)), context or PassContext()
    return one.apply(model, one.plan(model, context), context)


def widths(model: Model) -> dict[str, int]:
    return {n.name: n.inputs[1].shape[0] for n in model.nodes if n.op == "Conv"}


def difference(model: Model, result: PassResult) -> float:
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 6, 7, 5)).astype(np.float32)}
    return verify_pruning(model, result, feeds).difference


@pytest.mark.parametrize(
    ("ratio", "round_to", "expected"),
    [
        (0.4, 1, {"c0": 6, "c1": 10, "c2": 5}),
        (0.5, 4, {"c0": 4, "c1": 8, "c2": 5}),
        (0.5, 8, {"c0": 8, "c1": 8, "c2": 5}),  # the nearest whole block
        (0.99, 1, {"c0": 1, "c1": 1, "c2": 5}),
        (0.01, 1, {"c0": 10, "c1": 16, "c2": 5}),
    ],
)
def test_every_group_loses_the_ratio_rounded_to_blocks(ratio: float, round_to: int, expected: dict[str, int]) -> None:
    model = chain((10, 16, 5))
    result = pruned(model, ratio, context=PassContext(round_to=round_to))
    assert widths(result.model) == expected
    assert result.modified == (expected != widths(model))
    if result.modified:
        assert difference(model, result) <= EXACT


def test_global_scope_ranks_all_filters_together() -> None:
    model = chain((8, 8, 8, 5))
    for number, factor in enumerate((1.0, 0.2, 0.2)):  # importance is relative to a layer's own mean
        weight = next(t for name, t in model.constants().items() if name == f"w{number}")
        values = weight.values.copy()
        values[:4] *= factor
        weight.values = values
    result = pruned(model, 0.25, scope="global")
    kept = widths(result.model)
    assert kept["c0"] == 8
    assert kept["c1"] < 8
    assert kept["c2"] < 8
    assert sum(kept.values()) == 8 + 8 + 8 + 5 - 6
    assert difference(model, result) <= EXACT


def test_a_ratio_close_to_one_leaves_a_filter_in_every_group() -> None:
    model = chain((8, 8, 8, 5))
    for scope in ("uniform", "global"):
        result = pruned(model, 0.999, scope=scope)
        assert min(widths(result.model).values()) >= 1
        assert result.model.signature() == model.signature()
        assert difference(model, result) <= EXACT


def test_ratio_zero_changes_nothing() -> None:
    model = chain((8, 5))
    result = pruned(model, 0.0)
    assert not result.modified
    assert result.model.to_bytes() == model.to_bytes()


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 2.0, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(RecipeError, match="expected 0 <= R < 1"):
        PruningConfig(ratio)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(RecipeError, match="unknown importance 'l3'"):
        PruningConfig(0.5, importance="l3")
    with pytest.raises(RecipeError, match="unknown scope 'local'"):
        PruningConfig(0.5, scope="local")


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ("l1", [2.0, 5.0, 4.0]),
        ("l2", [2.0, 13**0.5, 4.0]),
        ("fpgm", [10**0.5 + 2.0, 10**0.5 + 10**0.5, 10**0.5 + 2.0]),
    ],
)
def test_importance_of_small_filters(importance: str, expected: list[float]) -> None:
    filters = np.array([[2.0, 0.0], [3.0, -2.0], [4.0, 0.0]])
    if importance == "fpgm":
        distances = [[np.linalg.norm(a - b) for b in filters] for a in filters]
        expected = [sum(row) for row in distances]
    np.testing.assert_allclose(filter_scores(filters, importance), expected, rtol=1e-12)


def test_the_least_important_filters_leave() -> None:
    model = chain((8, 5))
    norms = np.abs(model.constants()["w0"].values).sum(axis=(1, 2, 3))
    (decision,) = pruned(model, 0.5).plan.decisions
    assert decision["filters"] == [8, 4]
    assert decision["removed"] == {"c0": sorted(np.argsort(norms)[:4].tolist())}


def test_random_is_repeatable_and_follows_the_seed() -> None:
    model = chain((16, 5))
    removed = [
        json.dumps(pruned(model, 0.5, importance="random", context=PassContext(seed=seed)).plan.to_json())
        for seed in (0, 0, 1)
    ]
    assert removed[0] == removed[1] != removed[2]


def test_activation_needs_data_and_spares_what_is_used() -> None:
    model = chain((8, 5))
    with pytest.raises(DataError, match="needs calibration data"):
        pruned(model, 0.5, importance="activation")
    bias = model.constants()["b0"]
    bias.values = np.where(np.arange(8) < 4, -100.0, 1.0).astype(np.float32)  # dead behind the Relu
    batch = {"x": np.random.default_rng(0).standard_normal((2, 6, 7, 5)).astype(np.float32)}
    context = PassContext(calibration=lambda: [batch])
    (decision,) = pruned(model, 0.5, importance="activation", context=context).plan.decisions
    assert decision["removed"] == {"c0": [0, 1, 2, 3]}


@pytest.mark.parametrize("importance", [name for name in IMPORTANCES if name not in RANKED_BY_DATA])
def test_a_plan_replays_to_the_same_bytes_and_leaves_its_model_alone(importance: str) -> None:
    model = chain((10, 12, 5))
    before = model.to_bytes()
    result = pruned(model, 0.4, importance=importance)
    plan = Plan.from_json(json.loads(json.dumps(result.plan.to_json())))
    replayed = FilterPruning(PruningConfig(0.4)).apply(model, plan, PassContext())
    assert replayed.model.to_bytes() == result.model.to_bytes()
    assert model.to_bytes() == before


def test_a_plan_of_another_model_is_refused() -> None:
    plan = pruned(chain((10, 12, 5)), 0.4).plan
    apply = FilterPruning(PruningConfig(0.4)).apply
    with pytest.raises(RecipeError, match=r"'c1' has no filters|'c1' has .* filters|cannot be removed"):
        apply(chain((10, 5)), plan, PassContext())
    with pytest.raises(RecipeError, match="'c0' has 4 filters, the plan removes"):
        apply(chain((4, 12, 5)), plan, PassContext())
    with pytest.raises(PassError, match="pass 'tucker' was given to pass 'prune'"):
        apply(chain((10, 12, 5)), Plan("tucker"), PassContext())


def test_a_plan_that_touches_an_output_is_refused() -> None:
    decision = {"kind": "prune", "node": "c1", "filters": [5, 4], "removed": {"c1": [0]}}
    with pytest.raises(RecipeError, match="cannot be removed: is the graph output"):
        FilterPruning(PruningConfig(0.4)).apply(chain((10, 5)), Plan("prune", (decision,)), PassContext())


def test_what_stays_says_why() -> None:
    model = chain((10, 12, 1, 5))
    plan = FilterPruning(PruningConfig(0.4)).plan(model, PassContext(exclude=("^c0$",), round_to=16))
    assert {skipped.node: skipped.reason for skipped in plan.skipped} == {
        "c0": "'c0' is excluded",
        "c1": "its 12 channels are one block of 16 (--round-to)",
        "c2": "has one removable channel, which stays",
        "c3": "is the graph output 'r3', whose shape never changes",
    }
    assert not plan.decisions


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_keep_their_type(dtype: Any) -> None:
    model = chain((10, 12, 5), dtype)
    result = pruned(model, 0.4)
    assert widths(result.model) == {"c0": 6, "c1": 7, "c2": 5}
    assert {t.values.dtype for name, t in result.model.constants().items()} == {np.dtype(dtype)}
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 6, 7, 5)).astype(np.float32)}
    assert verify_pruning(model, result, feeds).passed


def test_provenance_names_original_channels_over_two_passes() -> None:
    model = chain((10, 12, 5))
    first = pruned(model, 0.4)
    second = pruned(first.model, 0.5, context=PassContext(provenance=first.provenance))
    weights = model.constants()["w0"].values
    kept = second.provenance["y0"]
    assert kept.tolist() == second.provenance["r0"].tolist()
    np.testing.assert_array_equal(second.model.constants()["w0"].values, weights[kept])


# The proof itself.


def test_the_proof_fails_on_one_changed_weight() -> None:
    model = chain((10, 12, 5))
    result = pruned(model, 0.4)
    assert difference(model, result) <= EXACT
    weight = result.model.constants()["w1"]
    values = weight.values.copy()
    values[0, 0, 1, 1] += 0.05
    weight.values = values
    assert difference(model, result) > 1e-3
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 6, 7, 5)).astype(np.float32)}
    with pytest.raises(PassError, match="self-check of pass 'prune'"):
        verify_pruning(model, result, feeds).require()


def test_the_proof_fails_on_another_filter_than_the_plan_says() -> None:
    model = chain((10, 12, 5))
    result = pruned(model, 0.4)
    removed = dict(result.plan.decisions[0]["removed"])
    stays = next(n for n in range(10) if n not in removed["c0"])
    removed["c0"] = sorted([*removed["c0"][1:], stays])
    decisions = ({**result.plan.decisions[0], "removed": removed}, *result.plan.decisions[1:])
    lying = PassResult(result.model, True, Plan("prune", decisions), result.provenance)
    assert difference(model, lying) > 1e-3


def test_rounding_of_what_ends_at_one_is_no_difference() -> None:
    """Far below 0 hardly anything but rounding is left of a Sigmoid: what stands before it tells the models apart."""

    def network(factor: float, name: str = "z") -> Model:
        constants = {"b": np.full(4, -15.0, np.float32), "f": np.full(4, factor, np.float32)}
        nodes = [node("Add", ["x", "b"], "h"), node("Mul", ["h", "f"], name), node("Sigmoid", [name], "s")]
        return build([*nodes, node("Unsqueeze", ["s", "one"], "y")], {**constants, "one": [1]}, shape=("n", 4))

    feeds = {"x": np.random.default_rng(0).uniform(0.5, 1.0, (3, 4)).astype(np.float32)}
    for name in ("z", "renamed"):
        verify("cleanup", network(1.0), network(1.0005, name), feeds).require()
        with pytest.raises(PassError, match="self-check of pass 'cleanup'"):
            verify("cleanup", network(1.0), network(1.01, name), feeds).require()


def test_relative_difference() -> None:
    one = np.array([1.0, -4.0], np.float32)
    assert relative_difference(one, one) == 0.0
    assert relative_difference(one, one + np.float32(0.5)) == 0.125
    assert relative_difference(one, one[:1]) == float("inf")
    assert relative_difference(one, np.array([1.0, np.nan], np.float32)) == float("inf")
    assert relative_difference(np.zeros(2), np.array([0.0, 1e-9])) == float("inf")
    assert relative_difference(np.array([np.inf, 2.0]), np.array([np.inf, 2.0])) == 0.0
    assert relative_difference(np.array([np.inf, 2.0]), np.array([-np.inf, 2.0])) == float("inf")
    assert relative_difference(np.array([1, 2]), np.array([1, 3])) == float("inf")
    assert relative_difference(np.array([1e-6, 0.0]), np.array([1e-6, 1e-7]), 2e-7) == 0.0
    assert relative_difference(np.array([1e-6, 0.0]), np.array([1e-6, 1e-7]), 5e-8) == 0.1


def test_values_that_overflow_prove_nothing() -> None:
    def model(scale: float) -> Model:
        return build([node("Mul", ["x", "s"], "y")], {"s": np.float32(scale)}, shape=(1, 4))

    feeds = {"x": np.full((1, 4), 1e30, np.float32)}
    with pytest.raises(ModelError, match="are not finite on random input"):
        verify("any", model(1e30), model(1.0), feeds)
    assert verify("any", model(1e30), model(1e31), feeds).passed  # infinite in both
    with pytest.raises(ModelError, match=r"at y reach 1e.30 in float32 on random input"):
        verify("any", model(1.0), model(1e30), feeds)
    feeds = {"x": np.full((1, 4), 1e10, np.float32)}
    assert verify("any", model(1.0), model(1e30), feeds).difference == float("inf")


def test_models_are_compared_before_a_saturating_output() -> None:
    def model(scale: float) -> Model:
        return build(
            [node("Mul", ["x", "s"], "logits"), node("Softmax", ["logits"], "y", axis=1)],
            {"s": np.float32(scale)},
            shape=(1, 4),
        )

    feeds = {"x": np.array([[100.0, 0.0, 0.0, 0.0]], np.float32)}
    found = verify("any", model(1.0), model(1.1), feeds)
    assert found.tensors == ("logits", "y")
    assert found.difference == pytest.approx(0.1, rel=1e-3)


def test_feeds_are_found_for_open_lengths_and_asked_for_where_none_fits() -> None:
    assert {name: feed.shape for name, feed in sample_feeds(chain((4, 5))).items()} == {"x": (1, 6, 64, 64)}
    assert sample_feeds(chain((4, 5)), {"x": (2, 6, 9, 9)})["x"].shape == (2, 6, 9, 9)
    stuck = build([node("Reshape", ["x", "s"], "y")], {"s": np.array([1, 6, 11, 3])})
    with pytest.raises(DataError, match="give --input-shape"):
        sample_feeds(stuck)


@pytest.mark.parametrize("shape", [("n", 6, 8, 8), ("n", 6, "h", "w"), (1, 6, 8, 8)])
def test_an_operator_that_onnxruntime_does_not_have_is_no_matter_of_shapes(shape: tuple[int | str, ...]) -> None:
    proto = build([node("Relu", ["x"], "y")], shape=shape).to_proto()
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Unheard", "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(ModelError, match=r"does not run, so that .*cannot load it: .*Unheard.*; give --no-verify$"):
        sample_feeds(Model.from_proto(proto))


@pytest.mark.parametrize(("ratio", "nearest", "up"), [(0.3, 16, 32), (0.55, 16, 16), (0.9, 16, 16), (0.1, 16, 24)])
def test_a_part_of_a_block_is_given_back_where_it_costs_no_time(ratio: float, nearest: int, up: int) -> None:
    """Of 32 channels (of 24 in the last case), in blocks of 16: to the nearest width, or to the one above."""
    model = Model.from_proto(conv_net(channels=32 if ratio != 0.1 else 24))
    for round_up, expected in ((False, nearest), (True, up)):
        context = PassContext(round_to=16, round_up=round_up)
        pruning = FilterPruning(PruningConfig(ratio))
        result = pruning.apply(model, pruning.plan(model, context), context)
        node = next(node for node in result.model.nodes if node.name == "second")
        assert node.inputs[1].shape[0] == expected
