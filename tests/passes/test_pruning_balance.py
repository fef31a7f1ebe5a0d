"""Equal rows: the plain answer, the integer program against brute force, and sizes of real networks in time."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from onnxcompress.passes.pruning.balance import Balance, Demand, equal_rows, solve


def rows_of(*rows: list[int]) -> Balance:
    return Balance.of(np.array(rows, np.int64))


def brute_force(
    scores: np.ndarray, prunable: set[int], demand: Demand, balances: list[Balance], nonempty: list[np.ndarray]
) -> float:
    """Return the least cost over all subsets."""
    weight = scores / scores.mean()
    missed = 10.0 * (1.0 + weight.max())
    best = np.inf
    classes = [int(c) for c in demand.classes]
    for chosen in itertools.product((False, True), repeat=len(classes)):
        removed = {c for c, gone in zip(classes, chosen, strict=True) if gone}
        if not removed <= prunable or any(set(own.tolist()) <= removed for own in nonempty):
            continue
        if all(b.holds(removed) and lost(b, removed) < b.length for b in balances):
            cost = sum(weight[c] for c in removed) + missed * abs(len(removed) - demand.wished)
            best = min(best, float(cost))
    return best


def lost(balance: Balance, removed: set[int]) -> int:
    gone = np.isin(balance.classes, sorted(removed))
    return int(balance.counts[0, gone].sum())


@pytest.mark.parametrize("seed", range(150))
def test_the_program_finds_what_brute_force_finds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(3, 9))
    balances = []
    for _ in range(int(generator.integers(1, 3))):
        rows, length = int(generator.integers(2, 5)), int(generator.integers(1, 4))
        if generator.random() < 0.5:
            table = generator.integers(-1, count, (rows, length))
        else:
            table = generator.permutation(np.arange(rows * length) % count).reshape(rows, length)
        balances.append(Balance.of(table))
    scores = generator.random(count) + 0.5
    prunable = {c for c in range(count) if generator.random() > 0.15}
    demand = Demand(np.arange(count), int(generator.integers(0, count)))
    nonempty = [generator.permutation(count)[:2], np.arange(count)]
    removed = solve(scores, prunable, [demand], balances, nonempty)
    assert removed <= prunable
    assert all(balance.holds(removed) for balance in balances)
    assert not any(set(own.tolist()) <= removed for own in nonempty)
    weight = scores / scores.mean()
    cost = sum(weight[c] for c in removed) + 10.0 * (1.0 + weight.max()) * abs(len(removed) - demand.wished)
    assert cost <= brute_force(scores, prunable, demand, balances, nonempty) * 1.002 + 1e-6


def test_a_partition_loses_the_lowest_of_every_row() -> None:
    balance = rows_of([0, 1, 2, 3], [4, 5, 6, 7])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 9.0, 8.0, 7.0, 6.0])
    everyone = set(range(8))
    assert balance.is_partition
    assert equal_rows(balance, everyone, scores, 4) == {0, 1, 6, 7}
    assert equal_rows(balance, everyone, scores, 3) == {0, 7}  # one too few before one too many
    assert equal_rows(balance, everyone, scores, 8) == {0, 1, 2, 5, 6, 7}  # one of each row stays
    assert equal_rows(balance, everyone - {4, 5, 6}, scores, 8) == {0, 7}
    assert equal_rows(balance, everyone, scores, 0) == set()


def test_counts_and_what_always_holds() -> None:
    assert rows_of([0, 1], [1, 0]).always_holds
    assert not rows_of([0, 1], [2, 3]).always_holds
    assert not rows_of([0, 0, 1], [2, 2, 3]).is_partition
    assert rows_of([0, -1], [1, -1]).holds({0, 1})
    assert not rows_of([0, -1], [1, -1]).holds({0})
    assert rows_of([0, 1], [2, 3]).key == rows_of([3, 2], [1, 0]).key != rows_of([0, 2], [1, 3]).key


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.arange(240).reshape(3, 80), np.arange(240).reshape(80, 3).T),  # a shuffle between grouped convolutions
        (np.arange(512).reshape(32, 16), np.arange(512).reshape(8, 64)),  # two group normalisations of one stage
        (np.arange(256).reshape(16, 16), np.arange(256).reshape(16, 16).T),
        (np.arange(192).reshape(4, 48), np.arange(192).reshape(32, 6).T.reshape(6, 32)),
    ],
)
def test_divisions_that_cross_in_real_sizes(first: np.ndarray, second: np.ndarray) -> None:
    balances = [Balance.of(first), Balance.of(second)]
    scores = np.random.default_rng(0).random(first.size) + 0.5
    demand = Demand(np.arange(first.size), int(0.4 * first.size))
    started = time.process_time()
    removed = solve(scores, set(range(first.size)), [demand], balances, [np.arange(first.size)])
    assert time.process_time() - started < 20.0
    assert all(balance.holds(removed) for balance in balances)
    assert abs(len(removed) - demand.wished) <= np.lcm(len(first), len(second)) / 2 + 1
    worst = np.sort(scores)[: len(removed)].sum()
    assert scores[sorted(removed)].sum() <= 1.35 * worst
