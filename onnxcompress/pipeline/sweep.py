"""A sweep: pruning alone, Tucker alone, and both over a range, each point compressed, evaluated and kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxcompress.analysis.cost import model_cost, open_inputs
from onnxcompress.errors import DataError, RecipeError
from onnxcompress.evaluation.reference import Reference
from onnxcompress.graph import Model
from onnxcompress.pipeline.measure import DataSets, measure, open_data, resolve_providers
from onnxcompress.pipeline.open_sizes import with_sizes_of_data
from onnxcompress.pipeline.outputs import write_together
from onnxcompress.pipeline.request import RecipeLike, make_request, resolve_recipe
from onnxcompress.pipeline.source import ModelLike, Source, is_read_once, read_source
from onnxcompress.pipeline.stages import check_something_can_be_compressed, passes_of
from onnxcompress.pipeline.sweep_executors import interrupts_stop, run_here, run_in_processes, run_on_cluster
from onnxcompress.pipeline.sweep_files import sweep_files
from onnxcompress.pipeline.sweep_grid import (
    GridPoint,
    check_recipe,
    contents,
    fingerprint,
    grid_of,
    latency_key,
    point_key,
)
from onnxcompress.pipeline.sweep_store import Store, is_readable, point_of
from onnxcompress.pipeline.sweep_work import Outcome, Task
from onnxcompress.pipeline.task import number_outputs, output_traits
from onnxcompress.recipe import Recipe
from onnxcompress.recipe.options import options_of
from onnxcompress.recipe.sweep_options import SweepOptions
from onnxcompress.remote import RemoteFile, check_is_path, location
from onnxcompress.report import environment
from onnxcompress.report.figures import ModelFigures
from onnxcompress.report.json_file import plain_json
from onnxcompress.report.progress import Progress, no_progress
from onnxcompress.report.sweep_figures import YARDSTICKS, SweepPoint, SweepReport, fronts_of, gains_of
from onnxcompress.runtime.dataset import Dataset
from onnxcompress.runtime.providers import Provider
from onnxcompress.runtime.session import Session
from onnxcompress.side_files import own_side_files


@dataclass(frozen=True)
class _Sweep:
    """A sweep, checked.

    Attributes:
        recipe: with `round_to` as it is where latency counts; `asked`: as it was given.
        keys: {name of a point: hash of what decides it}.
        calibrated: whether any point needs calibration data.
    """

    source: Source
    recipe: Recipe
    options: SweepOptions
    store: Store
    grid: tuple[GridPoint, ...]
    keys: Mapping[str, str]
    providers: tuple[Provider, ...]
    calibrated: bool
    given: Mapping[str, Any]
    model: ModelLike
    asked: Recipe


def sweep(
    model: ModelLike,
    recipe: RecipeLike = None,
    *,
    out: str | Path,
    data: Any = None,
    calib: Any = None,
    train: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> SweepReport:
    """Compress by pruning alone, Tucker alone, and both over a range; evaluate each point and compare the three.

    Args:
        model, recipe, data, calib, train, progress: as in `compress`; several `jobs` and a `scheduler` take them as
            paths only.
        out: a folder. Each finished point is kept in a file of its own there: the same call again goes on with the
            points that are missing, and does those anew whose model, data or options have changed.
        options: fields of `SweepOptions` (`prune_range`, `points`, `jobs`, ...), and of the recipe all but `prune`,
            `tucker`, `target`, gates and outputs.

    Returns:
        The points with their figures; those that failed carry a reason. The same is written to `out` as `sweep.json`,
        `sweep.csv`, `sweep.html` and `pareto-*.svg`.

    Raises:
        RecipeError, ModelError, DataError, ProviderUnavailableError: as in `compress`, before any point is run.
    """
    started = time.perf_counter()
    tell = progress or no_progress
    check_is_path(out)
    if isinstance(folder := location(out), RemoteFile):
        raise RecipeError(f"--out {out}: a sweep keeps its points in a folder of this machine")
    asked = _prepare(model, recipe, options, folder, {"data": data, "calib": calib, "train": train}, tell)
    kept = {point.name: _kept(asked, point) for point in asked.grid}
    resumed = {name for name, value in kept.items() if value is not None}
    tasks = [_task(asked, point) for point in asked.grid if kept[point.name] is None]
    if tasks or open_inputs(asked.source.model):
        data_sets = _open_data(asked)
        (source,), sized = with_sizes_of_data([asked.source], asked.recipe, data_sets)
        asked = replace(asked, source=source, recipe=sized)
    if tasks:
        _check_data(asked, data_sets.evaluation, tell)
        by_name = {point.name: point for point in asked.grid}
        with interrupts_stop(), contextlib.closing(_run(asked, tasks, tell)) as outcomes:
            for outcome in outcomes:
                kept[outcome.name] = asked.store.keep(by_name[outcome.name], outcome)
    if asked.recipe.latency:
        _time_models(asked, kept, tell)
        asked.source.check_unchanged()
    points = []
    for point in asked.grid:
        file = asked.store.model_path(point.name, asked.keys[point.name])
        if not asked.options.keep_models:
            for written in (*own_side_files(file), file):
                written.unlink(missing_ok=True)
        name = str(file.relative_to(asked.store.folder)) if file.is_file() else None
        points.append(point_of(point, kept[point.name] or {}, name, resumed=point.name in resumed))
    report = _report(asked, points, kept, time.perf_counter() - started)
    write_together(sweep_files(report, asked.store.folder))
    return report


def _prepare(
    model: ModelLike,
    recipe: RecipeLike,
    options: Mapping[str, Any],
    out: Path,
    given: Mapping[str, Any],
    tell: Progress,
) -> _Sweep:
    own = {name: value for name, value in options.items() if name in options_of(SweepOptions)}
    settings = SweepOptions(**own)
    asked = resolve_recipe(recipe, {name: value for name, value in options.items() if name not in own})
    check_recipe(asked)
    if given["data"] is None and asked.data is None:
        raise RecipeError("a sweep needs evaluation data: give --data PATH")
    _check_distributable(settings, model, given)
    grid = grid_of(settings)
    requests = [
        make_request(replace(point.recipe(asked), latency=asked.latency), {}, model=model, output=None, **given)
        for point in grid
    ]
    # A point is compressed without latency, which would leave widths unrounded.
    settled = replace(asked, round_to="auto") if asked.round_to is None and asked.latency else asked
    for request in requests:
        passes_of(request.recipe, recovery=request.recovery)
    providers = resolve_providers(asked)
    tell("loading the model", 0, None)
    source = read_source(model, asked.input_shape)
    if isinstance(model, (str, Path)) and isinstance(source.content, bytes):
        model = source.content  # it came through a pipe, which the points cannot read again
    pruned = next((request.recipe for request in requests if request.recipe.prune), asked)
    check_something_can_be_compressed(source.model, pruned, str(source.path or "model"))
    store = Store(out)
    store.prepare()
    hashes = {"": source.sha256, **source.side_files}
    fingerprints = {
        use: fingerprint(value if value is not None else getattr(asked, use)) for use, value in given.items()
    } | contents(asked)
    keys = {point.name: point_key(point.recipe(settled), hashes, fingerprints) for point in grid}
    calibrated = any(request.needs_calibration for request in requests)
    return _Sweep(source, settled, settings, store, grid, keys, providers, calibrated, given, model, asked)


def _check_distributable(settings: SweepOptions, model: ModelLike, given: Mapping[str, Any]) -> None:
    if settings.jobs == 1 and settings.scheduler is None:
        return
    file = location(model) if isinstance(model, (str, Path, RemoteFile)) else None
    if file is None or (isinstance(file, Path) and is_read_once(file)):
        raise RecipeError("--jobs and --scheduler need the model as a file, which other processes can read")
    for use, value in given.items():
        if value is not None and not isinstance(value, (str, Path)):
            raise RecipeError(f"--jobs and --scheduler need --{use} as a path or module:callable, not in memory")


def _kept(asked: _Sweep, point: GridPoint) -> dict[str, Any] | None:
    """Return what an earlier run left of a point, None where it has to run."""
    key = asked.keys[point.name]
    value = asked.store.read(point.name, key)
    if value is None or not is_readable(point, value):
        return None
    if "report" not in value:
        return value
    timed = (value.get("latency") or {}).get("key") == _latency_key(asked)
    wanted = (asked.recipe.latency and not timed) or asked.options.keep_models
    return value if not wanted or asked.store.has_model(point.name, key, value) else None


def _task(asked: _Sweep, point: GridPoint) -> Task:
    key = asked.keys[point.name]
    here = asked.options.scheduler is None
    return Task(
        point.name,
        key,
        asked.model,
        asked.source.sha256,
        replace(point.recipe(asked.recipe), keep_failed=True),
        asked.calibrated,
        asked.store.model_path(point.name, key) if here else None,
        **asked.given,
    )


def _open_data(asked: _Sweep) -> DataSets:
    recipe = asked.recipe
    data = {use: value if value is not None else getattr(recipe, use) for use, value in asked.given.items()}
    paths = data["data"], data["calib"], data["train"]
    return open_data(asked.source.content, recipe, *paths, needs_calibration=asked.calibrated)


def _check_data(asked: _Sweep, evaluation: Dataset | None, tell: Progress) -> None:
    """Run the original on the evaluation data, so that data which do not fit end the sweep before its first point."""
    if evaluation is None:
        raise DataError("a sweep needs evaluation data: give --data PATH")
    session, length = Session(asked.source.content, asked.providers[0]), evaluation.length
    given, told = output_traits(asked.source.model), lambda done: tell("accuracy of the original", done, length)
    numbers = number_outputs(asked.source.model, asked.source.content, asked.recipe, [evaluation])
    with Reference(session, evaluation, progress=told, numbers=numbers, traits=given):
        pass


def _run(asked: _Sweep, tasks: Sequence[Task], tell: Progress) -> Generator[Outcome, None, None]:
    if asked.options.scheduler is not None:
        return run_on_cluster(tasks, asked.options.scheduler, tell)
    if asked.options.jobs > 1:
        return run_in_processes(tasks, asked.options.jobs, tell)
    return run_here(tasks, tell)


def _time_models(asked: _Sweep, kept: dict[str, dict[str, Any] | None], tell: Progress) -> None:
    """Measure latency where it is missing, one model after another: nothing else of the sweep runs any more."""
    key = _latency_key(asked)
    todo = [
        point
        for point in asked.grid
        if "report" in (kept[point.name] or {}) and ((kept[point.name] or {}).get("latency") or {}).get("key") != key
    ]
    for number, point in enumerate(todo):
        tell("latency", number, len(todo))
        path = asked.store.model_path(point.name, asked.keys[point.name])
        measured = measure(asked.source.content, path, None, asked.providers, asked.recipe, no_progress)
        value = {**(kept[point.name] or {}), "latency": {"key": key, "entries": plain_json(measured.latency)}}
        asked.store.write(point.name, asked.keys[point.name], value)
        kept[point.name] = value


def _latency_key(asked: _Sweep) -> str:
    return latency_key(asked.recipe, environment.machine())


def _report(
    asked: _Sweep, points: Sequence[SweepPoint], kept: Mapping[str, Mapping[str, Any] | None], seconds: float
) -> SweepReport:
    cost = model_cost(asked.source.model)
    done: list[Mapping[str, Any]] = [
        value["report"]["accuracy"] for value in kept.values() if value and "report" in value
    ]
    first: Mapping[str, Any] = done[0] if done else {"labels": False, "samples": 0}
    recipe, given = asked.asked.to_json(), asked.given
    recipe |= {use: str(value) for use, value in given.items() if isinstance(value, (str, Path))}
    source: ModelFigures = asked.source.figures(cost)
    judged_by: str = "agreement"
    original_accuracy: float | None = 100.0
    if first["labels"]:
        judged_by, original_accuracy = "top1", first["original"]["top1"]
    elif done and first["output"] is None:
        judged_by, original_accuracy = "relative_error", None
    return SweepReport(
        input=source,
        labels=bool(first["labels"]),
        samples=int(first["samples"]),
        original_accuracy=original_accuracy,
        judged_by=judged_by,
        points=tuple(points),
        gains=gains_of(points, YARDSTICKS[judged_by].losses),
        fronts=fronts_of(points),
        sweep=asked.options.to_json(),
        recipe=recipe,
        folder=str(asked.store.folder),
        whole_numbers=_gives_whole_numbers(asked.source.model),
        versions=environment.versions(),
        platform=environment.machine(),
        seconds=seconds,
    )


def _gives_whole_numbers(model: Model) -> bool:
    """Whether all outputs hold whole numbers or truth values."""
    return all(output.name in model.dtypes and model.dtype_of(output).kind in "iub" for output in model.graph.outputs)
