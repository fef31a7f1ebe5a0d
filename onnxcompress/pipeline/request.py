"""What a run was asked for, checked as far as it can be before any work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxcompress.errors import RecipeError
from onnxcompress.evaluation.time_table import read_time_table
from onnxcompress.pipeline.gates import check_gates_can_be_measured, check_latency_can_be_told
from onnxcompress.pipeline.inputs import check_not_read, files_read
from onnxcompress.pipeline.outputs import check_outputs
from onnxcompress.pipeline.plan_file import SavedPlan, check_nothing_else_decides, read_plan
from onnxcompress.pipeline.recovery import chosen_mode
from onnxcompress.pipeline.report_files import report_paths
from onnxcompress.recipe import Recipe
from onnxcompress.remote import Location, RemoteFile, file_location
from onnxcompress.runtime.block import fast_multiple, preferred_block
from onnxcompress.serialization import check_side_file_name

RecipeLike = Recipe | Mapping[str, Any] | str | Location | None
"""A recipe, a mapping of its fields, the path of a TOML file, or None for the defaults."""


@dataclass(frozen=True)
class Request:
    """One compression, as asked for.

    Attributes:
        recipe: as given, with `round_to` as a number; the deciding options are the saved plan's where one is replayed.
        data, calib, train: a path, `module:callable`, or an object as `onnxcompress.runtime.data` takes it.
        round_up: whether the block was left to us: a part of one is then as good as a whole.
        output: OUT, None where no model is to be written.
        settled: the recipe with what a search has chosen, None where there was none.
    """

    recipe: Recipe
    output: Location | None
    data: Any
    calib: Any
    train: Any
    saved_plan: SavedPlan | None
    round_up: bool = False
    settled: Recipe | None = None

    @property
    def written(self) -> dict[str, Location | None]:
        """{option, or OUT: file} of what the run writes (a dry run not OUT), None where it is not asked for."""
        return {"OUT": self.output, **report_paths(self.recipe), "--save-plan": self.recipe.save_plan}

    @property
    def align_to(self) -> int:
        """What a convolution's channels stay a multiple of; the kernels say it where they decide the widths."""
        if not self.round_up or int(self.recipe.round_to or 1) == 1:
            return 1
        return max(fast_multiple(provider) for provider in self.recipe.provider)

    @property
    def settled_recipe(self) -> Recipe:
        """The recipe as the passes carry it out."""
        return self.settled or self.recipe

    @property
    def recovery(self) -> str:
        """How accuracy is won back: none, refit, reconstruct or finetune."""
        return chosen_mode(self.recipe, data=self.data, calib=self.calib, train=self.train)

    @property
    def needs_calibration(self) -> bool:
        """Whether a pass will read calibration data: a replayed plan has its decisions already, but no new weights."""
        ranks = self.recipe.ranks_by_data
        decides = self.saved_plan is None and (ranks or bool(self.recipe.target) or self.recipe.is_searched)
        # Ranges are those of the weights at hand.
        decides_ranges = self.saved_plan is None or self.recipe.plan_structure_only or self.recipe.force_plan
        return self.recovery != "none" or decides or (self.recipe.quantize == "int8" and decides_ranges)

    @property
    def calibration_reason(self) -> str:
        """The option that calibration data are needed for."""
        if self.recipe.target:
            return "--target"
        if self.recipe.is_searched:
            return f"the search of {'--max-error' if self.recipe.max_drop is None else '--max-drop'}"
        if self.recovery != "none":
            return f"--recover {self.recovery}"
        return "--quantize int8" if self.recipe.quantize == "int8" else f"--importance {self.recipe.importance}"


def make_request(
    recipe: RecipeLike,
    options: Mapping[str, Any],
    *,
    model: object,
    output: str | Location | None,
    data: Any,
    calib: Any,
    train: Any = None,
) -> Request:
    """Gather and check what was asked for.

    Raises:
        RecipeError: a value cannot be used, two contradict each other, or an output path cannot be written.
    """
    asked = resolve_recipe(recipe, options)
    check_nothing_else_decides(asked)
    saved = None if asked.plan is None else read_plan(asked.plan)
    settled = asked if saved is None else asked.updated(_replayed(saved.recipe), f"{asked.plan}: recipe")
    request = Request(
        recipe=replace(
            settled,
            round_to=_round_to(settled),
            prune_scope=settled.prune_scope or ("global" if settled.prune == "auto" else "uniform"),
            importance=settled.importance or ("response" if settled.prune == "auto" else "l1"),
        ),
        output=None if output is None else file_location(output),
        data=asked.data if data is None else data,
        calib=asked.calib if calib is None else calib,
        train=asked.train if train is None else train,
        saved_plan=saved,
        round_up=not isinstance(settled.round_to, int),
    )
    _check_training(request)
    _check_data_of_plan(request)
    if request.recipe.prune == "auto" and not request.recipe.target and not request.recipe.limits_loss:
        raise RecipeError("--prune auto chooses under a limit: give --max-drop P, --max-error P or --target KIND=F")
    if request.needs_calibration and request.data is None and request.calib is None and request.train is None:
        raise RecipeError(f"{request.calibration_reason} needs data: give --calib PATH or --data PATH")
    if asked.dry_run and saved is None:
        check_latency_can_be_told(asked)
    elif not asked.dry_run:
        check_gates_can_be_measured(request.recipe, has_data=request.data is not None)
    check_outputs(
        request.output,
        overwrite=asked.overwrite,
        reports={name: path for name, path in request.written.items() if name != "OUT"},
        inputs=[model, asked.plan],
        only_reports=asked.dry_run,
    )
    if asked.external_data and isinstance(request.output, Path):
        check_side_file_name(request.output)
    uses = {"data": request.data, "calib": request.calib, "train": request.train}
    check_not_read(request.written, files_read(settled, recipe, **uses))
    return request


def _check_training(request: Request) -> None:
    """Refuse a training without data or without a file to go on from."""
    if request.recipe.steps > 1 and request.recipe.prune == 0:
        raise RecipeError("--steps divides what is pruned: give --prune R")
    if request.recipe.steps > 1 and request.recovery == "none":
        raise RecipeError(
            "--steps without a recovery between them is one step: give --train PATH, or --recover with --calib PATH"
        )
    if request.recovery == "finetune" and request.train is None:
        raise RecipeError("--recover finetune needs training data: give --train PATH")
    if request.recipe.resume and isinstance(request.output, RemoteFile):
        raise RecipeError("--resume needs an OUT on this machine: its progress lies beside it")
    if request.recipe.resume and (request.recovery != "finetune" or request.output is None):
        raise RecipeError("--resume goes on with a fine-tuning: give --train PATH and the same OUT again")


def _check_data_of_plan(request: Request) -> None:
    """Refuse a replay without the data by which its plan, left to choose, wins accuracy back."""
    if request.saved_plan is None or request.recipe.recover not in (None, "auto"):
        return
    recovers = {plan.pass_name for plan in request.saved_plan.plans}
    if "finetune" in recovers and request.recovery != "finetune":
        raise RecipeError(f"{request.recipe.plan}: the plan fine-tunes the weights: give --train PATH")
    if "refit" in recovers and request.recovery == "none":
        raise RecipeError(f"{request.recipe.plan}: the plan refits the weights to calibration data: give --calib PATH")


def resolve_recipe(recipe: RecipeLike, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe with `options` in place of its own fields.

    Raises:
        RecipeError: a key is not known or a value cannot be used.
    """
    if isinstance(recipe, (str, Path, RemoteFile)):
        base = Recipe.from_toml(recipe)
    elif isinstance(recipe, Mapping):
        base = Recipe.from_mapping(recipe)
    elif recipe is None or isinstance(recipe, Recipe):
        base = recipe or Recipe()
    else:
        raise RecipeError(
            f"a {type(recipe).__name__} is no recipe; give a Recipe, a mapping or the path of a TOML file"
        )
    return base.updated(options)


def _round_to(recipe: Recipe) -> int:
    """Return the block that widths and ranks are rounded to: the widest of the providers where it is left to us."""
    if isinstance(recipe.round_to, int):
        return recipe.round_to
    if recipe.time_table is not None:
        return read_time_table(recipe.time_table).conditions.block
    if recipe.round_to is None and not recipe.latency:
        return 1
    return max(preferred_block(provider, int8=recipe.quantize == "int8") for provider in recipe.provider)


def _replayed(options: Mapping[str, Any]) -> dict[str, Any]:
    """A plan holds the ranks themselves: the file they came from need not be there any more."""
    is_file = str(options.get("tucker", "")).startswith("ranks=")
    return {**options, "tucker": "auto"} if is_file else dict(options)
