"""The race that passes are given: two models in alternating turns on every asked provider."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from onnxcompress.errors import DataError, ModelError
from onnxcompress.evaluation.latency import LatencySettings, measure_latency
from onnxcompress.graph import Model
from onnxcompress.passes.race import Race, RaceResult
from onnxcompress.pipeline.outputs import CompressedModel
from onnxcompress.runtime.providers import Provider

_ROUNDS = 20
"""Enough for an interval of the ratio; what wins by less than the noise of so many is not worth a rewrite."""


def race_on(providers: Sequence[Provider], settings: LatencySettings) -> Race:
    """Return a race under the settings of the latency measurement, in fewer rounds."""
    short = replace(settings, repeat=_ROUNDS, warmup=settings.warmup)

    def race(before: Model, after: Model) -> tuple[RaceResult, ...]:
        with ExitStack() as opened:
            contents = [
                opened.enter_context(CompressedModel(each, external=False).loadable()) for each in (before, after)
            ]
            try:
                timed = [measure_latency(contents[0], contents[1], provider, short) for provider in providers]
            except (DataError, ModelError):
                return ()  # the sizes of an input are open, or the provider lacks an operator: nothing to time
        return tuple(RaceResult(each.provider, each.speedup, each.interval) for each in timed)

    return race
