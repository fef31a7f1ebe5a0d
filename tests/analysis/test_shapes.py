"""Shape values: every element said to be static is what onnxruntime computes, every origin the dimension it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.analysis.shapes import ShapeValues, fold_static_values
from onnxcompress.graph import Model
from tests.small_models import build, node, run_all

NEWEST_OPSET = 23
BATCH, HEIGHT, WIDTH = 3, 10, 7


def check_against_runtime(model: Model, sizes: Sequence[Sequence[int]]) -> int:
    """Compare what is claimed of every tensor with what runs, at several input shapes; return the number of claims."""
    shape_values, claims = ShapeValues(model), 0
    for size in sizes:
        feed = {"x": np.zeros(size, np.float32)}
        constants = {name: tensor.values for name, tensor in model.constants().items()}
        computed = {**feed, **constants, **run_all(model, feed)}
        for tensor in [t for n in model.nodes for t in n.outputs]:
            actual = computed[tensor.name]
            values, origins = shape_values.values(tensor), shape_values.origin(tensor)
            if values is not None and origins is not None:
                flat = actual.reshape(-1).tolist()
                assert len(values) == len(origins) == len(flat), tensor.name
                for element, value, origin in zip(flat, values, origins, strict=True):
                    assert value is None or value == element, tensor.name
                    assert origin is None or computed[origin[0]].shape[origin[1]] == element, tensor.name
                    claims += (value is not None) + (origin is not None)
            array = shape_values.array(tensor)
            if array is not None:
                assert array.dtype == actual.dtype
                assert array.shape == actual.shape
                assert array.tobytes() == actual.tobytes(), tensor.name
                claims += 1
    return claims


def look(model: Model, name: str) -> tuple[tuple[int | None, ...] | None, tuple[tuple[str, int] | None, ...] | None]:
    tensor = model.graph.tensors()[name]
    shape_values = ShapeValues(model)
    return shape_values.values(tensor), shape_values.origin(tensor)


def test_shape_knows_static_dimensions_and_where_each_comes_from() -> None:
    model = build([node("Shape", ["x"], "s")])
    assert look(model, "s") == ((None, 6, None, None), (("x", 0), ("x", 1), ("x", 2), ("x", 3)))
    assert ShapeValues(model).array(model.graph.tensors()["s"]) is None


@pytest.mark.parametrize(("start", "end", "axes"), [(1, None, [1, 2, 3]), (-2, -1, [2]), (-9, 2, [0, 1]), (3, 1, [])])
def test_shape_of_a_range_of_axes(start: int, end: int | None, axes: list[int]) -> None:
    limits = {"start": start} if end is None else {"start": start, "end": end}
    model = build([node("Shape", ["x"], "s", **limits)])
    assert look(model, "s")[1] == tuple(("x", axis) for axis in axes)
    check_against_runtime(model, [(2, 6, 5, 5)])


@pytest.mark.parametrize("opset", [9, 11, 13, 18, NEWEST_OPSET])
def test_view_into_groups_keeps_the_batch_and_knows_the_rest(opset: int) -> None:
    axes: dict[str, Any] = {"axes": [0]} if opset < 13 else {}
    more = [] if opset < 13 else ["axis0"]
    nodes = [
        node("Shape", ["x"], "s"),
        *(node("Gather", ["s", f"i{i}"], f"d{i}") for i in range(4)),
        node("Div", ["d1", "two"], "half"),
        *(node("Unsqueeze", [d, *more], f"u_{d}", **axes) for d in ("d0", "half", "d2", "d3")),
        node("Concat", ["u_d0", "group", "u_half", "u_d2", "u_d3"], "target", axis=0),
        node("Reshape", ["x", "target"], "grouped"),
        node("Shape", ["grouped"], "s2"),
    ]
    constants = {f"i{i}": np.array(i, np.int64) for i in range(4)}
    constants |= {"two": np.array(2, np.int64), "group": np.array([2], np.int64), "axis0": np.array([0], np.int64)}
    model = build(nodes, constants, opset=opset)
    values, origins = look(model, "target")
    assert values == (None, 2, 3, None, None)
    assert origins == (("x", 0), None, None, ("x", 2), ("x", 3))
    assert check_against_runtime(model, [(1, 6, 4, 4), (BATCH, 6, HEIGHT, WIDTH)]) > 40


@pytest.mark.parametrize("opset", [9, 10, 13])
def test_slice_in_all_its_forms(opset: int) -> None:
    far = np.iinfo(np.int64).max
    cases = [([1], [far]), ([-2], [far]), ([0], [-1]), ([2], [2])]
    nodes, constants = [node("Shape", ["x"], "s")], {}
    for number, (starts, ends) in enumerate(cases):
        if opset < 10:
            nodes.append(node("Slice", ["s"], f"o{number}", starts=starts, ends=ends))
        else:
            constants |= {f"a{number}": np.array(starts, np.int64), f"b{number}": np.array(ends, np.int64)}
            nodes.append(node("Slice", ["s", f"a{number}", f"b{number}"], f"o{number}"))
    if opset >= 10:
        constants |= {"z": np.array([0], np.int64), "m1": np.array([-1], np.int64), "m9": np.array([-99], np.int64)}
        nodes.append(node("Slice", ["s", "m1", "m9", "z", "m1"], "reversed"))
    model = build(nodes, constants, opset=opset)
    assert look(model, "o0")[1] == (("x", 1), ("x", 2), ("x", 3))
    assert check_against_runtime(model, [(2, 6, 5, 4)]) > 5
    if opset >= 10:
        assert look(model, "reversed")[1] == (("x", 3), ("x", 2), ("x", 1), ("x", 0))


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_every_part_of_a_split_is_known_as_far_as_the_whole_is(opset: int) -> None:
    sizes: dict[str, Any] = {"split": [1, 3]} if opset < 13 else {}
    equal = {"num_outputs": 3} if opset >= 18 else {}
    nodes = [
        node("Shape", ["x"], "s"),
        node("Split", ["s", *(["sizes"] if opset >= 13 else [])], "n", "rest", axis=0, **sizes),
        node("Concat", ["rest", "s", "rest"], "many", axis=0),
        node("Split", ["many" if opset >= 18 else "rest"], "a", "b", "c", **equal),  # 10 are 4, 4 and 2
        node("Split", ["rows"], "left", "right", axis=-1, **({"num_outputs": 2} if opset >= 18 else {})),
        node("Mul", ["left", "right"], "product"),
    ]
    constants = {"sizes": np.array([1, 3], np.int64), "rows": np.arange(12, dtype=np.int64).reshape(2, 6)}
    model = build(nodes, constants, opset=opset, outputs=["n", "a", "b", "c", "product"])
    assert look(model, "n") == ((None,), (("x", 0),))
    assert look(model, "rest") == ((6, None, None), (("x", 1), ("x", 2), ("x", 3)))
    assert look(model, "a")[0] == ((6, None, None, None) if opset >= 18 else (6,))
    assert look(model, "c")[1] == ((("x", 2), ("x", 3)) if opset >= 18 else (("x", 3),))
    assert check_against_runtime(model, [(2, 6, 5, 4), (3, 6, 1, 7)]) > 20
    folded = model.copy()
    assert fold_static_values(folded) == 1 + (opset < 18)  # the split of a constant; where all of `a` is known, no more
    assert check_against_runtime(folded, [(2, 6, 5, 4)]) > 5


def test_slice_whose_axes_are_unknown_is_unknown() -> None:
    nodes = [
        node("Shape", ["x"], "s"),
        node("NonZero", ["s"], "computed"),
        node("ReduceMax", ["computed"], "axis", keepdims=0, axes=[0, 1]),
        node("Reshape", ["axis", "one"], "axes"),
        node("Slice", ["s", "zero", "one", "axes"], "o"),
    ]
    model = build(nodes, {"one": np.array([1], np.int64), "zero": np.array([0], np.int64)})
    assert look(model, "o") == (None, None)


def test_integer_arithmetic_is_onnx_arithmetic() -> None:
    numbers = np.array([-7, -6, -1, 0, 5, 7, 2**40], np.int64)
    divisors = np.array([2, -4, 3, -5, -2, 7, 3], np.int64)
    pairs = ["Add", "Sub", "Mul", "Div", "Mod", "Min", "Max"]
    nodes = [
        node("Identity", ["x"], "y"),
        *(node(op, ["a", "b"], op) for op in pairs),
        node("Mod", ["a", "b"], "fmod", fmod=1),
        *(node(op, ["a", "b"], op) for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
        node("Neg", ["a"], "Neg"),
        node("Abs", ["a"], "Abs"),
        node("And", ["Equal", "Less"], "And"),
        node("Or", ["Equal", "Less"], "Or"),
        node("Not", ["Less"], "Not"),
        node("Where", ["Less", "a", "b"], "Where"),
        node("ReduceProd", ["b"], "ReduceProd", keepdims=0),
        node("ReduceMin", ["a"], "ReduceMin"),
        node("ReduceMax", ["a"], "ReduceMax"),
        node("ReduceSum", ["b"], "ReduceSum"),
        node("Range", ["lo", "hi", "step"], "Range"),
        node("Expand", ["lo", "shape"], "Expand"),
        node("ConstantOfShape", ["shape"], "zeros"),
        node("ConstantOfShape", ["shape"], "ones", value=helper.make_tensor("v", TensorProto.INT64, [1], [-1])),
        node("Flatten", ["grid"], "flat"),
        node("Transpose", ["grid"], "turned", perm=[1, 0]),
        node("Gather", ["turned", "index"], "row", axis=0),
        node("Size", ["grid"], "size"),
    ]
    constants = {
        "a": numbers,
        "b": divisors,
        "lo": np.array(9, np.int64),
        "hi": np.array(-2, np.int64),
        "step": np.array(-3, np.int64),
        "shape": np.array([2, 3], np.int64),
        "grid": np.arange(6, dtype=np.int64).reshape(2, 3),
        "index": np.array(-1, np.int64),
    }
    model = build(nodes, constants, outputs=["y"])
    shape_values = ShapeValues(model)
    unknown = [t.name for n in model.nodes for t in n.outputs if shape_values.array(t) is None]
    assert unknown == ["y"]
    assert check_against_runtime(model, [(1, 6, 2, 2)]) > 60


def test_division_by_zero_stays_in_the_graph() -> None:
    model = build(
        [node("Shape", ["x"], "s"), node("Div", ["s", "zero"], "o"), node("Mod", ["s", "zero"], "p")],
        {"zero": np.array([0, 2, 0, 1], np.int64)},
        outputs=["o", "p"],
    )
    assert look(model, "o")[0] == (None, 3, None, None)
    assert look(model, "p")[0] == (None, 0, None, None)


def test_floor_of_a_float_round_trip_as_old_exporters_spell_interpolate() -> None:
    nodes = [
        node("Shape", ["x"], "s"),
        node("Gather", ["s", "index"], "dims"),
        node("Cast", ["dims"], "real", to=TensorProto.FLOAT),
        node("Mul", ["real", "scale"], "scaled"),
        node("Floor", ["scaled"], "floored"),
        node("Ceil", ["scaled"], "ceiled"),
        node("Cast", ["floored"], "size", to=TensorProto.INT64),
        node("Cast", ["ceiled"], "size_up", to=TensorProto.INT32),
    ]
    constants = {"index": np.array([2, 3], np.int64), "scale": np.array([1.0, 1.7], np.float32)}
    model = build(nodes, constants, shape=("n", 3, 7, 9))
    assert look(model, "size") == ((7, 15), (("x", 2), None))
    assert look(model, "size_up") == ((7, 16), (("x", 2), None))
    assert check_against_runtime(model, [(2, 3, 7, 9)]) > 10


def test_casts_that_do_not_fit_are_left_alone() -> None:
    nodes = [
        node("Identity", ["x"], "y"),
        node("Cast", ["a"], "small", to=TensorProto.INT8),
        node("Cast", ["f"], "whole", to=TensorProto.INT64),
        node("Cast", ["a"], "flag", to=TensorProto.BOOL),
        node("Cast", ["limit"], "same", to=TensorProto.INT64),
        node("Cast", ["a"], "half", to=TensorProto.FLOAT16),
    ]
    constants = {
        "a": np.array([-129, -128, 127, 128, 0], np.int64),
        "f": np.array([-1.5, 1.5, np.nan, np.inf, 1e30], np.float32),
        "limit": np.array([np.iinfo(np.int64).max]),
    }
    model = build(nodes, constants, outputs=["y"])
    assert look(model, "small")[0] == (None, -128, 127, None, 0)
    assert look(model, "whole")[0] == (-1, 1, None, None, None)
    assert look(model, "same")[0] == (np.iinfo(np.int64).max,)
    shape_values = ShapeValues(model)
    assert shape_values.array(model.graph.tensors()["half"]) is None
    flags = shape_values.array(model.graph.tensors()["flag"])
    assert flags is not None
    assert flags.tolist() == [True, True, True, True, False]


def test_expand_as_decides_that_a_dimension_is_not_minus_one() -> None:
    nodes = [
        node("Shape", ["x"], "s"),
        node("Gather", ["s", "first"], "n"),
        node("Concat", ["n", "rest"], "wanted", axis=0),
        node("Shape", ["wanted"], "rank"),
        node("ConstantOfShape", ["rank"], "ones", value=helper.make_tensor("v", TensorProto.INT64, [1], [1])),
        node("Mul", ["ones", "minus"], "negative"),
        node("Equal", ["wanted", "negative"], "keep"),
        node("Where", ["keep", "ones", "wanted"], "target"),
        node("Equal", ["n", "n"], "same"),
        node("Greater", ["minus", "n"], "below"),
    ]
    constants = {
        "first": np.array([0], np.int64),
        "rest": np.array([6, -1], np.int64),
        "minus": np.array(-1, np.int64),
    }
    model = build(nodes, constants, outputs=["target"])
    assert look(model, "target") == ((None, 6, 1), (("x", 0), None, None))
    shape_values, tensors = ShapeValues(model), model.graph.tensors()
    for name, expected in (("same", [True]), ("below", [False])):
        array = shape_values.array(tensors[name])
        assert array is not None
        assert array.tolist() == expected
    check_against_runtime(model, [(2, 6, 5, 5), (0, 6, 1, 1)])


def test_comparisons_with_zero_and_what_they_choose_are_not_known() -> None:
    nodes = [
        node("Shape", ["x"], "s"),
        node("Greater", ["s", "zero"], "some"),
        node("Equal", ["zero", "s"], "empty"),
        node("Where", ["some", "two", "three"], "chosen"),
        node("Where", ["empty", "two", "s"], "guarded"),
    ]
    constants = {name: np.array(value, np.int64) for name, value in (("zero", 0), ("two", 2), ("three", 3))}
    model = build(nodes, constants, outputs=["chosen", "guarded"])
    assert look(model, "chosen")[0] == (None, 2, None, None)
    assert look(model, "guarded") == ((None, 6, None, None), (None, ("x", 1), None, None))
    check_against_runtime(model, [(0, 6, 5, 5), (1, 6, 0, 5)])


def test_a_bias_of_zeros_as_the_dynamo_exporter_spells_it() -> None:
    nodes = [
        node("CastLike", ["zero", "x"], "real"),
        node("Shape", ["w"], "s", start=0, end=1),
        node("Expand", ["real", "s"], "bias"),
        node("Conv", ["x", "w", "bias"], "y"),
    ]
    model = build(nodes, {"zero": np.array(0, np.int64), "w": np.ones((4, 6, 1, 1), np.float32)})
    assert check_against_runtime(model, [(1, 6, 2, 2)]) == 5
    fold_static_values(model)
    assert [n.op for n in model.nodes] == ["Conv"]


def test_an_unknown_part_of_a_concat_leaves_the_other_parts_known() -> None:
    nodes = [
        node("Shape", ["x"], "s"),
        node("ArgMax", ["s"], "odd", axis=0),
        node("Concat", ["odd", "s", "odd"], "o", axis=0),
    ]
    values, origins = look(build(nodes), "o")
    assert values == (None, None, 6, None, None, None)
    assert origins is not None
    assert origins[2] == ("x", 1)


def test_arithmetic_with_a_neutral_operand_is_still_the_dimension() -> None:
    nodes = [
        node("Shape", ["x"], "s"),
        node("Mul", ["s", "one"], "a"),
        node("Add", ["zero", "a"], "b"),
        node("Div", ["b", "one"], "c"),
        node("Sub", ["c", "zero"], "d"),
        node("Mul", ["d", "two"], "e"),
        node("Sub", ["zero", "d"], "f"),
    ]
    constants = {k: np.array(v, np.int64) for k, v in (("one", 1), ("zero", 0), ("two", 2))}
    model = build(nodes, constants, outputs=["e", "f"])
    assert look(model, "d")[1] == tuple(("x", axis) for axis in range(4))
    assert look(model, "e") == ((None, 12, None, None), (None,) * 4)
    assert look(model, "f")[1] == (None,) * 4
    check_against_runtime(model, [(2, 6, 5, 4)])


def test_huge_and_malformed_requests_are_unknown() -> None:
    huge = np.array([2**40, 2**20], np.int64)
    nodes = [
        node("Identity", ["x"], "y"),
        node("ConstantOfShape", ["huge"], "a"),
        node("Expand", ["one", "huge"], "b"),
        node("Range", ["zero", "far", "one0"], "c"),
        node("Range", ["zero", "far", "zero"], "d"),
        node("Gather", ["huge", "seven"], "e"),
        node("Gather", ["column", "many"], "f", axis=1),
    ]
    constants = {
        "huge": huge,
        "one": np.array([1], np.int64),
        "zero": np.array(0, np.int64),
        "far": np.array(2**60, np.int64),
        "one0": np.array(1, np.int64),
        "seven": np.array([0, -1], np.int64),
        "column": np.zeros((4096, 1), np.int64),
        "many": np.zeros(4096, np.int64),
    }
    model = build(nodes, constants, outputs=["y"])
    shape_values, tensors = ShapeValues(model), model.graph.tensors()
    assert [shape_values.array(tensors[name]) is None for name in "abcdef"] == [True] * 4 + [False, True]


def test_constants_of_any_size_are_known_and_weights_are_no_shape_values() -> None:
    nodes = [node("Conv", ["x", "w"], "y"), node("Gather", ["y", "order"], "z", axis=1)]
    order = np.arange(5000, dtype=np.int64) % 2
    model = build(nodes, {"w": np.ones((2, 6, 1, 1), np.float32), "order": order}, outputs=["z"])
    assert look(model, "order")[0] == tuple(order.tolist())
    assert look(model, "w") == (None, None)
    assert look(model, "y") == (None, None)


@pytest.mark.parametrize(("frames", "known"), [(3, True), (0, False), (-3, False)])
def test_a_length_beside_a_product_of_lengths(frames: int, known: bool) -> None:
    """[batch * frames, 4, -1] of (batch, 12, 8): 8 whatever the batch, unless nothing follows from the product."""
    constants = {"at": np.array([0]), "frames": np.array([frames]), "rest": np.array([4, -1])}
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "at"], "batch"),
        node("Mul", ["batch", "frames"], "samples"),
        node("Concat", ["samples", "rest"], "target", axis=0),
        node("Reshape", ["x", "target"], "parts"),
        node("ReduceMax", ["parts"], "y", axes=[0, 2], keepdims=0),
    ]
    shape = build(nodes, constants, shape=("n", 12, 8)).shape_of("parts")
    assert shape is not None
    assert (shape[1], shape[2] == 8) == (4, known)
