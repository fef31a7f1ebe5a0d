"""Activations in several nodes become operators: told by what they compute, however it is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.passes.race import RaceResult
from tests.passes.cleanup_models import assert_close, clean, ops, random_input, reasons
from tests.small_models import build, node, run_all

OPSETS = [9, 11, 13, 18, 23]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TOLERANCE = 1e-6


def number(value: float, rank: int = 0) -> Any:
    return np.full((1,) * rank, value, np.float32)


NUMBERS = {
    "zero": number(0),
    "half": number(0.5),
    "one": number(1),
    "three": number(3),
    "six": number(6, 4),
    "sixth": number(1 / 6, 1),
    "fifth": number(0.2),
    "tenth": number(0.1),
}


def model_of(*nodes: onnx.NodeProto, opset: int = 17, **extra: Any) -> Model:
    """Return a Conv of range about -20 to 20 and nodes that read its output `c`."""
    weight = np.random.default_rng(0).standard_normal((4, 6, 1, 1)).astype(np.float32) * 3
    read = {name for each in nodes for name in each.input}
    constants = {name: value for name, value in NUMBERS.items() if name in read}
    return build([node("Conv", ["x", "w"], "c"), *nodes], {"w": weight, **constants}, opset=opset, **extra)


def clip(source: str, target: str, opset: int, low: str = "zero", high: str = "six") -> onnx.NodeProto:
    if opset < 11:
        bounds = {key: float(NUMBERS[name].reshape(-1)[0]) for key, name in (("min", low), ("max", high))}
        return node("Clip", [source], target, **bounds)
    return node("Clip", [source, f"{low}_bound", f"{high}_bound"], target)


BOUNDS = {f"{name}_bound": value.reshape(()) for name, value in NUMBERS.items()}
NUMBERS.update(BOUNDS)


def hard_swish(opset: int) -> list[onnx.NodeProto]:
    return [
        node("Add", ["c", "three"], "p"),
        clip("p", "q", opset),
        node("Mul", ["c", "q"], "r"),
        node("Div", ["r", "six"], "y"),
    ]


@pytest.mark.parametrize("opset", OPSETS)
def test_a_hard_swish_of_four_nodes_becomes_two(opset: int) -> None:
    model = model_of(*hard_swish(opset), opset=opset)
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Conv", "HardSigmoid", "Mul"]
    assert dict(plan.decisions[0]) == {
        "step": "activation",
        "round": 1,
        "node": "Div_4",
        "op": "Div",
        "nodes": ["Add_1", "Clip_2", "Mul_3", "Div_4"],
        "input": "c",
        "output": "y",
        "function": "HardSwish",
        "alpha": pytest.approx(1 / 6),
        "beta": pytest.approx(0.5),
        "why": "not timed; known to be faster on CPU",
    }
    assert [t.name for t in cleaned.graph.outputs] == ["y"]
    assert_close(model, cleaned, TOLERANCE)


FORMS: dict[str, tuple[list[onnx.NodeProto], list[str]]] = {
    "hard swish, scaled first": (
        [
            node("Add", ["three", "c"], "p"),
            node("Relu", ["p"], "q"),
            node("Min", ["six", "q"], "r"),
            node("Mul", ["r", "sixth"], "s"),
            node("Mul", ["s", "c"], "y"),
        ],
        ["HardSigmoid", "Mul"],
    ),
    "hard swish, x scaled": (
        [
            node("Mul", ["c", "sixth"], "p"),
            node("Add", ["c", "three"], "q"),
            clip("q", "r", 17),
            node("Mul", ["p", "r"], "y"),
        ],
        ["HardSigmoid", "Mul"],
    ),
    "hard sigmoid": (
        [node("Add", ["c", "three"], "p"), clip("p", "q", 17), node("Div", ["q", "six"], "y")],
        ["HardSigmoid"],
    ),
    "hard sigmoid that falls": (
        [
            node("Sub", ["half", "c"], "p"),
            node("Max", ["p", "zero"], "q"),
            node("Min", ["q", "one"], "y"),
        ],
        ["HardSigmoid"],
    ),
    "hard sigmoid, scaled": (
        [node("Mul", ["c", "fifth"], "p"), node("Add", ["p", "half"], "q"), clip("q", "y", 17, "zero", "one")],
        ["HardSigmoid"],
    ),
    "relu6": ([node("Relu", ["c"], "p"), node("Min", ["p", "six"], "y")], ["Clip"]),
    "clip, open below": (
        [node("Sub", ["c", "three"], "p"), node("Add", ["p", "three"], "q"), node("Min", ["q", "six"], "y")],
        ["Clip"],
    ),
    "clip, open above": ([node("Max", ["c", "half"], "y")], ["Clip"]),
    "relu": ([node("Max", ["zero", "c"], "y")], ["Relu"]),
    "relu by way of the absolute value": (
        [node("Abs", ["c"], "p"), node("Add", ["p", "c"], "q"), node("Mul", ["q", "half"], "y")],
        ["Relu"],
    ),
    "leaky": ([node("Mul", ["c", "tenth"], "p"), node("Max", ["c", "p"], "y")], ["LeakyRelu"]),
    "leaky, by parts": (
        [
            node("Relu", ["c"], "p"),
            node("Neg", ["c"], "q"),
            node("Relu", ["q"], "r"),
            node("Mul", ["r", "tenth"], "s"),
            node("Sub", ["p", "s"], "y"),
        ],
        ["LeakyRelu"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_is_told_by_what_it_computes(form: str) -> None:
    nodes, expected = FORMS[form]
    model = model_of(*nodes)
    cleaned, plan = clean(model, "activation")
    assert ops(cleaned) == ["Conv", *expected]
    assert len(plan.decisions) == 1
    assert_close(model, cleaned, TOLERANCE)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("bounds", [("Max", "half"), ("Min", "six")])
def test_a_clip_of_one_bound_is_valid_in_every_opset(opset: int, bounds: tuple[str, str]) -> None:
    op, name = bounds
    model = model_of(node("Add", ["c", "zero"], "p"), node(op, ["p", name], "y"), opset=opset)
    cleaned, _ = clean(model, "activation")
    assert ops(cleaned) == ["Conv", "Clip"]
    assert_close(model, cleaned, TOLERANCE)


@pytest.mark.parametrize(
    "nodes",
    [
        # Its own operators already.
        [node("HardSigmoid", ["c"], "p", alpha=1 / 6, beta=0.5), node("Mul", ["c", "p"], "y")],
        [node("HardSigmoid", ["c"], "y")],
        [clip("c", "y", 17)],
        # Functions that are no activation.
        [node("Add", ["c", "three"], "p"), clip("p", "q", 17), node("Mul", ["c", "q"], "y")],
        [
            node("Add", ["c", "three"], "p"),
            clip("p", "q", 17),
            node("Mul", ["c", "q"], "r"),
            node("Div", ["r", "three"], "y"),
        ],
        [node("Neg", ["c"], "p"), node("Abs", ["p"], "y")],
        [node("Add", ["c", "three"], "p"), node("Sub", ["p", "three"], "y")],
        [node("Div", ["six", "c"], "p"), node("Max", ["p", "c"], "y")],
        [node("Mul", ["c", "six"], "p"), node("Max", ["c", "p"], "q"), node("Tanh", ["q"], "y")],
    ],
)
def test_what_is_none_or_one_already_stays(nodes: list[onnx.NodeProto]) -> None:
    model = model_of(*nodes)
    cleaned, plan = clean(model, "activation")
    assert ops(cleaned) == ops(model)
    assert plan == Plan("cleanup")


def test_what_something_else_reads_stays() -> None:
    nodes = hard_swish(17)
    for extra, outputs in (([node("Exp", ["q"], "z")], ["y", "z"]), ([], ["y", "q"])):
        model = model_of(*nodes, *extra, outputs=outputs)
        cleaned, plan = clean(model, "activation")
        assert ops(cleaned) == ops(model)
        assert plan == Plan("cleanup")


def test_the_part_that_nothing_else_reads_is_written() -> None:
    """Relu and Min are a Clip; the factor behind makes no operator of it."""
    model = model_of(node("Relu", ["c"], "p"), node("Min", ["p", "six"], "q"), node("Mul", ["q", "tenth"], "y"))
    cleaned, _ = clean(model, "activation")
    assert ops(cleaned) == ["Conv", "Clip", "Mul"]
    assert_close(model, cleaned, TOLERANCE)


def test_one_activation_may_feed_another() -> None:
    second = [node("Mul", ["y", "tenth"], "s"), node("Max", ["s", "y"], "z")]
    model = model_of(*hard_swish(17), *second)
    cleaned, plan = clean(model, "activation")
    assert ops(cleaned) == ["Conv", "HardSigmoid", "Mul", "LeakyRelu"]
    assert len(plan.decisions) == 2
    assert_close(model, cleaned, TOLERANCE)


def test_constants_that_differ_or_widen_are_no_numbers() -> None:
    per_channel = np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    for bound in (per_channel, number(6, 5), np.float32("nan")):
        nodes = [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "p"), node("Min", ["p", "bound"], "y")]
        model = build(nodes, {"w": np.ones((4, 6, 1, 1), np.float32), "bound": bound})
        assert ops(clean(model, "activation")[0]) == ops(model)


def test_only_float32_is_written_anew() -> None:
    nodes = [
        node("Cast", ["c"], "h", to=TensorProto.FLOAT16),
        node("Relu", ["h"], "p"),
        node("Min", ["p", "bound"], "y"),
    ]
    weight = np.ones((4, 6, 1, 1), np.float32)
    model = build([node("Conv", ["x", "w"], "c"), *nodes], {"w": weight, "bound": np.float16(6)})
    assert ops(clean(model, "activation")[0]) == ops(model)


def test_exclude_keeps_it_whichever_node_is_named() -> None:
    model = model_of(*hard_swish(17))
    for name in ("Add_1", "Clip_2", "Div_4"):
        cleaned, plan = clean(model, "activation", context=PassContext(exclude=(f"^{name}$",)))
        assert ops(cleaned) == ops(model)
        assert reasons(plan)["Div_4"] == f"activation: '{name}' is excluded by --exclude"


@pytest.mark.parametrize(("interval", "wins"), [((1.3, 1.5), True), ((0.98, 1.02), False), ((0.8, 0.9), False)])
def test_a_race_decides(interval: tuple[float, float], wins: bool) -> None:
    model = model_of(*hard_swish(17))
    result = RaceResult(CPU, float(np.mean(interval)), interval)
    plan = Cleanup().plan(model, PassContext(race=lambda before, after: (result,)))
    assert bool(plan.decisions) == wins
    told = plan.decisions[0]["why"] if wins else reasons(plan)["Div_4"]
    assert f"{result.speedup:.2f} x on CPU, timed in the network" in told


def test_the_race_is_run_behind_everything_that_needs_none() -> None:
    """A factor left before the activation keeps it from being fused, which would hide what it gains."""
    raced: list[list[str]] = []

    def race(before: Model, after: Model) -> tuple[RaceResult, ...]:
        raced.append(ops(before))
        return (RaceResult(CPU, 1.2, (1.1, 1.3)),)

    affine = [node("Mul", ["c", "tenth"], "m"), node("Add", ["m", "half"], "a"), node("Sub", ["a", "fifth"], "s")]
    swish = [
        node(each.op_type, ["s" if name == "c" else name for name in each.input], *each.output)
        for each in hard_swish(17)
    ]
    model = model_of(*affine, *swish)
    cleaned, plan = clean(model, context=PassContext(race=race))
    assert raced == [["Conv", "Add", "Clip", "Mul", "Div"]]
    assert [decision["step"] for decision in plan.decisions] == ["scale", "scale", "scale", "activation"]
    assert ops(cleaned) == ["Conv", "HardSigmoid", "Mul"]
    assert_close(model, cleaned, TOLERANCE)


def test_the_summand_of_a_hard_sigmoid_is_folded_into_no_convolution() -> None:
    model = model_of(node("Add", ["c", "three"], "p"), clip("p", "q", 17), node("Div", ["q", "six"], "y"))
    cleaned, plan = clean(model)
    assert ops(cleaned) == ["Conv", "HardSigmoid"]
    assert [decision["step"] for decision in plan.decisions] == ["activation"]


def test_without_a_race_cuda_keeps_what_it_is_given() -> None:
    model = model_of(*hard_swish(17))
    assert ops(clean(model, context=PassContext(providers=(CUDA,)))[0]) == ops(model)


@pytest.mark.parametrize("change", [{"input": "nothing"}, {"nodes": ["Add_1", "Gone"]}, {"node": "Conv_0"}])
def test_a_plan_of_another_model_is_refused(change: dict[str, Any]) -> None:
    model = model_of(*hard_swish(17))
    (decision,) = Cleanup().plan(model, PassContext()).decisions
    with pytest.raises(RecipeError, match="plan: clean-up"):
        Cleanup().apply(model, Plan("cleanup", ({**decision, **change},)), PassContext())


STEPS = ["Add", "Mul", "Relu", "Clip", "Max", "Min", "Neg", "Abs", "Div", "times c", "plus c"]


@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.sampled_from(["half", "three", "six", "tenth"])), min_size=2, max_size=7
    )
)
def test_random_chains_compute_the_same(steps: list[tuple[str, str]]) -> None:
    nodes: list[onnx.NodeProto] = []
    tensor = "c"
    for place, (op, constant) in enumerate(steps):
        target = f"t{place}"
        if op in ("Relu", "Neg", "Abs"):
            nodes.append(node(op, [tensor], target))
        elif op == "Clip":
            nodes.append(clip(tensor, target, 17, "zero", constant))
        elif op in ("times c", "plus c"):
            nodes.append(node("Mul" if op == "times c" else "Add", [tensor, "c"], target))
        else:
            nodes.append(node(op, [tensor, constant], target))
        tensor = target
    model = model_of(*nodes)
    cleaned, _ = clean(model, "activation")
    assert len(ops(cleaned)) <= len(ops(model))
    feeds = random_input(model)
    before, after = (run_all(each, feeds) for each in (model, cleaned))
    largest = max(1.0, *(float(np.abs(values).max()) for values in before.values()))  # what is rounded on the way
    np.testing.assert_allclose(after[tensor], before[tensor], rtol=0, atol=1e-6 * largest)
