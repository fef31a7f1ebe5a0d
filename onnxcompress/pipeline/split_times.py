"""Timing how long layers take whole and split, as they sit in the network.

A kernel on its own tells little: what the runtime fuses into it, in which layout its neighbours hand over and what lies
in the caches decide too. So the whole network runs, in rounds: in each round every layer stands at another of its
candidates, and onnxruntime's profile tells what each of them took, changes of layout that serve it included. A few
dozen rounds time hundreds of candidates. (GoogLeNet on two cores: the sum of a profile's nodes is within 3 % of the
latency, and the table's prediction within 1 % of the profile, for random configurations of all 58 layers.)

Another process slows down single rounds. How much a round was slowed shows in what stood in other rounds as well (the
nodes that cannot be split, candidates that come up again); such rounds are repeated, and left out at the end.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcompress.analysis.split import WHOLE, Split
from onnxcompress.errors import ModelError, RecipeError
from onnxcompress.evaluation.profile import profile_model
from onnxcompress.passes.base import Tell
from onnxcompress.passes.tucker.trial import SplitTrials
from onnxcompress.pipeline.layer_times import times_by_layer
from onnxcompress.pipeline.outputs import CompressedModel
from onnxcompress.runtime.device import single_run
from onnxcompress.runtime.providers import Provider
from onnxcompress.runtime.session import Session, SessionSettings
from onnxcompress.runtime.tensors import Array

Wanted = Mapping[str, Sequence[Split]]
Times = dict[str, dict[Split, float]]

_ROUND_SECONDS = 0.15
_FEWEST_RUNS, _MOST_RUNS = 12, 300
_WARMUP = 3
_CALM = 1.08
"""A round slowed by more than this, against the calmest of what it holds, is repeated."""
_MOST_ROUNDS = 64
_SECONDS = 120.0


@dataclass
class _Round:
    """What stood where, and the milliseconds it took; `others` are the nodes that no split concerns."""

    splits: dict[str, Split]
    layers: dict[str, float]
    others: dict[str, float]
    slowed: float = field(default=1.0)


def measure_splits(
    trials: SplitTrials,
    wanted: Wanted,
    feeds: Mapping[str, Array],
    provider: Provider,
    threads: int,
    *,
    seed: int = 0,
    tell: Tell | None = None,
) -> Times:
    """Return the milliseconds of every wanted split, and of the layers whole.

    Args:
        trials: of the model that runs.
        wanted: {layer: splits}, `WHOLE` need not be among them.
        feeds: one batch of inputs.

    Raises:
        ModelError: the model does not run, or its profile does not show a layer.
        RecipeError: the provider's profile does not show single nodes.
    """
    if not provider.is_cpu:
        raise RecipeError(
            f"layers can be timed on cpu only so far, not on '{provider.requested}', whose profile shows no single "
            "layers; leave --target latency and --time-table out"
        )
    candidates = {layer: list(dict.fromkeys((WHOLE, *splits))) for layer, splits in wanted.items()}
    if not candidates:
        return {}
    shuffled = random.Random(seed)
    for own in candidates.values():
        shuffled.shuffle(own)
    measuring = _Measuring(trials, feeds, provider, threads)
    number = max(len(own) for own in candidates.values())
    plan = [{layer: own[at % len(own)] for layer, own in candidates.items()} for at in range(number)]
    deadline = time.monotonic() + _SECONDS
    rounds: list[_Round] = []
    for at, splits in enumerate(plan):
        if tell is not None:
            tell("timing splits", at, number)
        rounds.append(measuring.run(splits))
    for _ in range(2):
        _judge(rounds)
        noisy = [each for each in rounds if each.slowed > _CALM]
        if not noisy or time.monotonic() > deadline:
            break
        if tell is not None:
            tell("timing splits once more", number - len(noisy), number)
        rounds += [measuring.run(each.splits) for each in noisy if time.monotonic() < deadline]
    _judge(rounds)
    return _settled(rounds)


class _Measuring:
    """Runs the rounds of one model."""

    def __init__(self, trials: SplitTrials, feeds: Mapping[str, Array], provider: Provider, threads: int) -> None:
        self._trials, self._feeds, self._provider, self._threads = trials, feeds, provider, threads
        self._layers = set(trials.layers)
        with CompressedModel(trials.model, external=False).loadable() as content:
            session = Session(content, provider, SessionSettings(threads=threads, deterministic=False))
            each = _typical_ms(session, feeds)
            del session
        self._runs = round(min(max(_ROUND_SECONDS * 1e3 / max(each, 1e-3), _FEWEST_RUNS), _MOST_RUNS))

    def run(self, splits: Mapping[str, Split]) -> _Round:
        """Profile the model with its layers split so."""
        model = self._trials.build(splits)
        with CompressedModel(model, external=False).loadable() as content:
            nodes = profile_model(
                content,
                self._feeds,
                self._provider,
                threads=self._threads,
                runs=self._runs,
                warmup=_WARMUP,
                undisturbed=True,
            )
        times = times_by_layer(nodes, model, self._layers)
        lost = [layer for layer in splits if layer not in times]
        if lost:
            raise ModelError(f"onnxruntime's profile does not show what '{lost[0]}' became: its time is not known")
        own = {layer: times.pop(layer) for layer in splits}
        return _Round(dict(splits), own, times)


def _typical_ms(session: Session, feeds: Mapping[str, Array]) -> float:
    run = single_run(session, feeds)
    run()
    times: list[float] = []
    until = time.monotonic() + _ROUND_SECONDS
    while len(times) < 5 or time.monotonic() < until:
        begun = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - begun) / 1e6)
    return float(np.quantile(times, 0.25))


def _items(each: _Round) -> dict[tuple[str, Split | None], float]:
    return {
        **{(name, each.splits[name]): ms for name, ms in each.layers.items()},
        **{(name, None): ms for name, ms in each.others.items()},
    }


def _judge(rounds: Sequence[_Round]) -> None:
    """Say of every round how much it was slowed: its time for what other rounds held too, against the least seen."""
    seen: defaultdict[tuple[str, Split | None], list[float]] = defaultdict(list)
    for each in rounds:
        for key, ms in _items(each).items():
            seen[key].append(ms)
    least = {key: min(times) for key, times in seen.items() if len(times) > 1}
    for each in rounds:
        common = [(ms, least[key]) for key, ms in _items(each).items() if key in least]
        floor = sum(low for _, low in common)
        each.slowed = sum(ms for ms, _ in common) / floor if floor > 0.0 else 1.0


def _settled(rounds: Sequence[_Round]) -> Times:
    """Return one time for each candidate: the median of its calm rounds, else that of its calmest."""
    limit = _CALM * float(np.quantile([each.slowed for each in rounds], 0.1))
    samples: defaultdict[str, defaultdict[Split, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for each in rounds:
        for layer, ms in each.layers.items():
            samples[layer][each.splits[layer]].append((each.slowed, ms))
    found: Times = {}
    for layer, own in samples.items():
        found[layer] = {}
        for ranks, seen in own.items():
            calm = [ms for slowed, ms in seen if slowed <= limit]
            slowest, ms = min(seen)
            found[layer][ranks] = float(np.median(calm)) if calm else ms * min(1.0, limit / slowest)
    return found
