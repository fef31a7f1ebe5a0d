"""A time table made for others to use: every layer of a model at a grid of ranks, and the model as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from onnxcompress.analysis.split import Split
from onnxcompress.evaluation.latency import LatencySettings, measure_latency
from onnxcompress.evaluation.time_table import PairTime, TimeTable
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Tell
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.passes.race import RaceResult
from onnxcompress.passes.tucker.trial import SplitTrials
from onnxcompress.pipeline.latency_context import CLEAN, GIVEN
from onnxcompress.pipeline.measure import latency_settings, resolve_providers
from onnxcompress.pipeline.outputs import CompressedModel
from onnxcompress.pipeline.race import race_on
from onnxcompress.pipeline.source import Source
from onnxcompress.pipeline.split_timer import SplitTimer, split_timer
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.providers import Provider
from onnxcompress.runtime.session import ModelSource

_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)


def make_time_table(source: Source, recipe: Recipe, tell: Tell | None = None) -> TimeTable:
    """Time the layers of a model, cleaned up, on the recipe's first provider; what the cache knows is not timed again.

    Raises:
        DataError: a size of an input is not known.
        ModelError, ProviderUnavailableError, RecipeError: the model or the provider does not run, or cannot be timed.
    """
    provider = resolve_providers(recipe)[0]
    timer = split_timer(source.content, recipe, provider, tell=tell)
    pairs = _Pairs(timer, provider, latency_settings(recipe))
    cleanup = Cleanup()
    context = PassContext(seed=recipe.seed, race=pairs.race, providers=(provider.name,))
    clean = cleanup.apply(source.model, cleanup.plan(source.model, context), context).model
    trials = SplitTrials(clean)
    block = timer.table.conditions.block
    timer(clean, {layer: candidate_splits(trials, layer, block) for layer in trials.layers})
    given, speedup = pairs.timed(source.content, source.sha256, clean)
    timer.table.models[source.sha256] = {GIVEN: given, CLEAN: given / speedup}
    timer.keep()
    return timer.table


class _Pairs:
    """Times two models against each other once: what the table holds is not timed again."""

    def __init__(self, timer: SplitTimer, provider: Provider, settings: LatencySettings) -> None:
        self._timer, self._provider, self._settings = timer, provider, settings
        self._race = race_on([provider], settings)

    def race(self, before: Model, after: Model) -> Sequence[RaceResult]:
        """Run a race (`passes.race.Race`), or answer what one came to before."""
        key = self._key("race", CompressedModel(before, external=False).sha256, after)
        known = self._known(key)
        if known is not None:
            return (RaceResult(self._provider.name, known.speedup, (known.low, known.high)),)
        results = self._race(before, after)
        for result in results:
            if result.interval is not None:
                self._remember(key, PairTime(None, result.speedup, *result.interval))
        return results

    def timed(self, content: ModelSource, sha256: str, after: Model) -> tuple[float, float]:
        """Return the latency of a file in ms, and how many times as fast is what was made from it."""
        key = self._key("latency", sha256, after)
        known = self._known(key)
        if known is not None and known.before_ms is not None:
            return known.before_ms, known.speedup
        with CompressedModel(after, external=False).loadable() as made:
            measured = measure_latency(content, made, self._provider, self._settings)
        given = measured.original_ms.p50
        if measured.interval is not None:
            self._remember(key, PairTime(given, measured.speedup, *measured.interval))
        return given, measured.speedup

    def _key(self, how: str, sha256: str | None, after: Model) -> str | None:
        """Return what decides a result besides the table's conditions; None where a hash does not tell a model."""
        own = CompressedModel(after, external=False).sha256
        if sha256 is None or own is None:
            return None
        asked = [
            sha256,
            own,
            how,
            self._settings.repeat,
            {name: list(shape) for name, shape in self._settings.shapes.items()},
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _known(self, key: str | None) -> PairTime | None:
        return None if key is None else self._timer.table.pairs.get(key)

    def _remember(self, key: str | None, pair: PairTime) -> None:
        if key is not None:
            self._timer.table.pairs[key] = pair


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
