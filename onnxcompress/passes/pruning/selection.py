"""Which classes leave: the least important ones that keep every tensor regular.

Without constraints a group's lowest scores go. Grouped convolutions and group normalisations want the same number in
every group; where such a constraint is not met by itself, the choice is a small integer program (HiGHS through scipy):
minimise the score removed, subject to equal rows, with the wished number of each group as near as possible.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.analysis.channels import FIXED, ChannelGroups, Group
from onnxcompress.passes.pruning.importance import Scores

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Width:
    """A group's present and wished width, in classes; `block` is what a width is a multiple of."""

    size: int
    keep: int
    block: int


def wished_widths(groups: ChannelGroups, scores: Scores, ratio: float, scope: str, round_to: int) -> list[Width]:
    """Return for each group how many classes it should keep, at least one and not fewer than are frozen."""
    if scope == "uniform":
        keeps = [group.size - _rounded(ratio * group.size) for group in groups.groups]
    else:
        keeps = _global_keeps(groups, scores, ratio)
    widths = []
    for group, keep in zip(groups.groups, keeps, strict=True):
        block = block_in_classes(groups, group, round_to)
        floor = max(1, group.size - int(group.prunable.sum()))
        if keep < group.size:
            rounded = max(block, block * _rounded(keep / block))
            keep = rounded if rounded < group.size else group.size
        widths.append(Width(group.size, min(max(keep, floor), group.size), block))
    return widths


def block_in_classes(groups: ChannelGroups, group: Group, round_to: int) -> int:
    """Return how many classes make `round_to` channels of the group's first producer (a class may hold several)."""
    classes, counts = np.unique(groups.class_of[group.records[0].ids], return_counts=True)
    each = int(counts[0]) if len(set(counts.tolist())) == 1 and len(classes) else 1
    return max(1, round_to // int(np.gcd(round_to, each)))


def _rounded(value: float) -> int:
    return int(np.floor(value + 0.5))


def _global_keeps(groups: ChannelGroups, scores: Scores, ratio: float) -> list[int]:
    """Rank the classes of all groups together and remove the lowest; every group keeps its best."""
    entries = []
    for number, group in enumerate(groups.groups):
        candidates = group.classes[group.prunable]
        spared = int(len(candidates) == group.size)
        order = candidates[np.lexsort((candidates, scores[candidates]))]
        entries += [(float(scores[c]), number, int(c)) for c in order[: len(order) - spared]]
    entries.sort()
    total = sum(group.size for group in groups.groups if group.prunable.any())
    keeps = [group.size for group in groups.groups]
    for _, number, _ in entries[: _rounded(ratio * total)]:
        keeps[number] -= 1
    return keeps


def select(groups: ChannelGroups, scores: Scores, widths: list[Width]) -> set[int]:
    """Return the classes to remove."""
    constraints = [_row_counts(rows) for _, rows in groups.balanced]
    constraints = [(classes, counts) for classes, counts in constraints if not (counts == counts[0]).all()]
    member_of = {int(c): number for number, group in enumerate(groups.groups) for c in group.classes}
    parts = _linked_groups(len(groups.groups), member_of, [classes for classes, _ in constraints])
    removed: set[int] = set()
    for part in parts:
        own = [c for c in constraints if any(member_of.get(int(k)) in part for k in c[0])]
        if own:
            removed |= _solve(groups, scores, widths, sorted(part), own)
        else:
            for number in part:
                removed |= lowest(groups.groups[number], scores, widths[number].size - widths[number].keep)
    return _keep_each_nonempty(groups, scores, removed)


def lowest(group: Group, scores: Scores, count: int) -> set[int]:
    """Return the `count` prunable classes of the lowest score (all if there are fewer)."""
    candidates = group.classes[group.prunable]
    order = np.lexsort((candidates, scores[candidates]))
    return {int(c) for c in candidates[order[:count]]}


def _row_counts(rows: Classes) -> tuple[Classes, npt.NDArray[np.int64]]:
    """Return the classes in `rows` (R, C) and how often each stands in every row, shape (R, classes)."""
    classes, inverse = np.unique(rows, return_inverse=True)
    counts = np.zeros((rows.shape[0], len(classes)), np.int64)
    np.add.at(counts, (np.repeat(np.arange(rows.shape[0]), rows.shape[1]), inverse.reshape(-1)), 1)
    free = classes != FIXED
    return classes[free], counts[:, free]


def _linked_groups(count: int, member_of: dict[int, int], constraints: list[Classes]) -> list[set[int]]:
    """Return the groups in parts that no constraint crosses."""
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for classes in constraints:
        numbers = {member_of[int(c)] for c in classes if int(c) in member_of}
        for number in numbers:
            parent[root(number)] = root(min(numbers))
    parts: defaultdict[int, set[int]] = defaultdict(set)
    for number in range(count):
        parts[root(number)].add(number)
    return list(parts.values())


def _solve(
    groups: ChannelGroups,
    scores: Scores,
    widths: list[Width],
    part: list[int],
    constraints: list[tuple[Classes, npt.NDArray[np.int64]]],
) -> set[int]:
    """Choose under equal rows; variables: each class, two slacks of each group, a level of each constraint."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix

    classes = list(dict.fromkeys(int(c) for number in part for c in groups.groups[number].classes))
    loose = sorted({int(c) for own, _ in constraints for c in own} - set(classes))
    column = {c: at for at, c in enumerate([*classes, *loose])}
    upper = np.zeros(len(column))
    for number in part:
        group = groups.groups[number]
        upper[[column[int(c)] for c in group.classes[group.prunable]]] = 1.0
    slack, level = len(column), len(column) + 2 * len(part)
    variables = level + len(constraints)
    sets = [np.unique(s[s != FIXED]) for s in groups.keep_one if (s != FIXED).all() and int(s[0]) in column]
    rows = len(part) + sum(len(counts) for _, counts in constraints) + len(sets)
    matrix = lil_matrix((rows, variables))
    low, high = np.zeros(rows), np.zeros(rows)
    for at, number in enumerate(part):
        for c in groups.groups[number].classes:
            matrix[at, column[int(c)]] = 1.0
        matrix[at, slack + 2 * at], matrix[at, slack + 2 * at + 1] = 1.0, -1.0
        low[at] = high[at] = widths[number].size - widths[number].keep
    row = len(part)
    for at, (own, counts) in enumerate(constraints):
        for line in counts:
            for c, n in zip(own, line, strict=True):
                if n:
                    matrix[row, column[int(c)]] = float(n)
            matrix[row, level + at] = -1.0
            row += 1
    for own in sets:
        for c in own:
            matrix[row, column[int(c)]] = 1.0
        high[row] = len(own) - 1
        row += 1
    weight = scores[list(column)] / max(float(np.mean(scores[list(column)])), 1e-12)
    missed = 10.0 * (1.0 + float(weight.max()))
    cost = np.concatenate([weight, np.full(2 * len(part), missed), np.zeros(len(constraints))])
    limits = np.concatenate([upper, np.full(variables - len(column), np.inf)])
    integral = np.concatenate([np.ones(len(column)), np.zeros(variables - len(column))])
    solution = milp(
        cost,
        integrality=integral,
        bounds=Bounds(np.zeros(variables), limits),
        constraints=LinearConstraint(matrix.tocsr(), low, high),
        options={"mip_rel_gap": 1e-3, "node_limit": 2000},
    )
    if solution.x is None:
        return set()
    return {c for c, at in column.items() if solution.x[at] > 0.5}


def _keep_each_nonempty(groups: ChannelGroups, scores: Scores, removed: set[int]) -> set[int]:
    """Give back the best class of every producer, consumer input and split part that would be left without any."""
    findings = groups.analysis.findings
    sets = [*groups.keep_one, *(groups.classes_of(p.ids) for p in findings.producers)]
    sets += [groups.classes_of(c.labels.ids) for c in findings.consumers]
    kept_rows = [_row_counts(rows) for _, rows in groups.balanced]
    for members in sets:
        own = np.unique(members)
        if own.size and not (own == FIXED).any() and all(int(c) in removed for c in own):
            best = int(own[np.argmax(scores[own])])
            removed = removed - {best}
    for classes, counts in kept_rows:
        stays = np.array([int(c) not in removed for c in classes])
        left = counts[:, stays].sum(axis=1)
        if len(set(left.tolist())) > 1:
            removed = removed - {int(c) for c in classes}
    return removed
