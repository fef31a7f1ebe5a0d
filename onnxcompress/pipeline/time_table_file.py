"""A time table made for others to use: every layer of a model at a grid of ranks, and the model as a whole."""

from __future__ import annotations

from onnxcompress.analysis.split import Split
from onnxcompress.evaluation.latency import measure_latency
from onnxcompress.evaluation.time_table import TimeTable
from onnxcompress.passes.base import PassContext, Tell
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.passes.tucker.trial import SplitTrials
from onnxcompress.pipeline.latency_context import CLEAN, GIVEN
from onnxcompress.pipeline.measure import latency_settings, resolve_providers
from onnxcompress.pipeline.outputs import CompressedModel
from onnxcompress.pipeline.race import race_on
from onnxcompress.pipeline.source import Source
from onnxcompress.pipeline.split_timer import split_timer
from onnxcompress.recipe import Recipe

_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)


def make_time_table(source: Source, recipe: Recipe, tell: Tell | None = None) -> TimeTable:
    """Time the layers of a model, cleaned up, on the recipe's first provider; what the cache knows is not timed again.

    Raises:
        DataError: a size of an input is not known.
        ModelError, ProviderUnavailableError, RecipeError: the model or the provider does not run, or cannot be timed.
    """
    provider = resolve_providers(recipe)[0]
    timer = split_timer(source.content, recipe, provider, tell=tell)
    settings = latency_settings(recipe)
    cleanup = Cleanup()
    context = PassContext(seed=recipe.seed, race=race_on([provider], settings), providers=(provider.name,))
    clean = cleanup.apply(source.model, cleanup.plan(source.model, context), context).model
    trials = SplitTrials(clean)
    block = timer.table.conditions.block
    timer(clean, {layer: candidate_splits(trials, layer, block) for layer in trials.layers})
    with CompressedModel(clean, external=False).loadable() as content:
        measured = measure_latency(source.content, content, provider, settings)
    given = measured.original_ms.p50
    timer.table.models[source.sha256] = {GIVEN: given, CLEAN: given / measured.speedup}
    return timer.table


def candidate_splits(trials: SplitTrials, layer: str, block: int) -> list[Split]:
    """Return a grid of splits of a layer at multiples of a block, those with fewer multiplications than it has."""
    inputs, outputs = trials.channels(layer)
    if layer in trials.matrices:
        splits = [Split(None, rank) for rank in _ranks(min(inputs, outputs), block)]
    else:
        into, out = [None, *_ranks(inputs, block)], [None, *_ranks(outputs, block)]
        splits = [Split(first, last) for first in into for last in out if (first, last) != (None, None)]
    whole = trials.macs(layer, Split(None, None))
    return [split for split in splits if trials.macs(layer, split) < whole]


def _ranks(channels: int, block: int) -> list[int]:
    wished = {max(block, block * round(share * channels / block)) for share in _SHARES}
    return sorted(rank for rank in wished if rank < channels)
