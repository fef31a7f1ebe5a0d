"""The pipeline: load, prune, decompose, verify, measure, judge, write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxcompress.analysis.cost import model_cost
from onnxcompress.analysis.earlier_form import earlier_form_hint
from onnxcompress.errors import BudgetInfeasibleError, DataError
from onnxcompress.evaluation.profile import ProfileComparison
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.pipeline.infeasible import write_infeasible
from onnxcompress.pipeline.inputs import check_not_read, side_files_read
from onnxcompress.pipeline.job import Job, finish, finish_search
from onnxcompress.pipeline.latency_context import with_latency, with_latency_of_plan
from onnxcompress.pipeline.layer_times import Profiled, with_times
from onnxcompress.pipeline.measure import latency_settings, open_data, resolve_providers
from onnxcompress.pipeline.open_sizes import with_sizes_of_data
from onnxcompress.pipeline.outputs import CompressedModel, write_together
from onnxcompress.pipeline.plan_file import DECIDING_OPTIONS, SavedPlan
from onnxcompress.pipeline.race import race_on
from onnxcompress.pipeline.report_files import report_files
from onnxcompress.pipeline.request import RecipeLike, Request, make_request
from onnxcompress.pipeline.search import Search
from onnxcompress.pipeline.source import ModelLike, Source, read_source
from onnxcompress.pipeline.stages import (
    Stage,
    check_something_can_be_compressed,
    check_target_can_be_counted,
    passes_of,
)
from onnxcompress.pipeline.structure import structure_sha256
from onnxcompress.pipeline.task import number_outputs
from onnxcompress.remote import Location
from onnxcompress.report import environment
from onnxcompress.report.figures import Report
from onnxcompress.report.layers import layer_changes
from onnxcompress.report.progress import Progress, no_progress


@dataclass(frozen=True)
class CompressionResult:
    """A compressed model, what was decided, and what that cost and gained."""

    model: Model
    plan: SavedPlan
    report: Report

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return self.report.passed


def compress(
    model: ModelLike,
    recipe: RecipeLike = None,
    *,
    output: str | Location | None = None,
    data: Any = None,
    calib: Any = None,
    train: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> CompressionResult:
    """Compress a model.

    Args:
        model: a path, an address such as `s3://bucket/model.onnx` (docs/remote.md), serialized bytes, an
            `onnx.ModelProto` or a `Model`; it is not changed.
        recipe: a `Recipe`, a mapping of its fields, or the path of a TOML file.
        output: where to write the compressed model; None writes none. A model that fails a gate is written only with
            `keep_failed`, and never with `dry_run`. The recipe's reports and `save_plan` are written in any case.
        data, calib, train: a path or `module:callable`, or any iterable of {input name: array (B, ...)}, optionally
            with `labels`, or an onnxruntime CalibrationDataReader.
        progress: called with what is being done, the steps done, and how many there are. A KeyboardInterrupt during a
            training ends it with the best weights so far, and the run goes on.
        options: fields of the recipe, such as `prune=0.4, tucker="auto"`; they win over `recipe`.

    Returns:
        The model, the plan and the report. Look at `passed`: a failed gate raises nothing.

    Raises:
        RecipeError: a value cannot be used, or a file cannot be written.
        BudgetInfeasibleError: no compression reaches what was asked; the recipe's reports are written, and say so.
        ModelError: the model cannot be read, is invalid, or holds nothing that can be compressed.
        DataError: the data are missing, malformed, or do not fit the model.
        ProviderUnavailableError: a provider is not there.
        PassError: a pass broke its contract; nothing was written.
    """
    started = time.perf_counter()
    tell = progress or no_progress
    request = make_request(recipe, options, model=model, output=output, data=data, calib=calib, train=train)
    asked = request.recipe
    providers = resolve_providers(asked)
    passes_of(asked, recovery=request.recovery)  # what is not installed shows here
    tell("loading the model", 0, None)
    source = read_source(model, asked.input_shape)
    name = str(source.path or "model")
    check_not_read(request.written, side_files_read(source))
    check_something_can_be_compressed(source.model, asked, name)
    saved = request.saved_plan
    if saved is not None:
        saved.check_is_for(source, asked)
    data_sets = open_data(
        source.content,
        asked,
        request.data,
        request.calib,
        request.train,
        needs_calibration=request.needs_calibration,
    )
    (source,), asked = with_sizes_of_data([source], asked, data_sets)
    request = replace(request, recipe=asked)
    original_cost = model_cost(source.model)
    check_target_can_be_counted(source.model, original_cost, asked)
    context = PassContext(
        asked.seed,
        int(asked.round_to or 1),
        asked.exclude,
        data_sets.calibration_samples,
        round_up=request.round_up,
        align_to=request.align_to,
        original_cost=original_cost,
        original_bytes=source.size_bytes,
        labelled=data_sets.labelled_samples,
        numbers=number_outputs(source.model, source.content, asked, data_sets.in_use),
        training=data_sets.training_samples,
        resume=asked.resume,
        tell=tell,
        race=race_on(providers, latency_settings(asked)) if asked.latency else None,
        providers=tuple(provider.name for provider in providers),
    )
    if saved is None:
        context = with_latency(context, source, asked, providers[0])
    else:
        with saved.blamed(str(asked.plan), source):
            context = with_latency_of_plan(context, source, asked, providers[0], saved)
    job = Job(source, original_cost, context, data_sets, providers, tell)
    try:
        done = finish_search(job, request, _search(request, job)) if asked.is_searched else finish(job, request)
    except BudgetInfeasibleError as found:
        error = BudgetInfeasibleError(f"{found}{earlier_form_hint(original_cost.ops)}", found.reached)
        write_infeasible(request, job, error, time.perf_counter() - started)
        raise error from found
    stages, result = done.ran.stages, done.ran.model
    profile: ProfileComparison | None = None
    layers, untimed = layer_changes(original_cost, stages[-1].cost if stages else original_cost), tuple[str, ...]()
    if not asked.dry_run and asked.latency and (asked.html is not None or asked.profile):
        tell("profile", 0, None)
        with done.compressed.loadable() as content:
            profiled = Profiled(source.model, source.content), Profiled(result, content)
            layers, profile, untimed = with_times(layers, *profiled, providers[0], asked)
    profile = profile if asked.profile else None
    report = replace(done.report, layers=layers, profile=profile, seconds=time.perf_counter() - started)
    report = replace(report, warnings=(*report.warnings, *untimed), peak_rss_bytes=environment.peak_rss_bytes())
    plan = _plan(done.request, source, stages)
    source.check_unchanged()
    tell("writing", 0, None)
    report = _write(done.request, done.compressed, plan, report, source.files)
    # Only now: a run that is killed after its training need not train again.
    if not (asked.dry_run or done.was_stopped):
        _remove(done.checkpoints)
    return CompressionResult(result, plan, report)


def _remove(checkpoints: Sequence[Path | None]) -> None:
    for path in checkpoints:
        if path is not None:
            path.unlink(missing_ok=True)


def _search(request: Request, job: Job) -> Search:
    calibration, evaluation = job.data_sets.calibration, job.data_sets.evaluation
    if calibration is None:
        raise DataError("a search needs calibration data: give --calib PATH or --data PATH")
    return Search(
        request.recipe,
        request.recovery,
        job.source.model,
        job.source.content,
        job.original_cost,
        # What is evaluated on must be fitted to nowhere: labels of all calibration samples are left out as well.
        replace(job.context, checkpoint=None, resume=False, labelled=None),
        calibration,
        labels=evaluation is None or evaluation.has_labels,
        tell=job.tell,
    )


def _plan(request: Request, source: Source, stages: Sequence[Stage]) -> SavedPlan:
    options = request.settled_recipe.to_json()
    return SavedPlan(
        sha256=source.sha256,
        side_files=source.side_files,
        recipe={name: options[name] for name in DECIDING_OPTIONS},
        plans=tuple(stage.plan for stage in stages),
        model_path=str(source.path) if source.path else None,
        made_by=environment.versions(),
        structure=structure_sha256(source.model),
    )


def _write(
    request: Request, compressed: CompressedModel, plan: SavedPlan, report: Report, read: Sequence[Location]
) -> Report:
    """Write OUT (not in a dry run) and the reports: all, or none where one fails; the files `read` stay."""
    asked, output = request.recipe, None if request.recipe.dry_run else request.output
    if output is not None and (report.passed or asked.keep_failed) and report.output is not None:
        report = replace(report, output=replace(report.output, path=str(output)))
    else:
        output = None
    files = report_files(report, asked)
    if asked.save_plan is not None:
        files[asked.save_plan] = plan.to_text().encode()

    def save() -> None:
        if output is not None:
            compressed.save(output, overwrite=asked.overwrite, spared=read)

    write_together(files, then=save)
    return report
