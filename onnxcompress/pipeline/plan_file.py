"""Saved plans: what was decided for one model, in a file that can be reviewed and replayed to the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcompress.errors import PassError, RecipeError
from onnxcompress.passes.base import Plan
from onnxcompress.pipeline.structure import structure_sha256
from onnxcompress.recipe import Recipe
from onnxcompress.remote import Location, read_json
from onnxcompress.report.json_file import plain_json

if TYPE_CHECKING:
    from onnxcompress.pipeline.source import Source

SCHEMA = 1

DECIDING_OPTIONS = (
    "prune",
    "prune_scope",
    "steps",
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
    "quantize",
    "exclude",
    "cleanup",
    "seed",
)
"""Options whose values a plan has already settled."""

_DEPTH_OF_LINES = 4
"""passes > pass > decisions > decision: what lies deeper stands on one line."""


@dataclass(frozen=True)
class SavedPlan:
    """The plans of a run's passes, in their order, and the model they were made for.

    Attributes:
        structure: hash of the model without its weights' values (`structure_sha256`); None in plans of older versions.
        recipe: the options that decide (`DECIDING_OPTIONS`), `round_to` as the number it came to.
        digest: of what was decided, as the file tells it; None in plans of older versions.
    """

    sha256: str
    side_files: Mapping[str, str]
    recipe: Mapping[str, Any]
    plans: tuple[Plan, ...]
    model_path: str | None = None
    made_by: Mapping[str, str] = field(default_factory=dict)
    structure: str | None = None
    digest: str | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        value: dict[str, Any] = plain_json(
            {
                "schema": SCHEMA,
                "input": {
                    "path": self.model_path,
                    "sha256": self.sha256,
                    "structure": self.structure,
                    "side_files": self.side_files,
                },
                "recipe": self.recipe,
                "versions": self.made_by,
                "passes": [plan.to_json() for plan in self.plans],
            }
        )
        value["digest"] = _digest(value["recipe"], value["passes"])
        return value

    @property
    def was_changed(self) -> bool:
        """Whether the file holds other decisions than were written to it."""
        return self.digest is not None and self.digest != self.to_json()["digest"]

    @contextlib.contextmanager
    def blamed(self, where: str, source: Source) -> Iterator[None]:
        """Take what fails inside for the plan's fault, unless it is as it was made and for this very model.

        Raises:
            RecipeError: its decisions cannot be carried out.
        """
        try:
            yield
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            PassError,
        ) as error:
            if self.digest is not None and not self.was_changed and self.is_of(source):
                raise
            seen = str(error) if isinstance(error, PassError) else f"{type(error).__name__}: {error}"
            why = "it was changed after it was saved" if self.was_changed else "it is not of this model and version"
            raise RecipeError(
                f"{where}: cannot be carried out, and {why} ({' '.join(seen.split())}); make a new plan with "
                "--save-plan"
            ) from error

    def to_text(self) -> str:
        """Return the plan as JSON that reads well in a pull request: each decision, and each node left alone, one line.

        ASCII characters only.
        """
        return _lines(self.to_json()) + "\n"

    def is_of(self, source: Source) -> bool:
        """Whether the plan was made for exactly this model."""
        return (source.sha256, dict(source.side_files)) == (self.sha256, dict(self.side_files))

    def check_is_for(self, source: Source, recipe: Recipe) -> None:
        """Refuse another model than the one the plan was made for, as far as the recipe does not allow it.

        Raises:
            RecipeError: the model's bytes differ; with `plan_structure_only`, its structure does.
        """
        if recipe.force_plan or self.is_of(source):
            return
        where, own = str(recipe.plan), self.model_path or "a model in memory"
        if not recipe.plan_structure_only:
            raise RecipeError(
                f"{where}: the plan was made for {own} (sha256 {self.sha256[:12]}...), this model's sha256 is "
                f"{source.sha256[:12]}...; give that model, make a new plan with --save-plan, or give "
                "--plan-structure-only if only the weights differ"
            )
        if self.structure is None:
            raise RecipeError(f"{where}: does not say for which structure it was made; save it again, or --force-plan")
        if structure_sha256(source.model) != self.structure:
            raise RecipeError(
                f"{where}: the plan was made for {own}, whose architecture is not this model's: "
                f"{self._unlike(source)}; make a new plan with --save-plan, or give --force-plan"
            )

    def _unlike(self, source: Source) -> str:
        present = {node.name for node in source.model.nodes}
        named = (str(decision.get("node", "")) for plan in self.plans[:1] for decision in plan.decisions)
        missing = next((node for node in named if node not in present), None)
        if missing is not None:
            return f"it has no node '{missing}'"
        return "operators, attributes, names, shapes or element types differ"


def _lines(value: Any, depth: int = 0) -> str:
    """Return JSON of one line for each entry of an entry of `passes`, and of indented objects above that."""
    inner = "  " * (depth + 1)
    if isinstance(value, dict) and value and depth < _DEPTH_OF_LINES:
        entries = [f"{inner}{json.dumps(str(k))}: {_lines(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(entries) + "\n" + "  " * depth + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict) and depth < _DEPTH_OF_LINES:
        entries = [inner + _lines(each, depth + 1) for each in value]
        return "[\n" + ",\n".join(entries) + "\n" + "  " * depth + "]"
    return json.dumps(value, allow_nan=False)


def _digest(recipe: Mapping[str, Any], passes: list[Any]) -> str:
    """Return what tells these decisions from others, however the file is laid out."""
    return hashlib.sha256(json.dumps([recipe, passes], sort_keys=True).encode()).hexdigest()


def read_plan(path: Location) -> SavedPlan:
    """Read a saved plan, here or at an address.

    Raises:
        RecipeError: the file cannot be read or is no plan of this version.
    """
    value = read_json(path, "a file of --save-plan")
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or "passes" not in value:
        raise RecipeError(f"{path}: is not a plan of schema {SCHEMA}; give a file of --save-plan")
    try:
        model, recipe = value["input"], value["recipe"]
        for name, wanted in (("passes", list), ("recipe", dict), ("input", dict)):
            if not isinstance(value[name], wanted):
                raise TypeError(f"'{name}' is no {'list' if wanted is list else 'table'}")
        plans = tuple(Plan.from_json(plan) for plan in value["passes"])
        hashes = {str(name): str(sha256) for name, sha256 in model["side_files"].items()}
        structure = model.get("structure")
        saved = SavedPlan(
            str(model["sha256"]),
            hashes,
            dict(recipe),
            plans,
            model["path"],
            dict(value["versions"]),
            None if structure is None else str(structure),
            None if value.get("digest") is None else str(value["digest"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"{path}: is a damaged plan ({type(error).__name__}: {error}); save it again") from error
    unknown = saved.recipe.keys() - set(DECIDING_OPTIONS)
    if unknown:
        raise RecipeError(f"{path}: recipe.{min(unknown)}: not an option that a plan settles")
    Recipe.from_mapping(saved.recipe, f"{path}: recipe")
    return saved


def changed_lines(saved: SavedPlan | None, where: str) -> list[str]:
    """Return a sentence on a plan that somebody has changed; none where it is as it was made."""
    if saved is None or not saved.was_changed:
        return []
    return [f"{where} was changed after it was saved: its decisions are carried out as they stand there now"]


def check_nothing_else_decides(recipe: Recipe) -> None:
    """Refuse a recipe that asks for a plan to be replayed and for something else to be decided, or for neither.

    Raises:
        RecipeError: an option is set that the plan has settled, or one about a plan without a plan.
    """
    if recipe.plan is None:
        for option in ("plan_structure_only", "force_plan"):
            if getattr(recipe, option):
                raise RecipeError(f"--{option.replace('_', '-')} is about a plan to replay: give --plan F.json too")
        return
    default = Recipe()
    for name in DECIDING_OPTIONS:
        if getattr(recipe, name) != getattr(default, name):
            option = name.replace("_", "-")
            raise RecipeError(f"--{option} cannot be given with --plan: the plan has settled it; leave one of them out")
