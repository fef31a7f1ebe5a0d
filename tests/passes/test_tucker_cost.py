"""When a split pays: MACs and parameters each have their say."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.passes.tucker.cost import ParamsLedger, tucker_cost
from onnxcompress.passes.tucker.sites import ConvSite


def site(op: str = "Conv", *, at_input: int | None, at_output: int | None, stride: int = 1) -> ConvSite:
    weight = np.zeros((20, 20, 3, 3), np.float32)
    return ConvSite("conv", op, 1, weight, True, at_input, at_output, stride, "w")


@pytest.mark.parametrize(
    ("at_input", "at_output", "rank", "fewer_macs", "fewer_params"),
    [
        (64, 64, 10, True, True),
        (64, 4, 10, False, True),  # the first 1x1 runs on the large side
        (4, 64, 18, True, False),  # the first 1x1 hardly runs
        (64, 64, 19, False, False),
    ],
)
def test_a_split_pays_only_where_both_fall(at_input, at_output, rank, fewer_macs, fewer_params):
    cost = tucker_cost(site(at_input=at_input, at_output=at_output), rank, rank)
    assert cost.macs is not None
    assert (cost.macs[1] < cost.macs[0], cost.params[1] < cost.params[0]) == (fewer_macs, fewer_params)
    assert cost.pays == (fewer_macs and fewer_params)


def test_the_same_cost_does_not_pay():
    whole = ConvSite("conv", "Conv", 1, np.zeros((4, 1, 2), np.float32), False, 8, 8, 1, "w")
    assert tucker_cost(whole, 1, 2, with_in=False).params == (8, 12)
    assert tucker_cost(whole, 1, 4, with_in=False, with_out=False).params == (8, 8)
    assert not tucker_cost(whole, 1, 4, with_in=False, with_out=False).pays


@pytest.mark.parametrize(("op", "known"), [("Conv", (64, 16)), ("ConvTranspose", (16, 64))])
def test_strides_stand_in_for_sizes_that_are_open(op, known):
    measured = tucker_cost(site(op, at_input=known[0], at_output=known[1], stride=4), 6, 7)
    guessed = tucker_cost(site(op, at_input=None, at_output=None, stride=4), 6, 7)
    assert guessed.macs is None
    assert measured.macs == tuple(16 * macs for macs in guessed.relative_macs)


def test_the_ledger_counts_a_shared_weight_once():
    cost = tucker_cost(site(at_input=64, at_output=64), 10, 10)
    ledger = ParamsLedger({"a", "b"})
    assert ledger.enter(cost, weight="w", sharers=("b",), factors=1) == [3620, 200 + 900 + 200 + 20]
    assert ledger.enter(cost, weight="w", sharers=("a",), factors=1) == [20, 20]
    assert ledger.enter(cost, weight="v", sharers=(), factors=1) == [3620, 20]
    assert ledger.enter(cost, weight="u", sharers=("c",), factors=2) == [20, 1320]
