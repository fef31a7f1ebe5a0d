"""Saved plans: what was decided for one model, in a file that can be reviewed and replayed to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcompress.errors import RecipeError
from onnxcompress.passes.base import Plan
from onnxcompress.recipe import Recipe
from onnxcompress.report.json_file import plain_json

if TYPE_CHECKING:
    from onnxcompress.pipeline.source import Source

SCHEMA = 1

DECIDING_OPTIONS = (
    "prune",
    "prune_scope",
    "importance",
    "round_to",
    "tucker",
    "svd",
    "target",
    "recover",
    "epochs",
    "lr",
    "train_batch",
    "loss",
    "exclude",
    "cleanup",
    "seed",
)
"""Options whose values a plan has already settled."""


@dataclass(frozen=True)
class SavedPlan:
    """The plans of a run's passes, in their order, and the model they were made for.

    Attributes:
        recipe: the options that decide (`DECIDING_OPTIONS`), `round_to` as the number it came to.
    """

    sha256: str
    side_files: Mapping[str, str]
    recipe: Mapping[str, Any]
    plans: tuple[Plan, ...]
    model_path: str | None = None
    made_by: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        value: dict[str, Any] = plain_json(
            {
                "schema": SCHEMA,
                "input": {"path": self.model_path, "sha256": self.sha256, "side_files": self.side_files},
                "recipe": self.recipe,
                "versions": self.made_by,
                "passes": [plan.to_json() for plan in self.plans],
            }
        )
        return value

    def check_is_for(self, source: Source, where: str) -> None:
        """Refuse another model than the one the plan was made for.

        Raises:
            RecipeError: the model's bytes differ.
        """
        if (source.sha256, dict(source.side_files)) != (self.sha256, dict(self.side_files)):
            own = f"{self.model_path or 'a model in memory'} (sha256 {self.sha256[:12]}...)"
            raise RecipeError(
                f"{where}: the plan was made for {own}, this model's sha256 is {source.sha256[:12]}...; "
                "give that model, or make a new plan with --save-plan"
            )


def read_plan(path: Path) -> SavedPlan:
    """Read a saved plan.

    Raises:
        RecipeError: the file cannot be read or is no plan of this version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(
            f"{path}: is not JSON ({' '.join(str(error).split())}); give a file of --save-plan"
        ) from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or "passes" not in value:
        raise RecipeError(f"{path}: is not a plan of schema {SCHEMA}; give a file of --save-plan")
    try:
        model, recipe = value["input"], value["recipe"]
        plans = tuple(Plan.from_json(plan) for plan in value["passes"])
        hashes = {str(name): str(sha256) for name, sha256 in model["side_files"].items()}
        saved = SavedPlan(str(model["sha256"]), hashes, dict(recipe), plans, model["path"], dict(value["versions"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"{path}: is a damaged plan ({type(error).__name__}: {error}); save it again") from error
    unknown = saved.recipe.keys() - set(DECIDING_OPTIONS)
    if unknown:
        raise RecipeError(f"{path}: recipe.{min(unknown)}: not an option that a plan settles")
    Recipe.from_mapping(saved.recipe, f"{path}: recipe")
    return saved


def check_nothing_else_decides(recipe: Recipe) -> None:
    """Refuse a recipe that asks for a plan to be replayed and for something else to be decided.

    Raises:
        RecipeError: an option is set that the plan has settled.
    """
    default = Recipe()
    for name in DECIDING_OPTIONS:
        if getattr(recipe, name) != getattr(default, name):
            option = name.replace("_", "-")
            raise RecipeError(f"--{option} cannot be given with --plan: the plan has settled it; leave one of them out")
