"""Data against a model's inputs: names, shapes, element types, open sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import DataError
from onnxcompress.runtime.tensors import TensorInfo, concrete_shapes, conform, fixed_batch, random_inputs

IMAGE = TensorInfo("x", np.dtype(np.float32), ("n", 3, 8, 8))


def info(shape: tuple[Any, ...], dtype: type = np.float32, name: str = "x") -> TensorInfo:
    return TensorInfo(name, np.dtype(dtype), shape)


@pytest.mark.parametrize("wanted", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64, np.uint8, np.int64])
def test_numbers_become_the_models_floats(wanted: type, given: type) -> None:
    array = conform({"x": np.full((2, 3), 5, given)}, [info((None, 3), wanted)], "d")["x"]
    assert array.dtype == wanted
    assert (array == 5).all()


def test_an_array_that_fits_is_not_copied() -> None:
    array = np.zeros((1, 3, 8, 8), np.float32)
    assert conform({"x": array}, [IMAGE], "d")["x"] is array


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "holds nothing, but the model's inputs are 'x'"),
        ({"X": np.zeros((1, 3, 8, 8))}, "holds 'X'"),
        ({"x": np.zeros((1, 3, 8, 8)), "z": np.zeros(1)}, "holds 'x', 'z'"),
        ({"x": np.zeros((3, 8, 8))}, r"shape \[3,8,8\], the model takes 'x' float32 \[n,3,8,8\]"),
        ({"x": np.zeros((1, 3, 8, 9))}, r"shape \[1,3,8,9\]"),
        ({"x": np.zeros((1, 3, 8, 8), np.complex64)}, "is complex64"),
        ({"x": np.full((1, 3, 8, 8), "a")}, "is <U1"),
    ],
)
def test_data_that_do_not_fit(feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^somewhere: .*{message}"):
        conform(feeds, [IMAGE], "somewhere")


def test_fractions_are_not_cut_to_integers() -> None:
    with pytest.raises(DataError, match="float64, the model takes 'x' int64"):
        conform({"x": np.zeros(3)}, [info((None,), np.int64)], "d")


def test_shapes() -> None:
    assert concrete_shapes([IMAGE]) == {"x": (1, 3, 8, 8)}
    assert concrete_shapes([IMAGE], batch=4) == {"x": (4, 3, 8, 8)}
    assert concrete_shapes([info((2, 3))]) == {"x": (2, 3)}
    assert concrete_shapes([info(())]) == {"x": ()}
    open_size = info(("n", 3, "h", None))
    assert concrete_shapes([open_size], {"x": (2, 3, 5, 6)}) == {"x": (2, 3, 5, 6)}
    assert concrete_shapes([open_size], {"x": (2, 3, 5, 6)}, batch=8) == {"x": (8, 3, 5, 6)}
    assert fixed_batch([IMAGE, info((4,))]) == 4
    assert fixed_batch([IMAGE]) is None


@pytest.mark.parametrize(
    ("shape", "given", "batch", "message"),
    [
        (("n", 3, "h", None), {}, None, "leaves sizes open: give --input-shape x:1x3xNxN"),
        ((2, 3), {}, 4, r"batch 4 does not fit input 'x' float32 \[2,3\]"),
        (("n", 3), {"y": (1, 3)}, None, "--input-shape names 'y', but the model's inputs are 'x'"),
        (("n", 3), {"x": (1, 4)}, None, r"--input-shape: 'x' has shape \[1,4\]"),
    ],
)
def test_shapes_that_cannot_be(shape: Any, given: Any, batch: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        concrete_shapes([info(shape)], given, batch)


def test_random_inputs_are_valid_and_repeat() -> None:
    inputs = [
        info((None, 64), np.float16, "half"),
        info((None, 64), np.uint8, "image"),
        info((None, 64), np.int64, "index"),
        info((None, 64), np.bool_, "mask"),
    ]
    shapes = concrete_shapes(inputs, batch=2)
    first, second, other = (random_inputs(inputs, shapes, seed) for seed in (1, 1, 2))
    assert conform(first, inputs, "d").keys() == {"half", "image", "index", "mask"}
    for name, array in first.items():
        assert array.shape == (2, 64)
        np.testing.assert_array_equal(array, second[name])
        assert (array != other[name]).any()
    assert first["image"].max() > 100
    assert set(np.unique(first["index"])) == {0, 1}
