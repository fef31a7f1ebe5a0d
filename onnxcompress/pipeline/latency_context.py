"""What the passes get to know about latency: times of splits, and of whole models against the one that was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxcompress.analysis.split import WHOLE
from onnxcompress.errors import RecipeError
from onnxcompress.evaluation.latency import measure_latency
from onnxcompress.evaluation.time_table import TimeTable
from onnxcompress.graph import Model
from onnxcompress.passes.base import ModelTime, PassContext
from onnxcompress.pipeline.measure import latency_settings
from onnxcompress.pipeline.outputs import CompressedModel
from onnxcompress.pipeline.plan_file import SavedPlan
from onnxcompress.pipeline.source import Source
from onnxcompress.pipeline.split_timer import split_timer
from onnxcompress.pipeline.stages import Stage
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.providers import Provider

GIVEN, CLEAN = "given_ms", "clean_ms"
"""What a table holds of a whole model: its latency as it is, and cleaned up."""


def with_latency(context: PassContext, source: Source, recipe: Recipe, provider: Provider) -> PassContext:
    """Return the context with times, where latency counts; with several providers those of the first.

    Raises:
        RecipeError: the recipe's time table cannot be used.
        DataError: a size of an input is not known.
    """
    if not _counts(recipe, provider):
        return context
    timer = split_timer(source.content, recipe, provider, tell=context.tell)
    context = replace(context, split_times=timer)
    if _is_predicted(recipe):
        return replace(context, known_time=_known_time(timer.table, source.sha256, recipe))
    return replace(context, measure_model=lambda model: measured_share(source, model, recipe, provider))


def with_latency_of_plan(
    context: PassContext, source: Source, recipe: Recipe, provider: Provider, saved: SavedPlan
) -> PassContext:
    """Return the context with what a time table says of the model, where a replayed plan had a target of latency.

    Raises:
        RecipeError: the recipe's time table cannot be used, or is not the one that the plan was made by.
        DataError: a size of an input is not known.
    """
    if "latency" not in recipe.target or not _is_predicted(recipe):
        return context
    table = split_timer(source.content, recipe, provider).table
    # Times are measured to many digits: those of another table are others.
    own = {times[WHOLE] for times in table.layers.values() if WHOLE in times}
    if any("ms" in d and d["ms"][0] not in own for plan in saved.plans for d in plan.decisions):
        raise RecipeError(
            f"{recipe.plan}: its splits were chosen by other times than those of {recipe.time_table}; give the "
            "--time-table that the plan was made by, or make the plan anew with this one and --save-plan"
        )
    # Other weights take the same time.
    is_known = source.sha256 in table.models or not recipe.plan_structure_only
    return replace(context, known_time=_known_time(table, source.sha256 if is_known else saved.sha256, recipe))


def predicted_share(context: PassContext, stages: Sequence[Stage]) -> float | None:
    """Return the share of the given model's latency that a time table predicts, None where this machine is measured."""
    known = context.known_time
    if known is None:
        return None
    decisions = [decision for stage in stages for decision in stage.plan.decisions]
    gained = sum(float(d["ms"][0]) - float(d["ms"][1]) for d in decisions if "ms" in d)
    return known.share - gained / known.given_ms


def predicted_lines(recipe: Recipe, predicted: float | None) -> list[str]:
    """Return a sentence on a latency that is judged as a time table predicts it, and on what is not in it."""
    if predicted is None or recipe.dry_run:
        return []
    quantized = f", of layers in float: what --quantize {recipe.quantize} does is not in it"
    return [
        f"target_latency is not measured: it is what {recipe.time_table} predicts for its machine"
        f"{quantized if recipe.quantize != 'off' else ''}. Measure on that machine: onnxcompress compare IN OUT"
    ]


def measured_share(source: Source, model: Model, recipe: Recipe, provider: Provider) -> ModelTime:
    """Measure a model against the one that was given."""
    with CompressedModel(model, external=False).loadable() as content:
        measured = measure_latency(source.content, content, provider, latency_settings(recipe))
    return ModelTime(1.0 / measured.speedup, measured.original_ms.p50)


def _is_predicted(recipe: Recipe) -> bool:
    """Whether a time table stands for the target machine, even one like this: so it was said, or nothing is timed."""
    return recipe.time_table is not None and (recipe.force_time_table or not recipe.latency)


def _counts(recipe: Recipe, provider: Provider) -> bool:
    """Whether times decide anything: ranks that `auto` takes only where they are faster, or a target of latency."""
    if recipe.time_table is not None or "latency" in recipe.target:
        return True
    return recipe.latency and recipe.plan is None and recipe.takes_faster_splits and provider.is_cpu


def _known_time(table: TimeTable, sha256: str, recipe: Recipe) -> ModelTime | None:
    if "latency" not in recipe.target:
        return None
    if recipe.prune:
        raise RecipeError(
            f"{recipe.time_table}: a time table knows no pruned layers: with --target latency prune "
            "first, make the table of the pruned model, and split that"
        )
    times = table.models.get(sha256, {})
    if times.get(GIVEN, 0.0) <= 0.0 or CLEAN not in times:
        raise RecipeError(
            f"{recipe.time_table}: holds no latency of this model, of which --target latency asks a share; make it on "
            "the target machine with onnxcompress inspect IN --time-table FILE, from this very file"
        )
    return ModelTime((times[GIVEN] if recipe.cleanup == "off" else times[CLEAN]) / times[GIVEN], times[GIVEN])
