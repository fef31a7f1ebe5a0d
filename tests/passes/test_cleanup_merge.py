"""Linear layers directly behind one another become one, where that costs less and changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxcompress
from onnxcompress.analysis.cost import model_cost
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.cleanup import LinearMerging
from tests.passes.cleanup_models import assert_close, clean, ops, reasons
from tests.small_models import build, node

TOLERANCE = 1e-5


def values(*shape: int, seed: int = 0) -> Any:
    return (np.random.default_rng(seed + sum(shape)).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(
        np.float32
    )


def pair(
    middle: int,
    first: dict[str, Any] | None = None,
    second: dict[str, Any] | None = None,
    *,
    kernels: tuple[int, int] = (1, 1),
    biases: tuple[bool, bool] = (True, True),
    reader: bool = False,
) -> Model:
    """Two convolutions of six channels to `middle` to eight; `reader` adds one more reader of what is between."""
    constants = {
        "v": values(middle, 6, kernels[0], kernels[0]),
        "w": values(8, middle, kernels[1], kernels[1]),
        "a": values(middle, 1)[:, 0],
        "b": values(8, 1)[:, 0],
    }
    nodes = [
        node("Conv", ["x", "v", *(["a"] if biases[0] else [])], "z", name="first", **(first or {})),
        node("Conv", ["z", "w", *(["b"] if biases[1] else [])], "y", name="second", **(second or {})),
    ]
    if reader:
        nodes.append(node("Relu", ["z"], "r"))
    return build(nodes, constants, shape=("n", 6, 9, 9), outputs=["y", "r"] if reader else ["y"])


@given(
    sides=st.sampled_from([(1, 1), (1, 3), (3, 1)]),
    stride=st.sampled_from([1, 2]),
    pad=st.sampled_from([0, 1]),
    dilation=st.sampled_from([1, 2]),
    biases=st.tuples(st.booleans(), st.booleans()),
    middle=st.sampled_from([7, 30]),
)
def test_two_are_one(
    sides: tuple[int, int], stride: int, pad: int, dilation: int, biases: tuple[bool, bool], middle: int
) -> None:
    geometry = {"strides": [stride, stride], "pads": [pad] * 4, "dilations": [dilation] * 2}
    if sides == (1, 1):
        first, second = {}, {"strides": [stride, stride]}
    else:
        first, second = (geometry, {}) if sides[0] == 3 else ({}, geometry)
    model = pair(middle, first, second, kernels=sides, biases=biases)
    cleaned, plan = clean(model, "merge")
    before, after = model_cost(model), model_cost(cleaned)
    if sides == (1, 3) and pad and biases[0]:
        assert "'second' pads with zeros where 'first' has its bias" in reasons(plan)["second"]
        assert ops(cleaned) == ["Conv", "Conv"]
        return
    if ops(cleaned) == ["Conv", "Conv"]:
        # Without the 3x3's own cost, a middle of seven for six and eight channels is no detour worth a larger kernel.
        assert not plan.decisions
        assert middle == 7
        return
    assert (after.params, after.macs) == (plan.decisions[0]["params"][1], plan.decisions[0]["macs"][1])
    assert (before.params, before.macs) == (plan.decisions[0]["params"][0], plan.decisions[0]["macs"][0])
    assert after.params <= before.params
    assert (after.macs or 0) <= (before.macs or 0)
    assert_close(model, cleaned, TOLERANCE, n=2)


def test_a_wide_middle_is_merged_and_a_narrow_one_stays() -> None:
    assert ops(clean(pair(30), "merge")[0]) == ["Conv"]
    for model in (pair(2), pair(2, kernels=(3, 1)), pair(2, kernels=(1, 3))):
        cleaned, plan = clean(model, "merge")
        assert ops(cleaned) == ["Conv", "Conv"]
        assert plan.decisions == ()
        assert plan.skipped == ()


def test_what_is_read_elsewhere_grouped_or_excluded_stays() -> None:
    assert ops(clean(pair(30, reader=True), "merge")[0]).count("Conv") == 2
    grouped = build(
        [node("Conv", ["x", "v"], "z", group=2), node("Conv", ["z", "w"], "y")],
        {"v": values(30, 3, 1, 1), "w": values(8, 30, 1, 1)},
        shape=("n", 6, 5, 5),
    )
    assert "is grouped" in next(iter(reasons(clean(grouped, "merge")[1]).values()))
    kernels = pair(30, kernels=(3, 3), biases=(False, False))
    assert "neither of the two is a 1x1" in reasons(clean(kernels, "merge")[1])["second"]
    plan = clean(pair(30), "merge", context=PassContext(exclude=("^first$",)))[1]
    assert reasons(plan) == {"second": "merge: 'first' is excluded by --exclude"}


def test_relu_between_keeps_them_apart() -> None:
    constants = {"v": values(30, 6, 1, 1), "w": values(8, 30, 1, 1)}
    nodes = [node("Conv", ["x", "v"], "z"), node("Relu", ["z"], "r"), node("Conv", ["r", "w"], "y")]
    assert ops(clean(build(nodes, constants, shape=("n", 6, 5, 5)), "merge")[0]) == ["Conv", "Relu", "Conv"]


@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_matrices(transposed: tuple[int, int]) -> None:
    first, second = values(6, 40), values(40, 8)
    constants = {
        "v": first.T.copy() if transposed[0] else first,
        "w": second.T.copy() if transposed[1] else second,
        "a": values(40, 1)[:, 0],
        "b": values(8, 1)[:, 0],
    }
    nodes = [
        node("Gemm", ["x", "v", "a"], "z", alpha=2.0, beta=0.5, transB=transposed[0]),
        node("Gemm", ["z", "w", "b"], "y", alpha=0.5, beta=3.0, transB=transposed[1]),
    ]
    model = build(nodes, constants, shape=("n", 6))
    cleaned, _ = clean(model, "merge")
    assert ops(cleaned) == ["Gemm"]
    assert_close(model, cleaned, TOLERANCE, n=3)
    products = build(
        [node("MatMul", ["x", "v"], "z"), node("MatMul", ["z", "w"], "y")], {"v": first, "w": second}, shape=(2, "n", 6)
    )
    cleaned, _ = clean(products, "merge")
    assert ops(cleaned) == ["MatMul"]
    assert_close(products, cleaned, TOLERANCE, n=3)


def test_a_chain_becomes_one_in_several_rounds() -> None:
    constants = {"u": values(30, 6, 1, 1), "v": values(30, 30, 1, 1), "w": values(8, 30, 1, 1)}
    nodes = [node("Conv", [a, w], b) for a, w, b in (("x", "u", "p"), ("p", "v", "q"), ("q", "w", "y"))]
    model = build(nodes, constants, shape=("n", 6, 5, 5))
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Conv"]
    assert_close(model, cleaned, TOLERANCE, n=2)


def bottlenecks() -> Any:
    """Two wide 1x1 convolutions with a linear bottleneck between, so that a split of the second one meets the first."""
    constants = {
        "u": values(64, 6, 3, 3),
        "v": values(32, 64, 1, 1),
        "w": values(64, 32, 1, 1),
        "t": values(4, 64, 3, 3),
    }
    nodes = [
        node("Conv", ["x", "u"], "p", name="into"),
        node("Relu", ["p"], "q"),
        node("Conv", ["q", "v"], "r", name="project"),
        node("Conv", ["r", "w"], "s", name="expand"),
        node("Relu", ["s"], "t0"),
        node("Conv", ["t0", "t"], "y", name="last"),
    ]
    return build(nodes, constants, shape=("n", 6, 8, 8)).to_proto()


@pytest.mark.parametrize("recover", ["none", "refit"])
def test_factors_of_neighbours_are_merged_behind_the_recovery(recover: str, tmp_path: Any) -> None:
    data = {"x": np.random.default_rng(1).standard_normal((64, 6, 8, 8)).astype(np.float32)}
    options: dict[str, Any] = {"svd": "ratio=0.25", "latency": False}
    calib = [{"x": data["x"][at : at + 16]} for at in range(0, 64, 16)] if recover == "refit" else None
    plan = tmp_path / "plan.json"
    result = onnxcompress.compress(bottlenecks(), recover=recover, calib=calib, save_plan=plan, **options)
    names = [stage.pass_name for stage in result.report.stages]
    assert names == ["cleanup", "svd", *(["refit"] if recover == "refit" else []), "merge"]
    before, after = result.report.stages[-2:]
    assert len(after.decisions) >= 1
    assert after.params < before.params
    assert (after.macs or 0) < (before.macs or 0)
    assert [check.pass_name for check in result.report.self_checks][-1] == "merge"
    replayed = onnxcompress.compress(bottlenecks(), plan=plan, calib=calib, latency=False)
    assert replayed.model.to_bytes() == result.model.to_bytes()
    left_apart = onnxcompress.compress(bottlenecks(), recover=recover, calib=calib, cleanup="auto,-merge", **options)
    assert [stage.pass_name for stage in left_apart.report.stages] == names[:-1]
    assert_close(left_apart.model, result.model, 1e-4, n=2)


def test_a_stage_that_finds_nothing_is_not_told() -> None:
    constants = {"v": values(16, 6, 3, 3), "w": values(8, 16, 3, 3)}
    nodes = [node("Conv", ["x", "v"], "z"), node("Relu", ["z"], "r"), node("Conv", ["r", "w"], "y")]
    model = build(nodes, constants, shape=("n", 6, 8, 8)).to_proto()
    for spec in ("ratio=0.3", "ratio=1.0"):
        result = onnxcompress.compress(model, tucker=spec, latency=False)
        assert [stage.pass_name for stage in result.report.stages] == ["cleanup", "tucker"]
        assert ops(result.model).count("Conv") > 2


def test_a_plan_of_another_model_is_refused() -> None:
    merging, model = LinearMerging(), pair(30)
    plan = merging.plan(model, PassContext())
    with pytest.raises(onnxcompress.errors.RecipeError, match="does not have"):
        merging.apply(build([node("Relu", ["x"], "y")]), plan, PassContext())
