"""Which classes leave: the least important ones that keep every tensor regular.

Without constraints a group's lowest scores go. Grouped convolutions and group normalisations want the same number in
every row; where that is not met by itself, see `balance`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.analysis.channels import FIXED, ChannelGroups, Group
from onnxcompress.operators import CONVOLUTIONS
from onnxcompress.passes.pruning.balance import Balance, Classes, Demand, equal_rows, solve
from onnxcompress.passes.pruning.importance import Scores


@dataclass(frozen=True)
class Width:
    """A group's present and wished width, in classes; `block` is what a width is a multiple of."""

    size: int
    keep: int
    block: int


def wished_widths(
    groups: ChannelGroups,
    scores: Scores,
    ratio: float,
    scope: str,
    round_to: int,
    former: Sequence[int] | None = None,
    *,
    round_up: bool = False,
) -> list[Width]:
    """Return for each group how many classes it should keep, at least one and not fewer than are frozen.

    Args:
        ratio: of the classes that the groups had before anything was removed.
        former: how many that were; None takes those that are there.
        round_up: a part of a block counts as a whole one: kernels that work on whole blocks take as long for it, so
            that its filters are given back. Otherwise the nearest number of blocks is kept.
    """
    sizes = [group.size for group in groups.groups] if former is None else former
    if scope == "uniform":
        keeps = [
            min(group.size, size - _rounded(ratio * size)) for group, size in zip(groups.groups, sizes, strict=True)
        ]
    else:
        keeps = _global_keeps(groups, scores, ratio, sizes)
    widths = []
    for group, keep in zip(groups.groups, keeps, strict=True):
        block = block_in_classes(groups, group, round_to)
        floor = max(1, group.size - int(group.prunable.sum()))
        if keep < group.size:
            rounded = block * max(1, -(-keep // block) if round_up else _rounded(keep / block))
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


def _global_keeps(groups: ChannelGroups, scores: Scores, ratio: float, sizes: Sequence[int]) -> list[int]:
    """Rank the classes of all groups together and remove the lowest; every group keeps its best."""
    entries = []
    for number, group in enumerate(groups.groups):
        candidates = group.classes[group.prunable]
        spared = int(len(candidates) == group.size)
        order = candidates[np.lexsort((candidates, scores[candidates]))]
        entries += [(float(scores[c]), number, int(c)) for c in order[: len(order) - spared]]
    entries.sort()
    free = [(group.size, size) for group, size in zip(groups.groups, sizes, strict=True) if group.prunable.any()]
    gone = sum(size - own for own, size in free)
    keeps = [group.size for group in groups.groups]
    for _, number, _ in entries[: max(0, _rounded(ratio * sum(size for _, size in free)) - gone)]:
        keeps[number] -= 1
    return keeps


def select(groups: ChannelGroups, scores: Scores, widths: list[Width], unit: int = 1) -> set[int]:
    """Return the classes to remove.

    Args:
        unit: what a convolution reads and makes loses a multiple of it. Widths of groups on a block see to that, but
            for convolutions that read a part of several groups (after a channel shuffle, or a Slice).
    """
    every = {balance.key: balance for balance in (Balance.of(rows) for _, rows in groups.balanced)}
    balances = _widest([balance for balance in every.values() if not balance.always_holds])
    nonempty = _nonempty_sets(groups)
    member_of = {int(c): number for number, group in enumerate(groups.groups) for c in group.classes}

    def linked(constraints: Sequence[Balance]) -> list[tuple[set[int], list[Balance]]]:
        parts = _linked_groups(len(groups.groups), member_of, [each.classes for each in constraints])
        return [(p, [b for b in constraints if any(member_of.get(int(c)) in p for c in b.classes)]) for p in parts]

    inside = _sets_inside(nonempty, member_of)
    removed: set[int] = set()
    for part, own in linked(balances):
        if own:
            removed |= _balanced(groups, scores, widths, sorted(part), own, nonempty)
        else:
            for number in part:
                count = widths[number].size - widths[number].keep
                removed |= lowest(groups.groups[number], scores, count, inside[number])
    aligned = _alignments(groups, unit)
    if not all(each.holds(removed) for each in aligned):
        for part, own in linked([*balances, *aligned]):
            if not all(each.holds(removed) for each in own):
                removed -= {int(c) for number in part for c in groups.groups[number].classes}
                removed |= _balanced(groups, scores, widths, sorted(part), own, nonempty)
    return _keep_each_nonempty(nonempty, [*every.values(), *aligned], scores, removed)


def _widest(balances: list[Balance]) -> list[Balance]:
    """Return the divisions but those whose rows are all among another's, which then are equal anyway."""
    rows = [balance.rows for balance in balances]
    return [own for own, held in zip(balances, rows, strict=True) if not any(held < other for other in rows)]


def _alignments(groups: ChannelGroups, unit: int) -> list[Balance]:
    """Return what each convolution reads and makes, of those whose channels are a multiple of `unit` now."""
    analysis = groups.analysis
    rows: dict[bytes, Classes] = {}
    for node in analysis.model.nodes if unit > 1 else ():
        for tensor in (node.inputs[0], node.outputs[0]) if node.op in CONVOLUTIONS else ():
            labels = analysis.of(tensor)
            if labels is not None and labels.axes == (1,) and labels.inner == (1,) and labels.ids.size % unit == 0:
                classes = groups.classes_of(labels.ids)
                rows[np.sort(classes).tobytes()] = classes
    return [balance for own in rows.values() if (balance := Balance.of(own[None], unit)).classes.size]


def _balanced(
    groups: ChannelGroups,
    scores: Scores,
    widths: list[Width],
    part: list[int],
    balances: list[Balance],
    nonempty: list[Classes],
) -> set[int]:
    """Return the classes that leave groups linked by `balances`."""
    prunable = {int(c) for number in part for c in groups.groups[number].classes[groups.groups[number].prunable]}
    demands = [Demand(groups.groups[n].classes, widths[n].size - widths[n].keep) for n in part]
    single = balances[0] if len(balances) == len(demands) == 1 else None
    if single is not None and single.is_partition and set(single.classes) == set(demands[0].classes):
        removed = equal_rows(single, prunable, scores, demands[0].wished)
        if not any(all(int(c) in removed for c in own) for own in nonempty):
            return removed
    return solve(scores, prunable, demands, balances, nonempty)


def lowest(group: Group, scores: Scores, count: int, nonempty: Sequence[Classes] = ()) -> set[int]:
    """Return the `count` prunable classes of the lowest score (all if there are fewer).

    Of each set of `nonempty` the class of the highest score stays where all would leave; the next ones take its place.
    """
    candidates = group.classes[group.prunable]
    ordered = candidates[np.lexsort((candidates, scores[candidates]))]
    spared: set[int] = set()
    while True:
        removed = {int(c) for c in ordered[~np.isin(ordered, list(spared))][:count]}
        emptied = [own for own in nonempty if removed.issuperset(own.tolist())]
        if not emptied:
            return removed
        spared |= {int(own[np.argmax(scores[own])]) for own in emptied}


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


def _nonempty_sets(groups: ChannelGroups) -> list[Classes]:
    """Return the sets of which one class has to stay: filters of a producer, inputs of a consumer, parts of a split."""
    findings = groups.analysis.findings
    sets = [*groups.keep_one, *(groups.classes_of(p.ids) for p in findings.producers)]
    sets += [groups.classes_of(c.labels.ids) for c in findings.consumers]
    distinct = {own.tobytes(): own for own in map(np.unique, sets)}
    return [own for own in distinct.values() if own.size and own[0] != FIXED]


def _sets_inside(nonempty: list[Classes], member_of: Mapping[int, int]) -> defaultdict[int, list[Classes]]:
    """Return the sets whose classes all belong to one group, by its number."""
    inside: defaultdict[int, list[Classes]] = defaultdict(list)
    for own in nonempty:
        numbers = {member_of.get(int(c)) for c in own}
        number = numbers.pop()
        if not numbers and number is not None:
            inside[number].append(own)
    return inside


def _keep_each_nonempty(
    nonempty: list[Classes], balances: list[Balance], scores: Scores, removed: set[int]
) -> set[int]:
    """Give back the best class of every set that would be left without any, then whatever unequal rows remain."""
    for own in nonempty:
        if all(int(c) in removed for c in own):
            removed = removed - {int(own[np.argmax(scores[own])])}
    while unequal := [balance for balance in balances if not balance.holds(removed)]:
        removed = removed - {int(c) for balance in unequal for c in balance.classes}
    return removed
