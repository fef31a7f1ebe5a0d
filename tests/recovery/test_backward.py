"""Gradients at inner tensors from one ONNX graph: whole networks, every loss, and where the way back ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxcompress.passes.recovery.backward as backward_module
from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.passes.recovery.backward import Backward
from onnxcompress.passes.recovery.outputs import compared_outputs
from tests.recovery.drawn_loss import SEED, Arrays, assert_close, gradients_by_torch
from tests.small_models import build, node, run_all
from tests.zoo import export, sample_inputs


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def float_tensors(model: Model) -> list[str]:
    return [t.name for n in model.nodes for t in n.outputs if model.dtypes.get(t.name) == TensorProto.FLOAT]


def gradients(model: Model, names: list[str], batch: Arrays) -> Arrays:
    return Backward(model, names).run(batch, np.random.default_rng(SEED))


NETWORKS = [
    "googlenet",
    "resnet-basic",
    "mobilenet-v3",
    "densenet",
    "inception-v3",
    "squeezenet",
    "siamese",
    "video-3d",
]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_of_a_network(name: str) -> None:
    model, batch = Model.from_proto(export(name)), sample_inputs(name)
    names = float_tensors(model)
    backward = Backward(model, names[::-1])
    assert backward.tensors == tuple(names)
    found = backward.run(batch, np.random.default_rng(SEED))
    compared = [output.compared for output in compared_outputs(model, model)]
    expected = gradients_by_torch(model, batch, names, compared)
    for tensor in names:
        assert_close(found[tensor], expected[tensor], 2e-4)


def classifier(*tail: onnx.NodeProto, outputs: tuple[str, ...]) -> Model:
    """Convolution `c`, LRN, pool, Gemm `s` with 5 classes, then `tail`."""
    nodes = [
        node("Conv", ["x", "w"], "c", pads=[1, 1, 1, 1]),
        node("LRN", ["c"], "l", size=3, alpha=0.5),
        node("GlobalAveragePool", ["l"], "m"),
        node("Flatten", ["m"], "f"),
        node("Gemm", ["f", "d"], "s"),
        *tail,
    ]
    constants = {"w": weights(7, 6, 3, 3), "d": weights(7, 5, seed=1)}
    return build(nodes, constants, shape=("n", 6, 5, 4), outputs=outputs)


IMAGES = {"x": weights(16, 6, 5, 4, seed=2)}


@pytest.mark.parametrize(
    ("tail", "output", "compared"),
    [
        ((), "s", "s"),
        ((node("Softmax", ["s"], "p", axis=1),), "p", "s"),
        ((node("LogSoftmax", ["s"], "p", axis=1),), "p", "s"),
        # A Softmax that is not last: what is given out are seen to be probabilities.
        ((node("Softmax", ["s"], "p", axis=1), node("Identity", ["p"], "q")), "q", "q"),
        ((node("Unsqueeze", ["s", "last"], "p"),), "p", "p"),
    ],
    ids=["logits", "softmax", "logsoftmax", "probabilities", "(N, C, 1)"],
)
def test_class_scores(tail: tuple[onnx.NodeProto, ...], output: str, compared: str) -> None:
    if output == "p" and compared == "p":
        tail = (node("Constant", [], "last", value_ints=[2]), *tail)
    model = classifier(*tail, outputs=(output,))
    found = gradients(model, ["c", "s"], IMAGES)
    expected = gradients_by_torch(model, IMAGES, ["c", "s"], [compared])
    for name in ("c", "s"):
        assert_close(found[name], expected[name])


def test_labels_are_drawn_as_often_as_the_network_answers_them() -> None:
    """The gradient at logits is p - onehot(label): its mean is zero, and its squares are p (1 - p)."""
    model = classifier(outputs=("s",))
    image = {"x": np.repeat(IMAGES["x"][:1], 4000, axis=0)}
    found = gradients(model, ["s"], image)["s"]
    scores = run_all(model, {"x": image["x"][:1]})["s"][0]
    p = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    np.testing.assert_allclose(found.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(np.square(found).mean(0), p * (1 - p), atol=0.02)


def test_outputs_that_classify_nothing_get_noise_by_their_weights() -> None:
    model = classifier(outputs=("c", "s"))
    own = {"c": np.array([0.3, 2.0, 0.1, 1.0, 7.0, 0.5, 0.2]).reshape(1, 7, 1, 1)}
    found = Backward(model, ["c", "l"], weights=own).run(IMAGES, np.random.default_rng(SEED))
    expected = gradients_by_torch(model, IMAGES, ["c", "l"], ["c", "s"], own)
    for name in ("c", "l"):
        assert_close(found[name], expected[name])
    only = classifier(outputs=("c",))
    noise = np.random.default_rng(SEED).standard_normal(run_all(model, IMAGES)["c"].shape)
    alone = Backward(only, ["c"], weights=own).run(IMAGES, np.random.default_rng(SEED))["c"]
    np.testing.assert_allclose(alone, np.sqrt(2 * own["c"]) * noise, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients(only, ["c"], IMAGES)["c"], np.sqrt(2) * noise, rtol=1e-4, atol=1e-6)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = classifier(outputs=("s",))
    backward, generator = Backward(model, ["c"]), np.random.default_rng(SEED)
    parts = [backward.run({"x": IMAGES["x"][at : at + 4]}, generator)["c"] for at in range(0, 16, 4)]
    whole = gradients(model, ["c"], IMAGES)["c"]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-7)


def test_central_differences() -> None:
    """Independent of torch: how the loss of the same labels changes with the input."""
    model = classifier(outputs=("s",))
    image = {"x": IMAGES["x"][:2]}
    found = gradients(model, ["x"], image)["x"]
    noise = np.random.default_rng(SEED).gumbel(size=(2, 5))
    labels = (run_all(model, image)["s"] + noise).argmax(1)

    def loss(x: np.ndarray) -> float:
        scores = run_all(model, {"x": x})["s"].astype(np.float64)
        return float((np.log(np.exp(scores).sum(1)) - scores[np.arange(2), labels]).sum())

    step = 2.0**-6
    for place in [(0, 0, 0, 0), (1, 3, 2, 1), (0, 5, 4, 3)]:
        changed = np.zeros_like(image["x"])
        changed[place] = step
        slope = (loss(image["x"] + changed) - loss(image["x"] - changed)) / (2 * step)
        assert found[place] == pytest.approx(slope, rel=2e-2, abs=2e-4)


def test_an_unknown_operator_ends_the_way_back() -> None:
    """`b` reaches the output through Sinh and past it: the sum would lack a term. `a` lies before it."""
    nodes = [
        node("Relu", ["x"], "a"),
        node("Sigmoid", ["a"], "b"),
        node("Sinh", ["b"], "u"),
        node("Tanh", ["b"], "k"),
        node("Add", ["u", "k"], "y"),
    ]
    model = build(nodes, shape=("n", 6, 5))
    assert Backward(model, ["x", "a", "b", "u", "k", "y"]).tensors == ("u", "k", "y")


def test_shapes_and_indices_carry_no_gradient() -> None:
    """`a` also gives a shape and a mask; neither changes with its values."""
    nodes = [
        node("Relu", ["x"], "a"),
        node("Shape", ["a"], "shape"),
        node("Reshape", ["a", "shape"], "r"),
        node("Greater", ["a", "half"], "mask"),
        node("Cast", ["mask"], "share", to=TensorProto.FLOAT),
        node("Mul", ["r", "share"], "y"),
    ]
    model = build(nodes, {"half": np.float32(0.5)}, shape=("n", 6, 5))
    batch = {"x": weights(4, 6, 5)}
    assert_close(gradients(model, ["a"], batch)["a"], gradients_by_torch(model, batch, ["a"], ["y"])["a"])


def test_quantized_values_have_no_gradient_that_is_known() -> None:
    nodes = [
        node("Tanh", ["x"], "a"),
        node("QuantizeLinear", ["a", "scale"], "q"),
        node("DequantizeLinear", ["q", "scale"], "d"),
        node("Add", ["a", "d"], "y"),
    ]
    model = build(nodes, {"scale": np.float32(0.01)}, shape=("n", 6, 5))
    assert Backward(model, ["a", "d"]).tensors == ("d",)


def test_a_branch_that_nothing_reads_back_has_none() -> None:
    nodes = [node("Relu", ["x"], "a"), node("Tanh", ["a"], "y"), node("ArgMax", ["a"], "i", axis=1)]
    model = build(nodes, shape=("n", 6, 5), outputs=("y", "i"))
    assert Backward(model, ["a", "i"]).tensors == ("a",)


def test_float16_ends_the_way_back() -> None:
    nodes = [
        node("Relu", ["x"], "a"),
        node("Cast", ["a"], "h", to=TensorProto.FLOAT16),
        node("Tanh", ["h"], "t"),
        node("Cast", ["t"], "f", to=TensorProto.FLOAT),
        node("Sigmoid", ["f"], "y"),
    ]
    model = build(nodes, shape=("n", 6, 5))
    assert Backward(model, ["a", "h", "t", "f"]).tensors == ("f",)


def test_an_operand_whose_share_is_not_known_has_no_gradient() -> None:
    """Power has a rule for its base; `a` is also an exponent."""
    nodes = [
        node("Sigmoid", ["x"], "a"),
        node("Tanh", ["a"], "t"),
        node("Pow", ["two", "a"], "p"),
        node("Add", ["t", "p"], "y"),
    ]
    model = build(nodes, {"two": np.float32(2)}, shape=("n", 6, 5))
    assert Backward(model, ["a", "t", "p"]).tensors == ("t", "p")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Cast", ["a"], "z", to=TensorProto.FLOAT16)],
        [node("Expand", ["a", "lengths"], "z")],
    ],
    ids=["type", "shape"],
)
def test_an_output_without_a_loss_ends_the_way_back(nodes: list[onnx.NodeProto]) -> None:
    """A float16 output, or one of unknown shape: its loss would be missing from the gradient at `a`."""
    ways = [node("Relu", ["x"], "a"), node("Tanh", ["a"], "t"), node("Sigmoid", ["t"], "y")]
    zeros = [node("Shape", ["x"], "size"), node("ConstantOfShape", ["size"], "filled")]
    model = build(
        [*ways, *zeros, *lengths_of("filled"), *nodes],
        {"rest": np.array([6, 5])},
        shape=("n", 6, 5),
        outputs=("y", "z"),
    )
    assert Backward(model, ["a", "t"]).tensors == ("t",)


def lengths_of(name: str) -> list[onnx.NodeProto]:
    """As many rows as a tensor has that are not zero, then `rest`."""
    return [
        node("NonZero", [name], "where"),
        node("Shape", ["where"], "found"),
        node("Concat", ["found", "rest"], "lengths", axis=0),
    ]


def test_an_output_whose_shape_the_data_decide_has_its_loss_where_it_is_made_from() -> None:
    ways = [node("Relu", ["x"], "a"), node("Tanh", ["a"], "t"), node("Sigmoid", ["t"], "y")]
    wide = node("Expand", ["a", "lengths"], "z")
    model = build([*ways, *lengths_of("x"), wide], {"rest": np.array([6, 5])}, shape=("n", 6, 5), outputs=("y", "z"))
    assert Backward(model, ["a", "t"]).tensors == ("a", "t")


def subgraph_model() -> Model:
    """`a` is read by Tanh, and from inside an If."""
    inner = helper.make_graph(
        [node("Neg", ["a"], "n")], "branch", [], [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)]
    )
    nodes = [
        node("Relu", ["x"], "a"),
        node("Tanh", ["a"], "t"),
        node("If", ["yes"], "i", then_branch=inner, else_branch=inner),
        node("Add", ["t", "i"], "y"),
    ]
    return build(nodes, {"yes": np.array(True)}, shape=("n", 6, 5))


def test_what_a_subgraph_reads_has_no_gradient() -> None:
    assert Backward(subgraph_model(), ["a", "t"]).tensors == ("t",)


OLD: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], tuple[str, ...]]] = {
    "softmax over several axes": ([node("Softmax", ["x"], "y", axis=1)], {}, ()),
    "upsample": (
        [node("Upsample", ["x", "scales"], "y")],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        (),
    ),
    "softmax over the last axis": ([node("Softmax", ["x"], "y", axis=3)], {}, ("x",)),
}


@pytest.mark.parametrize("name", OLD)
def test_old_opsets_are_raised_where_that_changes_nothing(name: str) -> None:
    nodes, constants, tensors = OLD[name]
    model = build([node("Relu", ["x"], "a"), *nodes, node("Relu", ["y"], "z")], constants, shape=(2, 6, 5, 4), opset=9)
    backward = Backward(model, ["x"])
    assert backward.tensors == tensors
    if tensors:
        batch = {"x": weights(2, 6, 5, 4)}
        found = backward.run(batch, np.random.default_rng(SEED))["x"]
        assert_close(found, gradients_by_torch(model, batch, ["x"], ["z"])["x"])


def test_large_models_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(outputs=("s",))
    monkeypatch.setattr(backward_module, "IN_MEMORY_BYTES", model.weight_bytes - 1)
    backward = Backward(model, ["c"])
    assert backward.tensors == ()
    assert backward.run(IMAGES, np.random.default_rng(0)) == {}


def test_the_model_is_left_alone() -> None:
    model = classifier(outputs=("s",))
    before = model.to_bytes()
    gradients(model, ["c"], IMAGES)
    assert model.to_bytes() == before


def test_errors() -> None:
    model = classifier(outputs=("s",))
    with pytest.raises(ModelError, match="tensor 'nothing' is neither"):
        Backward(model, ["c", "nothing"])
