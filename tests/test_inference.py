"""Types and shapes that follow from a graph: what onnx infers, and what it leaves open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.inference import infer
from onnxcompress.lengths import open_lengths
from tests.small_models import build, node
from tests.tiny_models import conv_net

FLOAT = TensorProto.FLOAT


ML = {"domain": "ai.onnx.ml"}


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (node("Scaler", ["x"], "m", offset=[0.5], scale=[2.0], **ML), ("n", 4)),
        (node("Normalizer", ["x"], "m", norm="L2", **ML), ("n", 4)),
        (node("Imputer", ["x"], "m", imputed_value_floats=[0.0], replaced_value_float=-1.0, **ML), ("n", 4)),
        (node("LinearRegressor", ["x"], "m", coefficients=[1.0] * 16, targets=4, **ML), None),
    ],
    ids=lambda each: each.op_type if hasattr(each, "op_type") else "",
)
def test_what_stands_behind_classic_machine_learning_is_inferred(
    made: Any, shape: tuple[int | str, ...] | None
) -> None:
    nodes = [made, node("Relu", ["m"], "r"), node("MatMul", ["r", "w"], "y")]
    weights = [helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [1.0] * 8)]
    given, wanted = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in (("x", 4), ("y", 2))
    )
    graph = helper.make_graph(nodes, "g", [given], [wanted], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert model.shapes.get("r") == shape
    assert model.dtypes["r"] == TensorProto.FLOAT
    assert model.shapes["y"] == ("n", 2)


@pytest.mark.parametrize("opset", [9, 11, 13, 14, 15, 17, 21])
def test_shape_arithmetic_is_followed_in_every_opset(opset: int) -> None:
    """Below opset 15 onnx's inference loses what is computed from Shape."""
    axes = {"axes": [0]} if opset < 13 else {}
    more = [] if opset < 13 else ["zero"]
    cut = {"starts": [2], "ends": [4]} if opset < 10 else {}
    nodes = [
        node("Relu", ["x"], "r"),
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "first"], "batch"),
        node("Unsqueeze", ["batch", *more], "n", **axes),
        node("Slice", ["shape"] if opset < 10 else ["shape", "two", "four"], "space", **cut),
        node("Concat", ["n", "groups", "space"], "target", axis=0),
        node("Reshape", ["r", "target"], "split"),
    ]
    constants = {"first": np.array(0), "zero": [0], "two": [2], "four": [4], "groups": [2, 3]}
    model = build(nodes, constants, opset=opset)
    found = model.shape_of("split")
    assert found is not None
    assert (len(found), found[1:3]) == (5, (2, 3))


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (["open", "six", "h", "w"], ("n", 6, "h", "w")),
        (["n", "open", "h", "w"], ("n", 6, "h", "w")),
        (["n", "six", "open", "w"], ("n", 6, "h", "w")),
        (["n", "six", "h", "open"], ("n", 6, "h", "w")),
        (["n", "open"], ("n", None)),
    ],
)
def test_an_open_length_follows_from_the_number_of_elements(
    target: list[str], shape: tuple[int | str | None, ...]
) -> None:
    """Behind (n, 2, 3 * h * w), whose last length no single symbol stands for."""
    nodes = [node("Relu", ["x"], "r"), node("Reshape", ["r", "rows"], "flat"), node("Shape", ["r"], "shape")]
    nodes += [node("Slice", ["shape", f"{at}", f"{at + 1}"], name) for name, at in (("n", 0), ("h", 2), ("w", 3))]
    nodes += [node("Concat", target, "target", axis=0), node("Reshape", ["flat", "target"], "back")]
    nodes += [node("Relu", ["back"], "y")]
    constants: dict[str, Any] = {"rows": [0, 2, -1], "open": [-1], "six": [6]} | {str(at): [at] for at in range(5)}
    model = build(nodes, constants)
    found = model.shape_of("back") or ()
    assert tuple(dim if dim in ("n", "h", "w") or isinstance(dim, int) else None for dim in found) == shape


def test_a_length_of_an_empty_tensor_or_a_broken_division_stays_open() -> None:
    shapes = {"x": ("n", 0), "y": ("u",), "p": ("n", 5), "q": (2, "v"), "r": ("n", 4), "s": ("w", 2)}
    nodes = [node("Reshape", [a, "t"], b) for a, b in (("x", "y"), ("p", "q"), ("r", "s"))]
    info = [helper.make_tensor_value_info("x", FLOAT, ["n", 0])]
    assert open_lengths(helper.make_graph(nodes, "g", info, []), shapes) == {}


@pytest.mark.parametrize(
    ("op", "opset"),
    [("GroupNormalization", 21), ("MeanVarianceNormalization", 17), ("GreaterOrEqual", 13), ("LessOrEqual", 17)],
)
def test_operators_that_onnx_infers_nothing_of(op: str, opset: int) -> None:
    inputs = {"GroupNormalization": ["r", "s", "s"], "MeanVarianceNormalization": ["r"]}.get(op, ["r", "r"])
    attributes = {"num_groups": 2} if op == "GroupNormalization" else {}
    nodes = [node("Relu", ["x"], "r"), node(op, inputs, "y", **attributes), node("Cast", ["y"], "z", to=FLOAT)]
    model = build(nodes, {"s": np.ones(6, np.float32)} if op == "GroupNormalization" else {}, opset=opset)
    assert model.shape_of("z") == model.shape_of("y") == ("n", 6, "h", "w")
    assert model.dtypes["y"] == (TensorProto.BOOL if "Or" in op else FLOAT)


@pytest.mark.parametrize("opset", [9, 10, 11, 12])
def test_old_spellings_are_understood(opset: int) -> None:
    """Lists that were attributes, Upsample, Resize with two inputs, Dropout, Clip and TopK of old opsets."""
    nodes = [
        node("Dropout", ["x"], "a", **({"ratio": 0.5} if opset < 12 else {})),
        node("Clip", ["a"], "b", **({"min": 0.0, "max": 6.0} if opset < 11 else {})),
        node("Pad", ["b", "pads"] if opset >= 11 else ["b"], "c", **({"pads": [0] * 7 + [1]} if opset < 11 else {})),
    ]
    constants: dict[str, Any] = {"pads": [0] * 7 + [1]} if opset >= 11 else {}
    scales = np.array([1, 1, 2, 2], np.float32)
    constants["scales"] = scales
    if opset == 9:
        nodes.append(node("Upsample", ["c", "scales"], "d", mode="nearest"))
    elif opset == 10:
        nodes.append(node("Resize", ["c", "scales"], "d", mode="nearest"))
    else:
        constants["none"] = np.zeros(0, np.float32)
        nodes.append(node("Resize", ["c", "none", "scales"], "d", mode="nearest"))
    nodes.append(node("ReduceSum", ["d"], "e", axes=[2], keepdims=0))
    nodes.append(node("Squeeze", ["u"], "f", axes=[0]))
    nodes.insert(-1, node("Unsqueeze", ["e"], "u", axes=[0]))
    nodes.append(node("Split", ["f"], "g", "h", axis=1, split=[2, 4]))
    nodes.append(node("Relu", ["h"], "y"))
    model = build(nodes, constants, opset=opset, shape=("n", 6, 4, 5))
    assert (model.shape_of("d") or ())[1:] == (6, 8, 12)
    assert (model.shape_of("y") or ())[1:] == (4, 12)


def test_shapes_for_given_inputs() -> None:
    model = Model.from_proto(conv_net())
    assert model.shapes_for({"x": (5, 3, 8, 8)})["r2"] == (5, 16, 4, 4)
    assert model.shape_of("r2") == ("batch", 16, 4, 4)


def test_shapes_that_contradict_each_other_are_refused() -> None:
    model = conv_net()
    model.graph.node[5].input[1] = "b1"
    with pytest.raises(ModelError, match="contradict"):
        Model.from_proto(model)
    with pytest.raises(ModelError, match="contradict"):
        infer(model)


@pytest.mark.parametrize(
    ("combined", "shape"),
    [
        (node("Add", ["x", "back"], "y"), ("n", 4, 6)),
        (node("MatMul", ["x", "turned"], "y"), ("n", 4, 4)),
        (node("Where", ["given", "x", "back"], "y"), ("n", 4, 6)),
    ],
)
def test_what_is_broadcast_along_one_length_has_that_length(combined: Any, shape: tuple[int | str, ...]) -> None:
    """The length of `back`, one that a Reshape leaves open, is n; onnx makes a new one for it and for the sum."""
    nodes = [
        node("Reshape", ["x", "flat"], "rows"),
        node("Reshape", ["rows", "cube"], "back"),
        node("Transpose", ["back"], "turned", perm=[0, 2, 1]),
        node("Not", ["never"], "given"),
        combined,
        node("Reshape", ["y", "flat"], "flattened"),
        node("Relu", ["flattened"], "z"),
    ]
    constants = {"flat": [-1, 2], "cube": [-1, 4, 6], "never": np.zeros((1, 4, 6), np.bool_)}
    model = build(nodes, constants, shape=("n", 4, 6))
    assert model.shape_of("y") == shape


def test_what_is_broadcast_along_two_open_lengths_stays_open() -> None:
    nodes = [node("Relu", ["x"], "r"), node("Transpose", ["r"], "t", perm=[1, 0]), node("Add", ["r", "t"], "y")]
    found = build([*nodes, node("Relu", ["y"], "z")], shape=("n", "m")).shape_of("y")
    assert found is not None
    assert not {"n", "m"} & set(found)


def test_lengths_that_are_one_product_have_one_name() -> None:
    nodes = [
        node("Reshape", ["x", "heads"], "a"),
        node("Relu", ["x"], "r"),
        node("Reshape", ["r", "heads"], "b"),
        node("Concat", ["a", "b"], "y", axis=1),
        node("Relu", ["y"], "z"),
    ]
    model = build(nodes, {"heads": [-1, 6]}, shape=("n", 4, 6))
    found = [model.shape_of(name) for name in "aby"]
    assert [shape and shape[1] for shape in found] == [6, 6, 12]
    assert len({shape and shape[0] for shape in found}) == 1
    assert "n" not in (found[0] or ())


def test_what_is_repeated_for_each_sample_has_their_number() -> None:
    """`token.expand(batch, -1, -1)` as torch exports it: -1 stands for 1, and the batch for what x has."""
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "first"], "batch"),
        node("Concat", ["batch", "keep", "keep"], "asked", axis=0),
        node("Where", ["is_keep", "ones", "asked"], "target"),
        node("Expand", ["token", "target"], "tokens"),
        node("Concat", ["tokens", "x"], "all", axis=1),
        node("Relu", ["all"], "y"),
    ]
    constants = {"first": [0], "keep": [-1], "ones": [1, 1, 1], "is_keep": np.array([False, True, True])}
    model = build(nodes, {**constants, "token": np.zeros((1, 1, 6), np.float32)}, shape=("n", 4, 6))
    assert model.shape_of("tokens") == ("n", 1, 6)
    assert model.shape_of("all") == ("n", 5, 6)


def test_what_an_expand_to_an_open_length_has_stays_open() -> None:
    """Of n and m elements one is 1, or they are equal."""
    nodes = [node("Shape", ["x"], "shape"), node("Gather", ["shape", "second"], "m")]
    nodes += [node("Concat", ["m", "m", "six"], "target", axis=0)]
    nodes += [node("Expand", ["x", "target"], "e"), node("Relu", ["e"], "y")]
    found = build(nodes, {"second": [1], "six": [6]}, shape=("n", "m", 6)).shape_of("e")
    assert found is not None
    assert found[0] not in ("n", "m")
