"""Who belongs to a group: the nodes that produce, carry and consume its channels, and at which offset."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from onnxcompress.analysis.channels.groups import ChannelGroups
from onnxcompress.analysis.channels.labels import FIXED, Labels
from onnxcompress.graph import Model

PRODUCES, CARRIES, CONSUMES = "produces", "carries", "consumes"


@dataclass(frozen=True)
class Member:
    """A node's part in a group.

    Attributes:
        node: its name.
        op: its operator.
        role: `produces`, `carries` or `consumes`.
        offset: the first position, along the channel axis of its output (a consumer: its input), that is the group's.
        channels: how many positions there are the group's.
    """

    node: str
    op: str
    role: str
    offset: int
    channels: int


def group_members(model: Model, groups: ChannelGroups) -> dict[str, tuple[Member, ...]]:
    """Return every group's members in graph order, by group name."""
    group_of = np.full(int(groups.class_of.max(initial=-1)) + 2, FIXED, np.int64)
    for number, group in enumerate(groups.groups):
        group_of[group.classes] = number
    analysis = groups.analysis
    produced = {record.node for record in analysis.findings.producers}
    consumed: defaultdict[str, list[Labels]] = defaultdict(list)
    for consumer in analysis.findings.consumers:
        consumed[consumer.node].append(consumer.labels)
    members: defaultdict[int, list[Member]] = defaultdict(list)
    for node in model.nodes:
        entries = [(CONSUMES, labels) for labels in consumed.get(node.name, ())]
        role = PRODUCES if node.name in produced else CARRIES
        entries += [(role, labels) for tensor in node.outputs if (labels := analysis.of(tensor)) is not None]
        for role, labels in entries:
            owners = group_of[groups.classes_of(labels.ids.reshape(-1))]
            for number in np.unique(owners[owners != FIXED]):
                where = np.flatnonzero(owners == number)
                members[int(number)].append(Member(node.name, node.op, role, int(where[0]), len(where)))
    return {group.name: tuple(members[number]) for number, group in enumerate(groups.groups)}
