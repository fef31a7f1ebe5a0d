"""Refit of MatMul, which has no bias of its own: the Add behind it holds one, and without it the slope is all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.graph import Model
from onnxcompress.pipeline.compress import compress
from tests.small_models import build, node

IMAGES, TOKENS, INPUTS, OUTPUTS = 200, 6, 12, 20
SPLIT: dict[str, Any] = {"svd": "ratio=0.34", "round_to": 1, "latency": False}


def _data(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Tokens around a mean that is larger than what they scatter by, as behind a Relu or a LayerNormalization."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((IMAGES, TOKENS, INPUTS)) + np.linspace(-3, 4, INPUTS)).astype(np.float32)


def _weight(seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((INPUTS, OUTPUTS)).astype(np.float32)


def _calibration():
    return ({"x": _data()[at : at + 50]} for at in range(0, IMAGES, 50))


def _outputs(model: Model) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    from onnxcompress.runtime.session import Session, SessionSettings

    session = Session(model.to_bytes(), settings=SessionSettings())
    made = session.run({"x": _data(7)}, [info.name for info in session.outputs])
    return [each.astype(np.float64) for each in made.values()]


def _refitted(model: Model) -> tuple[Model, list[np.ndarray[Any, np.dtype[np.float64]]]]:
    """Return the compressed model, and the errors of its outputs relative to how the original's scatter, (n, O)."""
    result = compress(model.to_proto(), calib=_calibration, recover="refit", **SPLIT)
    assert any(stage.pass_name == "refit" and stage.decisions for stage in result.report.stages)
    errors = []
    for wanted, seen in zip(_outputs(model), _outputs(result.model), strict=True):
        errors.append(((seen - wanted) / wanted.std(axis=(0, 1))).reshape(-1, wanted.shape[-1]))
    return result.model, errors


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", [(OUTPUTS,), (1, 1, OUTPUTS)])
def test_the_constant_added_behind_a_matmul_is_fitted_as_its_bias(first: bool, shape: tuple[int, ...]) -> None:
    bias = np.linspace(-1, 1, OUTPUTS, dtype=np.float32).reshape(shape)
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", ["b", "p"] if first else ["p", "b"], "y")]
    (errors,) = _refitted(build(nodes, {"w": _weight(), "b": bias}, shape=("n", TOKENS, INPUTS)))[1]
    assert np.abs(errors.mean(axis=0)).max() < 0.1
    assert 0.3 < errors.std() < 1.0


def test_a_matmul_without_a_place_for_a_bias_is_fitted_by_its_slope_alone() -> None:
    model = build([node("MatMul", ["x", "w"], "y")], {"w": _weight()}, shape=("n", TOKENS, INPUTS))
    (errors,) = _refitted(model)[1]
    rows = _data(7).reshape(-1, INPUTS).astype(np.float64)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    root = (vectors * np.sqrt(values)) @ vectors.T
    left, sizes, right = np.linalg.svd(root @ _weight())
    best = np.linalg.solve(root, left[:, :4] * sizes[:4]) @ right[:4] - _weight()  # of rank 4, for these rows
    least = rows @ best / (rows @ _weight()).std(axis=0)
    assert np.square(errors).mean() < 1.1 * np.square(least).mean()


def test_matmuls_that_are_given_one_constant_get_a_bias_each() -> None:
    nodes = [
        node("MatMul", ["x", "w1"], "p1"),
        node("Add", ["p1", "b"], "y1"),
        node("MatMul", ["x", "w2"], "p2"),
        node("Add", ["p2", "b"], "y2"),
        node("Concat", ["y1", "y2"], "y", axis=2),
    ]
    constants = {"w1": _weight(1), "w2": _weight(2), "b": np.zeros(OUTPUTS, np.float32)}
    (errors,) = _refitted(build(nodes, constants, shape=("n", TOKENS, INPUTS)))[1]
    assert np.abs(errors.mean(axis=0)).max() < 0.1


def test_matmuls_that_share_weight_and_bias_keep_sharing_them() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "p1"),
        node("Add", ["p1", "b"], "y1"),
        node("Neg", ["x"], "n"),
        node("MatMul", ["n", "w"], "p2"),
        node("Add", ["p2", "b"], "y2"),
        node("Concat", ["y1", "y2"], "y", axis=1),
    ]
    model = build(nodes, {"w": _weight(), "b": np.ones(OUTPUTS, np.float32)}, shape=("n", TOKENS, INPUTS))
    small, (errors,) = _refitted(model)
    assert len({each.inputs[1].name for each in small.nodes if each.op == "Add"}) == 1
    assert errors.std() < 1.0


def test_what_only_a_relu_reads_behind_the_added_constant_is_fitted_for_it() -> None:
    from onnxcompress.passes.base import PassContext
    from onnxcompress.passes.recovery.refit_layers import find_refit_layers

    nodes = [
        node("MatMul", ["x", "w"], "p", name="product"),
        node("Add", ["p", "b"], "s", name="sum"),
        node("Relu", ["s"], "y"),
    ]
    model = build(nodes, {"w": _weight(), "b": np.zeros(OUTPUTS, np.float32)}, shape=("n", TOKENS, INPUTS))
    (layer,) = find_refit_layers(model, model, PassContext())[0]
    assert (layer.output, layer.adder, layer.follows_relu, layer.has_constant) == ("s", "sum", True, True)


@pytest.mark.parametrize(
    ("added", "reads_twice"),
    [((TOKENS, OUTPUTS), False), ((1,), False), ((1, 1, 1, OUTPUTS), False), ((OUTPUTS,), True)],
)
def test_what_is_no_bias_of_the_outputs_is_left_alone(added: tuple[int, ...], reads_twice: bool) -> None:
    from onnxcompress.passes.base import PassContext
    from onnxcompress.passes.recovery.refit_layers import find_refit_layers

    nodes = [
        node("MatMul", ["x", "w"], "p"),
        node("Add", ["p", "b"], "s"),
        node("Relu", ["p" if reads_twice else "s"], "r"),
    ]
    nodes.append(node("Add", ["s", "r"], "y"))
    model = build(nodes, {"w": _weight(), "b": np.ones(added, np.float32)}, shape=("n", TOKENS, INPUTS))
    (layer,) = find_refit_layers(model, model, PassContext())[0]
    assert (layer.output, layer.adder, layer.has_constant) == ("p", None, False)
