"""A self-check that fails: of a wrong rewrite, which is a bug, or of a model that makes much of every rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import ModelError, PassError
from onnxcompress.graph import Model
from onnxcompress.passes.execution import NONE_MADE
from onnxcompress.passes.rounding import moved_weights
from onnxcompress.passes.verification import verify
from tests.small_models import build, node

FEEDS = {"x": np.random.default_rng(0).standard_normal((1, 6, 8, 8)).astype(np.float32)}


def network(gain: float, weight: Any = None, dtype: Any = np.float32) -> Model:
    """Return Conv, Sin(gain times it), Conv: what is a rounding of its first weight is `gain` times as much behind."""
    generator = np.random.default_rng(1)
    shapes = {"w": (16, 6, 3, 3), "v": (4, 16, 1, 1)}
    constants = {name: generator.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    constants |= {"gain": np.array(gain, dtype)} | ({} if weight is None else {"w": weight})
    nodes = [
        node("Conv", ["x", "w"], "a", name="first"),
        node("Mul", ["a", "gain"], "b"),
        node("Sin", ["b"], "c"),
        node("Conv", ["c", "v"], "y", name="last"),
    ]
    return build(nodes, constants)


def moved(model: Model, seed: int = 99) -> Any:
    return moved_weights(model, NONE_MADE, seed)["w"]()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_move_by_their_last_place(dtype: Any) -> None:
    model = network(1.0, dtype=np.float32)
    model.nodes[0].inputs[1].values = weight = model.nodes[0].inputs[1].values.astype(dtype)
    made = moved(model)
    assert made.dtype == dtype
    eps = np.finfo(np.float16 if dtype == np.float16 else np.float32).eps
    relative = (made.astype(np.float64) - weight) / weight.astype(np.float64)
    assert 0.5 * eps < np.abs(relative).min() <= np.abs(relative).max() < 2 * eps
    assert 0.4 < (relative > 0).mean() < 0.6
    assert np.array_equal(made, moved(model))
    assert not np.array_equal(made, moved(model, 98))
    assert "gain" not in moved_weights(model, NONE_MADE, 0)
    made = moved_weights(model, {"w": lambda: 2 * weight}, 99)["w"]()  # products of factors, in the place of a weight
    np.testing.assert_array_equal(made, 2 * moved(model))


def test_a_model_that_amplifies_rounding_cannot_be_verified() -> None:
    """The candidate is the model itself, rounded elsewhere."""
    model = network(1e5)
    candidate = network(1e5, moved(model))
    with pytest.raises(ModelError, match=r"amplifies rounding: .* as much as pass 'prune' changes it .*--no-verify"):
        verify("prune", model, candidate, FEEDS)
    ordinary = network(1.0)
    assert verify("prune", ordinary, network(1.0, moved(ordinary)), FEEDS).difference < 1e-5


@pytest.mark.parametrize("gain", [1.0, 1e3])
def test_a_wrong_rewrite_stays_a_bug(gain: float) -> None:
    """Wrong by one weight, or by a channel left out, in a model that is ordinary or makes a little of rounding."""
    model = network(gain)
    first = model.nodes[0].inputs[1].values
    for wrong in (first * np.where(np.arange(16) == 3, 1.01, 1.0).reshape(-1, 1, 1, 1), first * (first > -1)):
        found = verify("prune", model, network(gain, wrong.astype(np.float32)), FEEDS)
        with pytest.raises(PassError, match="self-check of pass 'prune'"):
            found.require()
