"""Three convolutions compute what one with the reconstructed kernel computes; at full rank, what the original does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import PassError
from onnxcompress.graph import Model
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import PassResult
from onnxcompress.passes.tucker import verify_splits
from onnxcompress.passes.tucker.verify import reconstructed_reference
from tests.passes.tucker_models import conv_model, difference, input_of, run, tucker, weight_of

TOLERANCE = 2e-6

# (operator, weight shape, input shape, attributes)
CASES = {
    "plain": ("Conv", (8, 6, 3, 3), (2, 6, 9, 10), {}),
    "pads": ("Conv", (8, 6, 3, 3), (2, 6, 9, 10), {"pads": [1, 1, 1, 1]}),
    "uneven pads": ("Conv", (8, 6, 3, 5), (2, 6, 9, 10), {"pads": [0, 2, 1, 4]}),
    "strides": ("Conv", (8, 6, 3, 3), (2, 6, 9, 10), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilations": ("Conv", (8, 6, 3, 3), (2, 6, 9, 10), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "all of them": (
        "Conv",
        (8, 6, 3, 2),
        (1, 6, 12, 11),
        {"strides": [2, 1], "dilations": [2, 2], "pads": [3, 1, 0, 2]},
    ),
    "same upper": ("Conv", (8, 6, 4, 4), (1, 6, 9, 10), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ("Conv", (8, 6, 4, 4), (1, 6, 9, 10), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": ("Conv", (8, 6, 3, 3), (1, 6, 9, 10), {"auto_pad": "VALID", "strides": [2, 2]}),
    "kernel_shape given": ("Conv", (8, 6, 3, 3), (1, 6, 9, 10), {"kernel_shape": [3, 3]}),
    "kernel 1x5": ("Conv", (8, 6, 1, 5), (1, 6, 5, 9), {"pads": [0, 2, 0, 2]}),
    "one input channel": ("Conv", (12, 1, 3, 3), (1, 1, 9, 9), {}),
    "one filter": ("Conv", (1, 6, 3, 3), (1, 6, 9, 9), {}),
    "two groups": ("Conv", (8, 3, 3, 3), (2, 6, 9, 10), {"group": 2, "pads": [1, 1, 1, 1]}),
    "four groups": ("Conv", (12, 4, 3, 3), (1, 16, 9, 9), {"group": 4, "strides": [2, 2]}),
    "1-D": ("Conv", (8, 6, 5), (2, 6, 30), {"pads": [3, 1], "strides": [2], "dilations": [2]}),
    "1-D groups": ("Conv", (8, 3, 5), (2, 6, 30), {"group": 2}),
    "3-D": ("Conv", (8, 6, 3, 2, 3), (1, 6, 5, 6, 7), {"pads": [1, 0, 1, 1, 0, 1], "strides": [1, 2, 2]}),
    "3-D groups": ("Conv", (8, 2, 2, 2, 2), (1, 8, 4, 4, 4), {"group": 4}),
    "transposed": ("ConvTranspose", (6, 8, 3, 3), (2, 6, 5, 6), {}),
    "transposed, strides": ("ConvTranspose", (6, 8, 4, 4), (1, 6, 5, 6), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "transposed, output_padding": (
        "ConvTranspose",
        (6, 8, 3, 3),
        (1, 6, 5, 6),
        {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
    ),
    "transposed, output_shape": (
        "ConvTranspose",
        (6, 8, 3, 3),
        (1, 6, 5, 6),
        {"strides": [2, 2], "output_shape": [10, 12]},
    ),
    "transposed, dilations": ("ConvTranspose", (6, 8, 3, 3), (1, 6, 5, 6), {"dilations": [2, 2]}),
    "transposed, same upper": (
        "ConvTranspose",
        (6, 8, 3, 3),
        (1, 6, 5, 6),
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ),
    "transposed, groups": ("ConvTranspose", (6, 4, 3, 3), (1, 6, 5, 6), {"group": 2, "strides": [2, 2]}),
    "transposed, 1-D": ("ConvTranspose", (6, 8, 4), (1, 6, 9), {"strides": [2]}),
    "transposed, 3-D": ("ConvTranspose", (6, 4, 2, 2, 2), (1, 6, 3, 3, 3), {"strides": [2, 2, 2]}),
}


def build(name: str, *, bias: bool = True) -> tuple[Model, np.ndarray]:
    op, weight, shape, attributes = CASES[name]
    return conv_model(weight_of(*weight), shape, op=op, bias=bias, **attributes), input_of(*shape)


def by_hand(model: Model, result: PassResult) -> np.ndarray:
    """The kernel that the three stored weights stand for, by multiplying them out one filter at a time."""
    (decision,) = result.plan.decisions
    first, core, last = (n.inputs[1].values.astype(np.float64) for n in result.model.nodes)
    groups, transposed = decision["groups"], model.nodes[0].op == "ConvTranspose"
    weight = model.values(model.nodes[0].inputs[1])
    kernel = np.zeros(weight.shape)
    rank_in, rank_out = decision["ranks"]
    inputs, outputs = decision["channels"]
    for group in range(groups):
        for o in range(outputs):
            for i in range(inputs):
                for p in range(rank_out):
                    for q in range(rank_in):
                        into = first[group * rank_in + q, i].item()
                        out_of = last[group * outputs + o, p].item()
                        if transposed:
                            kernel[group * inputs + i, o] += out_of * into * core[group * rank_in + q, p]
                        else:
                            kernel[group * outputs + o, i] += out_of * into * core[group * rank_out + p, q]
    return kernel.astype(weight.dtype)


def reconstructed(model: Model, result: PassResult) -> Matrix:
    """Return the weight that the self-check gives the one split node."""
    reference, made = reconstructed_reference(model, result)
    return made[reference.nodes[0].inputs[1].name]()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CASES)
def test_full_rank_reproduces_the_convolution(name, bias):
    model, x = build(name, bias=bias)
    result = tucker(model, "ratio=1.0")
    assert [node.name for node in result.model.nodes] == ["conv_tucker_in", "conv_tucker_core", "conv_tucker_out"]
    assert result.plan.decisions[0]["error"] < 1e-6
    assert difference(run(model, x), run(result.model, x)) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_the_split_computes_the_reconstructed_kernel(name):
    model, x = build(name)
    result = tucker(model, "ratio=0.5")
    reference = model.copy()
    reference.set_input(reference.nodes[0], 1, by_hand(model, result))
    assert difference(run(reference, x), run(result.model, x)) < TOLERANCE
    assert difference(run(model, x), run(result.model, x)) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_the_self_check_agrees_and_sees_one_changed_weight(name):
    model, x = build(name)
    result = tucker(model, "ratio=0.5")
    np.testing.assert_allclose(reconstructed(model, result), by_hand(model, result), atol=1e-6)
    assert verify_splits(model, result, {"x": x}).difference < TOLERANCE
    core = result.model.nodes[1]
    changed = core.inputs[1].values.copy()
    changed.flat[0] += 0.5 * np.linalg.norm(changed)
    core.inputs[1].values = changed
    with pytest.raises(PassError, match="its factors are"):
        verify_splits(model, result, {"x": x})


def test_the_self_check_sees_a_wrong_attribute():
    model, x = build("uneven pads")
    result = tucker(model, "ratio=0.5")
    result.model.nodes[1].attrs["pads"] = [2, 0, 4, 1][::-1]
    with pytest.raises(PassError, match="differs from its reference"):
        verify_splits(model, result, {"x": x}).require()


@settings(max_examples=40)
@given(data=st.data())
def test_any_convolution_splits_exactly(data):
    """Operator, sizes, groups, strides, pads, dilations drawn at random; no cleverness in the expectation."""
    axes = data.draw(st.integers(1, 3))

    def each(low, high, count=axes):
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    groups = data.draw(st.integers(1, 3))
    per_group_in, per_group_out = data.draw(st.integers(2, 5)), data.draw(st.integers(2, 5))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes).filter(lambda k: max(k) > 1))
    op = data.draw(st.sampled_from(["Conv", "ConvTranspose"]))
    attributes = {"group": groups, "strides": each(1, 2), "dilations": each(1, 2)}
    if op == "Conv":
        attributes["pads"] = each(0, 2, 2 * axes)
    first, second = (per_group_in * groups, per_group_out) if op != "Conv" else (per_group_out * groups, per_group_in)
    shape = (1, per_group_in * groups, *each(5, 7))
    model = conv_model(weight_of(first, second, *kernel), shape, op=op, bias=data.draw(st.booleans()), **attributes)
    x = input_of(*shape)
    expected = run(model, x)
    spread = max(float(np.ptp(expected)), 1e-3)
    assert np.abs(run(tucker(model, "ratio=1.0").model, x) - expected).max() / spread < TOLERANCE
    ratio = data.draw(st.sampled_from(["0.3", "0.7"]))
    assert verify_splits(model, tucker(model, f"ratio={ratio}"), {"x": x}).difference < 1e-5


def test_float16_is_kept():
    model = conv_model(weight_of(8, 6, 3, 3, dtype=np.float16), (1, 6, 9, 9))
    result = tucker(model, "ratio=1.0")
    assert {node.inputs[1].values.dtype for node in result.model.nodes} == {np.dtype(np.float16)}
    x = input_of(1, 6, 9, 9, dtype=np.float16)
    assert difference(run(model, x).astype(np.float64), run(result.model, x).astype(np.float64)) < 5e-3


def test_float64_is_kept_to_its_last_digits():
    """onnxruntime's CPU has no Conv of doubles: the kernel is multiplied out instead."""
    weight = weight_of(8, 6, 3, 3, dtype=np.float64)
    model = conv_model(weight, (1, 6, 9, 9))
    result = tucker(model, "ratio=1.0")
    assert {node.inputs[1].values.dtype for node in result.model.nodes} == {np.dtype(np.float64)}
    np.testing.assert_allclose(reconstructed(model, result), weight, atol=1e-14)


def test_bfloat16_is_kept_and_computed_in_double():
    import ml_dtypes
    from onnx import TensorProto, helper

    from onnxcompress.graph import Model

    weight = weight_of(8, 6, 3, 3).astype(ml_dtypes.bfloat16)
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, weight.shape, weight.tobytes(), raw=True)
    x = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [1, 6, 9, 9])
    y = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [1, 8, 7, 7])
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    graph = helper.make_graph([node], "g", [x], [y], [tensor])
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))
    result = tucker(model, "ratio=1.0")
    assert {node.inputs[1].values.dtype.name for node in result.model.nodes} == {"bfloat16"}
    assert result.plan.decisions[0]["error"] < 1e-6
    rebuilt = reconstructed(model, result).astype(np.float64)
    assert np.linalg.norm(rebuilt - weight.astype(np.float64)) < 1e-2 * np.linalg.norm(weight.astype(np.float64))
