"""Choosing channels under equal rows: grouped convolutions and group normalisations lose the same number in every row.

What a convolution reads or makes may be such a row, too, alone: it loses a multiple of what the kernels take at once.

A single division into rows has the plain answer: the lowest of each row, as many as come nearest to the wish. Divisions
that cross (a shuffle between two grouped convolutions) make an integer program: minimise the score removed, with the
wished number of each group as near as possible. It is solved here by branch and bound over linear programs, because
scipy's integer solver (HiGHS's, in scipy 1.14 and 1.17.1) hangs or corrupts memory on small ones of this kind, while
its linear solver does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.analysis.channels import FIXED

Classes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

_MISSED = 10.0
_GAP = 1e-3
_MOST_NODES = 200
_WHOLE = 1e-6


@dataclass(frozen=True, eq=False)
class Balance:
    """A division into rows: how often each class stands in every row.

    Attributes:
        classes: the classes that stand in some row, ascending, shape (K,).
        counts: shape (R, K).
        length: of a row.
        unit: every row loses a multiple of it.
    """

    classes: Classes
    counts: Classes
    length: int
    unit: int = 1

    @classmethod
    def of(cls, rows: Classes, unit: int = 1) -> Balance:
        """Count the classes in `rows` (R, C), once for rows alike (a query's and its key's); fixed ones for none."""
        classes, inverse = np.unique(rows, return_inverse=True)
        counts = np.zeros((rows.shape[0], len(classes)), np.int64)
        np.add.at(counts, (np.repeat(np.arange(rows.shape[0]), rows.shape[1]), inverse.reshape(-1)), 1)
        free = classes != FIXED
        counts = counts[:, free]
        return cls(classes[free], np.unique(counts, axis=0) if counts.size else counts, rows.shape[1], unit)

    @property
    def rows(self) -> frozenset[tuple[tuple[int, int], ...]]:
        """What stands in each row: (class, how often), ascending."""
        held = [(self.classes[counts > 0], counts[counts > 0]) for counts in self.counts]
        return frozenset(tuple(zip(own.tolist(), often.tolist(), strict=True)) for own, often in held)

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Equal for divisions that ask for the same."""
        return self.classes.tobytes(), self.counts.tobytes()

    @property
    def always_holds(self) -> bool:
        """Whether every row loses the same whatever leaves."""
        return self.unit == 1 and bool((self.counts == self.counts[:1]).all())

    @property
    def is_partition(self) -> bool:
        """Whether every class stands once in one row."""
        return bool((self.counts.sum(axis=0) == 1).all())

    def holds(self, removed: set[int]) -> bool:
        """Whether every row loses the same number of units."""
        gone = np.array([int(c) in removed for c in self.classes], bool)
        lost = self.counts[:, gone].sum(axis=1)
        return bool((lost == lost[:1]).all() and (lost % self.unit == 0).all())


def equal_rows(balance: Balance, prunable: set[int], scores: Values, wished: int) -> set[int]:
    """Return the lowest classes of every row of a partition, of which together `wished` should leave."""
    rows = []
    for counts in balance.counts:
        row = np.array([c for c in balance.classes[counts > 0] if int(c) in prunable], np.int64)
        rows.append(row[np.lexsort((row, scores[row]))])
    most = min(min(len(row) for row in rows), balance.length - 1)
    level = min(range(most + 1), key=lambda n: (abs(n * len(rows) - wished), n))
    return {int(c) for row in rows for c in row[:level]}


@dataclass(frozen=True, eq=False)
class Demand:
    """A group's classes and how many of them should leave."""

    classes: Classes
    wished: int


def solve(
    scores: Values,
    prunable: set[int],
    demands: Sequence[Demand],
    balances: Sequence[Balance],
    nonempty: Sequence[Classes],
) -> set[int]:
    """Return the classes that leave: few scores, near the demands, rows equal, none of `nonempty` empty."""
    from scipy.sparse import lil_matrix

    named = [demand.classes for demand in demands] + [balance.classes for balance in balances]
    classes = list(dict.fromkeys(int(c) for own in named for c in own))
    column = {c: at for at, c in enumerate(classes)}
    sets = [own for own in nonempty if all(int(c) in column for c in own)]
    slack, level = len(classes), len(classes) + 2 * len(demands)
    spare = level + len(balances)
    rows = len(demands) + sum(len(b.counts) for b in balances) + len(sets)
    matrix, right = lil_matrix((rows, spare + len(sets))), np.zeros(rows)
    upper = np.array([float(c in prunable) for c in classes])
    bounds = [upper, np.full(2 * len(demands), float(len(classes)))]
    bounds += [
        np.array([float((b.length - 1) // b.unit) for b in balances]),
        np.array([float(len(own)) for own in sets]),
    ]
    row = 0
    for at, demand in enumerate(demands):
        matrix[row, [column[int(c)] for c in demand.classes]] = 1.0
        matrix[row, slack + 2 * at], matrix[row, slack + 2 * at + 1] = 1.0, -1.0
        right[row] = demand.wished
        row += 1
    for at, balance in enumerate(balances):
        for counts in balance.counts:
            own = np.flatnonzero(counts)
            matrix[row, [column[int(c)] for c in balance.classes[own]]] = counts[own].astype(float)
            matrix[row, level + at] = -float(balance.unit)
            row += 1
    for at, own in enumerate(sets):
        matrix[row, [column[int(c)] for c in own]] = 1.0
        matrix[row, spare + at] = 1.0
        right[row] = len(own) - 1
        row += 1
    weight = scores[classes] / max(float(np.mean(scores[classes])), 1e-12)
    missed = _MISSED * (1.0 + float(weight.max()))
    cost = np.concatenate([weight, np.full(2 * len(demands), missed), np.zeros(len(balances) + len(sets))])
    order = np.concatenate([np.arange(level, spare), np.arange(len(classes))])
    chosen = _branch_and_bound(cost, matrix.tocsr(), right, np.concatenate(bounds), order)
    return set() if chosen is None else {c for c, at in column.items() if chosen[at] > 0.5}


def _branch_and_bound(cost: Values, matrix: object, right: Values, upper: Values, order: Classes) -> Values | None:
    """Minimise `cost @ x` with `matrix @ x == right`, 0 <= x <= upper and x[order] whole, within `_GAP` of the best."""
    from scipy.optimize import linprog

    best: Values | None = None
    least = np.inf
    stack = [(np.zeros(len(cost)), upper)]
    for _ in range(_MOST_NODES):
        if not stack:
            break
        low, high = stack.pop()
        bounds = np.stack([low, high], axis=1)
        found = linprog(cost, A_eq=matrix, b_eq=right, bounds=bounds, method="highs-ds", options={"presolve": False})
        if found.status != 0 or found.fun >= least - _GAP * max(1.0, abs(least)):
            continue
        values = found.x[order]
        broken = np.flatnonzero(np.abs(values - np.round(values)) > _WHOLE)
        if not broken.size:
            best, least = np.round(found.x), found.fun
            continue
        variable, value = order[broken[0]], values[broken[0]]
        below, above = high.copy(), low.copy()
        below[variable], above[variable] = np.floor(value), np.ceil(value)
        nearer_last = [(above, high), (low, below)] if value - np.floor(value) < 0.5 else [(low, below), (above, high)]
        stack += nearer_last
    return best
