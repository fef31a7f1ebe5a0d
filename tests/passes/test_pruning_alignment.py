"""Channels of convolutions that read parts of several groups stay a multiple of what fast kernels take."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxcompress.passes.base import PassContext
from onnxcompress.passes.pruning.balance import Balance, Demand, solve
from tests.passes.test_pruning_balance import brute_force, lost
from tests.passes.test_pruning_graphs import Constants, conv, prune, shapes
from tests.small_models import build, node


@pytest.mark.parametrize("seed", range(10))
def test_rows_lose_multiples_of_their_unit(seed: int) -> None:
    """Against brute force: 12 channels, of which convolutions read halves in two orders."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(12) for _ in range(2)]
    rows = [Balance.of(half[None], 2) for order in orders for half in (order[:6], order[6:])]
    scores, every = generator.random(12) + 0.5, set(range(12))
    demand = Demand(np.arange(12), int(generator.integers(2, 9)))
    removed = solve(scores, every, [demand], rows, [])
    assert all(lost(row, removed) % 2 == 0 for row in rows)
    weight = scores / scores.mean()
    cost = sum(weight[c] for c in removed) + 10.0 * (1.0 + weight.max()) * abs(len(removed) - demand.wished)
    assert cost == pytest.approx(brute_force(scores, every, demand, rows, []), rel=2e-3)


@pytest.mark.parametrize("unit", [1, 4])
def test_what_a_convolution_reads_of_shuffled_channels_stays_on_the_unit(unit: int) -> None:
    """As in ShuffleNetV2: half of two shuffled groups goes through a depthwise convolution."""
    constants: Constants = {"half": [24], "end": [48], "axis": [1]}
    constants |= {"split": [0, 2, 24, -1], "merge": [0, 48, 8, 8]}
    nodes = [
        conv("a", "x", constants, 6, 24),
        helper.make_node("Neg", ["x"], ["minus"], "minus"),
        conv("b", "minus", constants, 6, 24),
        node("Concat", ["a", "b"], "both", axis=1),
        node("Reshape", ["both", "split"], "rows"),
        node("Transpose", ["rows"], "turned", perm=[0, 2, 1, 3]),
        node("Reshape", ["turned", "merge"], "shuffled"),
        node("Slice", ["shuffled", "half", "end", "axis"], "part"),
        conv("deep", "part", constants, 24, 24, group=24),
        conv("c", "deep", constants, 24, 3),
        conv("d", "shuffled", constants, 48, 3),
        node("Add", ["c", "d"], "y"),
    ]
    constants["b.w"] = np.random.default_rng(1).standard_normal((24, 6, 1, 1)).astype(np.float32)
    model = build(nodes, constants, shape=("n", 6, 8, 8))
    left = shapes(prune(model, 0.5, PassContext(round_to=8, round_up=True, align_to=unit)))
    assert left["d"][1] == 24
    assert all(left[name][0] % 4 == 0 for name in ("a", "b", "deep")) == (unit == 4)
