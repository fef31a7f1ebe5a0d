"""Patches times filters are the convolution, at the sampled places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.runtime.patches import PositionSampler, TransposedWindow, Window, input_patches, output_rows
from onnxcompress.runtime.session import Session
from tests.runtime.networks import proto_of


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((9,), Window((3,), (2,), (1, 0), (1,))),
        ((8, 11), Window((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))),
        ((8, 11), Window((3, 5), (1, 2), (1, 2, 0, 1), (2, 1))),
        ((5, 6, 7), Window((2, 3, 1), (1, 2, 3), (0, 1, 0, 1, 1, 0), (1, 1, 2))),
    ],
)
def test_patches_reproduce_a_convolution(size: tuple[int, ...], window: Window) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((4, 3, *size), dtype=np.float32)
    weights = generator.standard_normal((5, 3, *window.kernel), dtype=np.float32)
    attributes: dict[str, Any] = {"strides": window.strides, "pads": window.pads, "dilations": window.dilations}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)]
    model = proto_of(
        nodes, {"x": (TensorProto.FLOAT, x.shape)}, {"y": (TensorProto.FLOAT, [None] * x.ndim)}, {"w": weights}
    )
    y = Session(model.SerializeToString()).run({"x": x})["y"]
    assert y.shape[2:] == window.output_size(size)
    places = PositionSampler(10, seed=1).draw(4, y.shape[2:])
    patches = input_patches(x, window, places)
    filters = np.moveaxis(weights.reshape(5, 3, -1), 1, 2)  # as the patches: positions of the kernel, then channels
    expected = output_rows(y, places)
    assert expected.shape == (4 * places.shape[1], 5)
    rows = patches.reshape(len(expected), -1)
    np.testing.assert_allclose(rows @ filters.reshape(5, -1).T, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((9,), TransposedWindow((3,), (2,), (1, 0), (1,), (1,))),
        ((4, 6), TransposedWindow((2, 2), (2, 2), (0, 0, 0, 0), (1, 1), (0, 0))),
        ((5, 6), TransposedWindow((3, 4), (1, 3), (1, 2, 0, 1), (2, 1), (0, 2))),
        ((3, 4, 5), TransposedWindow((2, 3, 1), (1, 2, 3), (0, 1, 0, 1, 1, 0), (1, 1, 2), (0, 0, 0))),
    ],
)
def test_patches_reproduce_a_transposed_convolution(size: tuple[int, ...], window: TransposedWindow) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((4, 3, *size), dtype=np.float32)
    weights = generator.standard_normal((3, 5, *window.kernel), dtype=np.float32)
    attributes: dict[str, Any] = {"strides": window.strides, "pads": window.pads, "dilations": window.dilations}
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], output_padding=window.extra, **attributes)]
    model = proto_of(
        nodes, {"x": (TensorProto.FLOAT, x.shape)}, {"y": (TensorProto.FLOAT, [None] * x.ndim)}, {"w": weights}
    )
    y = Session(model.SerializeToString()).run({"x": x})["y"]
    assert y.shape[2:] == window.output_size(size)
    assert window == TransposedWindow.of(window.kernel, {**attributes, "output_padding": window.extra}, size)
    places = PositionSampler(10, seed=1).draw(4, y.shape[2:])
    rows = input_patches(x, window, places).reshape(4 * places.shape[1], -1)
    filters = weights.reshape(3, 5, -1).transpose(2, 0, 1).reshape(-1, 5)
    np.testing.assert_allclose(rows @ filters, output_rows(y, places), rtol=1e-4, atol=1e-4)


def test_positions_depend_on_the_image_not_on_the_batch() -> None:
    whole = PositionSampler(6, seed=3).draw(10, (7, 8))
    parts = PositionSampler(6, seed=3)
    np.testing.assert_array_equal(np.concatenate([parts.draw(n, (7, 8)) for n in (1, 4, 5)]), whole)
    assert (whole != PositionSampler(6, seed=4).draw(10, (7, 8))).any()
    assert (whole[0] != whole[1]).any()


def test_positions_are_distinct_and_no_more_than_there_are() -> None:
    places = PositionSampler(100, seed=0).draw(2, (3, 4))
    assert places.shape == (2, 12, 2)
    assert len({tuple(place) for place in places[0]}) == 12
    whole = PositionSampler(12, seed=0).draw(2, (3, 4))
    np.testing.assert_array_equal(places, whole)


def test_what_is_drawn_can_be_changed_without_harm_to_the_next_draw() -> None:
    first = PositionSampler(5, seed=2).draw(3, (6, 6))
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(PositionSampler(5, seed=2).draw(3, (6, 6)), kept)
