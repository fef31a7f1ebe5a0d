"""Quantised models declare inputs and outputs as they were given; files of any age are quantised."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.analysis.lrn import with_banded_lrn
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.passes.quantization import Float16Conversion, Int8Quantization
from onnxcompress.passes.verification import verify
from tests.small_models import branch, build, choice, node, run_all, session
from tests.tiny_models import conv_net, samples


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("each", [Int8Quantization(), Float16Conversion()])
def test_lengths_that_a_model_leaves_open_stay_open(each: Int8Quantization | Float16Conversion, opset: int) -> None:
    proto = conv_net()
    proto.opset_import[0].version = opset
    for length, name in zip(proto.graph.output[0].type.tensor_type.shape.dim, ("unk__1", ""), strict=True):
        length.Clear()
        length.dim_param = name
    proto.graph.output[0].doc_string = "scores"
    model = Model.from_proto(proto)
    context = PassContext(calibration=lambda: iter([{"x": samples()}]))
    result = each.apply(model, each.plan(model, context), context).model.to_proto()
    assert list(result.graph.output) == list(proto.graph.output)
    assert list(result.graph.input) == list(proto.graph.input)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("each", [Int8Quantization(), Float16Conversion()])
def test_a_quantised_model_says_of_itself_what_the_given_one_did(
    each: Int8Quantization | Float16Conversion, opset: int
) -> None:
    proto = conv_net()
    proto.opset_import[0].version = opset
    proto.producer_name, proto.producer_version, proto.domain, proto.model_version = "someone", "1.2", "org", 7
    proto.doc_string, proto.graph.name, proto.graph.doc_string = "a model", "digits", "a graph"
    helper.set_model_props(proto, {"classes": "[1, 2]"})
    model = Model.from_proto(proto)
    context = PassContext(calibration=lambda: iter([{"x": samples()}]))
    result = each.apply(model, each.plan(model, context), context).model.to_proto()
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(result, field) == getattr(proto, field)
    assert [(each.key, each.value) for each in result.metadata_props] == [("classes", "[1, 2]")]
    assert (result.graph.name, result.graph.doc_string) == ("digits", "a graph")


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (8, 3), (9, 4)])
@pytest.mark.parametrize("each", [Int8Quantization(), Float16Conversion()])
def test_an_old_file_that_lists_its_weights_as_inputs(
    each: Int8Quantization | Float16Conversion, opset: int, ir_version: int
) -> None:
    """With an LRN, whose window is stored in eight bits, and an Upsample, which onnx writes anew as Resize."""
    proto = conv_net()
    weights, graph = list(proto.graph.initializer), proto.graph
    proto.ir_version, proto.opset_import[0].version = ir_version, opset
    scales: dict[str, list[float]] = {"scales": [1.0, 1.0, 2.0, 2.0]} if opset < 9 else {}
    graph.node.insert(2, node("LRN", ["r1"], "n", name="norm", size=5, alpha=0.5))
    graph.node.insert(3, node("Upsample", ["n", "scales"][: 1 + (not scales)], "u", name="larger", **scales))
    graph.node[4].input[0] = "u"
    graph.node[4].attribute[1].ints[:] = [4, 4]
    if not scales:
        graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    listed = [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in graph.initializer]
    graph.input.extend(listed)
    model = with_banded_lrn(Model.from_proto(proto))
    context = PassContext(calibration=lambda: iter([{"x": samples()}]))
    result = each.apply(model, each.plan(model, context), context).model
    bits = np.dtype(np.int8 if isinstance(each, Int8Quantization) else np.float16)
    stored = [values for constant in result.constants().values() if (values := constant.values).ndim == 4]
    assert {values.dtype for values in stored if values.shape != (16, 16, 1, 1)} <= {bits, np.dtype(np.uint8)}
    assert sum(values.size for values in stored) >= sum(np.prod(w.dims) for w in weights if len(w.dims) == 4)
    wanted, seen = (run_all(each, {"x": samples()})["y"] for each in (model, result))
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=0.1 * np.abs(wanted).max())
    assert {"larger"} <= {node.name for node in result.nodes}


@pytest.mark.parametrize("each", [Int8Quantization(), Float16Conversion()])
def test_an_input_and_a_weight_that_are_outputs_stay_as_they_are(each: Int8Quantization | Float16Conversion) -> None:
    proto = conv_net()
    w1 = numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.output.insert(0, proto.graph.input[0])
    proto.graph.output.insert(1, helper.make_tensor_value_info("w1", TensorProto.FLOAT, w1.shape))
    model = Model.from_proto(proto)
    context = PassContext(calibration=lambda: iter([{"x": samples()}]))
    plan = each.plan(model, context)
    assert plan.decisions
    result = each.apply(model, plan, context).model
    assert list(result.to_proto().graph.output) == list(proto.graph.output)
    x, weight, y = session(result.to_bytes()).run(None, {"x": samples()})
    np.testing.assert_array_equal(x, samples())
    np.testing.assert_array_equal(weight, w1)
    wanted = run_all(model, {"x": samples()})["y"]
    np.testing.assert_allclose(y, wanted, rtol=0, atol=0.1 * np.abs(wanted).max())


@pytest.mark.parametrize("op", ["GroupNormalization", "MeanVarianceNormalization"])
def test_a_layer_with_a_bias_behind_an_operator_that_onnx_infers_nothing_of(op: str) -> None:
    """The quantizer had no type, so no scale, for what the layer reads, and failed at its bias."""
    generator = np.random.default_rng(0)
    drawn = {"w": (6, 6, 3, 3), "b": (6,), "scale": (6,), "shift": (6,)}
    constants = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in drawn.items()}
    inputs = ["x", "scale", "shift"] if op == "GroupNormalization" else ["x"]
    norm = node(op, inputs, "n", **({"num_groups": 2} if len(inputs) > 1 else {"axes": [0, 2, 3]}))
    model = build([norm, node("Conv", ["n", "w", "b"], "y")], constants, shape=("n", 6, 8, 8), opset=21)
    feeds = {"x": generator.standard_normal((8, 6, 8, 8)).astype(np.float32)}
    context = PassContext(calibration=lambda: iter([feeds]))
    result = Int8Quantization().apply(model, Int8Quantization().plan(model, context), context).model
    stored = {values.dtype for t in result.constants().values() if (values := t.values).ndim == 4}
    assert stored <= {np.dtype(np.int8), np.dtype(np.uint8)}
    before, after = (run_all(each, feeds)["y"] for each in (model, result))
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_a_sub_graph_reads_what_is_rectified() -> None:
    """The quantizer made the Relu part of the layer before, and the sub-graph read what that layer makes alone."""
    generator = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "k": (8, 8, 1, 1), "v": (4, 8, 1, 1)}
    weights = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Relu", ["a"], "r"),
        node("ReduceMax", ["x"], "most", keepdims=0),
        node("Less", ["most", "bound"], "yes"),
        choice(branch(node("Conv", ["r", "k"], "t")), branch(node("Identity", ["r"], "t"))),
        node("Conv", ["c", "v"], "y"),
    ]
    constants = {**weights, "bound": np.float32(1e9)}
    model = build(nodes, constants, shape=("n", 3, 8, 8))
    feeds = {"x": generator.standard_normal((8, 3, 8, 8)).astype(np.float32)}
    context = PassContext(calibration=lambda: iter([feeds]))
    each = Int8Quantization()
    result = each.apply(model, each.plan(model, context), context).model
    before, after = (run_all(each, feeds)["y"] for each in (model, result))
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_a_bias_that_several_layers_share_is_copied_under_a_free_name() -> None:
    """The quantizer numbers its copies, and what it came to, `b1`, was what another layer makes."""
    generator = np.random.default_rng(0)
    drawn = {"w": (6, 6, 3, 3), "v": (6, 6, 3, 3), "b": (6,)}
    constants = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in drawn.items()}
    made = [f"b{number}" for number in range(12)]
    layers = [
        node("Conv", [read, "wv"[n % 2], "b"], name, name=f"layer{n}", pads=[1, 1, 1, 1])
        for n, (read, name) in enumerate(zip(["x", *made], made, strict=False))
    ]
    model = build(layers, constants, shape=("n", 6, 8, 8))
    feeds = {"x": generator.standard_normal((8, 6, 8, 8)).astype(np.float32)}
    context = PassContext(calibration=lambda: iter([feeds]))
    result = Int8Quantization().apply(model, Int8Quantization().plan(model, context), context).model
    before, after = (run_all(each, feeds)[made[-1]] for each in (model, result))
    assert np.linalg.norm(after - before) < 0.2 * np.linalg.norm(before)


def test_clean_up_leaves_a_quantised_file_as_small_as_it_is() -> None:
    """The scales of biases are products of two others; stored, they made the file larger."""
    model = Model.from_proto(conv_net(channels=64))
    context = PassContext(calibration=lambda: iter([{"x": samples()}]))
    result = Int8Quantization().apply(model, Int8Quantization().plan(model, context), context).model
    assert any(each.op == "Mul" for each in result.nodes)
    plan = Cleanup().plan(result, PassContext())
    assert plan.decisions == ()
    assert any("product of two" in skipped.reason for skipped in plan.skipped)


def test_a_quantised_model_is_proved_by_what_it_says_not_by_kernels_of_integers() -> None:
    """onnxruntime fuses a layer between conversions into one of integers, which rounds elsewhere."""
    model = Model.from_proto(conv_net())
    context = PassContext(calibration=lambda: iter([{"x": samples()}]))
    each = Int8Quantization()
    quantised = each.apply(model, each.plan(model, context), context).model
    rewritten = quantised.copy()
    for dequantise in [
        n for n in rewritten.nodes if n.op == "DequantizeLinear" and isinstance(n.inputs[0], gs.Constant)
    ]:
        whole, scales, *zero = (tensor.values for tensor in dequantise.inputs)
        along = (-1, *[1] * (whole.ndim - 1)) if scales.ndim else ()
        values = (
            whole.astype(np.float32) - (zero[0].astype(np.float32).reshape(along) if zero else 0)
        ) * scales.reshape(along)
        made = rewritten.new_constant("float", values.astype(np.float32))
        for reader in list(dequantise.outputs[0].outputs):
            reader.inputs[reader.inputs.index(dequantise.outputs[0])] = made
    rewritten.refresh_shapes()
    feeds = {"x": samples()}
    in_integers = [session(m.to_bytes(), optimised=True).run(None, feeds)[0] for m in (quantised, rewritten)]
    assert np.abs(in_integers[0] - in_integers[1]).max() > 1e-3 * np.abs(in_integers[0]).max()
    assert verify("rewrite", quantised, rewritten, feeds).passed
