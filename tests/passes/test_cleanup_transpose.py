"""Clean-up of chains of Reshape and Transpose: what is left moves the same elements, in fewer nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup import Cleanup, CleanupConfig
from tests.passes.cleanup_models import assert_same_bits, clean, ops
from tests.small_models import build, node

Constants = dict[str, Any]


def chain(constants: Constants, *steps: Any) -> list[Any]:
    """Return Relu, a step for each list (a target) or tuple (a permutation), and Neg."""
    nodes = [node("Relu", ["x"], "t0")]
    for number, step in enumerate(steps):
        names = [f"t{number}"], f"t{number + 1}"
        if isinstance(step, tuple):
            nodes.append(node("Transpose", *names, perm=step))
        else:
            constants[f"to{number}"] = np.array(step)
            nodes.append(node("Reshape", [*names[0], f"to{number}"], names[1]))
    return [*nodes, node("Neg", [f"t{len(steps)}"], "y")]


@pytest.mark.parametrize(
    ("shape", "steps", "left"),
    [
        # Heads put with the batch, turned, and taken apart again: attention, as torch.export writes it.
        (("n", 4, 6, 8), ([-1, 6, 8], (0, 2, 1), [-1, 4, 8, 6]), ["Transpose"]),
        ((2, 4, 6, 8), ([-1, 6, 8], (0, 2, 1), [2, 4, 8, 6]), ["Transpose"]),
        # Tokens first, heads put with the batch: torch's multi-head attention.
        ((7, "n", 8), ([7, -1, 4], (1, 0, 2), [-1, 2, 7, 4]), ["Reshape", "Transpose"]),
        ((1, 6, 8), ([6, 8], (1, 0), [1, 8, 6]), ["Transpose"]),
        (("n", 4, 6, 8), ((0, 1, 3, 2), [-1, 8, 6], (0, 2, 1), [-1, 4, 6, 8]), []),
        (("n", 4, 6), ((0, 2, 1), (1, 0, 2)), ["Transpose"]),
        (("n", 4, 6), ([-1, 2, 12], [-1, 24], [-1, 3, 8]), ["Reshape"]),
        (("n", 4, 1, 6), ((0, 2, 1, 3), [-1, 4, 6]), ["Reshape"]),
        # A shuffle of channels, and tokens out of a map that go on as one row, need all that they have.
        (("n", 6, 4, 4), ([-1, 2, 3, 4, 4], (0, 2, 1, 3, 4), [-1, 6, 4, 4]), ["Reshape", "Transpose", "Reshape"]),
        (("n", 6, 4, 4), ([-1, 6, 16], (0, 2, 1)), ["Reshape", "Transpose"]),
        (("n", 6, "h"), ((0, 2, 1), [0, 0, 2, 3], (0, 1, 3, 2)), ["Transpose", "Reshape", "Transpose"]),
        (("n", 6, 4), ([-1, 4, 6], (0, 2, 1)), ["Reshape", "Transpose"]),  # lengths that do not nest
    ],
)
def test_what_is_left_of_a_chain(shape: Any, steps: Any, left: list[str]) -> None:
    constants: Constants = {}
    model = build(chain(constants, *steps), constants, shape=shape)
    cleaned, _ = clean(model)
    assert ops(cleaned) == ["Relu", *left, "Neg"]
    assert cleaned.shape_of(cleaned.graph.outputs[0]) == model.shape_of(model.graph.outputs[0])
    assert_same_bits(model, cleaned)


def test_random_chains_move_the_same_elements() -> None:
    generator = np.random.default_rng(0)
    shortened = 0
    for number in range(150):
        shape = [int(length) for length in generator.choice([1, 2, 4, 8], generator.integers(2, 5))]
        now, steps = list(shape), list[Any]()
        for _ in range(generator.integers(2, 7)):
            if generator.random() < 0.5:
                steps.append(tuple(int(axis) for axis in generator.permutation(len(now))))
                now = [now[axis] for axis in steps[-1]]
            else:
                now = _regrouped(now, generator)
                steps.append(now)
        constants: Constants = {}
        model = build(chain(constants, *steps), constants, shape=shape)
        cleaned, _ = clean(model)
        assert len(cleaned.nodes) <= len(model.nodes), number
        assert len(cleaned.nodes) <= 5, number
        assert_same_bits(model, cleaned)
        shortened += len(cleaned.nodes) < len(model.nodes)
    assert shortened > 100


def _regrouped(lengths: list[int], generator: np.random.Generator) -> list[int]:
    """Join neighbours or take a length apart: of powers of two, which always nest."""
    if len(lengths) > 1 and generator.random() < 0.6:
        at = int(generator.integers(len(lengths) - 1))
        return [*lengths[:at], lengths[at] * lengths[at + 1], *lengths[at + 2 :]]
    at = int(generator.integers(len(lengths)))
    part = min(2, lengths[at])
    return [*lengths[:at], part, lengths[at] // part, *lengths[at + 1 :]]


def test_what_others_read_stays() -> None:
    constants: Constants = {}
    nodes = chain(constants, [-1, 6, 8], (0, 2, 1), [-1, 4, 8, 6])
    model = build([*nodes, node("Neg", ["t2"], "z")], constants, shape=("n", 4, 6, 8), outputs=["y", "z"])
    cleaned, _ = clean(model)
    assert ops(cleaned).count("Reshape") == 2
    assert_same_bits(model, cleaned)


def test_an_excluded_node_keeps_its_chain() -> None:
    constants: Constants = {}
    nodes = chain(constants, [-1, 6, 8], (0, 2, 1), [-1, 4, 8, 6])
    nodes[2].name = "turn"
    model = build(nodes, constants, shape=("n", 4, 6, 8))
    plan = Cleanup(CleanupConfig(("transpose",))).plan(model, PassContext(exclude=("turn",)))
    assert not plan.decisions
    assert [skipped.reason for skipped in plan.skipped] == ["transpose: 'turn' is excluded by --exclude"]


def test_a_plan_for_another_chain_is_refused() -> None:
    step = Cleanup(CleanupConfig(("transpose",)))
    models = []
    for perm in ((0, 2, 1), (1, 0, 2)):
        constants: Constants = {}
        models.append(build(chain(constants, perm, (0, 2, 1)), constants, shape=(3, 3, 3)))
    plan = step.plan(models[1], PassContext())
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(RecipeError, match="which this model has not"):
        step.apply(models[0], plan, PassContext())
