"""Eight bits and half precision: what is converted and what not, the same bytes from a plan, what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon
import onnxruntime as ort
import pytest
from onnx import helper

from onnxcompress.analysis.cost import model_cost
from onnxcompress.analysis.lrn import is_window, with_banded_lrn
from onnxcompress.errors import DataError, ModelError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult, Plan
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from onnxcompress.passes.quantization import (
    Float16Conversion,
    Int8Config,
    Int8Quantization,
    calibration_batch,
    candidates,
    int8,
    verify_quantization,
)
from onnxcompress.passes.quantization.compact import compact
from onnxcompress.runtime import block
from tests.small_models import build, node, run_all
from tests.tiny_models import conv_net, samples

RNG = np.random.default_rng(0)


def batches() -> Iterator[dict[str, Any]]:
    for start in range(0, 40, 8):
        yield {"x": samples()[start : start + 8]}


CONTEXT = PassContext(calibration=batches)
SYMMETRIC = Int8Config(symmetric=True)


def quantized(model: Model, each: Int8Quantization | Float16Conversion, context: PassContext = CONTEXT) -> PassResult:
    return each.apply(model, each.plan(model, context), context)


def ops(model: Model) -> list[str]:
    return [n.op for n in model.nodes]


def spread(model: Model, other: Model) -> float:
    first, second = (run_all(m, {"x": samples()})["y"] for m in (model, other))
    return float(np.abs(second - first).max() / first.std())


@pytest.fixture(autouse=True)
def _signed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plans on every machine."""
    monkeypatch.setattr(int8, "saturates_signed_weights", lambda provider: False)


def test_weights_are_unsigned_where_signed_ones_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "saturates_signed_weights", lambda provider: provider == "CPUExecutionProvider")
    model = Model.from_proto(conv_net())
    result = quantized(model, Int8Quantization())
    assert {d["weights"] for d in result.plan.decisions} == {"uint8"}
    assert {t.values.dtype for t in result.model.constants().values() if t.values.ndim > 1} == {np.dtype(np.uint8)}
    assert spread(model, result.model) < 0.2
    as_signed = replace(result.plan, decisions=tuple({**d, "weights": "int8"} for d in result.plan.decisions))
    signed = Int8Quantization().apply(model, as_signed, CONTEXT).model
    for batch in batches():
        assert np.array_equal(run_all(signed, batch)["y"], run_all(result.model, batch)["y"])
    monkeypatch.setattr(int8, "saturates_signed_weights", lambda provider: False)
    replayed = Int8Quantization().apply(model, result.plan, CONTEXT).model
    assert replayed.to_bytes() == result.model.to_bytes()  # the plan says it, not the machine that replays
    for context, config in (
        (replace(CONTEXT, providers=("CUDAExecutionProvider",)), Int8Config()),
        (CONTEXT, SYMMETRIC),
    ):
        plan = Int8Quantization(config).plan(model, context)
        assert not any("weights" in decision for decision in plan.decisions)


def test_large_weights_side_by_side_do_not_saturate_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On x86 without VNNI, 127 x 255 twice is more than a signed kernel's 16 bits hold."""
    monkeypatch.undo()
    kernel = np.ones((8, 64, 3, 3), np.float32)
    model = build(
        [node("Conv", ["x", "w"], "h", pads=[1, 1, 1, 1]), node("Relu", ["h"], "y")],
        {"w": kernel},
        shape=("n", 64, 8, 8),
    )
    data = np.random.default_rng(1).uniform(0.8, 1.0, (8, 64, 8, 8)).astype(np.float32)
    context = PassContext(calibration=lambda: [{"x": data}])
    content = quantized(model, Int8Quantization(), context).model.to_bytes()
    seen = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": data})[0]
    wanted = run_all(model, {"x": data})["y"]
    assert np.abs(seen - wanted).max() < 0.02 * wanted.max()


@pytest.mark.parametrize(
    ("features", "saturates"),
    [
        ({"AVX2": True, "AVX512F": True}, True),
        ({"X86_V3": True}, True),
        ({"AVX2": True, "AVX512VNNI": True}, False),
        ({"AVX2": True, "AVX512_CLX": True}, False),
        ({"NEON": True}, False),
        ({}, False),
    ],
)
def test_signed_weights_saturate_on_x86_without_vnni(
    features: dict[str, bool], saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "cpu_features", lambda: features)
    assert block.saturates_signed_weights("cpu") is saturates
    assert not block.saturates_signed_weights("cuda")


@pytest.mark.parametrize("symmetric", [False, True])
def test_int8_answers_about_the_same(symmetric: bool) -> None:
    model = Model.from_proto(conv_net())
    result = quantized(model, Int8Quantization(Int8Config(symmetric=symmetric)))
    assert [d["node"] for d in result.plan.decisions] == [n.name for n in model.nodes]
    assert spread(model, result.model) < 0.2  # the largest of 160 differences
    weights = {t.values.dtype for t in result.model.constants().values() if t.values.ndim > 1}
    assert weights == {np.dtype(np.int8)}
    zeros = [t.values for n in result.model.nodes if n.op == "QuantizeLinear" for t in n.inputs[2:]]
    assert {z.dtype for z in zeros} == {np.dtype(np.int8 if symmetric else np.uint8)}
    assert not symmetric or not any(z.any() for z in zeros)


@pytest.mark.parametrize("each", [Int8Quantization(), Float16Conversion()])
def test_more_than_protobuf_holds_is_refused(each: Int8Quantization | Float16Conversion, monkeypatch: Any) -> None:
    monkeypatch.setattr(candidates, "PROTOBUF_LIMIT_BYTES", 1000)
    with pytest.raises(ModelError, match=rf"--quantize {each.name}: .* takes models below 2 GB, this one has 0.00 GB"):
        each.plan(Model.from_proto(conv_net()), CONTEXT)


def test_a_scale_for_each_output_channel() -> None:
    result = quantized(Model.from_proto(conv_net(channels=16)), Int8Quantization())
    scales = {n.inputs[0].name: n.inputs[1].values.shape for n in result.model.nodes if n.op == "DequantizeLinear"}
    assert scales["w1_quantized"] == scales["w2_quantized"] == (16,)
    assert scales["w3_quantized"] == (4,)


def test_costs_look_through_dequantization() -> None:
    model = Model.from_proto(conv_net())
    before, after = model_cost(model), model_cost(quantized(model, Int8Quantization()).model)
    assert (after.params, after.macs) == (before.params, before.macs)
    assert {x.node: (x.params, x.macs) for x in after.layers} == {x.node: (x.params, x.macs) for x in before.layers}
    assert before.weight_bytes / after.weight_bytes > 2.5


def test_a_plan_replays_to_the_same_bytes_without_data() -> None:
    model = Model.from_proto(conv_net())
    for each in (Int8Quantization(), Float16Conversion()):
        result = quantized(model, each)
        again = each.apply(model, Plan.from_json(result.plan.to_json()), PassContext())
        assert again.model.to_bytes() == result.model.to_bytes()


def test_a_quantised_file_spends_little_on_names_and_nothing_on_repeated_constants() -> None:
    model = Model.from_proto(conv_net(channels=16))
    result = quantized(model, Int8Quantization())
    constants = result.model.constants()
    values = [(t.values.dtype, t.values.shape, t.values.tobytes()) for t in constants.values()]
    assert len(set(values)) == len(values)
    before = {t.name for n in model.nodes for t in (*n.inputs, *n.outputs)}
    made = {t.name for n in result.model.nodes for t in (*n.inputs, *n.outputs)} - before
    assert {name for name in made if len(name) > 4} == {"w1_quantized", "w2_quantized", "w3_quantized"}
    assert {"first", "second", "classifier"} <= {n.name for n in result.model.nodes}


def test_names_that_are_taken_stay_unique() -> None:
    proto = conv_net()
    proto.graph.node[0].name = "q0"
    for each in proto.graph.node:
        each.input[:] = [name.replace("w1", "q1") for name in each.input]
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace("w1", "q1")
    model = Model.from_proto(proto)
    result = quantized(model, Int8Quantization())
    names = [n.name for n in result.model.nodes]
    assert len(set(names)) == len(names)
    assert spread(model, result.model) < 0.2


def test_the_window_of_an_lrn_is_stored_in_eight_bits_to_the_same_bit() -> None:
    weight = RNG.standard_normal((6, 6, 1, 1)).astype(np.float32)
    nodes = [node("Conv", ["x", "w"], "a", name="a"), node("LRN", ["a"], "y", name="n", size=3, alpha=0.3)]
    model = with_banded_lrn(build(nodes, {"w": weight}, shape=("n", 6, 8, 8)))
    data = RNG.standard_normal((4, 6, 8, 8)).astype(np.float32)
    result = quantized(model, Int8Quantization(), PassContext(calibration=lambda: iter([{"x": data}])))
    (window,) = [n for n in result.model.nodes if is_window(n, stored=True)]
    stored = window.inputs[1].inputs[0]
    assert stored.inputs[0].values.dtype == np.int8
    band = next(n for n in model.nodes if is_window(n)).inputs[1].values
    assert np.array_equal(stored.inputs[0].values.astype(np.float32) * stored.inputs[1].values, band)
    before, after = model_cost(model), model_cost(result.model)
    assert (after.macs, after.lrn_macs, after.params) == (before.macs, before.lrn_macs, before.params)


def lrn_between_convolutions(channels: int, size: int = 5) -> Model:
    weight = RNG.standard_normal((channels, 6, 1, 1)).astype(np.float32)
    second = RNG.standard_normal((4, channels, 1, 1)).astype(np.float32)
    constants = {"w": weight, "bias": RNG.standard_normal(channels).astype(np.float32), "v": second}
    nodes = [
        node("Conv", ["x", "w", "bias"], "a", name="a"),
        node("LRN", ["a"], "b", name="n", size=size, alpha=0.3),
        node("Conv", ["b", "v"], "y", name="c"),
    ]
    return with_banded_lrn(build(nodes, constants, shape=("n", 6, 8, 8)))


def raw_outputs(model: Model) -> list[np.ndarray]:
    """Answers without any of onnxruntime's rewrites."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return [session.run(None, dict(batch))[0] for batch in images()]


def images() -> Iterator[dict[str, Any]]:
    yield {"x": np.random.default_rng(5).standard_normal((4, 6, 8, 8)).astype(np.float32)}


IMAGES = PassContext(calibration=images)


def stored_window(model: Model) -> onnx_graphsurgeon.Node:
    """The node that gives the one LRN of a quantised model its window."""
    (window,) = [each for each in model.nodes if is_window(each, stored=True)]
    return window.inputs[1].inputs[0]


@pytest.mark.parametrize("reach", [0, 2])
def test_what_follows_from_other_constants_is_computed_to_the_same_bit(
    reach: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lrn_between_convolutions(64, 2 * reach + 1)
    result = quantized(model, Int8Quantization(), IMAGES).model
    assert stored_window(result).op == "Where"
    (scales,) = [each for each in result.nodes if each.op == "Mul" and all(map(Model.is_constant, each.inputs))]
    assert [reader.op for reader in scales.outputs[0].outputs] == ["DequantizeLinear"]
    before, after = model_cost(model), model_cost(result)
    assert (after.macs, after.lrn_macs) == (before.macs, before.lrn_macs)

    def stores_all(*arguments: Any, kept: Any, computed: bool) -> None:
        assert computed
        compact(*arguments, kept=kept, computed=False)

    monkeypatch.setattr(int8, "compact", stores_all)
    stored = quantized(model, Int8Quantization(), IMAGES).model
    assert stored_window(stored).op == "DequantizeLinear"
    assert result.size_bytes < stored.size_bytes - 3000
    for first, second in zip(raw_outputs(result), raw_outputs(stored), strict=True):
        assert np.array_equal(first, second)


def test_a_pruned_window_and_what_tensorrt_reads_are_stored() -> None:
    model = lrn_between_convolutions(64)
    pruning = FilterPruning(PruningConfig(0.25, "uniform", "l1"))
    pruned = pruning.apply(model, pruning.plan(model, IMAGES), IMAGES).model
    for source, config in ((pruned, Int8Config()), (model, SYMMETRIC)):
        result = quantized(source, Int8Quantization(config), IMAGES).model
        assert stored_window(result).op == "DequantizeLinear"
        products = [each for each in result.nodes if each.op == "Mul" and all(map(Model.is_constant, each.inputs))]
        assert len(products) == (config is not SYMMETRIC)


def test_probabilities_excluded_nodes_and_squares_stay_in_float() -> None:
    weight = RNG.standard_normal((6, 6, 1, 1)).astype(np.float32)
    model = build(
        [
            node("Conv", ["x", "w"], "a", name="a"),
            node("Mul", ["a", "a"], "b", name="b"),
            node("Conv", ["b", "w"], "c", name="c"),
            node("LRN", ["c"], "d", name="d", size=3),
            node("Relu", ["d"], "e", name="e"),
            node("Softmax", ["e"], "y", name="s", axis=1),
        ],
        {"w": weight},
        shape=("n", 6, 8, 8),
    )

    def context(*exclude: str) -> PassContext:
        data = RNG.standard_normal((8, 6, 8, 8)).astype(np.float32)
        return PassContext(calibration=lambda: iter([{"x": data}]), exclude=exclude)

    plan = Int8Quantization().plan(model, context())
    assert [d["node"] for d in plan.decisions] == ["a", "c"]
    reasons = {s.node: s.reason for s in plan.skipped}
    assert "squares" in reasons["b"]
    assert reasons["d"] == "LRN is left in float"
    assert reasons["e"] == "its input is not quantised"
    assert "probabilities" in reasons["s"]
    excluded = Int8Quantization().plan(model, context("^a$"))
    assert {s.node: s.reason for s in excluded.skipped}["a"] == "excluded (--exclude)"


def test_values_of_too_many_magnitudes_stay_in_float() -> None:
    model = build(
        [node("Conv", ["x", "w"], "a", name="a"), node("Conv", ["a", "w"], "y", name="b")],
        {"w": np.eye(6, dtype=np.float32).reshape(6, 6, 1, 1)},
        shape=("n", 6, 8, 8),
    )
    wide = np.exp(3 * RNG.standard_normal((8, 6, 8, 8))).astype(np.float32)
    plan = Int8Quantization().plan(model, PassContext(calibration=lambda: iter([{"x": wide}])))
    assert not plan.decisions
    assert "of the values of 'x' would become zero" in plan.skipped[0].reason


def test_an_older_opset_is_converted_and_a_hopeless_one_is_told() -> None:
    proto = conv_net()
    proto.opset_import[0].version = 11
    result = quantized(Model.from_proto(proto), Int8Quantization())
    assert result.model.opset >= 13
    assert spread(Model.from_proto(proto), result.model) < 0.2


def test_int8_needs_data_and_known_nodes() -> None:
    model = Model.from_proto(conv_net())
    with pytest.raises(DataError, match="--calib"):
        Int8Quantization().plan(model, PassContext())
    plan = Plan("int8", ({"kind": "int8", "node": "gone", "op": "Conv", "activations": "uint8", "ranges": {}},))
    with pytest.raises(RecipeError, match="no node 'gone'"):
        Int8Quantization().apply(model, plan, PassContext())
    with pytest.raises(RecipeError, match="no node 'gone'"):
        Float16Conversion().apply(model, Plan("fp16", ({"kind": "fp16", "node": "gone"},)), PassContext())


def test_half_precision_keeps_inputs_and_outputs() -> None:
    model = Model.from_proto(conv_net())
    result = quantized(model, Float16Conversion())
    assert result.model.signature() == model.signature()
    assert {t.values.dtype for t in result.model.constants().values()} == {np.dtype(np.float16)}
    assert model_cost(result.model).params == model_cost(model).params
    assert spread(model, result.model) < 0.01


def test_what_could_overflow_stays_in_float32() -> None:
    proto = conv_net()
    big = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * 1e5
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(big, "w1"))
    model = Model.from_proto(proto)
    plan = Float16Conversion().plan(model, CONTEXT)
    reasons = {s.node: s.reason for s in plan.skipped}
    assert "could overflow float16" in reasons["first"]
    result = Float16Conversion().apply(model, plan, CONTEXT)
    assert spread(model, result.model) < 0.01


def test_the_check_tells_a_wreck_from_a_quantised_model() -> None:
    model = Model.from_proto(conv_net())
    feeds = calibration_batch(model, CONTEXT)
    assert feeds is not None
    good = quantized(model, Int8Quantization())
    assert 0 < verify_quantization(model, good, feeds).difference < 0.1
    tight = [
        {**d, "ranges": {n: [0.01 * v for v in pair] for n, pair in d["ranges"].items()}} for d in good.plan.decisions
    ]
    wreck = Int8Quantization().apply(model, Plan("int8", tuple(tight)), PassContext())
    with pytest.raises(ModelError, match="does not stand int8"):
        verify_quantization(model, wreck, feeds)


def test_what_is_added_to_all_scores_before_a_softmax_is_no_wreck() -> None:
    proto = conv_net()
    proto.graph.node.append(helper.make_node("Softmax", ["y"], ["p"], "softmax", axis=1))
    proto.graph.output[0].name = "p"
    model = Model.from_proto(proto)
    feeds = calibration_batch(model, CONTEXT)
    assert feeds is not None
    good = quantized(model, Int8Quantization())
    shifted = good.model.to_proto()
    (softmax,) = (node for node in shifted.graph.node if node.op_type == "Softmax")
    shifted.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(100.0), "hundred"))
    add = helper.make_node("Add", [softmax.input[0], "hundred"], ["more"], "add")
    softmax.input[0] = "more"
    shifted.graph.node.insert(list(shifted.graph.node).index(softmax), add)
    checked = verify_quantization(model, replace(good, model=Model.from_proto(shifted)), feeds)
    assert checked.tensors == ("p",)
    assert 0 < checked.difference < 0.1


def test_the_calibration_spreads_over_the_whole_stream() -> None:
    from onnxcompress.passes.quantization.calibration import spread_batches

    stream = [{"x": np.arange(start, start + 16, dtype=np.float32)[:, None]} for start in range(0, 1600, 16)]
    seen = np.concatenate([batch["x"][:, 0] for batch in spread_batches(stream, 50, None)])
    assert 25 <= len(seen) <= 50
    assert seen.max() > 1500
    whole = spread_batches(stream, 64, 16)
    assert all(len(batch["x"]) == 16 for batch in whole)
    assert 2 <= len(whole) <= 4


def test_statistics_that_are_float32_whatever_is_read_keep_their_node() -> None:
    constants = {"scale": np.ones(8, np.float32), "w": np.ones((2, 6, 1, 1), np.float32)}
    nodes = [
        node("LayerNormalization", ["x", "scale"], "normal", "mean", name="both"),
        node("Conv", ["normal", "w"], "y"),
        node("Conv", ["mean", "w"], "z"),
    ]
    model = build(nodes, constants, shape=("n", 6, 8, 8), outputs=("y", "z"))
    plan = Float16Conversion().plan(model, PassContext())
    assert [each.node for each in plan.skipped] == ["both"]
    given = {"x": RNG.standard_normal((1, 6, 8, 8)).astype(np.float32)}
    half = run_all(Float16Conversion().apply(model, plan, PassContext()).model, given)
    for name in ("y", "z"):
        np.testing.assert_allclose(half[name], run_all(model, given)[name], rtol=0.02, atol=0.02)
