"""Allocation: the budget is kept, the solver is the brute-force optimum, sensitive layers are spared."""

from __future__ import annotations

import ctypes
import itertools
import re
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import scipy.optimize

from onnxcompress.analysis.cost import model_cost
from onnxcompress.errors import BudgetInfeasibleError, DataError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg.moments import accumulate
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.recovery import allocation_samples
from onnxcompress.passes.recovery.allocation import Allocation, AllocationConfig
from onnxcompress.passes.recovery.allocation_choices import LayerSize, layer_choices, truncated
from onnxcompress.passes.recovery.allocation_merged import allocate_merged
from onnxcompress.passes.recovery.allocation_solve import allocate
from onnxcompress.passes.recovery.refit_layers import find_refit_layers
from onnxcompress.pipeline.compress import compress
from tests.small_models import build, node, windows_net
from tests.tiny_models import SIZE, conv_net


def _calibration(images: int = 64):
    data = np.random.default_rng(1).standard_normal((images, 3, SIZE, SIZE)).astype(np.float32)
    return lambda: ({"x": data[at : at + 16]} for at in range(0, images, 16))


@pytest.mark.parametrize("seed", range(5))
def test_the_solver_finds_the_best_choice(seed: int) -> None:
    generator = np.random.default_rng(seed)
    damages = [generator.random(4) for _ in range(5)]
    costs = {"macs": [generator.random(4) for _ in range(5)], "params": [generator.random(4) for _ in range(5)]}
    limits = {"macs": 2.2, "params": 2.4}
    feasible = [
        sum(d[at] for d, at in zip(damages, picked, strict=True))
        for picked in itertools.product(range(4), repeat=5)
        if all(sum(c[at] for c, at in zip(costs[k], picked, strict=True)) <= limits[k] for k in limits)
    ]
    picked = allocate(damages, costs, limits)
    for kind, limit in limits.items():
        assert sum(c[at] for c, at in zip(costs[kind], picked, strict=True)) <= limit * (1 + 1e-6)
    assert sum(d[at] for d, at in zip(damages, picked, strict=True)) <= min(feasible) * (1 + 1e-3)


def test_what_the_solver_prints_is_taken_out_of_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """HiGHS prints, buffered by C, where rounding its solution breaks a limit; lines of others come out."""
    solve = scipy.optimize.milp

    def talking(*arguments: object, **options: object) -> object:
        for line in (b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();", b"another's"):
            ctypes.CDLL(None).puts(line)
        return solve(*arguments, **options)

    monkeypatch.setattr(scipy.optimize, "milp", talking)
    print("before")
    allocate([np.array([0.0, 1.0])], {"macs": [np.array([2.0, 1.0])]}, {"macs": 1.5})
    print("behind")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out.splitlines() == ["before", "another's", "behind"]


def test_a_limit_below_what_is_possible_is_refused() -> None:
    with pytest.raises(BudgetInfeasibleError, match="least macs"):
        allocate([np.zeros(2)], {"macs": [np.array([1.0, 0.4])]}, {"macs": 0.3})


def test_a_limit_of_zero_leaves_what_costs_nothing() -> None:
    damages, costs = [np.array([0.0, 0.2, 0.5])] * 2, [np.array([1.0, 0.0, 0.0]), np.zeros(3)]
    assert allocate(damages, {"latency": costs}, {"latency": 0.0}) == [1, 0]
    assert allocate(damages, {"latency": [np.zeros(3)] * 2}, {"latency": 0.0}) == [0, 0]


def test_limits_that_exclude_each_other_are_refused() -> None:
    costs = {"macs": [np.array([1.0, 0.4])], "params": [np.array([0.4, 1.0])]}
    with pytest.raises(BudgetInfeasibleError, match="macs and params"):
        allocate([np.zeros(2)], costs, {"macs": 0.5, "params": 0.5})


@pytest.mark.parametrize("saved", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("limit", [1.6, 2.5])
def test_what_merging_saves_is_spent(saved: float, limit: float) -> None:
    costs = {"macs": [np.linspace(1.0, 0.1, 10)] * 4}
    damages = [weight * np.linspace(0.0, 1.0, 10) ** 2 for weight in (1.0, 2.0, 3.0, 4.0)]

    def of_pairs(picked: Sequence[int]) -> dict[str, float]:
        return {"macs": saved * sum(costs["macs"][0][at] / 2 for at in picked[:2] if at)}

    def total(picked: Sequence[int]) -> float:
        return sum(float(costs["macs"][0][at]) for at in picked) - of_pairs(picked)["macs"]

    picked = allocate_merged(damages, costs, {"macs": limit}, of_pairs)
    apart = allocate(damages, costs, {"macs": limit})
    assert total(apart) <= total(picked) <= limit + 1e-9
    assert limit - total(picked) < 0.1
    with pytest.raises(BudgetInfeasibleError):
        allocate_merged(damages, costs, {"macs": 0.29 + 0.1 * (1 - saved)}, of_pairs)


def test_the_error_of_a_choice_is_what_its_truncation_misses() -> None:
    generator = np.random.default_rng(0)
    x = (generator.standard_normal((6000, 72)) @ generator.standard_normal((72, 72))).astype(np.float32)
    slope = generator.standard_normal((72, 16))
    own = accumulate(x, x[:, :1]).centred()
    energy = np.einsum("do,do->", slope, own.xx @ slope)
    choices = layer_choices(own, slope, LayerSize(8, 16, (3, 3), (8, 8), (8, 8)), 2)
    assert choices[0].error == 0.0
    assert {choice.spans for choice in choices} == {0, 1, -1}
    for choice in choices[1:]:
        missed = slope - truncated(own, slope, (3, 3), choice)
        error = np.einsum("do,do->", missed, own.xx @ missed) / energy
        np.testing.assert_allclose(choice.error, error, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_axis_is_spanned_where_that_is_clearly_better(order: tuple[int, int]) -> None:
    """Of a kernel that is a factor of the first axis behind one of the last, or the other way around."""
    generator = np.random.default_rng(0)
    factor, core = generator.standard_normal((3, 8, 4)), generator.standard_normal((3, 4, 16))
    kernel = np.einsum("hro,wir->hwio", core, factor).transpose(*order, 2, 3)  # the first maps along w, and then h
    x = generator.standard_normal((4000, 72)).astype(np.float32)
    own = accumulate(x, x[:, :1]).centred()
    size = LayerSize(8, 16, (3, 3), (8, 8), (8, 8))
    choices = layer_choices(own, kernel.reshape(72, 16), size, 2)
    exact = {choice.spans for choice in choices if choice.rank_in == 4 and choice.error < 1e-6}
    assert exact == {-1 if order == (0, 1) else 1}
    if order == (1, 0):
        assert all(choice.spans >= 0 for choice in choices)


def test_a_matrix_that_reads_windows_is_sampled_image_by_image() -> None:
    """As many positions are taken of it as of any other layer."""
    model = windows_net(SIZE)
    layers, _ = find_refit_layers(model, model, PassContext())
    found = allocation_samples.layer_covariances(model, layers, list(_calibration(48)()), 10, 0)
    assert [own.count for own in found.values()] == [48 * 10]
    pixels = np.concatenate([batch["x"] for batch in _calibration(48)()]).transpose(0, 2, 3, 1).reshape(-1, 3)
    np.testing.assert_allclose(found[layers[0].node].xx, np.cov(pixels.T, bias=True), atol=0.2)


def _checked_costs(model: Model, share: float) -> tuple[Plan, set[str], float]:
    """Split to a share of the MACs; check what each layer costs whole and as it is split.

    Returns:
        The plan, the layers that have choices, and the share of the MACs that is left.
    """
    cost = model_cost(model)
    context = PassContext(calibration=_calibration(), original_cost=cost, memory={})
    each = Allocation(AllocationConfig({"macs": share}))
    plan = each.plan(model, context)
    worth = context.memory["allocate"].worth
    whole = {layer.node: layer.macs for layer in cost.layers}
    assert {name: own[0].macs for name, own in worth.items()} == {name: whole[name] for name in worth}
    after = {layer.node: layer.macs or 0 for layer in model_cost(each.apply(model, plan, context).model).layers}
    for decision in plan.decisions:
        parts = [macs for name, macs in after.items() if name.startswith(str(decision["node"]))]
        assert decision["macs"] == [whole[str(decision["node"])], sum(parts)]
    return plan, set(worth), sum(after.values()) / (cost.macs or 1)


@pytest.mark.parametrize("batch", ["n", 16])
def test_layers_that_see_a_sample_in_pieces_cost_what_all_pieces_cost(batch: int | str) -> None:
    """Each image is cut into four windows, the batch of two convolutions and, place by place, the rows of a Gemm."""
    half, generator = SIZE // 2, np.random.default_rng(4)
    nodes = [
        node("Reshape", ["x", "windows"], "cut"),
        node("Conv", ["cut", "w1"], "first", pads=[1, 1, 1, 1]),
        node("Conv", ["first", "w2"], "second", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Transpose", ["second"], "last", perm=[0, 2, 3, 1]),
        node("Reshape", ["last", "rows"], "flat"),
        node("Gemm", ["flat", "w3"], "third"),
        node("Reshape", ["third", "whole"], "y"),
    ]
    constants = {
        "windows": np.array([-1, 3, half, half]),
        "rows": np.array([-1, 32]),
        "whole": np.array([-1, SIZE * SIZE // 4 * 48]),
        **{
            name: generator.standard_normal(shape).astype(np.float32)
            for name, shape in {"w1": (32, 3, 3, 3), "w2": (32, 32, 3, 3), "w3": (32, 48)}.items()
        },
    }
    model = build(nodes, constants, shape=(batch, 3, SIZE, SIZE))
    _, worth, left = _checked_costs(model, 0.7)
    assert len(worth) == len(model_cost(model).layers) == 3
    assert 0.6 < left <= 0.7  # no more is taken away than was asked for, but for the ranks' steps


def test_a_transposed_convolution_costs_what_its_inputs_cost_and_is_split() -> None:
    generator = np.random.default_rng(4)
    nodes = [
        node("ConvTranspose", ["x", "w1"], "first", name="first", strides=[2, 2]),
        node("ConvTranspose", ["first", "w2"], "second", name="second", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["second", "w3"], "y", name="point"),
    ]
    sizes = {"w1": (3, 32, 2, 2), "w2": (32, 32, 4, 4), "w3": (32, 4, 1, 1)}
    constants = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    model = build(nodes, constants, shape=("n", 3, SIZE, SIZE))
    plan, worth, left = _checked_costs(model, 0.5)
    assert "second" in worth
    reasons = {skipped.node: skipped.reason for skipped in plan.skipped}
    assert reasons["point"] == "a transposed convolution with a kernel of one position is left whole"
    assert 0.4 < left <= 0.5


@pytest.mark.parametrize(("outputs", "most"), [(100, 19), (1000, 21)])
def test_a_layer_with_more_outputs_than_inputs_can_be_split_at_ranks_below_its_inputs(outputs: int, most: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((600, 24)).astype(np.float32)
    own, slope = accumulate(x, x[:, :1]).centred(), generator.standard_normal((24, outputs))
    choices = layer_choices(own, slope, LayerSize(24, outputs, (), (1,), (1,)), 1)
    assert [choice.rank_out for choice in choices] == [None, *range(1, most + 1)]


def test_a_split_that_costs_nothing_takes_the_place_of_no_layer() -> None:
    generator = np.random.default_rng(0)
    channels = generator.standard_normal((400, 9, 1)) * np.eye(8)[:1]  # of eight channels one says something
    own = accumulate(channels.reshape(400, 72).astype(np.float32), np.zeros((400, 1), np.float32)).centred()
    choices = layer_choices(own, generator.standard_normal((72, 16)), LayerSize(8, 16, (3, 3), (8, 8), (8, 8)), 1)
    assert min(choice.error for choice in choices[1:]) == 0.0
    assert (choices[0].rank_in, choices[0].rank_out, choices[0].error) == (None, None, 0.0)


@pytest.mark.parametrize("target", [{"macs": 0.6}, {"params": 0.9}, {"macs": 0.7, "params": 0.95}])
def test_the_budget_is_kept(target: dict[str, float]) -> None:
    model = Model.from_proto(conv_net(channels=32))
    context = PassContext(calibration=_calibration(), original_cost=model_cost(model))
    each = Allocation(AllocationConfig(target))
    plan = each.plan(model, context)
    result = each.apply(model, plan, context)
    before, after = model_cost(model), model_cost(result.model)
    shares = {"macs": (after.macs or 0) / (before.macs or 1), "params": after.params / before.params}
    assert plan.decisions
    for kind, share in target.items():
        assert shares[kind] <= share
    seen = {str(d["node"]) for d in plan.decisions} | {each.node for each in plan.skipped}
    assert seen == {"first", "second", "classifier"}


def test_fewer_samples_than_inputs_are_enough_to_choose_a_rank() -> None:
    model = Model.from_proto(conv_net(channels=32))
    context = PassContext(calibration=_calibration(32), original_cost=model_cost(model))
    each = Allocation(AllocationConfig({"params": 0.93}, split_kernels=False))
    plan = each.plan(model, context)
    (decision,) = plan.decisions
    assert (decision["node"], decision["kind"], decision["channels"]) == ("classifier", "svd", [512, 4])
    assert 0.0 < decision["response_error"] < 1.0
    assert model_cost(each.apply(model, plan, context).model).params <= 0.93 * model_cost(model).params


def test_shrinkage_falls_with_the_number_of_samples() -> None:
    generator = np.random.default_rng(0)
    scales = np.linspace(0.1, 3.0, 40)
    weights = []
    for count in (10, 100, 10_000):
        x = (generator.standard_normal((count, 40)) * scales).astype(np.float32)
        own = accumulate(x, x[:, :1]).centred()
        shrunk = own.shrunk()
        np.testing.assert_allclose(np.trace(shrunk.xx), np.trace(own.xx))
        assert np.linalg.eigvalsh(shrunk.xx)[0] > 0.0
        weights.append(shrunk.xx[0, 1] / own.xx[0, 1])
        truth = np.diag(scales**2)
        assert np.linalg.norm(shrunk.xx - truth) <= np.linalg.norm(own.xx - truth)
    assert weights == sorted(weights)
    assert weights[0] < 0.9
    assert weights[-1] > 0.98


def test_a_plan_is_replayed_to_the_same_bytes() -> None:
    model = Model.from_proto(conv_net(channels=32))
    context = PassContext(calibration=_calibration())
    first = Allocation(AllocationConfig({"macs": 0.7}))
    plan = first.plan(model, context)
    again = Allocation(AllocationConfig({"macs": 0.7})).apply(model, plan, context).model
    assert first.apply(model, plan, context).model.to_bytes() == again.to_bytes()


@pytest.mark.parametrize("target", [{"macs": 0.5}, {"size": 0.55}])
def test_a_budget_counts_on_no_merging_of_factors_that_layers_share(target: dict[str, float]) -> None:
    """A head over two levels: before each of its convolutions stands another whose last factor meets its first."""
    generator = np.random.default_rng(0)
    nodes = [node("AveragePool", ["x"], "half", kernel_shape=[2, 2], strides=[2, 2])]
    for level, source in (("1", "x"), ("2", "half")):
        nodes.append(node("Conv", [source, f"v{level}"], f"a{level}", name=f"own{level}", pads=[1, 1, 1, 1]))
        nodes.append(node("Conv", [f"a{level}", "head"], f"y{level}", name=f"head{level}", pads=[1, 1, 1, 1]))
    sizes = {"v1": (24, 3, 3, 3), "v2": (24, 3, 3, 3), "head": (32, 24, 3, 3)}
    constants = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    model = build(nodes, constants, shape=("n", 3, SIZE, SIZE), outputs=["y1", "y2"])
    result = compress(model.to_proto(), target=target, calib=_calibration(), recover="none", latency=False)
    (gate,) = result.report.gates
    assert gate.passed
    assert gate.value is not None
    assert gate.value > 0.85 * next(iter(target.values()))


def test_a_target_that_cannot_be_reached_says_so() -> None:
    model = Model.from_proto(conv_net(channels=32))
    context = PassContext(calibration=_calibration())
    with pytest.raises(
        BudgetInfeasibleError, match=r"^macs=0.01 cannot be reached: .* it is 0\.\d+ of the original"
    ) as told:
        Allocation(AllocationConfig({"macs": 0.01})).plan(model, context)
    (least,) = map(float, re.findall(r"it is (0\.\d+) of", str(told.value)))
    Allocation(AllocationConfig({"macs": least + 0.001})).plan(model, context)
    with pytest.raises(BudgetInfeasibleError, match=f"it is {least} of"):
        Allocation(AllocationConfig({"macs": least - 0.001})).plan(model, context)


def test_a_target_out_of_reach_names_what_holds_the_layers_that_stay_whole() -> None:
    rng = np.random.default_rng(0)
    constants = {"v": rng.standard_normal((6, 16, 4, 4)), "w": rng.standard_normal((8, 32, 3, 3))}
    nodes = [
        node("ConvTranspose", ["x", "v"], "a", strides=[2, 2], group=2),
        node("Conv", ["a", "w"], "y", name="last"),
    ]
    model = build(nodes, {name: each.astype(np.float32) for name, each in constants.items()}, shape=(4, 6, 8, 8))
    context = PassContext(calibration=lambda: iter([{"x": rng.standard_normal((4, 6, 8, 8)).astype(np.float32)}] * 8))
    told = r"it is 0\.\d+ of the original's, (0\.\d+) in layers left whole \(a grouped convolution .*\); allow more"
    with pytest.raises(BudgetInfeasibleError, match=told) as error:
        Allocation(AllocationConfig({"macs": 0.05})).plan(model, context)
    layers = {layer.op: layer.macs or 0 for layer in model_cost(model).layers}
    (share,) = map(float, re.findall(r"(0\.\d+) in layers", str(error.value)))
    assert share == pytest.approx(layers["ConvTranspose"] / sum(layers.values()), abs=1e-3)


def test_values_whose_squares_overflow_are_named() -> None:
    model = Model.from_proto(conv_net(channels=32))
    large = {"x": next(_calibration()())["x"] * np.float32(1e25)}
    with pytest.raises(DataError, match="tensor 'x' holds values so large that sums of their squares overflow"):
        Allocation(AllocationConfig({"macs": 0.5})).plan(model, PassContext(calibration=lambda: iter([large])))


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(RecipeError, match="watts"):
        AllocationConfig({"watts": 0.5})


def test_a_target_needs_calibration_data() -> None:
    with pytest.raises(DataError, match="--calib"):
        Allocation(AllocationConfig({"macs": 0.5})).plan(Model.from_proto(conv_net()), PassContext())


@pytest.mark.parametrize(("quantize", "share"), [("off", 0.7), ("fp16", 0.35), ("int8", 0.2)])
def test_a_target_of_size_is_of_the_file_as_it_is_stored(quantize: str, share: float) -> None:
    options = {"target": {"size": share}, "quantize": quantize, "recover": "none", "round_to": 1, "latency": False}
    result = compress(conv_net(channels=96), calib=_calibration(320), **options)
    (gate,) = result.report.gates
    assert (gate.name, gate.passed) == ("target_size", True)
    assert gate.value is not None
    assert gate.value > 0.8 * share  # what may be kept is kept


@pytest.mark.parametrize(("quantize", "share", "exclude"), [("int8", 0.25, ()), ("fp16", 0.45, ("^grouped$",))])
def test_a_target_of_size_counts_what_stays_in_float(quantize: str, share: float, exclude: tuple[str, ...]) -> None:
    proto = conv_net(channels=96)
    kernel = np.random.default_rng(3).standard_normal((96, 12, 3, 3)).astype(np.float32) / 10
    proto.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "g"))
    inputs, pads = ["r1", "g"], [1, 1, 1, 1]
    proto.graph.node.insert(2, onnx.helper.make_node("Conv", inputs, ["r1g"], "grouped", group=8, pads=pads))
    proto.graph.node[3].input[0] = "r1g"
    options = {"target": {"size": share}, "quantize": quantize, "recover": "none", "round_to": 1, "latency": False}
    result = compress(proto, calib=_calibration(320), exclude=exclude, **options)
    assert "grouped" in [skipped.node for skipped in result.report.stages[-1].skipped]
    (gate,) = result.report.gates
    assert gate.passed
    assert gate.value is not None
    assert gate.value > 0.8 * share


def test_a_model_without_choices_keeps_its_limit_or_tells_so() -> None:
    assert allocate([], {"macs": []}, {"macs": 1.0}) == []
    with pytest.raises(BudgetInfeasibleError, match="macs"):
        allocate([], {"macs": []}, {"macs": -1.0})


def test_samples_are_spread_over_the_stream_and_fewer_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream():
        return ({"x": np.arange(at, at + 10, dtype=np.float32)[:, None]} for at in range(0, 100, 10))

    def chosen(images: int) -> list[float]:
        return [float(sample["x"][0, 0]) for sample in allocation_samples.spread(stream, images)]

    assert chosen(100) == list(range(100))
    few = chosen(8)
    assert len(few) == 8
    assert few[0] < 10 < 80 < few[-1]
    monkeypatch.setattr(allocation_samples, "_SPREAD_BYTES", 2 * 4 * 5)
    assert len(chosen(100)) == 5
