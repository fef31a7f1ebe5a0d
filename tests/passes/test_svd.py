"""The SVD pass: 1x1 convolutions, Gemm and MatMul in every form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from onnxcompress.analysis.cost import model_cost
from onnxcompress.errors import PassError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.tucker import RankSpec, SvdConfig, SvdDecomposition, verify_splits
from tests.passes.tucker_models import (
    conv_model,
    difference,
    input_of,
    model_of,
    only_reason,
    run,
    svd,
    tucker,
    weight_of,
)

CONVS = {
    "plain": ((10, 8, 1, 1), (2, 8, 5, 6), {}),
    "strides": ((10, 8, 1, 1), (1, 8, 7, 6), {"strides": [2, 3]}),
    "pads": ((10, 8, 1, 1), (1, 8, 4, 4), {"pads": [1, 0, 2, 1]}),
    "same": ((10, 8, 1, 1), (1, 8, 5, 5), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "1-D": ((6, 9, 1), (1, 9, 12), {"strides": [2]}),
    "3-D": ((6, 9, 1, 1, 1), (1, 9, 3, 4, 5), {}),
}
GEMMS = {
    "plain": {},
    "transB": {"transB": 1},
    "transA": {"transA": 1},
    "transposed": {"transA": 1, "transB": 1},
    "scaled": {"alpha": 0.5, "beta": -2.0, "transB": 1},
}


def low_rank(rows: int, columns: int, rank: int = 4) -> np.ndarray:
    noise = 0.02 * weight_of(rows, columns, seed=3)
    return (weight_of(rows, rank, seed=1) @ weight_of(rank, columns, seed=2) + noise).astype(np.float32)


def gemm_model(weight: np.ndarray, bias: np.ndarray | None = None, *, opset: int = 17, **attributes) -> Model:
    inputs = weight.shape[1] if attributes.get("transB") else weight.shape[0]
    constants = {"w": weight, **({} if bias is None else {"c": bias})}
    node = helper.make_node("Gemm", ["x", *constants], ["y"], name="gemm", **attributes)
    shape = (inputs, 3) if attributes.get("transA") else (3, inputs)
    return model_of([node], constants, shape, opset=opset)


def matmul_model(weight: np.ndarray, *shape: int | str) -> Model:
    return model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")], {"w": weight}, shape)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CONVS)
def test_pointwise_convolutions(name, bias):
    weight, shape, attributes = CONVS[name]
    model, x = conv_model(weight_of(*weight), shape, bias=bias, **attributes), input_of(*shape)
    full = svd(model, "ratio=1.0")
    assert [(n.name, n.op) for n in full.model.nodes] == [("conv_svd_first", "Conv"), ("conv_svd_second", "Conv")]
    assert difference(run(model, x), run(full.model, x)) < 2e-6
    half = svd(model, "ratio=0.5")
    first, second = (n.inputs[1].values.reshape(n.inputs[1].shape[:2]) for n in half.model.nodes)
    reference = model.copy()
    reference.set_input(reference.nodes[0], 1, (second @ first).reshape(weight))
    assert difference(run(reference, x), run(half.model, x)) < 2e-6
    assert verify_splits(model, half, {"x": x}).difference < 2e-6


# C is not optional before opset 11.
@pytest.mark.parametrize(
    ("bias", "opset"), [(None, 11), (None, 17), *((c, opset) for c in [(7,), (3, 7), (3, 1), ()] for opset in (9, 17))]
)
@pytest.mark.parametrize("name", GEMMS)
def test_gemm(name, bias, opset):
    attributes = GEMMS[name]
    c = None if bias is None else weight_of(*bias, seed=9) if bias else np.float32(0.7).reshape(())
    weight = weight_of(7, 12) if attributes.get("transB") else weight_of(12, 7)
    model = gemm_model(weight, c, opset=opset, **attributes)
    x = input_of(*((12, 3) if attributes.get("transA") else (3, 12)))
    full = svd(model, "ratio=1.0")
    assert [node.op for node in full.model.nodes] == ["Gemm", "Gemm"]
    assert difference(run(model, x), run(full.model, x)) < 2e-6
    half = svd(model, "ratio=0.5")
    assert verify_splits(model, half, {"x": x}).difference < 2e-6
    changed = half.model.nodes[1].inputs[1].values.copy()
    changed.flat[0] += 1.0
    half.model.nodes[1].inputs[1].values = changed
    with pytest.raises(PassError, match="its factors are"):
        verify_splits(model, half, {"x": x})


@pytest.mark.parametrize("shape", [(3, 12), (2, 3, 12), (2, 2, 3, 12), (12,)])
def test_matmul(shape):
    model, x = matmul_model(weight_of(12, 7), *shape), input_of(*shape)
    full = svd(model, "ratio=1.0")
    assert [node.op for node in full.model.nodes] == ["MatMul", "MatMul"]
    assert difference(run(model, x), run(full.model, x)) < 2e-6
    assert verify_splits(model, svd(model, "ratio=0.4"), {"x": x}).difference < 2e-6


@pytest.mark.parametrize("rows_and_columns", [(40, 30), (30, 40)])
def test_auto_keeps_the_energy_where_it_pays(rows_and_columns):
    model = matmul_model(low_rank(*rows_and_columns), 5, rows_and_columns[0])
    result = svd(model, "auto")
    (decision,) = result.plan.decisions
    assert decision["ranks"][0] <= 4
    assert decision["error"] ** 2 <= 0.05
    assert decision["macs"] == [model_cost(model).macs, model_cost(result.model).macs]
    assert decision["params"] == [model_cost(model).params, model_cost(result.model).params]
    assert decision["channels"] == list(rows_and_columns)


def test_auto_leaves_what_does_not_pay():
    reason = only_reason(svd(matmul_model(weight_of(12, 12), 3, 12), "auto"))
    assert "does not lower both MACs and parameters" in reason


def test_energy_keeps_what_is_asked_and_no_more():
    model = matmul_model(weight_of(30, 30), 3, 30)
    (decision,) = svd(model, "energy=0.8").plan.decisions
    values = np.linalg.svd(weight_of(30, 30), compute_uv=False) ** 2
    rank = decision["ranks"][0]
    assert values[:rank].sum() >= 0.8 * values.sum() > values[: rank - 1].sum()
    assert decision["error"] == pytest.approx(np.sqrt(values[rank:].sum() / values.sum()), rel=1e-6)
    assert "full rank" in only_reason(svd(model, "energy=1.0"))


def test_ranks_are_rounded_up_within_the_shorter_side():
    model = matmul_model(weight_of(20, 13), 3, 20)
    for round_to, rank in ((1, 4), (4, 4), (8, 8), (32, 13)):
        (decision,) = svd(model, "ratio=0.3", PassContext(round_to=round_to)).plan.decisions
        assert decision["ranks"] == [rank]


def test_an_orthonormal_factor_is_left_alone():
    """What the Tucker pass leaves behind is no matrix to truncate: no direction of it is less used than another."""
    model = conv_model(weight_of(16, 12, 3, 3), (1, 12, 8, 8))
    split = tucker(model, "ratio=0.5").model
    result = svd(split, "ratio=0.5")
    assert not result.modified
    reasons = {s.node: s.reason for s in result.plan.skipped}
    assert set(reasons) == {"conv_tucker_in", "conv_tucker_out"}
    assert all("all equal" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: conv_model(weight_of(8, 4, 1, 1), (1, 8, 5, 5), group=2), "grouped"),
        (lambda: matmul_model(weight_of(2, 12, 7), 2, 3, 12), "3 axes"),
        (lambda: matmul_model(weight_of(12), 3, 12), "1 axes"),
        (lambda: matmul_model(np.full((12, 7), np.nan, np.float32), 3, 12), "NaN"),
    ],
)
def test_what_cannot_be_split_says_why(model, reason):
    assert reason in only_reason(svd(model(), "ratio=0.5"))


def test_weights_that_are_not_on_the_right_or_not_constant():
    nodes = [
        helper.make_node("MatMul", ["w", "x"], ["h"], name="left"),
        helper.make_node("Transpose", ["h"], ["t"], name="transpose"),
        helper.make_node("MatMul", ["h", "t"], ["y"], name="attention"),
    ]
    result = svd(model_of(nodes, {"w": weight_of(9, 6)}, (6, 4)), "ratio=0.5")
    reasons = {s.node: s.reason for s in result.plan.skipped}
    assert reasons["left"] == "its constant stands on the left"
    assert "not a constant but computed by Transpose" in reasons["attention"]


def test_convolutions_with_a_kernel_are_not_its_business():
    result = svd(conv_model(weight_of(8, 6, 3, 3), (1, 6, 5, 5)), "ratio=0.5")
    assert result.plan == Plan("svd")


def test_off_does_nothing():
    each = SvdDecomposition(SvdConfig(RankSpec("off")))
    assert each.plan(matmul_model(weight_of(12, 7), 3, 12), PassContext()) == Plan("svd")


def test_a_shared_matrix_is_split_once():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="two"),
    ]
    model = model_of(nodes, {"w": low_rank(30, 30)}, (3, 30))
    result = svd(model, "auto")
    assert len(result.plan.decisions) == 2
    assert len(result.model.constants()) == 2
    saved = sum(before - after for before, after in (d["params"] for d in result.plan.decisions))
    assert saved == model_cost(model).params - model_cost(result.model).params
    excluded = svd(model, "auto", PassContext(exclude=("two",)))
    assert {s.node: s.reason for s in excluded.plan.skipped}["one"] == "shares its weight with two, which keeps it"


def test_replay_and_repetition_give_the_same_bytes():
    model = matmul_model(low_rank(40, 30), 5, 40)
    before = model.to_bytes()
    first = svd(model, "auto")
    assert model.to_bytes() == before
    plan = Plan.from_json(json.loads(json.dumps(first.plan.to_json())))
    replayed = SvdDecomposition(SvdConfig.from_spec("auto")).apply(Model.from_bytes(before), plan, PassContext())
    assert replayed.model.to_bytes() == first.model.to_bytes() == svd(model, "auto").model.to_bytes()


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ({"node": "other", "ranks": [2]}, "another model's plan"),
        ({"node": "matmul", "ranks": [8]}, "the rank is 8, expected 1 to 7"),
        ({"node": "matmul", "ranks": [0]}, "the rank is 0"),
        ({"node": "matmul", "ranks": [2, 2]}, "lacks a node or one rank"),
        ({"node": "matmul"}, "lacks a node or one rank"),
    ],
)
def test_plans_of_another_model_are_refused(decision, message):
    with pytest.raises(RecipeError) as error:
        SvdDecomposition(SvdConfig.from_spec("auto")).apply(
            matmul_model(weight_of(12, 7), 3, 12), Plan("svd", (decision,)), PassContext()
        )
    assert message in str(error.value)


def test_a_plan_for_weights_that_cannot_be_decomposed_is_refused():
    each = SvdDecomposition(SvdConfig.from_spec("auto"))
    plan = Plan("svd", ({"node": "matmul", "ranks": [2]},))
    with pytest.raises(RecipeError, match="plan: node 'matmul': its weight cannot be decomposed"):
        each.remeasured(matmul_model(np.full((12, 7), 3e38, np.float32), 3, 12), plan)


def test_googlenets_matrices(shared_data: Path):
    model = Model.load(shared_data / "googlenet-bvlc.onnx")
    result = svd(model, "auto")
    before, after = model_cost(model), model_cost(result.model)
    assert after.macs < before.macs
    assert after.params < before.params
    assert all(d["macs"][1] < d["macs"][0] and d["params"][1] < d["params"][0] for d in result.plan.decisions)
    assert len(result.plan.decisions) + len(result.plan.skipped) == 38
