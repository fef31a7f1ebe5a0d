"""Splits where single layers cannot be timed: races of the whole network decide which are made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import helper

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.race import Race, RaceResult
from tests.passes.tucker_models import model_of, svd, tucker

WIDTHS = (16, 24, 32, 40, 48, 56)
"""Of a chain of layers, of which each saves more than the one before it."""

DECOMPOSE = {3: tucker, 1: svd}


def chain(kernel: int) -> Model:
    draw = np.random.default_rng(0).standard_normal
    weights, nodes = {}, []
    for number, (inputs, outputs) in enumerate(zip((16, *WIDTHS[:-1]), WIDTHS, strict=True)):
        planted = np.einsum("or,rikl->oikl", draw((outputs, 3)), draw((3, inputs, kernel, kernel)))
        weights[f"w{number}"] = planted.astype(np.float32)
        name = {"name": f"conv{number}", "pads": [kernel // 2] * 4}
        nodes.append(helper.make_node("Conv", [f"h{number}", f"w{number}"], [f"h{number + 1}"], **name))
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    return model_of(nodes, weights, (1, 16, 8, 8))


def race_of(speedup: Callable[[int], float]) -> Race:
    """A race that a network with so many more nodes than the first wins by the given factor."""

    def race(before: Model, after: Model) -> list[RaceResult]:
        split = sum(1 for name in {n.name for n in before.nodes} - {n.name for n in after.nodes} if name)
        value = speedup(split)
        return [RaceResult("CUDAExecutionProvider", value, (value - 0.01, value + 0.01))]

    return race


def split_nodes(kernel: int, race: Race | None) -> tuple[list[str], dict[str, str]]:
    plan = DECOMPOSE[kernel](chain(kernel), "auto", PassContext(race=race)).plan
    return sorted(str(d["node"]) for d in plan.decisions), {each.node: each.reason for each in plan.skipped}


@pytest.mark.parametrize("kernel", [3, 1])
def test_the_splits_with_which_the_network_is_fastest_are_made_those_that_save_most(kernel: int) -> None:
    made, reasons = split_nodes(kernel, race_of(lambda number: 1.3 - 0.1 * abs(number - 2)))
    assert made == ["conv4", "conv5"]
    assert sorted(reasons) == ["conv0", "conv1", "conv2", "conv3"]
    assert "the 2 layers that save more are enough: 1.30 x on CUDA, and 0.90 x on CUDA with all 6" in reasons["conv3"]


@pytest.mark.parametrize("kernel", [3, 1])
def test_none_is_made_where_the_network_is_never_faster(kernel: int) -> None:
    made, reasons = split_nodes(kernel, race_of(lambda number: 1.0 - 0.01 * number))
    assert made == []
    assert {*reasons.values()} == {"timed in the network, splits do not pay: 0.99 x on CUDA with 1 of 6"}


@pytest.mark.parametrize("kernel", [3, 1])
@pytest.mark.parametrize("race", [None, lambda before, after: ()], ids=["not timed", "cannot be run"])
def test_all_that_save_are_made_where_nothing_can_be_timed(kernel: int, race: Race | None) -> None:
    assert split_nodes(kernel, race) == ([f"conv{number}" for number in range(6)], {})


def test_ranks_that_were_asked_for_are_not_raced() -> None:
    def race(before: Model, after: Model) -> list[RaceResult]:
        raise AssertionError("raced")

    assert len(tucker(chain(3), "energy=0.99", PassContext(race=race)).plan.decisions) == 6
