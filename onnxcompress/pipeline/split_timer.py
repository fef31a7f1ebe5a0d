"""Where the passes get the times of splits from: measured here and kept in the user's cache, or a table from a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from onnxcompress.analysis.split import WHOLE, Split
from onnxcompress.errors import OnnxCompressError, RecipeError
from onnxcompress.evaluation.time_table import (
    Conditions,
    TimeTable,
    check_conditions,
    processor_name,
    read_time_table,
)
from onnxcompress.graph import Model
from onnxcompress.passes.base import Tell
from onnxcompress.passes.tucker.trial import SplitTrials
from onnxcompress.pipeline.layer_keys import layer_keys
from onnxcompress.pipeline.outputs import CompressedModel
from onnxcompress.pipeline.split_times import Times, measure_splits
from onnxcompress.recipe import Recipe
from onnxcompress.report.json_file import write_json
from onnxcompress.runtime.block import preferred_block
from onnxcompress.runtime.device import physical_cores
from onnxcompress.runtime.providers import Provider
from onnxcompress.runtime.session import ModelSource, Session, SessionSettings
from onnxcompress.runtime.tensors import Array, concrete_shapes, random_inputs

_MOST_CANDIDATES = 64
"""Of one layer: so many rounds are run; what lies between is taken from the nearest."""


class SplitTimer:
    """Answers what splits of a model's layers take (a `passes.base.SplitTimes`).

    Attributes:
        table: what is known so far.
        measures: whether what is not known is measured; otherwise it is left out.
    """

    def __init__(
        self,
        table: TimeTable,
        provider: Provider,
        recipe: Recipe,
        *,
        measures: bool,
        cache: Path | None = None,
        tell: Tell | None = None,
    ) -> None:
        self.table, self.measures = table, measures
        self._provider, self._recipe, self._cache, self._tell = provider, recipe, cache, tell

    def __call__(self, model: Model, wanted: Mapping[str, Sequence[Split]]) -> Times:
        """Return {layer: {ranks: ms}}, `WHOLE` included; what is not known is left out.

        Raises:
            DataError: a size of an input is not known.
            ModelError: the model does not run.
            RecipeError: ranks are to be chosen under a target of latency, by a table that knows none of the layers.
        """
        trials = SplitTrials(model)
        asked = {layer: wanted[layer] for layer in trials.layers if layer in wanted}
        if not asked:
            return {}
        feeds = model_feeds(model, self._recipe)
        keys = layer_keys(model, asked, {name: array.shape for name, array in feeds.items()})
        if self.measures:
            self._measure(trials, asked, keys, feeds)
        times: Times = {}
        for layer, splits in asked.items():
            cost = partial(trials.macs, layer)
            found = {ranks: self.table.time_of(keys[layer], ranks, cost) for ranks in (WHOLE, *splits)}
            known = {ranks: ms for ranks, ms in found.items() if ms is not None}
            if WHOLE in known:
                times[layer] = known
        if not self.measures and "latency" in self._recipe.target:
            self._check_known(asked, times, feeds)
        return times

    def _check_known(self, asked: Mapping[str, Sequence[Split]], times: Times, feeds: Mapping[str, Array]) -> None:
        """Refuse a table by which no layer can be split, though there are splits to choose from."""
        can_be_split = any(ranks != WHOLE for splits in asked.values() for ranks in splits)
        if not can_be_split or any(len(known) > 1 for known in times.values()):
            return
        shapes = ", ".join(f"{name}:{'x'.join(map(str, array.shape))}" for name, array in feeds.items())
        raise RecipeError(
            f"{self._recipe.time_table}: holds no times of this model's layers at inputs of {shapes} (it was made at "
            f"batch {self.table.conditions.batch}); make it on the target machine with onnxcompress inspect IN "
            "--time-table FILE, from this very file and with the same --input-shape and --batch"
        )

    def _measure(
        self,
        trials: SplitTrials,
        asked: Mapping[str, Sequence[Split]],
        keys: Mapping[str, str],
        feeds: Mapping[str, Array],
    ) -> None:
        """Time what the table does not hold, one layer for all that have its key."""
        missing: dict[str, list[Split]] = {}
        first_of: dict[str, str] = {}
        for layer, splits in asked.items():
            known = self.table.layers.get(keys[layer], {})
            new = [ranks for ranks in dict.fromkeys((WHOLE, *_thinned(splits))) if ranks not in known]
            if new:
                own = missing.setdefault(first_of.setdefault(keys[layer], layer), [])
                own += [ranks for ranks in new if ranks not in own]
        if not missing:
            return
        threads, seed = self.table.conditions.threads, self._recipe.seed
        measured = measure_splits(trials, missing, feeds, self._provider, threads, seed=seed, tell=self._tell)
        for layer, times in measured.items():
            self.table.layers.setdefault(keys[layer], {}).update(times)
        self.keep()

    def keep(self) -> None:
        """Write the table to the cache, if there is one; what cannot be kept is measured again another time."""
        if self._cache is not None:
            with contextlib.suppress(OSError, OnnxCompressError):
                keep_table(self.table, self._cache)


def split_timer(content: ModelSource, recipe: Recipe, provider: Provider, *, tell: Tell | None = None) -> SplitTimer:
    """Return the timer of a recipe: its `time_table` as it stands, or measurements, starting from what the cache holds.

    Raises:
        RecipeError: the table cannot be read, or is another machine's or version's and not forced.
        DataError: a size of an input is not known.
    """
    here = conditions(content, recipe, provider)
    if recipe.time_table is not None:
        table = read_time_table(recipe.time_table)
        if not recipe.force_time_table:
            check_conditions(table, here, str(recipe.time_table))
        return SplitTimer(table, provider, recipe, measures=False)
    cache = cache_file(here)
    table = TimeTable(here)
    with contextlib.suppress(OSError, RecipeError):
        kept = TimeTable(here) if cache is None else read_time_table(cache)
        if not kept.conditions.differences(here):
            table.merge(kept)
    return SplitTimer(table, provider, recipe, measures=True, cache=cache, tell=tell)


def conditions(content: ModelSource, recipe: Recipe, provider: Provider) -> Conditions:
    """Return under which conditions a model runs here.

    Raises:
        DataError: a size of an input is not known.
    """
    import onnxruntime

    session = Session(content, settings=SessionSettings(optimize=False))
    shapes = concrete_shapes(session.inputs, recipe.input_shape, recipe.batch)
    first = next(iter(shapes.values()), ())
    return Conditions(
        processor=processor_name(),
        machine=platform.machine(),
        onnxruntime=onnxruntime.__version__,
        provider=provider.name,
        options=dict(provider.options),
        threads=recipe.threads or physical_cores(),
        batch=int(first[0]) if first else 1,
        block=preferred_block(provider.name),
    )


def model_feeds(model: Model, recipe: Recipe) -> dict[str, Array]:
    """Return one batch of random inputs of the sizes that a recipe asks for.

    Raises:
        DataError: a size of an input is not known.
    """
    with CompressedModel(model, external=False).loadable() as content:
        inputs = Session(content, settings=SessionSettings(optimize=False)).inputs
    return random_inputs(inputs, concrete_shapes(inputs, recipe.input_shape, recipe.batch), recipe.seed)


def cache_file(of: Conditions) -> Path | None:
    """Return where the times of these conditions are kept between runs; nowhere for a user without a home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor an entry among the system's users: a container
        return None
    text = json.dumps([of.processor, of.machine, of.onnxruntime, of.provider, dict(of.options), of.threads, of.batch])
    return folder / "onnxcompress" / f"times-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def keep_table(table: TimeTable, path: Path) -> None:
    """Write a table, with what another run has put there in the meantime."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = TimeTable(table.conditions)
    with contextlib.suppress(RecipeError):
        whole.merge(read_time_table(path))
    whole.merge(table)
    write_json(whole.to_json(), path)


def _thinned(splits: Sequence[Split]) -> Sequence[Split]:
    if len(splits) <= _MOST_CANDIDATES:
        return splits
    ordered = sorted(splits, key=lambda ranks: (ranks[0] or 0, ranks[1] or 0))
    return [ordered[at * len(ordered) // _MOST_CANDIDATES] for at in range(_MOST_CANDIDATES)]
