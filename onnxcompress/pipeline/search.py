"""`--prune auto`, and a limit with splits left to us: how much is compressed, found by compressing and evaluating.

One budget is searched: the share of the original's MACs that may be left. Ranks under it are the allocation pass's; its
measurements do not depend on the budget and are taken once. Each trial runs the passes of the recipe, recovery
included, on a part of the calibration data, and is evaluated on the rest of them; what each loses, all of them tell
together (`evaluation.pooled`). The smallest share that keeps the drop is found by interpolation. With `prune="auto"`
the fraction of filters with which a model of that share comes closest to the original is then looked for
(`pipeline.search_rate`), and the share narrowed down once more with it; which filters leave, from all layers together,
the importance `response` says.

A limit is a fall of accuracy (`--max-drop`) or an error of the outputs, of any network (`--max-error`), or both: what
a trial loses is a share of each limit, and the larger share counts.

The evaluation data are never looked at here: the gate judges the result on them at the end. Where it fails, as the
estimate is of other samples and of fewer, the search says what is milder.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from onnxcompress.analysis.cost import ModelCost, model_cost
from onnxcompress.errors import BudgetInfeasibleError, DataError
from onnxcompress.evaluation.expectation import Losses, measured_losses
from onnxcompress.evaluation.pooled import DIFFERING, LOST, pooled_bounds
from onnxcompress.evaluation.reference import Reference
from onnxcompress.graph import Model
from onnxcompress.passes.base import Pass, PassContext
from onnxcompress.passes.cleanup import Cleanup, Lowering
from onnxcompress.passes.pruning import FilterPruning
from onnxcompress.pipeline.gates import ERROR
from onnxcompress.pipeline.outputs import CompressedModel
from onnxcompress.pipeline.search_line import milder_position, next_position, steepness
from onnxcompress.pipeline.search_rate import next_rate
from onnxcompress.pipeline.stages import passes_of, run_pass
from onnxcompress.pipeline.task import output_traits
from onnxcompress.recipe import Recipe
from onnxcompress.report.figures import GateResult
from onnxcompress.report.progress import Progress
from onnxcompress.report.search_figures import Found, Trial
from onnxcompress.runtime.capture import exposing
from onnxcompress.runtime.dataset import Dataset
from onnxcompress.runtime.session import Session

HELD_OUT_SHARE = 0.25
"""Part of the calibration data on which trials are evaluated."""

_LEAST, _SHARE_STEP, _RATE_STEP = 0.1, 0.025, 0.02


@dataclass(frozen=True, eq=False)
class _Tried:
    """One compression that was tried.

    Attributes:
        rate: of filters removed; share: of MACs asked for, None where ranks were not chosen.
        cost, losses: None where the budget could not be kept.
    """

    rate: float
    share: float | None
    cost: ModelCost | None
    losses: Losses | None
    seconds: float

    @property
    def position(self) -> float:
        """On the line that is searched: 1 compresses nothing, less is smaller."""
        return round(1.0 - self.rate, 4) if self.share is None else self.share

    @property
    def apart(self) -> float:
        """How far its answers are from the original's."""
        return math.inf if self.losses is None else self.losses.apart


@dataclass
class Search:
    """One search.

    Attributes:
        labels: whether the result will be judged on labels.
        tried: so far, in order.
        prefixes: {fraction of filters: the model before its ranks are chosen, its context}.
        ranked: what pruning measured on the model that every fraction is taken from.
    """

    recipe: Recipe
    recovery: str
    model: Model
    content: bytes | Path
    cost: ModelCost
    context: PassContext
    calibration: Dataset
    labels: bool
    tell: Progress
    tried: list[_Tried] = field(default_factory=list)
    prefixes: dict[float, tuple[Model, PassContext]] = field(default_factory=dict)
    ranked: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Found:
        """Find what to compress with.

        Raises:
            BudgetInfeasibleError: nothing that was tried keeps the limits, or the target.
            DataError: the calibration data are too few to set some aside, or the original gives no classes of which
                a drop could tell.
        """
        recipe = self.recipe
        splits = "auto" in (recipe.tucker, recipe.svd)
        if recipe.target and not splits:
            return Found("cost", 0, self._by_cost(), self._trials())
        held_out, fitted = self.calibration.split(HELD_OUT_SHARE, recipe.seed)
        self.context = replace(self.context, calibration=fitted.samples(), measured={})
        given = output_traits(self.model)
        session = Session(exposing(self.content, given.made_from))
        with Reference(session, held_out, numbers=self.context.numbers, traits=given) as reference:
            if reference.output is None and recipe.max_drop is not None:
                raise DataError(
                    "--max-drop needs a model that classifies: no output of shape [N, C] whose scores tell a drop; "
                    "give --max-error P, or --task classification"
                )
            if recipe.target:
                chosen = self._under_target(reference)
            elif splits:
                chosen = self._by_share(reference)
            else:
                chosen = self._by_rate(reference)
            # What the trials shared takes memory and disk, which the run with what was found needs.
            self.context = replace(self.context, measured=None)
            self.prefixes.clear()
            measure = "expected_top1" if self.labels else "disagreement"
            if reference.output is None:
                measure = "relative_error"
            return Found(
                measure, reference.samples, chosen, self._trials(), limit=recipe.max_drop, error_limit=recipe.max_error
            )

    def _by_share(self, reference: Reference) -> dict[str, Any]:
        def tried(rate: float, share: float) -> _Tried:
            return self._trial(rate, {"macs": share}, reference)

        slope = self._narrow([], partial(tried, 0.0), _SHARE_STEP)
        best = self._best()
        if best is None:
            raise BudgetInfeasibleError(self._complaint())
        if self.recipe.prune == "auto":
            closest = self._closest([best], {"macs": best.position}, reference)
            if closest is not best:
                self._narrow([closest], partial(tried, closest.rate), _SHARE_STEP, slope)
        best = self._best() or best  # the last trial told something of the others, too
        return {"prune": best.rate, "target": {"macs": best.position}}

    def _by_rate(self, reference: Reference) -> dict[str, Any]:
        # Mirrored, so that the gentlest is the upper end, as it is of shares.
        self._narrow([], lambda left: self._trial(round(1.0 - left, 4), {}, reference), _RATE_STEP)
        best = self._best()
        if best is None:
            raise BudgetInfeasibleError(self._complaint())
        return {"prune": best.rate}

    def milder(self, chosen: Mapping[str, Any], failed: Sequence[GateResult]) -> dict[str, Any] | None:
        """Return what to compress with where what was chosen lost more than it may on the data that it was judged on.

        What the trials lost is taken to be wrong by one factor, so that as much less of it is aimed at.

        Args:
            chosen: as `Found.chosen`; `failed`: gates on what is lost.

        Returns:
            As `Found.chosen`; None where the share was given, or hardly anything is compressed as it is.
        """
        if self.recipe.target:
            return None
        splits = "target" in chosen
        # A line of one trial has the slope of that without pruning.
        rates, held = (chosen["prune"], 0.0), self._held()
        lines = [{t.position: share for t, share in held.items() if not splits or t.rate == rate} for rate in rates]
        position = chosen["target"]["macs"] if splits else 1.0 - chosen["prune"]
        aimed = min(_aimed(gate) for gate in failed)
        step = _SHARE_STEP if splits else _RATE_STEP
        slope = next((steepness(line) for line in lines if len(line) > 1), None)
        position = milder_position(position, aimed, slope, step)
        if position is None:
            return None
        return {**chosen, "target": {"macs": position}} if splits else {"prune": round(1.0 - position, 4)}

    def _narrow(
        self, known: Sequence[_Tried], tried: Callable[[float], _Tried], step: float, slope: float | None = None
    ) -> float | None:
        """Try positions until the smallest that keeps the limits is known to within a step; return the slope."""
        own = list(known)
        while True:
            held = self._held()
            here = {each.position: held[each] for each in own}
            position = next_position(here, 1.0, _LEAST, step, slope)
            if position is None:
                return steepness(here)
            own.append(tried(position))

    def _best(self) -> _Tried | None:
        """Return the smallest that keeps the limits, of equal ones the closest."""
        kept = [each for each, share in self._held().items() if share <= 1.0]
        return min(kept, key=lambda each: (each.position, each.apart), default=None)

    def _held(self) -> dict[_Tried, float]:
        """Return for all that was tried which share of its limit it loses, of two limits the larger share.

        Of an error the square, which grows as a drop does.
        """
        limits = [(self.recipe.max_drop, self._drops(), 1), (self.recipe.max_error, self._errors(), 2)]
        return {
            each: max(_share_of(lost[each], limit) ** power for limit, lost, power in limits if limit is not None)
            for each in self.tried
        }

    def _errors(self) -> dict[_Tried, float]:
        """Return the relative error of all that was tried in percent, one standard error on top."""
        errors = ((each, None if each.losses is None else each.losses.error) for each in self.tried)
        return {each: math.inf if error is None else 100.0 * error.bound for each, error in errors}

    def _drops(self) -> dict[_Tried, float]:
        """Return the points that all that was tried loses, as all of it together tells; infinite without classes."""
        made = [(e, e.losses.classes) for e in self.tried if e.losses is not None and e.losses.classes is not None]
        bounds = pooled_bounds(
            [losses.lost if self.labels else losses.differing for _, losses in made],
            [losses.divergences for _, losses in made],
            LOST if self.labels else DIFFERING,
        )
        drops = dict.fromkeys(self.tried, math.inf)
        return drops | {each: 100.0 * own for (each, _), own in zip(made, bounds, strict=True)}

    def _under_target(self, reference: Reference) -> dict[str, Any]:
        """Under a target that is given: remove the filters with which what the ranks make comes closest."""
        best = self._closest([], self.recipe.target, reference)
        if best.losses is None:
            raise BudgetInfeasibleError("the target cannot be reached by splits, with however many filters removed")
        return {"prune": best.rate}

    def _closest(self, known: Sequence[_Tried], target: Mapping[str, float], reference: Reference) -> _Tried:
        """Try fractions of filters under a target until the one whose answers are closest is known to within a step.

        Told by how far they are apart, which a few samples tell better than which of them change class.
        """
        own = list(known)
        while (rate := next_rate({each.rate: each.apart for each in own}, 1.0 - min(target.values()))) is not None:
            own.append(self._trial(rate, target, reference))
        return min(own, key=lambda each: (each.apart, each.rate))

    def _by_cost(self) -> dict[str, Any]:
        """Pruning alone under a target: the fewest filters that reach it; nothing needs to be evaluated."""

        def reaches(share: float) -> bool:
            model, _ = self._before_ranks(round(1.0 - share, 4))
            return all(_share(kind, model_cost(model), self.cost) <= own for kind, own in self.recipe.target.items())

        low, high = _LEAST, 1.0
        if not reaches(low):
            raise BudgetInfeasibleError(f"the target cannot be reached with {1.0 - _LEAST:.0%} of the filters removed")
        while high - low > _RATE_STEP / 4:
            middle = (low + high) / 2
            low, high = (middle, high) if reaches(middle) else (low, middle)
        return {"prune": round(1.0 - low, 4), "target": {}}

    def _trial(self, rate: float, target: Mapping[str, float], reference: Reference) -> _Tried:
        started = time.perf_counter()
        named = ", ".join([*(f"{kind} {share:.2f}" for kind, share in target.items()), f"prune {rate:g}"])
        self.tell(f"search, trial {len(self.tried) + 1}: {named}", 0, None)
        cost, losses = None, None
        with contextlib.suppress(BudgetInfeasibleError):
            model = self._compressed(rate, target)
            cost = model_cost(model)
            with CompressedModel(model, external=False).loadable() as content:
                losses = measured_losses(Session(exposing(content, reference.traits.made_from)), reference)
        seconds = time.perf_counter() - started
        self.tried.append(_Tried(rate, target.get("macs"), cost, losses, seconds))
        return self.tried[-1]

    def _trials(self) -> tuple[Trial, ...]:
        """Return what was tried, as a report tells it."""
        trials: list[Trial] = []
        drops, errors = self._drops(), self._errors()
        for each in self.tried:
            trial = Trial(each.rate, each.share, seconds=each.seconds)
            if each.cost is not None and each.losses is not None:
                left = {kind: _share(kind, each.cost, self.cost) for kind in ("macs", "params")}
                trial = replace(trial, **left, error=errors[each])
                if (seen := each.losses.classes) is not None:
                    told = {"disagreement": seen.disagreement, "divergence": seen.divergence}
                    trial = replace(trial, **told, drop=drops[each])
            trials.append(trial)
        return tuple(trials)

    def _compressed(self, rate: float, target: Mapping[str, float]) -> Model:
        model, context = self._before_ranks(rate)
        for each in self._passes(rate, target)[1]:
            result, _, context = run_pass(each, model, context, None)
            model = result.model
        return model

    def _before_ranks(self, rate: float) -> tuple[Model, PassContext]:
        if rate not in self.prefixes:
            model, context = self.model, self.context
            for each in self._passes(rate, {})[0]:
                if context.original is None and each.name != Cleanup.name:
                    context = context.with_original(model)
                is_first = each.name == FilterPruning.name and self.recipe.steps == 1
                own = replace(context, memory=self.ranked if is_first else None)
                result, _, context = run_pass(each, model, own, None)
                model = result.model
            context = context if context.original is not None else context.with_original(model)
            self.prefixes[rate] = model, replace(context, memory={})
        return self.prefixes[rate]

    def _passes(self, rate: float, target: Mapping[str, float]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
        """Return the passes up to the last that removes filters, and those behind it."""
        given = passes_of(replace(self.recipe, prune=rate, target=target), recovery=self.recovery)
        # No answer depends on the form that operators are written in.
        passes = tuple(each for each in given if each.name != Lowering.name)
        ends = [at for at, each in enumerate(passes, 1) if each.name in (Cleanup.name, FilterPruning.name)]
        end = max(ends, default=0)
        return passes[:end], passes[end:]

    def _complaint(self) -> str:
        gentlest = max((t for t in self._trials() if t.error is not None), key=lambda t: t.macs or 0.0, default=None)
        tried = "no budget that was tried can be reached"
        if gentlest is not None:
            lost = [] if gentlest.drop is None else [f"{gentlest.drop:.2f} points"]
            lost += [] if self.recipe.max_error is None else [f"{gentlest.error:.2f} % of its outputs"]
            left = f"leaves {gentlest.macs:.0%} of the MACs"
            tried = f"the gentlest that was tried {left} and may lose {' and '.join(lost)}"
        given = (("max_drop", self.recipe.max_drop), ("max_error", self.recipe.max_error))
        limits = " and ".join(f"{name} {limit:g}" for name, limit in given if limit is not None)
        return f"no compression keeps {limits} on the samples set aside: {tried}"


def _aimed(gate: GateResult) -> float:
    """Return which share of what was lost may be left, on the scale of `Search._held`."""
    lost = gate.interval[1] if gate.strict and gate.interval else gate.value
    return (gate.limit / lost) ** (2 if gate.name == ERROR else 1) if lost else 0.0


def _share_of(lost: float, limit: float) -> float:
    """Return a loss as a share of its limit."""
    if limit > 0.0:
        return lost / limit
    return 0.0 if lost == 0.0 else math.inf


def _share(kind: str, cost: ModelCost, original: ModelCost) -> float:
    figures = {"macs": (cost.macs, original.macs), "params": (cost.params, original.params)}
    left, whole = figures.get(kind, (cost.weight_bytes, original.weight_bytes))
    return float(left or 0) / whole if whole else 1.0
