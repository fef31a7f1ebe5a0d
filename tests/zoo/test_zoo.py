"""Every network of the zoo builds, exports, and answers in onnxruntime as in torch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.zoo import EXPORTERS, ZOO, expected_outputs, export, sample_inputs

# The new exporter takes seconds for each; these stand for residuals, shuffles, channels last and several outputs.
QUICK_DYNAMO = {"resnet-basic", "shufflenet-v2", "convnext", "yolov8"}

# Relative to the range of the output: two implementations of the same float32 arithmetic.
TOLERANCE = 2e-5

FAMILIES = """
    alexnet audio-1d convnext deeplab densenet efficientnet fcn ghostnet googlenet hrnet inception-v3 mnasnet
    mobilenet-v1 mobilenet-v2 mobilenet-v3 regnet-x regnet-y resnet-basic resnet-bottleneck resnext shufflenet-v1-g2
    shufflenet-v2 squeezenet unet vgg vgg-bn video-3d wide-resnet xception yolov8
"""


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


@pytest.mark.parametrize(("name", "exporter"), cases())
def test_export_is_valid_and_computes_what_torch_computes(name: str, exporter: str) -> None:
    model = export(name, exporter)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = sample_inputs(name, batch=batch, seed=batch)
        outputs = session.run(None, inputs)
        expected = expected_outputs(name, inputs)
        assert len(outputs) == len(expected)
        for computed, wanted in zip(outputs, expected, strict=True):
            assert computed.shape == wanted.shape
            assert np.abs(computed - wanted).max() <= TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("name", ZOO)
def test_network_is_small_and_repeatable(name: str) -> None:
    first, second = ZOO[name].network().state_dict(), ZOO[name].network().state_dict()
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert 1_000 <= sum(value.numel() for value in first.values()) <= 600_000


@pytest.mark.parametrize("name", ZOO)
def test_output_depends_on_the_input_and_is_of_sane_scale(name: str) -> None:
    one, other = (expected_outputs(name, sample_inputs(name, seed=seed)) for seed in (0, 1))
    for first, second in zip(one, other, strict=True):
        assert 1e-3 < np.abs(first).max() < 1e4
        assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()


def test_all_families_of_the_field_are_there() -> None:
    assert not set(FAMILIES.split()) - ZOO.keys()


def test_batchnorm_is_folded_unless_kept() -> None:
    operators = {
        exporter: Counter(node.op_type for node in export("resnet-basic", exporter).graph.node)
        for exporter in ("torchscript", "torchscript-bn")
    }
    assert operators["torchscript"]["BatchNormalization"] == 0
    assert operators["torchscript-bn"]["BatchNormalization"] == operators["torchscript-bn"]["Conv"] == 15


def test_fixed_batch_and_old_opset() -> None:
    model = export("mobilenet-v3", dynamic_batch=False, opset=11)
    assert model.opset_import[0].version == 11
    assert [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 32, 32]
