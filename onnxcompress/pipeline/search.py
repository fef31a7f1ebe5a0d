"""`--prune auto`, and `--max-drop` with splits left to us: how much is compressed, found by compressing and evaluating.

One budget is searched: the share of the original's MACs that may be left. Ranks under it are the allocation pass's; its
measurements do not depend on the budget and are taken once. Each trial runs the passes of the recipe, recovery
included, on a part of the calibration data, and is evaluated on the rest of them. The smallest share that keeps the
drop is found by bisection. With `prune="auto"` filters are then removed, a little at first, as long as that makes a
smaller model still keep the drop; which ones, from all layers together, the importance `response` says.

The evaluation data are never looked at here: the gate judges the result on them at the end. So the gate may fail; the
search's own estimate is of other samples, and of fewer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxcompress.analysis.cost import ModelCost, model_cost
from onnxcompress.errors import BudgetInfeasibleError, DataError
from onnxcompress.evaluation.expectation import ExpectedDrop, expected_drop
from onnxcompress.evaluation.reference import Reference
from onnxcompress.graph import Model
from onnxcompress.passes.base import Pass, PassContext
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.passes.pruning import FilterPruning
from onnxcompress.pipeline.outputs import CompressedModel
from onnxcompress.pipeline.stages import passes_of, run_pass
from onnxcompress.recipe import Recipe
from onnxcompress.report.progress import Progress
from onnxcompress.report.search_figures import Found, Trial
from onnxcompress.runtime.dataset import Dataset
from onnxcompress.runtime.session import Session

HELD_OUT_SHARE = 0.25
"""Part of the calibration data on which trials are evaluated."""

_LEAST_SHARE, _SHARE_STEP = 0.1, 0.025
_RATES = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_MOST_RATE, _RATE_STEP = 0.9, 0.02


@dataclass
class Search:
    """One search.

    Attributes:
        labels: whether the result will be judged on labels.
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
    trials: list[Trial] = field(default_factory=list)
    prefixes: dict[float, tuple[Model, PassContext]] = field(default_factory=dict)
    ranked: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Found:
        """Find what to compress with.

        Raises:
            BudgetInfeasibleError: nothing that was tried keeps the drop, or the target.
            DataError: the calibration data are too few to set some aside, or the original gives no classes.
        """
        recipe = self.recipe
        splits = "auto" in (recipe.tucker, recipe.svd)
        if recipe.target and not splits:
            return Found("cost", None, 0, self._by_cost(), tuple(self.trials))
        held_out, fitted = self.calibration.split(HELD_OUT_SHARE, recipe.seed)
        self.context = replace(self.context, calibration=fitted.samples())
        with Reference(Session(self.content), held_out) as reference:
            if reference.output is None:
                raise DataError("a search needs a model that classifies: no output of shape [N, C] to tell a drop from")
            if recipe.target:
                chosen = self._under_target(reference)
            elif splits:
                chosen = self._by_share(reference)
            else:
                chosen = self._by_rate(reference)
            measure = "expected_top1" if self.labels else "disagreement"
            return Found(measure, recipe.max_drop, reference.samples, chosen, tuple(self.trials))

    def _by_share(self, reference: Reference) -> dict[str, Any]:
        def keeps(rate: float) -> Callable[[float], bool]:
            return lambda share: self._keeps(self._trial(rate, {"macs": share}, reference))

        share = bisected(keeps(0.0), _LEAST_SHARE, 1.0, _SHARE_STEP)
        rate = 0.0
        for tried in _RATES if self.recipe.prune == "auto" else ():
            less = (share or 1.0) - _SHARE_STEP
            if less < _LEAST_SHARE or not keeps(tried)(less):
                break
            rate = tried
            share = bisected(keeps(rate), _LEAST_SHARE, less, _SHARE_STEP, holds_high=True)
        if share is None:
            raise BudgetInfeasibleError(self._complaint())
        return {"prune": rate, "target": {"macs": share}}

    def _by_rate(self, reference: Reference) -> dict[str, Any]:
        # Mirrored, so that the gentlest is the upper end, as it is of shares.
        kept = bisected(
            lambda share: self._keeps(self._trial(round(1.0 - share, 4), {}, reference)),
            1.0 - _MOST_RATE,
            1.0,
            _RATE_STEP,
        )
        if kept is None:
            raise BudgetInfeasibleError(self._complaint())
        return {"prune": round(1.0 - kept, 4)}

    def _under_target(self, reference: Reference) -> dict[str, Any]:
        """Under a target that is given: remove filters before ranks are chosen as long as the answers come closer.

        Told by the divergence, which a few samples tell better than which of them change class.
        """
        best, least = None, math.inf
        for rate in (0.0, *_RATES):
            divergence = self._trial(rate, self.recipe.target, reference).divergence
            if divergence is not None and divergence < least:
                best, least = rate, divergence
            elif best is not None:
                break
        if best is None:
            raise BudgetInfeasibleError("the target cannot be reached by splits, nor with half of the filters removed")
        return {"prune": best}

    def _by_cost(self) -> dict[str, Any]:
        """Pruning alone under a target: the fewest filters that reach it; nothing needs to be evaluated."""

        def reaches(share: float) -> bool:
            model, _ = self._before_ranks(round(1.0 - share, 4))
            return all(_share(kind, model_cost(model), self.cost) <= own for kind, own in self.recipe.target.items())

        low, high = 1.0 - _MOST_RATE, 1.0
        if not reaches(low):
            raise BudgetInfeasibleError(f"the target cannot be reached with {_MOST_RATE:.0%} of the filters removed")
        while high - low > _RATE_STEP / 4:
            middle = (low + high) / 2
            low, high = (middle, high) if reaches(middle) else (low, middle)
        return {"prune": round(1.0 - low, 4), "target": {}}

    def _keeps(self, trial: Trial) -> bool:
        limit = self.recipe.max_drop
        return trial.drop is not None and limit is not None and trial.drop <= limit

    def _trial(self, rate: float, target: Mapping[str, float], reference: Reference) -> Trial:
        started = time.perf_counter()
        named = ", ".join([*(f"{kind} {share:.2f}" for kind, share in target.items()), f"prune {rate:g}"])
        self.tell(f"search, trial {len(self.trials) + 1}: {named}", 0, None)
        share = target.get("macs")
        try:
            model = self._compressed(rate, target)
        except BudgetInfeasibleError:
            trial = Trial(rate, share, seconds=time.perf_counter() - started)
        else:
            cost = model_cost(model, self.recipe.input_shape)
            seen = self._evaluated(model, reference)
            trial = Trial(
                rate,
                share,
                _share("macs", cost, self.cost),
                _share("params", cost, self.cost),
                seen.drop if self.labels else seen.disagreement_bound,
                seen.disagreement,
                seen.divergence,
                time.perf_counter() - started,
            )
        self.trials.append(trial)
        return trial

    def _compressed(self, rate: float, target: Mapping[str, float]) -> Model:
        model, context = self._before_ranks(rate)
        for each in self._passes(rate, target)[1]:
            result, _, context = run_pass(each, model, context, None, self.recipe.input_shape)
            model = result.model
        return model

    def _before_ranks(self, rate: float) -> tuple[Model, PassContext]:
        if rate not in self.prefixes:
            model, context = self.model, replace(self.context, memory={})
            for each in self._passes(rate, {})[0]:
                if context.original is None and each.name != Cleanup.name:
                    context = replace(context, original=model)
                is_first = each.name == FilterPruning.name and self.recipe.steps == 1
                own = replace(context, memory=self.ranked) if is_first else context
                result, _, after = run_pass(each, model, own, None, self.recipe.input_shape)
                model, context = result.model, replace(after, memory=context.memory)
            self.prefixes[rate] = model, replace(context, original=context.original or model)
        return self.prefixes[rate]

    def _passes(self, rate: float, target: Mapping[str, float]) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
        """Return the passes up to the last that removes filters, and those behind it."""
        steps = self.recipe.steps if rate > 0.0 else 1
        passes = passes_of(replace(self.recipe, prune=rate, target=target, steps=steps), recovery=self.recovery)
        ends = [at for at, each in enumerate(passes, 1) if each.name in (Cleanup.name, FilterPruning.name)]
        end = max(ends, default=0)
        return passes[:end], passes[end:]

    def _evaluated(self, model: Model, reference: Reference) -> ExpectedDrop:
        with CompressedModel(model, external=False).loadable() as content:
            return expected_drop(Session(content), reference)

    def _complaint(self) -> str:
        gentlest = max((t for t in self.trials if t.drop is not None), key=lambda t: t.macs or 0.0, default=None)
        tried = "no budget that was tried can be reached"
        if gentlest is not None:
            left = f"leaves {gentlest.macs:.0%} of the MACs"
            tried = f"the gentlest that was tried {left} and may lose {gentlest.drop:.2f} points"
        return f"no compression keeps max_drop {self.recipe.max_drop:g} on the samples set aside: {tried}"


def bisected(
    holds: Callable[[float], bool], low: float, high: float, step: float, *, holds_high: bool = False
) -> float | None:
    """Return the smallest value between `low` and `high` that holds, to within `step`; None where none was found.

    `high` itself stands for no compression at all, and is no answer unless `holds_high`.
    """
    found = high if holds_high else None
    while high - low > step:
        middle = round((low + high) / 2, 4)
        if holds(middle):
            found = high = middle
        else:
            low = middle
    return found


def _share(kind: str, cost: ModelCost, original: ModelCost) -> float:
    figures = {"macs": (cost.macs, original.macs), "params": (cost.params, original.params)}
    left, whole = figures.get(kind, (cost.weight_bytes, original.weight_bytes))
    return float(left or 0) / whole if whole else 1.0
