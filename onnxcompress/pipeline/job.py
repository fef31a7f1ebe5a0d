"""One compression from the passes to the judgement; with a search, the milder ones after it, too."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from onnxcompress.analysis.cost import ModelCost
from onnxcompress.evaluation.compare import Evaluation
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Samples
from onnxcompress.passes.cleanup import Cleanup, Lowering
from onnxcompress.pipeline.excluded import unmatched_lines
from onnxcompress.pipeline.gates import DROP, ERROR, gate_results
from onnxcompress.pipeline.latency_context import predicted_lines, predicted_share
from onnxcompress.pipeline.latency_target import Ran, can_run_again, meet_latency
from onnxcompress.pipeline.measure import DataSets, measure
from onnxcompress.pipeline.outputs import CompressedModel
from onnxcompress.pipeline.plan_file import SavedPlan, changed_lines
from onnxcompress.pipeline.recovery import checkpoint_path
from onnxcompress.pipeline.request import Request
from onnxcompress.pipeline.search import Search
from onnxcompress.pipeline.size_target import meet_size
from onnxcompress.pipeline.source import Source
from onnxcompress.pipeline.stages import Stage, Work, passes_of, planned_work, run_pass, unknown_macs_lines
from onnxcompress.pipeline.task import output_traits
from onnxcompress.pipeline.uneven_widths import uneven_width_warnings
from onnxcompress.pipeline.verification import sample_feeds, verify_stage
from onnxcompress.recipe import Recipe
from onnxcompress.remote import Location
from onnxcompress.report import environment
from onnxcompress.report.advice import compression_warnings, judged_lines
from onnxcompress.report.decisions import decision_line
from onnxcompress.report.dry_run import untrained_lines
from onnxcompress.report.figures import ModelFigures, Report, SelfCheck, compression_between
from onnxcompress.report.progress import Progress, told_stream
from onnxcompress.report.search_figures import Judged, chosen_text
from onnxcompress.runtime.providers import Provider

_TIMED_APART_BYTES = 512 * 1024 * 1024
"""Up to this size a cleaned model is timed beside the original and the compressed one; of larger ones three sessions
at once would cost more than the answer is worth."""

_COLLECTED_BYTES = 64 * 1024 * 1024
"""From this size on the models that a pass leaves behind are freed at once."""

_MOST_JUDGED = 4
"""Models that a search may have judged on the evaluation data: each of them costs a whole run."""


@dataclass(frozen=True)
class Job:
    """What all runs of one call have in common.

    Attributes:
        original_cost: of the model as it was given.
    """

    source: Source
    original_cost: ModelCost
    context: PassContext
    data_sets: DataSets
    providers: tuple[Provider, ...]
    tell: Progress


@dataclass(frozen=True)
class Finished:
    """A run that was measured and judged.

    Attributes:
        request: as it was carried out.
        report: without the time of layers, the search and the seconds of the whole call.
        checkpoints: of its trainings; None for passes that do not train.
    """

    request: Request
    ran: Ran
    compressed: CompressedModel
    report: Report
    checkpoints: list[Path | None]

    @property
    def was_stopped(self) -> bool:
        """Whether the user ended a training early, which may go on then: one whose loss is no number cannot."""
        return any((stage.figures.outcome or {}).get("interrupted") for stage in self.ran.stages)


def finish(job: Job, request: Request, number: int = 0) -> Finished:
    """Run the passes of a request, measure what they made, and judge it.

    Args:
        number: of the run, from 0: each keeps its trainings' checkpoints.
    """
    asked, saved, source, context = request.recipe, request.saved_plan, job.source, job.context
    passes = passes_of(request.settled_recipe, recovery=request.recovery)
    work = planned_work(passes, None if saved is None else saved.plans, str(asked.plan))
    checkpoints = _checkpoints(work, request.output, number)
    calibration, evaluation = job.data_sets.calibration, job.data_sets.evaluation

    def evaluated(model: Model) -> Evaluation:
        with CompressedModel(model, external=False).loadable() as content:
            return _measured(job, asked, content)

    def run(work: Work, context: PassContext) -> Ran:
        return _run_passes(
            work,
            source,
            context,
            asked,
            job.tell,
            checkpoints,
            saved=saved,
            samples=None if calibration is None else calibration.length,
            evaluation=None if evaluation is None else lambda: (batch.inputs for batch in evaluation.batches()),
            evaluated=evaluated if asked.measure_stages and not asked.dry_run else None,
        )

    target, measure_model = request.settled_recipe.target, context.measure_model
    if not can_run_again(work):
        ran = run(work, context)
    elif "latency" in target and measure_model is not None and not asked.dry_run:
        ran = meet_latency(run, work, context, target["latency"], measure_model)
    elif "size" in target:
        ran = meet_size(
            run,
            work,
            context,
            target["size"] * source.size_bytes,
            lambda model: _compressed(model, request).size_bytes,
        )
    else:
        ran = run(work, context)
    compressed = _compressed(ran.model, request)
    measured = Evaluation(None, ())
    if not asked.dry_run:
        with compressed.loadable() as content:
            measured = _measured(job, asked, content, None if ran.cleaned is None else ran.cleaned.to_bytes())
    report = _report(job, request, ran.stages, compressed, measured)
    return Finished(request, ran, compressed, report, checkpoints)


def _compressed(model: Model, request: Request) -> CompressedModel:
    named = {} if request.output is None else {"name": request.output.name}
    return CompressedModel(model, external=request.recipe.external_data, **named)


def finish_search(job: Job, request: Request, search: Search) -> Finished:
    """Search, run with what was found and, as long as the result loses more than it may, with something milder.

    A result is judged on the evaluation data, so from the second on these have had a say in what is chosen. Nothing
    milder is tried where another gate failed too, which it would fail all the more, or the user ended a training.

    Returns:
        The last run; its report tells the search, its checkpoints are those of all runs.
    """
    found = search.run()
    # The plan that is saved recovers as the search does, which a recipe without `auto` would not do by itself.
    recover = {"recover": request.recipe.recover or "auto"}
    # Before the ranks are chosen, nothing depends on the share.
    context = replace(job.context, memory={} if found.chosen.get("target") else None, measured={})
    judged: list[Judged] = []
    checkpoints: list[Path | None] = []
    while True:
        # Where no filters are to leave, there is nothing to do in steps.
        steps = {"steps": 1} if found.chosen.get("prune") == 0.0 else {}
        settled = replace(request, settled=request.recipe.updated({**found.chosen, **recover, **steps}))
        done = finish(replace(job, context=context), settled, len(judged))
        checkpoints += done.checkpoints
        failed = [gate for gate in done.report.gates if not gate.passed]
        losses = {gate.name: gate for gate in done.report.gates if gate.name in (DROP, ERROR)}
        if losses:
            lost = {name: gate.value for name, gate in losses.items()}
            passed = all(gate.passed for gate in losses.values())
            judged.append(Judged(found.chosen, passed, lost.get(DROP), lost.get(ERROR)))
        alone = bool(failed) and all(gate.name in losses for gate in failed)
        milder = search.milder(found.chosen, failed) if alone and not done.was_stopped else None
        if milder is None or len(judged) == _MOST_JUDGED:
            break
        found = replace(found, chosen=milder)
        job.tell(f"the result lost too much: once more with {chosen_text(milder)}", len(judged), None)
    found = replace(found, judged=tuple(judged))
    report = replace(done.report, search=found, warnings=(*done.report.warnings, *judged_lines(found)))
    return replace(done, report=report, checkpoints=checkpoints)


def _measured(job: Job, asked: Recipe, compressed: bytes | Path, cleaned: bytes | None = None) -> Evaluation:
    data, numbers = job.data_sets.evaluation, job.context.numbers
    given = output_traits(job.source.model)
    return measure(job.source.content, compressed, data, job.providers, asked, job.tell, cleaned, numbers, given)


def _checkpoints(work: Work, output: Location | None, run: int) -> list[Path | None]:
    """Return where each pass keeps its progress, None for those that do not train."""
    trainings = [number for number, (each, _) in enumerate(work) if each.trains]
    first = run * len(trainings)
    return [
        checkpoint_path(output, first + (trainings.index(number) + 1) % len(trainings)) if each.trains else None
        for number, (each, _) in enumerate(work)
    ]


def _run_passes(
    work: Work,
    source: Source,
    context: PassContext,
    asked: Recipe,
    tell: Progress,
    checkpoints: Sequence[Path | None],
    *,
    saved: SavedPlan | None,
    samples: int | None,
    evaluation: Samples | None,
    evaluated: Callable[[Model], Evaluation] | None,
) -> Ran:
    """Run the passes one after another, each proved before the next one starts.

    No other model is kept than those that are returned.

    Args:
        saved: the plan that is replayed. Where it was changed, or is of other weights, its figures are measured anew.
        samples: of the calibration data, where their number is known.
        evaluation: a fresh stream of the evaluation data at each call; None where there are none.
        evaluated: measures the model after every stage that changed it; None leaves that out.
    """
    stages: list[Stage] = []
    of_other_weights = saved is not None and not saved.is_of(source)
    is_as_made = saved is None or not (of_other_weights or saved.was_changed)

    def blamed() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if saved is None else saved.blamed(str(asked.plan), source)

    cleaned: Model | None = None
    calibration, memory = context.calibration, context.memory
    random_feeds = cache(lambda: sample_feeds(source.model, asked.input_shape, asked.seed))
    model = source.model
    for number, (each, plan) in enumerate(work):
        tell(each.name, number, len(work))
        model.release_mapped()
        if context.original is None and each.name != Cleanup.name:
            context = context.with_original(model)
        if calibration is not None:
            context = replace(context, calibration=_told(each.name, calibration, samples, tell))
        if plan is not None and of_other_weights and not each.transfers:
            plan = None
        if plan is not None and not is_as_made:
            with blamed():
                plan = each.remeasured(model, plan)
        # What a pass remembers is of the model that stands before it, another one for each pass of the same name.
        own = None if memory is None else memory.setdefault(f"{number} {each.name}", {})
        context = replace(context, checkpoint=checkpoints[number], memory=own)
        kept = _stamp(checkpoints[number])
        with blamed():
            result, stage, context = run_pass(each, model, context, plan, planned_only=asked.dry_run and each.trains)
            if plan is not None:  # what it says of itself is read where the result is written already
                list(map(decision_line, stage.figures.decisions))
        if _stamp(checkpoints[number]) != kept:
            # It trained: what a later training has kept began with other weights, as after Ctrl-C in this one.
            context = replace(context, resume=False)
        if each.tidies and not result.modified:
            continue
        if asked.verify and result.modified:
            tell(f"verifying {each.name}", number, len(work))
            _collect(model.weight_bytes)
            with blamed():
                stage = replace(stage, self_check=verify_stage(model, result, random_feeds, context, evaluation))
        if evaluated is not None and result.modified:
            own = evaluated(result.model)
            stage = replace(stage, figures=replace(stage.figures, accuracy=own.accuracy, latency=own.latency))
        stages.append(stage)
        model.release_mapped()
        before, model = model.weight_bytes, result.model
        _collect(before)
        if asked.latency and each.name == Cleanup.name and model.weight_bytes <= _TIMED_APART_BYTES:
            cleaned = model
    return Ran(stages, model, None if cleaned is None else _credited(cleaned, stages))


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """Return what tells one content of a file from another, None where there is no file."""
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _credited(cleaned: Model, stages: Sequence[Stage]) -> Model | None:
    """Return what clean-up made of the given model, its last part included; None where it, or all else, did nothing."""
    changed = [stage for stage in stages if stage.modified]
    own = [stage for stage in changed if stage.plan.pass_name in (Cleanup.name, Lowering.name)]
    if not own or len(own) == len(changed):
        return None
    last = own[-1].plan
    return Lowering().again(cleaned, last) if last.pass_name == Lowering.name else cleaned


def _collect(weight_bytes: int) -> None:
    """Free models that are no longer used: their nodes and tensors refer to each other, and arrays hurry no collector.

    Args:
        weight_bytes: of such a model; a small one can wait.
    """
    if weight_bytes >= _COLLECTED_BYTES:
        gc.collect()


def _told(doing: str, calibration: Samples, samples: int | None, tell: Progress) -> Samples:
    return lambda: told_stream(f"{doing}: calibration samples", calibration(), samples, tell)


def _report(
    job: Job, request: Request, stages: Sequence[Stage], compressed: CompressedModel, measured: Evaluation
) -> Report:
    source, original_cost = job.source, job.original_cost
    predicted_latency = predicted_share(job.context, stages)
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
    uneven = uneven_width_warnings(source.model, compressed.model, request.settled_recipe)
    warnings = (
        *compression_warnings(report, request.settled_recipe),
        *unknown_macs_lines(source.model, original_cost),
        *predicted_lines(request.settled_recipe, predicted_latency),
        *uneven,
        *unmatched_lines(request.settled_recipe, (source.model, compressed.model), report.stages),
        *untrained_lines(report),
        *changed_lines(request.saved_plan, str(request.recipe.plan)),
    )
    return replace(report, warnings=warnings)
