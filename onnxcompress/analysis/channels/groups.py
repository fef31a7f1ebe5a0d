"""Dependency groups: atoms tied into classes (removed together), classes into groups (decided together)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from onnxcompress.analysis.channels.analysis import ChannelAnalysis, Producer
from onnxcompress.analysis.channels.labels import FIXED, Ids, Mask

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Group:
    """Channel classes created by the same producers.

    Attributes:
        name: the first producer's node name.
        classes: class numbers, in filter order.
        records: the producers, in graph order.
        consumers: names of the nodes that sum over these channels.
        frozen: reason by class position for those that stay.
    """

    name: str
    classes: Classes
    records: tuple[Producer, ...]
    consumers: tuple[str, ...]
    frozen: dict[int, str]

    @property
    def producers(self) -> tuple[str, ...]:
        """The producers' node names."""
        return tuple(dict.fromkeys(record.node for record in self.records))

    @property
    def size(self) -> int:
        """How many classes the group has."""
        return len(self.classes)

    @property
    def prunable(self) -> Mask:
        """Which classes may be removed, shape (size,)."""
        mask = np.ones(self.size, bool)
        mask[list(self.frozen)] = False
        return mask


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The fixed point: a class for every atom, the groups, and what ties their choices together.

    Attributes:
        class_of: class of every atom, shape (atoms,).
        groups: in graph order.
        balanced: arrays of classes (R, C): every row keeps the same number. Fixed positions are -1.
        keep_one: arrays of classes of which one has to stay.
    """

    analysis: ChannelAnalysis
    class_of: Classes
    groups: tuple[Group, ...]
    balanced: tuple[tuple[str, Classes], ...]
    keep_one: tuple[Classes, ...]

    def keep_atoms(self, removed: set[int] | npt.NDArray[np.int64]) -> Mask:
        """Return which atoms stay once the `removed` classes are gone."""
        gone = np.zeros(int(self.class_of.max(initial=-1)) + 1, bool)
        gone[np.asarray(sorted(removed), np.int64)] = True
        return ~gone[self.class_of]

    def classes_of(self, ids: Ids) -> Classes:
        """Return the classes of atoms, -1 for fixed positions."""
        return np.where(ids == FIXED, FIXED, np.append(self.class_of, FIXED)[ids])


def find_groups(analysis: ChannelAnalysis, is_excluded: frozenset[str] = frozenset()) -> ChannelGroups:
    """Close the ties of `analysis`; filters and inputs of the nodes named in `is_excluded` stay."""
    findings = analysis.findings
    class_of, whole = _close(analysis)
    classes = int(class_of.max(initial=-1)) + 1
    reasons: dict[int, str] = {}
    freezes = list(findings.freezes)
    for at in whole:
        node, rows, _ = findings.balanced[at]
        beside = rows[(rows == FIXED).any(axis=1)]
        freezes.append((beside[beside != FIXED], f"shares a group of '{node}' with a channel that stays"))
    read_or_made = [(p.node, p.labels.ids) for p in findings.producers]
    read_or_made += [(c.node, c.labels.ids) for c in findings.consumers]
    for node, ids in read_or_made:
        if node in is_excluded:
            freezes.append((ids[ids != FIXED], f"'{node}' is excluded"))
    for ids, reason in freezes:
        for number in np.unique(class_of[ids]):
            reasons.setdefault(int(number), reason)
    of_group = _group_numbers(classes, class_of, findings.producers)
    producers_of: defaultdict[int, list[Producer]] = defaultdict(list)
    for producer in findings.producers:
        if producer.ids.size:
            producers_of[int(of_group[class_of[producer.ids[0]]])].append(producer)
    consumers_of: defaultdict[int, dict[str, None]] = defaultdict(dict)
    for consumer in findings.consumers:
        ids = consumer.labels.ids[consumer.labels.ids != FIXED]
        for number in np.unique(of_group[class_of[ids]]):
            consumers_of[int(number)][consumer.node] = None
    groups = []
    for number, members in producers_of.items():
        ordered = dict.fromkeys(int(c) for producer in members for c in class_of[producer.ids])
        frozen = {at: reasons[c] for at, c in enumerate(ordered) if c in reasons}
        own = np.array(list(ordered), np.int64)
        groups.append(Group(members[0].node, own, tuple(members), tuple(consumers_of[number]), frozen))
    result = ChannelGroups(analysis, class_of, tuple(groups), (), ())
    asked = [entry for at, entry in enumerate(findings.balanced) if at not in whole]
    balanced = [(node, result.classes_of(rows), lax) for node, rows, lax in asked]
    return ChannelGroups(
        analysis,
        class_of,
        tuple(groups),
        tuple((node, rows) for node, rows, lax in balanced if not (lax and (rows == rows[:, :1]).all())),
        tuple(result.classes_of(ids) for ids in findings.keep_one),
    )


def _close(analysis: ChannelAnalysis) -> tuple[Classes, frozenset[int]]:
    """Return the class of every atom, and which divisions into rows (by place in the findings) lose whole rows.

    Of the two ways to keep such a division regular the finer is chosen, unless another division, which has to keep its
    rows equal, shares its channels: then all of them do. Where rows of several divisions cross (a shuffle between two
    normalisations), tying them might leave a single class: then they do, too.
    """
    findings = analysis.findings
    class_of = _components(analysis.atoms, findings.ties)
    divisions = [np.where(rows == FIXED, FIXED, class_of[rows]) for _, rows, _ in findings.balanced]
    whole, bound = [], np.zeros(int(class_of.max(initial=-1)) + 2, bool)
    for at, rows in enumerate(divisions):
        lax, ordered = findings.balanced[at][2], np.sort(rows, axis=1)
        if (lax and (rows == rows[:, :1]).all()) or (ordered == ordered[:1]).all():
            continue
        if lax and rows.shape[0] > rows.shape[1]:
            whole.append(at)
        else:
            bound[rows[rows != FIXED]] = True
    while whole := [at for at in whole if not bound[divisions[at][divisions[at] != FIXED]].any()]:
        closed = _components(analysis.atoms, findings.ties + [_row_ties(findings.balanced[at][1]) for at in whole])
        atoms_of = {at: (rows := findings.balanced[at][1])[rows != FIXED] for at in whole}
        crossed = [at for at, atoms in atoms_of.items() if len(np.unique(closed[atoms])) == 1]
        if not crossed:
            return closed, frozenset(whole)
        for at in crossed:
            bound[class_of[atoms_of[at]]] = True
    return class_of, frozenset()


def _row_ties(rows: Ids) -> tuple[Ids, Ids]:
    """Return ties of the atoms of each row; a fixed position ties nothing, what stands beside it is frozen."""
    first, other = np.broadcast_arrays(rows[:, :1], rows)
    atoms = (first != FIXED) & (other != FIXED)
    return first[atoms], other[atoms]


def _components(count: int, ties: list[tuple[Ids, Ids]]) -> Classes:
    if not count:
        return np.zeros(0, np.int64)
    first = np.concatenate([a for a, _ in ties]) if ties else np.zeros(0, np.int64)
    second = np.concatenate([b for _, b in ties]) if ties else np.zeros(0, np.int64)
    graph = coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    return np.asarray(labels, np.int64)


def _group_numbers(classes: int, class_of: Classes, producers: list[Producer]) -> Classes:
    """Number the groups: classes are in one group if one producer creates filters of both."""
    ties = []
    for producer in producers:
        own = class_of[producer.ids]
        ties.append((own[:1].repeat(len(own)), own))
    return _components(classes, ties)
