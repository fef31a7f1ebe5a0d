"""Channels divided into groups: the same share of every group leaves, or whole groups, whichever is finer."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.test_channels import Constants, analysed, by_producer, conv, reasons, weight
from tests.small_models import build, node


@pytest.mark.parametrize(("groups", "size", "rows"), [(1, 8, None), (2, 8, (2, 4)), (4, 4, None), (8, 8, None)])
def test_a_normalisation_loses_whole_groups_where_that_is_finer(
    groups: int, size: int, rows: tuple[int, int] | None
) -> None:
    constants: Constants = {"scale": weight(8), "shift": weight(8)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("GroupNormalization", ["a", "scale", "shift"], "normal", num_groups=groups),
        conv("b", "normal", constants, 8, 2),
    ]
    found = analysed(build(nodes, constants, opset=21))
    group = by_producer(found)["a"]
    assert (group.size, bool(group.prunable.all())) == (size, True)
    assert [array.shape for _, array in found.balanced] == ([rows] if rows else [])


def test_rows_that_something_else_keeps_equal_are_not_tied() -> None:
    """A grouped convolution behind a normalisation: its rows stay equal, so the four groups of the first do, too."""
    constants: Constants = {"scale": weight(8), "shift": weight(8)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("GroupNormalization", ["a", "scale", "shift"], "normal", num_groups=4),
        conv("b", "normal", constants, 8, 8, group=2),
        conv("c", "b", constants, 8, 2),
    ]
    found = analysed(build(nodes, constants, opset=21))
    assert by_producer(found)["a"].size == 8
    assert sorted(rows.shape for _, rows in found.balanced) == [(2, 4), (2, 4), (4, 2)]


def test_whole_groups_that_cross_would_leave_one_class() -> None:
    """Two normalisations with a shuffle between them: tied, every channel would stand with every other."""
    constants: Constants = {"scale": weight(6), "shift": weight(6), "order": np.array([1, 2, 3, 4, 5, 0])}
    nodes = [
        conv("a", "x", constants, 6, 6),
        node("GroupNormalization", ["a", "scale", "shift"], "first", num_groups=3),
        node("Gather", ["first", "order"], "turned", axis=1),
        node("GroupNormalization", ["turned", "scale", "shift"], "second", num_groups=3),
        conv("b", "second", constants, 6, 2),
    ]
    found = analysed(build(nodes, constants, opset=21))
    assert by_producer(found)["a"].size == 6
    assert [rows.shape for _, rows in found.balanced] == [(3, 2), (3, 2)]


def test_a_whole_group_stays_beside_a_channel_that_stays() -> None:
    constants: Constants = {"scale": weight(14), "shift": weight(14)}
    nodes = [
        conv("a", "x", constants, 6, 8),
        node("Slice", ["x", "zero", "five", "one"], "part"),
        node("Concat", ["a", "part"], "joined", axis=1),
        node("GroupNormalization", ["joined", "scale", "shift"], "normal", num_groups=7),
        conv("b", "normal", constants, 14, 2),
    ]
    constants |= {"zero": np.array([0]), "five": np.array([6]), "one": np.array([1])}
    group = by_producer(analysed(build(nodes, constants, opset=21)))["a"]
    assert (group.size, bool(group.prunable.all())) == (4, True)
    constants["five"], constants["a.w"] = np.array([5]), weight(9, 6, 1, 1)
    group = by_producer(analysed(build(nodes, constants, opset=21)))["a"]
    assert (group.size, int(group.prunable.sum())) == (5, 4)
    assert {reason.split("'")[0] for reason in reasons(group)} == {"shares a group of "}
