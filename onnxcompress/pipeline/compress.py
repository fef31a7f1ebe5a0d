"""The pipeline: load, prune, decompose, verify, measure, judge, write."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from onnxcompress.analysis.cost import ModelCost, model_cost
from onnxcompress.errors import DataError
from onnxcompress.evaluation.compare import Evaluation
from onnxcompress.evaluation.profile import ProfileComparison
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Samples
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.pipeline.gates import gate_results
from onnxcompress.pipeline.latency_context import predicted_share, with_latency
from onnxcompress.pipeline.latency_target import Ran, can_run_again, meet_latency
from onnxcompress.pipeline.layer_times import Profiled, with_times
from onnxcompress.pipeline.measure import DataSets, latency_settings, measure, open_data, resolve_providers
from onnxcompress.pipeline.outputs import CompressedModel, write_together
from onnxcompress.pipeline.plan_file import DECIDING_OPTIONS, SavedPlan
from onnxcompress.pipeline.race import race_on
from onnxcompress.pipeline.recovery import checkpoint_path
from onnxcompress.pipeline.report_files import report_files
from onnxcompress.pipeline.request import RecipeLike, Request, make_request
from onnxcompress.pipeline.search import Search
from onnxcompress.pipeline.source import ModelLike, Source, read_source
from onnxcompress.pipeline.stages import (
    Stage,
    Work,
    check_something_can_be_compressed,
    passes_of,
    planned_work,
    run_pass,
)
from onnxcompress.pipeline.structure import structure_sha256
from onnxcompress.pipeline.verification import sample_feeds, verify_stage
from onnxcompress.recipe import Recipe
from onnxcompress.remote import Location
from onnxcompress.report import environment
from onnxcompress.report.advice import compression_warnings
from onnxcompress.report.figures import ModelFigures, Report, SelfCheck, compression_between
from onnxcompress.report.layers import layer_changes
from onnxcompress.report.progress import Progress, no_progress, told_stream
from onnxcompress.report.search_figures import Found

_TIMED_APART_BYTES = 512 * 1024 * 1024
"""Up to this size a cleaned model is timed beside the original and the compressed one."""

_COLLECTED_BYTES = 64 * 1024 * 1024
"""From this size on the models that a pass leaves behind are freed at once."""


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
            `keep_failed`. The recipe's reports and `save_plan` are written either way, and nothing with `dry_run`.
        data, calib, train: a path or `module:callable`, or any iterable of {input name: array (B, ...)}, optionally
            with `labels`, or an onnxruntime CalibrationDataReader.
        progress: called with what is being done, the steps done, and how many there are. A KeyboardInterrupt during a
            training ends it with the best weights so far, and the run goes on.
        options: fields of the recipe, such as `prune=0.4, tucker="auto"`; they win over `recipe`.

    Returns:
        The model, the plan and the report. Look at `passed`: a failed gate raises nothing.

    Raises:
        RecipeError: a value cannot be used, or a file cannot be written.
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
    source = read_source(model)
    name = str(source.path or "model")
    check_something_can_be_compressed(source.model, asked, name)
    original_cost = model_cost(source.model, asked.input_shape)
    saved = request.saved_plan
    if saved is not None:
        saved.check_is_for(source, asked)
    of_other_weights = saved is not None and not saved.is_of(source)
    data_sets = open_data(
        source.content,
        asked,
        request.data,
        request.calib,
        request.train,
        needs_calibration=request.needs_calibration,
    )
    context = PassContext(
        asked.seed,
        int(asked.round_to or 1),
        asked.exclude,
        data_sets.calibration_samples,
        round_up=request.round_up,
        align_to=request.align_to,
        original_cost=original_cost,
        labelled=data_sets.labelled_samples,
        training=data_sets.training_samples,
        resume=asked.resume,
        tell=tell,
        race=race_on(providers, latency_settings(asked)) if asked.latency else None,
        providers=tuple(provider.name for provider in providers),
    )
    if saved is None:
        context = with_latency(context, source, asked, providers[0])
    found = None
    if asked.is_searched:
        found = _search(request, source, context, data_sets, tell)
        request = replace(request, settled=asked.updated(found.chosen))
    passes = passes_of(request.settled_recipe, recovery=request.recovery)
    work = planned_work(passes, None if saved is None else saved.plans, str(asked.plan))
    checkpoints = _checkpoints(work, request.output)

    def evaluated(model: Model) -> Evaluation:
        with CompressedModel(model, external=False).loadable() as content:
            return measure(source.content, content, data_sets.evaluation, providers, asked, tell)

    def run(work: Work, context: PassContext) -> Ran:
        return _run_passes(
            work,
            source,
            context,
            asked,
            tell,
            checkpoints,
            of_other_weights=of_other_weights,
            samples=None if data_sets.calibration is None else data_sets.calibration.length,
            evaluated=evaluated if asked.measure_stages and not asked.dry_run else None,
        )

    latency, measure_model = request.settled_recipe.target.get("latency"), context.measure_model
    if latency is None or measure_model is None or asked.dry_run or not can_run_again(work):
        ran = run(work, context)
    else:
        ran = meet_latency(run, work, context, latency, measure_model)
    stages, result, cleaned_model = ran.stages, ran.model, ran.cleaned
    compressed = CompressedModel(result, external=asked.external_data)
    measured = Evaluation(None, ())
    profile: ProfileComparison | None = None
    layers = layer_changes(original_cost, stages[-1].cost if stages else original_cost)
    if not asked.dry_run:
        with compressed.loadable() as content:
            cleaned = None if cleaned_model is None else cleaned_model.to_bytes()
            measured = measure(source.content, content, data_sets.evaluation, providers, asked, tell, cleaned)
            if asked.latency and (asked.html is not None or asked.profile):
                tell("profile", 0, None)
                profiled = Profiled(source.model, source.content), Profiled(result, content)
                layers, profile = with_times(layers, *profiled, providers[0], asked)
    predicted = predicted_share(context, stages)
    report = _report(request, source, original_cost, stages, compressed, measured, predicted)
    profile = profile if asked.profile else None
    report = replace(report, layers=layers, profile=profile, search=found, seconds=time.perf_counter() - started)
    report = replace(report, peak_rss_bytes=environment.peak_rss_bytes())
    plan = _plan(request, source, stages)
    if not asked.dry_run:
        tell("writing", 0, None)
        report = _write(request, compressed, plan, report)
        # Only now: a run that is killed after its training need not train again.
        if not any((stage.figures.outcome or {}).get("stopped") for stage in stages):
            _remove(checkpoints)
    return CompressionResult(result, plan, report)


def _checkpoints(work: Work, output: Location | None) -> list[Path | None]:
    """Return where each pass keeps its progress, None for those that do not train."""
    trainings = [number for number, (each, _) in enumerate(work) if each.trains]
    return [
        checkpoint_path(output, (trainings.index(number) + 1) % len(trainings)) if each.trains else None
        for number, (each, _) in enumerate(work)
    ]


def _remove(checkpoints: Sequence[Path | None]) -> None:
    for path in checkpoints:
        if path is not None:
            path.unlink(missing_ok=True)


def _search(request: Request, source: Source, context: PassContext, data_sets: DataSets, tell: Progress) -> Found:
    if data_sets.calibration is None:
        raise DataError("a search needs calibration data: give --calib PATH or --data PATH")
    return Search(
        request.recipe,
        request.recovery,
        source.model,
        source.content,
        context.original_cost or model_cost(source.model, request.recipe.input_shape),
        # What is evaluated on must be fitted to nowhere: labels of all calibration samples are left out as well.
        replace(context, checkpoint=None, resume=False, labelled=None),
        data_sets.calibration,
        labels=data_sets.evaluation is None or data_sets.evaluation.has_labels,
        tell=tell,
    ).run()


def _run_passes(
    work: Work,
    source: Source,
    context: PassContext,
    asked: Recipe,
    tell: Progress,
    checkpoints: Sequence[Path | None],
    *,
    of_other_weights: bool,
    samples: int | None,
    evaluated: Callable[[Model], Evaluation] | None,
) -> Ran:
    """Run the passes one after another, each proved before the next one starts.

    No other model is kept than those that are returned.

    Args:
        samples: of the calibration data, where their number is known.
        evaluated: measures the model after every stage that changed it; None leaves that out.

    With `of_other_weights` the plans were made for other weights: their figures are measured anew.
    """
    stages: list[Stage] = []
    cleaned: Model | None = None
    calibration = context.calibration
    random_feeds = cache(lambda: sample_feeds(source.model, asked.input_shape, asked.seed))
    model = source.model
    for number, (each, plan) in enumerate(work):
        tell(each.name, number, len(work))
        model.release_mapped()
        if context.original is None and each.name != Cleanup.name:
            context = context.with_original(model)
        if calibration is not None:
            context = replace(context, calibration=_told(each.name, calibration, samples, tell))
        if plan is not None and of_other_weights:
            plan = each.remeasured(model, plan) if each.transfers else None
        context = replace(context, checkpoint=checkpoints[number])
        result, stage, context = run_pass(
            each, model, context, plan, asked.input_shape, planned_only=asked.dry_run and each.trains
        )
        if each.tidies and not result.modified:
            continue
        if asked.verify and result.modified:
            tell(f"verifying {each.name}", number, len(work))
            _collect(model.weight_bytes)
            stage = replace(stage, self_check=verify_stage(model, result, random_feeds, context))
        if evaluated is not None and result.modified:
            own = evaluated(result.model)
            stage = replace(stage, figures=replace(stage.figures, accuracy=own.accuracy, latency=own.latency))
        stages.append(stage)
        model.release_mapped()
        before, model = model.weight_bytes, result.model
        _collect(before)
        if asked.latency and _is_timed_apart(stages, model):
            cleaned = model
    modified = sum(stage.modified for stage in stages)
    return Ran(stages, model, cleaned if modified > 1 else None)


def _collect(weight_bytes: int) -> None:
    """Free models that are no longer used: their nodes and tensors refer to each other, and arrays hurry no collector.

    Args:
        weight_bytes: of such a model; a small one can wait.
    """
    if weight_bytes >= _COLLECTED_BYTES:
        gc.collect()


def _is_timed_apart(stages: Sequence[Stage], model: Model) -> bool:
    """Whether `model` is what clean-up made, which changed something, and small enough.

    Three sessions of a very large model at once would cost more than the answer is worth.
    """
    modified = [stage.figures.pass_name for stage in stages if stage.modified]
    return modified == [Cleanup.name] and stages[-1].modified and model.weight_bytes <= _TIMED_APART_BYTES


def _told(doing: str, calibration: Samples, samples: int | None, tell: Progress) -> Samples:
    return lambda: told_stream(f"{doing}: calibration samples", calibration(), samples, tell)


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


def _report(
    request: Request,
    source: Source,
    original_cost: ModelCost,
    stages: Sequence[Stage],
    compressed: CompressedModel,
    measured: Evaluation,
    predicted_latency: float | None,
) -> Report:
    cost = stages[-1].cost if stages else original_cost
    opset = compressed.model.opset
    before = source.figures(original_cost)
    after = ModelFigures(None, compressed.sha256, compressed.size_bytes, cost.params, cost.macs, opset, dict(cost.ops))
    after = replace(after, lrn_macs=cost.lrn_macs)
    ratios = compression_between(before, after)
    gates = gate_results(request.recipe, measured.accuracy, measured.latency, ratios, predicted_latency)
    report = Report(
        input=before,
        output=after,
        stages=tuple(stage.figures for stage in stages),
        accuracy=measured.accuracy,
        latency=measured.latency,
        compression=ratios,
        gates=() if request.recipe.dry_run else gates,
        self_checks=tuple(
            SelfCheck(check.pass_name, check.difference, check.tolerance)
            for check in (stage.self_check for stage in stages)
            if check is not None
        ),
        recipe=request.recipe.to_json(),
        seed=request.recipe.seed,
        versions=environment.versions(),
        platform=environment.machine(),
    )
    return replace(report, warnings=compression_warnings(report, request.settled_recipe))


def _write(request: Request, compressed: CompressedModel, plan: SavedPlan, report: Report) -> Report:
    """Write OUT and the reports: all of them, or none where one of them fails."""
    asked, output = request.recipe, request.output
    if output is not None and (report.passed or asked.keep_failed) and report.output is not None:
        report = replace(report, output=replace(report.output, path=str(output)))
    else:
        output = None
    files = report_files(report, asked)
    if asked.save_plan is not None:
        files[asked.save_plan] = plan.to_text().encode()

    def save() -> None:
        if output is not None:
            compressed.save(output, overwrite=asked.overwrite)

    write_together(files, then=save)
    return report
