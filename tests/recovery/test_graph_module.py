"""The executor of a graph in torch: it computes what onnxruntime computes, trains, and goes back into the same ONNX."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from onnxcompress.errors import ModelError, UnsupportedOpError
from onnxcompress.graph import Model
from onnxcompress.passes.recovery.graph_module import GraphModule
from onnxcompress.passes.recovery.trainable import weight_names
from tests.zoo import EXPORTERS, ZOO, export, sample_inputs

# Relative to the range of the output: two implementations of the same float32 arithmetic.
TOLERANCE = 2e-5
QUICK_DYNAMO = {"resnet-basic", "shufflenet-v2", "convnext", "yolov8"}


def cases() -> list[object]:
    return [
        pytest.param(
            name,
            exporter,
            id=f"{name}-{exporter}",
            marks=[pytest.mark.slow] if exporter == "dynamo" and name not in QUICK_DYNAMO else [],
        )
        for name, entry in ZOO.items()
        for exporter in EXPORTERS
        if exporter not in entry.cannot
    ]


def tensors_of(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


@pytest.mark.parametrize(("name", "exporter"), cases())
def test_module_is_the_network_trains_and_goes_back(name: str, exporter: str) -> None:
    proto = export(name, exporter)
    model = Model.from_proto(proto)
    module = GraphModule(model).eval()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = sample_inputs(name, batch=batch, seed=batch)
        outputs = module(*tensors_of(inputs).values())
        for computed, wanted in zip(outputs, session.run(None, inputs), strict=True):
            assert computed.shape == wanted.shape
            assert np.abs(computed.detach().numpy() - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    sum(output.square().mean() for output in outputs).backward()
    assert module.weights
    assert [n for n, weight in module.weights.items() if weight.grad is None or not weight.grad.isfinite().all()] == []
    assert module.to_model().to_bytes() == model.to_bytes()


def googlenet_digits() -> Model:
    return Model.load("models/googlenet-digits.onnx")


def test_a_trained_weight_is_written_under_its_name_and_nothing_else() -> None:
    model = googlenet_digits()
    before = {name: tensor.values.copy() for name, tensor in model.constants().items()}
    module = GraphModule(model)
    chosen = sorted(module.weights)[3]
    with torch.no_grad():
        module.weights[chosen].mul_(1.5)
    written = module.to_model()
    after = {name: tensor.values for name, tensor in written.constants().items()}
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == [chosen]
    np.testing.assert_array_equal(after[chosen], before[chosen] * np.float32(1.5))
    assert all(np.array_equal(tensor.values, before[name]) for name, tensor in model.constants().items())
    onnx.checker.check_model(written.to_proto(), full_check=True)


def test_part_of_a_graph_runs_between_two_sets_of_tensors() -> None:
    name = "unet"  # its skips make every cut but the outermost a set of several tensors
    model = Model.from_proto(export(name))
    module = GraphModule(model).eval()
    inputs = tensors_of(sample_inputs(name))
    concat = next(node for node in model.nodes if node.op == "Concat")
    boundary = [tensor.name for tensor in concat.inputs]
    with torch.no_grad():
        whole = module.run(inputs, [*boundary, *module.output_names])
        fed = {n: whole[n] for n in boundary} | {
            t.name: v for t, v in zip(model.graph.inputs, inputs.values(), strict=True)
        }
        again = module.run(fed, module.output_names)
        joined = module.run({n: whole[n] for n in boundary}, [concat.outputs[0].name])
    assert torch.equal(again["output"], whole["output"])
    assert torch.equal(joined[concat.outputs[0].name], torch.cat([whole[n] for n in boundary], 1))


def test_what_a_wanted_tensor_needs_must_be_fed() -> None:
    model = googlenet_digits()
    module = GraphModule(model)
    with pytest.raises(ModelError, match="'input' is needed"):
        module.run({}, module.output_names)


def test_a_fed_and_a_constant_tensor_can_be_wanted() -> None:
    module = GraphModule(googlenet_digits())
    x, name = torch.zeros(1, 1, 32, 32), sorted(module.weights)[0]
    result = module.run({"input": x}, ["input", name])
    assert result["input"] is x
    assert result[name] is module.weights[name]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_are_computed_in_float32_and_written_in_their_own(dtype: str) -> None:
    stored = helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) if dtype != "bfloat16" else TensorProto.BFLOAT16
    weight = np.linspace(-1, 1, 18).reshape(2, 1, 3, 3)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "typed",
        [helper.make_tensor_value_info("x", stored, [1, 1, 5, 5])],
        [helper.make_tensor_value_info("y", stored, [1, 2, 3, 3])],
        [helper.make_tensor("w", stored, weight.shape, weight.reshape(-1))],
    )
    opset = 22 if dtype == "bfloat16" else 17
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))
    module = GraphModule(model)
    assert module.weights["w"].dtype == torch.float32
    if dtype != "float64":
        assert module.to_model().to_bytes() == model.to_bytes()
    with torch.no_grad():
        module.weights["w"].mul_(2.0)
    written = module.to_model().constants()["w"].values
    assert written.dtype == model.constants()["w"].values.dtype
    np.testing.assert_allclose(written.astype(np.float64), 2 * weight, rtol=1e-2)


def test_a_weight_too_large_for_its_type_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "typed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 1, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 2, 3, 3])],
        [helper.make_tensor("w", TensorProto.FLOAT16, (2, 1, 3, 3), np.ones(18))],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    module = GraphModule(model)
    with torch.no_grad():
        module.weights["w"].fill_(1e6)
    with pytest.raises(ModelError, match="'w' became too large for float16"):
        module.to_model()


def test_weights_are_told_from_other_constants() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Mul", ["c", "scalar"], ["m"]),
        helper.make_node("Mul", ["m", "gain"], ["g"]),
        helper.make_node("Mul", ["g", "g"], ["square"]),
        helper.make_node("Conv", ["square", "band", "ones"], ["window"]),
        helper.make_node("Sqrt", ["window"], ["root"]),
        helper.make_node("Div", ["g", "root"], ["y"]),
    ]
    draw = np.random.default_rng(0).standard_normal
    arrays = {
        "w": draw((4, 3, 3, 3)),
        "b": draw(4),
        "scalar": np.asarray(2.0),
        "gain": draw((4, 1, 1)),
        "band": np.abs(draw((4, 4, 1, 1))),
        "ones": np.ones(4),
    }
    graph = helper.make_graph(
        nodes,
        "constants",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    # The band convolution of a rewritten LRN must stay: a root follows it.
    assert weight_names(model) == {"w", "b", "gain"}


def test_batch_statistics_are_used_and_updated_in_training_mode_only() -> None:
    model = Model.from_proto(export("resnet-basic", "torchscript-bn"))
    module = GraphModule(model)
    inputs = tensors_of(sample_inputs("resnet-basic"))
    module.eval()
    module(*inputs.values())
    assert module.to_model().to_bytes() == model.to_bytes()
    module.train()
    module(*inputs.values())
    written = module.to_model().constants()
    changed = {n for n, t in model.constants().items() if not np.array_equal(t.values, written[n].values)}
    assert changed == set(module.statistics)
    assert len(changed) == 30


def test_a_scale_and_shift_in_the_form_of_a_normalisation_has_no_statistics() -> None:
    nodes = [helper.make_node("BatchNormalization", ["x", *"sbmv"], ["y"], epsilon=0.0)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 4, 4]) for name in "xy"]
    arrays = {"s": [2.0, -1.0, 0.5], "b": [1.0, 0.0, -1.0], "m": [0.0] * 3, "v": [1.0] * 3}
    constants = [onnx.numpy_helper.from_array(np.array(v, np.float32), k) for k, v in arrays.items()]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], constants)
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    module = GraphModule(model)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32))
    module.train()
    expected = x * torch.tensor(arrays["s"]).view(3, 1, 1) + torch.tensor(arrays["b"]).view(3, 1, 1)
    torch.testing.assert_close(module(x)[0], expected)
    assert not module.statistics
    assert set(module.weights) == {"s", "b"}
    assert module.to_model().to_bytes() == model.to_bytes()


def test_state_goes_through_a_file_and_only_into_its_own_network() -> None:
    module = GraphModule(googlenet_digits())
    first = module.state()
    with torch.no_grad():
        for weight in module.weights.values():
            weight.add_(1.0)
    stream = io.BytesIO()
    torch.save(first, stream)
    stream.seek(0)
    module.load_state(torch.load(stream, weights_only=True))
    assert module.to_model().to_bytes() == googlenet_digits().to_bytes()
    with pytest.raises(ModelError, match="not those of this network"):
        module.load_state({"w": torch.zeros(1)})


def test_control_flow_and_other_domains_are_named() -> None:
    for op, domain in (("If", ""), ("FusedConv", "com.microsoft")):
        model = googlenet_digits()
        model.nodes[0].op, model.nodes[0].domain = op, domain
        with pytest.raises(UnsupportedOpError, match=op):
            GraphModule(model)
