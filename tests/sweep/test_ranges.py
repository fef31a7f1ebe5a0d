"""What a sweep's ranges stand for, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.pipeline.sweep_grid import check_recipe, grid_of
from onnxcompress.recipe import Recipe
from onnxcompress.recipe.options import options_of
from onnxcompress.recipe.ranges import Fractions, Splits, TargetShares
from onnxcompress.recipe.sweep_options import SweepOptions, recipe_names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1:0.4", [0.1, 0.2, 0.3, 0.4]),
        ("0.1:0.3:2", [0.1, 0.3]),
        ("0.2:0.4:1", [0.3]),
        ("0.5, 0.1,0.5", [0.1, 0.5]),
        ("0.1:0.2:2,0.7", [0.1, 0.2, 0.7]),
    ],
)
def test_fractions(text: str, expected: list[float]) -> None:
    assert Fractions().values(text, 4, "prune_range") == expected


def test_splits_come_gentle_first_and_keep_their_name() -> None:
    kind = Splits()
    assert kind.values("energy=0.8:0.9:3", 4, "t") == ["energy=0.9", "energy=0.85", "energy=0.8"]
    assert kind.values("ratio=0.5,0.25,evbmf,energy=0.9", 4, "t") == [
        "ratio=0.5",
        "ratio=0.25",
        "evbmf",
        "energy=0.9",
    ]


def test_shares_of_a_target() -> None:
    assert TargetShares().values("macs=0.3:0.9:3", 4, "t") == ("macs", [0.3, 0.6, 0.9])


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("prune_range", "0.5:0.1", "LOW <= HIGH"),
        ("prune_range", "0", "out of range"),
        ("prune_range", "0.1:x", "is not a number"),
        ("prune_range", "0.1:0.2:0", "is not a number"),
        ("prune_range", "", "is not a range"),
        ("tucker_range", "0.9", "is not known"),
        ("tucker_range", "off", "is not known"),
        ("tucker_range", "energy=1.5", "out of range"),
        ("target_range", "0.5", "is not a range of targets"),
        ("target_range", "macs=2", "out of range"),
        ("method", (), "the list is empty"),
        ("method", ("svd",), "is not known"),
        ("points", 0, "out of range"),
        ("jobs", 0, "out of range"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(name: str, value: Any, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint) as caught:
        SweepOptions(**{name: value})
    assert str(caught.value).startswith(name)


def test_the_grid_has_every_method_and_all_pairs() -> None:
    grid = grid_of(SweepOptions(prune_range="0.1,0.2", tucker_range="energy=0.9,0.8"))
    assert [point.name for point in grid] == [
        "prune-0.1",
        "prune-0.2",
        "tucker-energy-0.9",
        "tucker-energy-0.8",
        "prune-0.1-tucker-energy-0.9",
        "prune-0.1-tucker-energy-0.8",
        "prune-0.2-tucker-energy-0.9",
        "prune-0.2-tucker-energy-0.8",
    ]
    assert [point.method for point in grid] == ["prune"] * 2 + ["tucker"] * 2 + ["both"] * 4
    own = grid[-1].recipe(Recipe(recover="none"))
    assert (own.prune, own.tucker, own.latency) == (grid[-1].options["prune"], grid[-1].options["tucker"], False)


def test_steps_of_pruning_are_for_points_that_prune() -> None:
    grid = grid_of(SweepOptions(points=1))
    assert [point.recipe(Recipe(prune=0.5, steps=3)).steps for point in grid] == [3, 1, 3]


def test_pairs_in_steps_go_from_gentle_to_harsh() -> None:
    grid = grid_of(SweepOptions(method=("both",), pairs="steps", prune_range="0.1:0.5", points=3))
    assert [(p.options["prune"], p.options["tucker"]) for p in grid] == [
        (0.1, "energy=0.98"),
        (0.3, "energy=0.89"),
        (0.5, "energy=0.8"),
    ]
    with pytest.raises(RecipeError, match=r"prune \(2\) as of tucker \(1\)"):
        grid_of(SweepOptions(pairs="steps", prune_range="0.1,0.2", tucker_range="evbmf"))


def test_pruning_alone_splits_no_matrices() -> None:
    ranges = [SweepOptions(prune_range="0.2", tucker_range="auto"), SweepOptions(target_range="macs=0.5")]
    for options in ranges:
        split = {point.method: point.recipe(Recipe(svd="energy=0.9")).svd for point in grid_of(options)}
        assert split == {"prune": "off", "tucker": "energy=0.9", "both": "energy=0.9"}


@pytest.mark.parametrize(
    "values",
    [{"prune": 0.2}, {"tucker": "auto"}, {"max_drop": 1.0}, {"html": "a.html"}, {"dry_run": True}, {"profile": True}],
)
def test_a_recipe_that_a_sweep_would_ignore_is_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(RecipeError, match=f"^{name.replace('_', '-')}: "):
        check_recipe(Recipe(**values))


def test_the_options_of_a_sweep_are_no_others_of_a_recipe() -> None:
    assert not set(options_of(SweepOptions)) & set(options_of(Recipe))
    assert {"recover", "calib", "train", "svd", "threads"} <= set(recipe_names())
    assert "profile" not in recipe_names()
