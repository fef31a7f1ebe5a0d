"""Saved plans read back as they were written, and are refused where they are damaged or another model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.passes.base import Plan, Skipped
from onnxcompress.pipeline.plan_file import DECIDING_OPTIONS, SavedPlan, check_nothing_else_decides, read_plan
from onnxcompress.recipe import Recipe
from onnxcompress.recipe.options import options_of
from onnxcompress.report.json_file import write_json


def saved_plan() -> SavedPlan:
    plan = Plan("prune", ({"node": "a", "removed": {"a": [1, 2]}},), (Skipped("b", "is an output"),))
    recipe = {name: Recipe(prune=0.4, round_to=8).to_json()[name] for name in DECIDING_OPTIONS}
    return SavedPlan("ab" * 32, {"w.data": "cd" * 32}, recipe, (plan,), "in.onnx", {"onnx": "1"})


def test_a_plan_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(saved_plan().to_json(), path)
    assert read_plan(path) == saved_plan()


def test_deciding_options_are_options() -> None:
    assert set(DECIDING_OPTIONS) <= set(options_of(Recipe))


def damaged(**changes: Any) -> dict[str, Any]:
    value = saved_plan().to_json()
    for key, change in changes.items():
        if change is None:
            del value[key]
        else:
            value[key] = change
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], "is not a plan"),
        (damaged(schema=2), "is not a plan of schema 1"),
        (damaged(passes=None), "is not a plan"),
        (damaged(input=None), "damaged plan"),
        (damaged(input={"sha256": "x"}), "damaged plan"),
        (damaged(passes=[{"pass": "prune"}]), "damaged plan"),
        (damaged(passes=7), "damaged plan"),
        (damaged(recipe={"prune": 1.5}), r"recipe: prune: 1.5 is out of range"),
        (damaged(recipe={"report": "x.json"}), r"recipe.report: not an option that a plan settles"),
    ],
)
def test_what_is_no_plan_is_refused(value: Any, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(value))
    with pytest.raises(RecipeError, match=expected) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_files_that_hold_no_json(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe", b"{", b"[" * 100_000):
        (tmp_path / "plan.json").write_bytes(content)
        with pytest.raises(RecipeError, match="is not JSON"):
            read_plan(tmp_path / "plan.json")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_plan(tmp_path / "missing.json")


def test_nothing_that_a_plan_settles_is_asked_for_beside_it() -> None:
    with pytest.raises(RecipeError, match="--prune cannot be given with --plan"):
        check_nothing_else_decides(Recipe(plan=Path("p"), prune=0.4))
    check_nothing_else_decides(Recipe(plan=Path("p"), latency=False, max_drop=1.0))
