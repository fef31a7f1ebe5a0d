"""What the Tucker pass splits, at which ranks, what it leaves alone and why; plans, replay, determinism."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.analysis.cost import model_cost
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.tucker import RankSpec, TuckerConfig, TuckerDecomposition, verify_splits
from onnxcompress.passes.verification import verify
from tests.passes.tucker_models import conv_model, difference, input_of, model_of, only_reason, run, tucker, weight_of


def low_rank_weight(filters: int, channels: int, rank_in: int, rank_out: int, noise: float = 0.01) -> np.ndarray:
    rng = np.random.default_rng(7)
    core = rng.standard_normal((rank_out, rank_in, 3, 3))
    out, into = rng.standard_normal((filters, rank_out)), rng.standard_normal((channels, rank_in))
    kernel = np.einsum("pqxy,op,iq->oixy", core, out, into)
    return (kernel / kernel.std() + noise * rng.standard_normal(kernel.shape)).astype(np.float32)


def ranks_of(model: Model, spec: str, context: PassContext = PassContext(), **config) -> list[int]:  # noqa: B008
    (decision,) = tucker(model, spec, context, **config).plan.decisions
    return decision["ranks"]


def two_convs(*, shared: bool = False) -> Model:
    weights = {"w1": weight_of(16, 16, 3, 3), "w2": weight_of(16, 16, 3, 3, seed=3)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["h"], name="one", pads=[1] * 4),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w1" if shared else "w2"], ["y"], name="two", pads=[1] * 4),
    ]
    used = {name: values for name, values in weights.items() if not shared or name == "w1"}
    return model_of(nodes, used, (1, 16, 8, 8))


def test_evbmf_finds_planted_ranks_and_they_are_in_the_order_in_out():
    model = conv_model(low_rank_weight(64, 48, rank_in=10, rank_out=14), (1, 48, 8, 8))
    assert ranks_of(model, "evbmf") == [10, 14]
    assert ranks_of(model, "auto") == [10, 14]


def test_the_floor_holds_where_evbmf_finds_only_noise():
    model = conv_model(weight_of(64, 48, 3, 3), (1, 48, 8, 8))
    assert ranks_of(model, "evbmf") == [8, 8]
    assert ranks_of(model, "evbmf", min_rank=1) == [6, 8]
    assert ranks_of(model, "evbmf", min_rank=1, floor=0.0) == [1, 1]


def test_the_floor_is_at_most_the_channels():
    model = conv_model(weight_of(64, 3, 3, 3), (1, 3, 8, 8))
    assert ranks_of(model, "evbmf") == [3, 8]


def test_energy_and_ratio_are_taken_as_asked():
    model = conv_model(weight_of(20, 10, 3, 3), (1, 10, 8, 8))
    assert ranks_of(model, "ratio=0.5") == [5, 10]
    assert ranks_of(model, "ratio=0.01") == [1, 1]
    low, high = ranks_of(model, "energy=0.5"), ranks_of(model, "energy=0.9")
    assert low[0] < high[0] < 10
    assert low[1] < high[1] < 20
    assert tucker(model, "energy=0.9").plan.decisions[0]["error"] ** 2 <= 2 * 0.1


def test_ranks_are_rounded_up_to_multiples_within_the_channels():
    model = conv_model(weight_of(20, 12, 3, 3), (1, 12, 8, 8))
    assert ranks_of(model, "ratio=0.3") == [4, 6]
    assert ranks_of(model, "ratio=0.3", PassContext(round_to=4)) == [4, 8]
    assert ranks_of(model, "ratio=0.3", PassContext(round_to=8)) == [8, 8]
    assert ranks_of(model, "ratio=0.3", PassContext(round_to=16)) == [12, 16]
    assert ranks_of(model, "ratio=0.3", PassContext(round_to=64)) == [12, 20]


def test_ranks_of_groups_together_are_rounded():
    model = conv_model(weight_of(32, 8, 3, 3), (1, 32, 8, 8), group=4)
    assert ranks_of(model, "ratio=0.3") == [3, 3]
    assert ranks_of(model, "ratio=0.3", PassContext(round_to=8)) == [4, 4]
    assert ranks_of(model, "ratio=0.3", PassContext(round_to=16)) == [4, 4]
    assert ranks_of(model, "ratio=0.3", PassContext(round_to=32)) == [8, 8]


def test_the_group_that_needs_most_decides():
    weight = weight_of(16, 8, 3, 3)
    weight[:8] = low_rank_weight(8, 8, 1, 1, noise=0.0)
    weight[8:] = low_rank_weight(8, 8, 3, 2, noise=0.0)
    assert ranks_of(conv_model(weight, (1, 16, 8, 8), group=2), "energy=0.999999") == [3, 2]


def test_auto_splits_only_where_macs_and_parameters_fall():
    big = conv_model(low_rank_weight(64, 48, 10, 14), (1, 48, 8, 8))
    (decision,) = tucker(big, "auto").plan.decisions
    assert decision["macs"][1] < decision["macs"][0]
    assert decision["params"][1] < decision["params"][0]
    small = conv_model(weight_of(4, 4, 3, 3), (1, 4, 8, 8))
    assert "lowers both MACs and parameters" in only_reason(tucker(small, "auto"))
    assert tucker(small, "ratio=1.0").modified


def test_auto_leaves_a_mode_whole_where_its_factor_would_cost_more_than_it_saves():
    # Three input channels on a large image: a 1x1 from three to three channels only costs.
    model = conv_model(low_rank_weight(64, 3, 2, 6), (1, 3, 32, 32))
    result = tucker(model, "auto", min_rank=3)
    (decision,) = result.plan.decisions
    assert decision["factors"] == ["core", "out"]
    assert [node.name for node in result.model.nodes] == ["conv_tucker_core", "conv_tucker_out"]
    x = input_of(1, 3, 32, 32)
    assert difference(run(model, x), run(result.model, x)) < 0.05
    assert verify_splits(model, result, {"x": x}).difference < 1e-5


def test_auto_may_split_the_input_mode_only():
    model = conv_model(low_rank_weight(4, 64, 6, 4), (1, 64, 8, 8))
    result = tucker(model, "auto")
    assert result.plan.decisions[0]["factors"] == ["in", "core"]
    assert result.model.nodes[-1].inputs[2].name == "b"
    assert verify_splits(model, result, {"x": input_of(1, 64, 8, 8)}).difference < 1e-5


def test_auto_compares_costs_where_the_image_size_is_open():
    model = conv_model(low_rank_weight(64, 48, 10, 14), ("n", 48, "h", "w"), strides=[2, 2], pads=[1] * 4)
    (decision,) = tucker(model, "auto").plan.decisions
    assert decision["macs"] is None
    assert decision["params"][1] < decision["params"][0]


def test_a_decision_tells_what_the_split_costs():
    model = conv_model(weight_of(20, 12, 3, 3), ("batch", 12, 9, 9), strides=[2, 2])
    result = tucker(model, "ratio=0.5")
    (decision,) = result.plan.decisions
    before, after = model_cost(model), model_cost(result.model)
    assert decision["macs"] == [before.macs, after.macs]
    assert decision["params"] == [before.params, after.params]
    assert before.macs == 20 * 12 * 9 * 16
    assert after.macs == 12 * 6 * 81 + 6 * 10 * 9 * 16 + 10 * 20 * 16


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_decision_tells_what_a_grouped_split_costs(op):
    model = conv_model(weight_of(12, 6, 3, 3), (1, 12, 7, 7), op=op, group=2, strides=[2, 2])
    result = tucker(model, "ratio=0.5")
    assert result.plan.decisions[0]["macs"] == [model_cost(model).macs, model_cost(result.model).macs]
    assert result.plan.decisions[0]["params"] == [model_cost(model).params, model_cost(result.model).params]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: conv_model(weight_of(8, 6, 1, 1), (1, 6, 5, 5)), "1x1"),
        (lambda: conv_model(weight_of(8, 1, 3, 3), (1, 8, 5, 5), group=8), "depthwise"),
        (lambda: conv_model(weight_of(16, 1, 3, 3), (1, 8, 5, 5), group=8), "depthwise"),
        (lambda: conv_model(weight_of(8, 1, 3, 3), (1, 8, 5, 5), op="ConvTranspose", group=8), "depthwise"),
        (lambda: conv_model(np.full((8, 6, 3, 3), np.nan, np.float32), (1, 6, 5, 5)), "NaN or infinite"),
        (lambda: conv_model(np.full((8, 6, 3, 3), np.inf, np.float32), (1, 6, 5, 5)), "NaN or infinite"),
        (lambda: conv_model(np.full((8, 6, 3, 3), 3e38, np.float32), (1, 6, 5, 5)), "too large for float32"),
        (lambda: conv_model(weight_of(8, 6, 3, 3) * np.float32(1e30), (1, 6, 5, 5)), "too large for float32"),
    ],
)
def test_what_cannot_be_split_says_why(model, reason):
    assert reason in only_reason(tucker(model(), "ratio=0.5"))


def test_a_weight_that_is_computed_is_left_alone():
    scale = {"q": np.zeros((8, 6, 3, 3), np.int8), "s": np.float32(0.1)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], name="dq"),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    reason = only_reason(tucker(model_of(nodes, {k: np.asarray(v) for k, v in scale.items()}, (1, 6, 5, 5)), "auto"))
    assert "DequantizeLinear" in reason
    assert "quantized" in reason


def test_excluded_nodes_are_left_alone():
    result = tucker(two_convs(), "ratio=0.5", PassContext(exclude=("^one$",)))
    assert [d["node"] for d in result.plan.decisions] == ["two"]
    assert [(s.node, s.reason) for s in result.plan.skipped] == [("one", "excluded by --exclude")]


def test_full_rank_of_a_measured_rule_is_not_split():
    model = conv_model(weight_of(8, 6, 3, 3), (1, 6, 8, 8))
    assert "full rank" in only_reason(tucker(model, "energy=1.0"))


def test_zeros_are_split_without_complaint():
    model = conv_model(np.zeros((16, 16, 3, 3), np.float32), (1, 16, 8, 8))
    result = tucker(model, "evbmf")
    x = input_of(1, 16, 8, 8)
    np.testing.assert_array_equal(run(model, x), run(result.model, x))


def test_off_does_nothing():
    each = TuckerDecomposition(TuckerConfig(RankSpec("off")))
    model = two_convs()
    assert each.plan(model, PassContext()) == Plan("tucker")
    assert each.apply(model, Plan("tucker"), PassContext()).model is model


def test_a_shared_weight_is_split_once_and_its_factors_are_shared():
    model = two_convs(shared=True)
    result = tucker(model, "ratio=0.5")
    x = input_of(1, 16, 8, 8)
    assert [d["node"] for d in result.plan.decisions] == ["one", "two"]
    assert len(result.model.constants()) == 3
    assert verify_splits(model, result, {"x": x}).difference < 1e-5
    assert saved_params(result.plan) == model_cost(model).params - model_cost(result.model).params
    full = tucker(model, "ratio=1.0")
    assert difference(run(model, x), run(full.model, x)) < 2e-6


def saved_params(plan: Plan) -> int:
    return sum(before - after for before, after in (d["params"] for d in plan.decisions))


def test_a_shared_weight_stays_whole_for_a_reader_that_keeps_it():
    model = two_convs(shared=True)
    excluded = PassContext(exclude=("^two$",))
    result = tucker(model, "ratio=1.0", excluded)
    x = input_of(1, 16, 8, 8)
    assert difference(run(model, x), run(result.model, x)) < 2e-6
    assert "w1" in result.model.constants()
    assert saved_params(result.plan) == model_cost(model).params - model_cost(result.model).params
    reasons = {s.node: s.reason for s in tucker(model, "auto", excluded).plan.skipped}
    assert reasons["one"] == "shares its weight with two, which keeps it"


def test_a_weight_that_a_sub_graph_reads_stays():
    branch_output = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node(op, ["w"], ["b"])], op, [], [branch_output]) for op in ("Neg", "Abs")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
        helper.make_node("Greater", ["zero", "one"], ["c"], name="greater"),
        helper.make_node("If", ["c"], ["z"], name="if", then_branch=branches[0], else_branch=branches[1]),
    ]
    constants = {
        "w": low_rank_weight(64, 48, 10, 14),
        "zero": np.float32(0).reshape(()),
        "one": np.float32(1).reshape(()),
    }
    model = model_of(nodes, constants, (1, 48, 8, 8), outputs=("y", "z"))
    assert only_reason(tucker(model, "auto")) == "shares its weight with a sub-graph, which keeps it"
    result = tucker(model, "evbmf")
    assert saved_params(result.plan) == model_cost(model).params - model_cost(result.model).params
    x = input_of(1, 48, 8, 8)
    assert difference(run(model, x), run(result.model, x)) < 0.05


def test_names_that_are_taken_are_avoided():
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["conv_tucker_core"], name="conv"),
        helper.make_node("Relu", ["conv_tucker_core"], ["y"], name="conv_tucker_in"),
    ]
    result = tucker(model_of(nodes, {"w1": weight_of(8, 6, 3, 3)}, (1, 6, 8, 8)), "ratio=0.5")
    names = [node.name for node in result.model.nodes]
    assert len(set(names)) == len(names) == 4
    assert run(result.model, input_of(1, 6, 8, 8)).shape == (1, 8, 6, 6)


def test_the_input_model_is_untouched_and_bytes_repeat():
    model = two_convs()
    before = model.to_bytes()
    first, second = tucker(model, "evbmf"), tucker(Model.from_bytes(before), "evbmf")
    assert model.to_bytes() == before
    assert first.model.to_bytes() == second.model.to_bytes()
    assert first.plan == second.plan


@pytest.mark.parametrize("spec", ["evbmf", "auto", "ratio=0.5", "energy=0.7"])
def test_a_plan_replays_to_the_same_bytes(spec):
    model = conv_model(low_rank_weight(48, 40, 9, 11), (1, 40, 8, 8))
    planned = tucker(model, spec)
    plan = Plan.from_json(json.loads(json.dumps(planned.plan.to_json())))
    replayed = TuckerDecomposition(TuckerConfig.from_spec("auto")).apply(model, plan, PassContext())
    assert replayed.model.to_bytes() == planned.model.to_bytes()


def test_one_plan_applies_twice():
    model, each = two_convs(), TuckerDecomposition(TuckerConfig.from_spec("ratio=0.5"))
    plan = each.plan(model, PassContext())
    first, second = (each.apply(model, plan, PassContext()).model.to_bytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ({"node": "three", "ranks": [2, 2]}, "another model's plan"),
        ({"node": "relu", "ranks": [2, 2]}, "another model's plan"),
        ({"node": "one", "ranks": [2, 17]}, "rank_out is 17, expected 1 to 16"),
        ({"node": "one", "ranks": [0, 2]}, "rank_in is 0, expected 1 to 16"),
        ({"node": "one", "ranks": [2]}, "lacks a node or two ranks"),
        ({"node": "one", "ranks": "ab"}, "lacks a node or two ranks"),
        ({"ranks": [2, 2]}, "lacks a node or two ranks"),
    ],
)
def test_plans_of_another_model_are_refused(decision, message):
    plan = Plan("tucker", ({"kind": "tucker", **decision},))
    with pytest.raises(RecipeError, match="plan") as error:
        TuckerDecomposition(TuckerConfig.from_spec("auto")).apply(two_convs(), plan, PassContext())
    assert message in str(error.value)


def test_a_plan_for_weights_that_cannot_be_decomposed_is_refused():
    weights = conv_model(np.full((8, 6, 3, 3), 3e38, np.float32), (1, 6, 5, 5))
    each = TuckerDecomposition(TuckerConfig.from_spec("ratio=0.5"))
    plan = each.plan(conv_model(weight_of(8, 6, 3, 3), (1, 6, 5, 5)), PassContext())
    with pytest.raises(RecipeError, match="plan: node 'conv': its weight cannot be decomposed"):
        each.remeasured(weights, plan)


def test_a_plan_that_splits_a_node_twice_is_refused():
    decision = {"node": "one", "ranks": [2, 2]}
    with pytest.raises(RecipeError, match="'one' is split twice"):
        TuckerDecomposition(TuckerConfig.from_spec("auto")).apply(
            two_convs(), Plan("tucker", (decision, decision)), PassContext()
        )


def with_file(tmp_path: Path, content: dict[str, list[int]]) -> str:
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps(content))
    return f"ranks={path}"


def test_a_ranks_file_is_taken_as_it_stands(tmp_path):
    spec = with_file(tmp_path, {"two": [3, 5]})
    result = tucker(two_convs(), spec, PassContext(round_to=8))
    assert [(d["node"], d["ranks"]) for d in result.plan.decisions] == [("two", [3, 5])]
    assert result.plan.skipped[0].reason.startswith("not in ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"three": [1, 1]}, "'three': the model has no node of this name"),
        ({"relu": [1, 1]}, "'relu': is not a convolution"),
        ({"one": [17, 1]}, "'one': rank_in is 17, expected 1 to 16"),
        ({"one": [1, 17]}, "'one': rank_out is 17, expected 1 to 16"),
    ],
)
def test_ranks_files_that_do_not_fit_the_model(tmp_path, content, message):
    with pytest.raises(RecipeError) as error:
        tucker(two_convs(), with_file(tmp_path, content))
    assert message in str(error.value)


def test_a_ranks_file_may_not_name_what_cannot_be_split(tmp_path):
    model = conv_model(weight_of(8, 6, 1, 1), (1, 6, 5, 5))
    with pytest.raises(RecipeError, match="'conv': cannot be split: its kernel is 1x1"):
        tucker(model, with_file(tmp_path, {"conv": [2, 2]}))


def test_googlenet_lands_on_the_published_cost(shared_data: Path):
    model = Model.load(shared_data / "googlenet-bvlc.onnx")
    result = tucker(model, "evbmf", PassContext(exclude=("^conv1/7x7_s2$",)))
    cost = model_cost(result.model)
    assert cost.macs == pytest.approx(738e6, rel=0.02)
    assert cost.params == pytest.approx(4.44e6, rel=0.02)
    pointwise = {n.name for n in model.nodes if n.op == "Conv" and n.inputs[1].shape[2] == 1}
    assert pointwise < {n.name for n in result.model.nodes}
    assert len(result.plan.decisions) == 19


def test_googlenet_at_full_rank_is_googlenet(shared_data: Path):
    model = Model.load(shared_data / "googlenet-bvlc.onnx")
    result = tucker(model, "ratio=1.0")
    assert len(result.plan.decisions) == 20
    compared = verify("tucker", model, result.model, {"data": input_of(1, 3, 224, 224) * 60})
    assert compared.tensors
    assert compared.difference < 1e-5
