"""The allocation pass: one budget for all layers, and for each the split that costs the output least.

For every layer the pass knows what each choice of ranks costs and which share of the layer's response it misses
(`allocation_choices`, from the covariance of the layer's inputs), and how much such an error matters at the output
(`sensitivity`, measured). It then chooses for all layers at once (`allocation_solve`). Leaving a layer whole is always
a choice. The splits are the Tucker and SVD passes'; a refit afterwards gives them their final weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxcompress.analysis.cost import ModelCost, model_cost, sample_shapes
from onnxcompress.analysis.lrn import with_banded_lrn
from onnxcompress.errors import BudgetInfeasibleError, DataError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg.moments import Covariances
from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.linalg.regression import Metric
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Samples, Skipped
from onnxcompress.passes.cleanup.merge import has_linear_neighbours
from onnxcompress.passes.recovery.allocation_choices import Choice, LayerSize, layer_choices, size_of, truncated
from onnxcompress.passes.recovery.allocation_latency import allocate_within_latency
from onnxcompress.passes.recovery.allocation_merged import Finished, Saved, allocate_merged, cheapest
from onnxcompress.passes.recovery.allocation_samples import batched, numbered, sample_batch
from onnxcompress.passes.recovery.allocation_solve import allocate
from onnxcompress.passes.recovery.error_metric import output_metrics
from onnxcompress.passes.recovery.families import Family, find_families
from onnxcompress.passes.recovery.original_run import counted, seen_by
from onnxcompress.passes.recovery.refit import RefitConfig
from onnxcompress.passes.recovery.refit_layers import RefitLayer, biases_to_come, find_refit_layers
from onnxcompress.passes.recovery.refit_wide import MOST_INPUTS
from onnxcompress.passes.recovery.sensitivity import TYPICAL_ERROR, Disturbance, measure_sensitivities
from onnxcompress.passes.recovery.stored_size import FLOAT32, StoredSize
from onnxcompress.passes.tucker import SvdConfig, SvdDecomposition, TuckerConfig, TuckerDecomposition
from onnxcompress.passes.tucker.decomposition import split_cost
from onnxcompress.passes.tucker.factors import SplitShape
from onnxcompress.passes.tucker.matrices import find_matrix_sites
from onnxcompress.passes.tucker.sites import LARGEST_FACTOR, find_conv_sites

Array = npt.NDArray[Any]

TARGETS = ("macs", "params", "size", "latency")

_WORTH_TELLING = 0.01

_JUDGED_ON_DATA = ("response_error", "sensitivity")
"""Entries of a decision that calibration data and the weights of the day gave."""


@dataclass(frozen=True)
class AllocationConfig:
    """What is to be reached, and from how much data it is decided.

    Attributes:
        targets: {kind: share of the given model's}, kinds as in `TARGETS`.
        split_kernels, split_matrices: what may be split: convolutions with a kernel; 1x1 convolutions, Gemm, MatMul.
        images, positions: samples for the covariances, and positions of each.
        judging_images: other samples, for the sensitivities; of few samples each gets half.
        stored: the form in which the weights are stored at the end, for a target of size.
        refit: the one that follows, if any does: its new biases are part of the budget.
        merges: whether linear neighbours are merged in the end: the budget is of what is left then.

    Raises:
        RecipeError: a value out of range.
    """

    targets: Mapping[str, float]
    split_kernels: bool = True
    split_matrices: bool = True
    images: int = 384
    positions: int = 64
    judging_images: int = 48
    stored: StoredSize = FLOAT32
    refit: RefitConfig | None = None
    merges: bool = False

    def __post_init__(self) -> None:
        for kind, share in self.targets.items():
            if kind not in TARGETS:
                raise RecipeError(f"target: unknown kind '{kind}', expected one of {', '.join(TARGETS)}")
            if not share > 0.0:
                raise RecipeError(f"target: {kind}={share}, expected a share above 0 of the original")


@dataclass(frozen=True)
class _Measured:
    """Layers that were considered, the choices of those that have any, their sensitivities, and what was left alone.

    Of layers that share their weight the first stands for all `sharers`. `biases` are the sizes of those that layers
    have not, and that a refit adds; `fitted` are the layers that it fits, with their outputs.
    """

    considered: tuple[str, ...]
    sharers: Mapping[str, tuple[str, ...]]
    worth: Mapping[str, Sequence[Choice]]
    sensitivity: Mapping[str, float]
    skipped: tuple[Skipped, ...]
    biases: tuple[int, ...]
    fitted: Mapping[str, int]


class Allocation(Pass):
    """Splits layers so that the whole model keeps within a budget at the least damage."""

    name: ClassVar[str] = "allocate"

    def __init__(self, config: AllocationConfig) -> None:
        self.config = config
        self._tucker = TuckerDecomposition(TuckerConfig())
        self._svd = SvdDecomposition(SvdConfig())

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Choose ranks from calibration data.

        Raises:
            DataError: there are no calibration data, or a tensor holds NaN or infinity; it is named.
            BudgetInfeasibleError: no choice keeps the targets; the message says what can be reached.
        """
        if context.calibration is None:
            raise DataError("--target needs calibration data; give --calib PATH or --data PATH")
        memory = {} if context.memory is None else context.memory
        if self.name not in memory:
            memory[self.name] = self._measured(model, context, context.calibration)
        measured: _Measured = memory[self.name]
        skipped, worth, sensitivity = list(measured.skipped), measured.worth, measured.sensitivity
        chosen, times = self._allocate(model, context, measured)
        decisions = [
            {**each, **times.get(str(each["node"]), {})}
            for each in self._decisions(model, chosen, sensitivity, measured.sharers)
        ]
        split = {str(decision["node"]) for decision in decisions}
        for name in measured.considered:
            if name not in split:
                reason = (
                    "whole it serves the budget best"
                    if any(name in measured.sharers[each] for each in worth)
                    else "no split lowers both MACs and parameters"
                )
                skipped.append(Skipped(name, reason))
        return Plan(self.name, tuple(decisions), tuple(skipped))

    def _measured(self, model: Model, context: PassContext, calibration: Samples) -> _Measured:
        """Return what does not depend on the budget."""
        layers, skipped = find_refit_layers(model, model, context)
        fast = with_banded_lrn(model)
        shapes, shapes_batch = sample_shapes(model)
        batch, filled = sample_batch(model)
        # Where a truncation is judged on the samples that chose it, layers with many inputs and few positions, the
        # last ones above all, seem to bear more than they do.
        drawn = numbered(calibration, self.config.images + self.config.judging_images)
        every = max(2, round(len(drawn) / self.config.judging_images))
        judging = list(drawn.values())[every - 1 :: every] or list(drawn.values())
        seen = {n: sample for at, (n, sample) in enumerate(drawn.items(), 1) if at % every}
        answers: Mapping[str, int] = {}
        if self.config.refit:
            answers = self.config.refit.positions_of(layers, counted(model, calibration, context)[0])
        covariances = seen_by(model, layers, seen, self.config.positions, context, answers)
        metrics = output_metrics(model, [layer for layer in layers if layer.node in covariances], context)
        families, others = find_families(model, layers, with_bias=False)
        skipped += others
        pooled = {
            family[0].node: Covariances.pooled([covariances[layer.node] for layer in family])
            for family in families
            if all(layer.node in covariances for layer in family)
        }
        choices: dict[str, list[Choice]] = {}
        sizes = [size_of(family, shapes, shapes_batch) for family in families]
        options = parallel_map(
            lambda own: self._choices(*own, pooled, metrics, context), zip(families, sizes, strict=True)
        )
        for family, found in zip(families, options, strict=True):
            if isinstance(found, str):
                skipped += [Skipped(layer.node, found) for layer in family]
            else:
                choices[family[0].node] = found
        by_name = {layer.node: layer for layer in layers}
        worth = {name: own for name, own in choices.items() if len(own) > 1}
        disturbances = parallel_map(
            lambda name: _disturb(by_name[name], pooled[name], worth[name], metrics.get(name)), worth
        )
        disturbed = dict(zip(worth, disturbances, strict=True))
        sharers = {family[0].node: tuple(layer.node for layer in family) for family in families}
        judged = batched(judging, batch, filled=filled)
        sensitivity = measure_sensitivities(fast, layers, disturbed, judged, sharers, context.numbers)
        considered = tuple(name for first in choices for name in sharers[first])
        biases = tuple(biases_to_come(model, layers))
        fitted = {layer.node: layer.outputs for layer in layers}
        return _Measured(considered, sharers, worth, sensitivity, tuple(skipped), biases, fitted)

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Split the planned layers of `model`.

        Raises:
            RecipeError: the plan names layers or ranks that the model does not have.
        """
        for kind, each in (("tucker", self._tucker), ("svd", self._svd)):
            own = tuple(decision for decision in plan.decisions if decision["kind"] == kind)
            if own:
                each.rewrite(model, Plan(each.name, own), context)
        return {}

    def remeasured(self, model: Model, plan: Plan) -> Plan:
        """Return the plan with the errors of this model's weights, without what calibration data told of others'."""
        decisions = self._with_errors(model, plan.decisions)
        kept = tuple({k: v for k, v in each.items() if k not in _JUDGED_ON_DATA} for each in decisions)
        return replace(plan, decisions=kept)

    def _with_errors(self, model: Model, decisions: Sequence[Decision]) -> list[Decision]:
        """Return decisions with the errors of their factors, which are kept for the rewrite."""
        errors: dict[str, Any] = {}
        for kind, each in (("tucker", self._tucker), ("svd", self._svd)):
            own = tuple(decision for decision in decisions if decision["kind"] == kind)
            found = each.remeasured(model, Plan(each.name, own)).decisions
            errors |= {str(decision["node"]): decision["error"] for decision in found}
        return [{**decision, "error": errors[str(decision["node"])]} for decision in decisions]

    def _choices(
        self,
        family: Family,
        size: LayerSize | None,
        covariances: Mapping[str, Covariances],
        metrics: Mapping[str, Metric],
        context: PassContext,
    ) -> list[Choice] | str:
        layer = family[0]
        if layer.groups > 1:
            return "a grouped convolution is left whole"
        if layer.op == "ConvTranspose" and layer.positions == 1:
            return "a transposed convolution with a kernel of one position is left whole"
        if not (self.config.split_kernels if layer.positions > 1 else self.config.split_matrices):
            return "not asked for (--tucker, --svd)"
        own = covariances.get(layer.node)
        if own is None:
            return f"each output has more than {MOST_INPUTS:,} inputs: their covariance would be too large"
        if size is None:
            return "its sizes are not known"
        if not np.linalg.norm(layer.original[0]) <= LARGEST_FACTOR:
            return "its weight holds values too large to be split"
        slope = layer.original[0].reshape(len(own.xx), -1)
        return layer_choices(own, slope, size, context.round_to, metrics.get(layer.node))

    def _allocate(
        self,
        model: Model,
        context: PassContext,
        measured: _Measured,
    ) -> tuple[dict[str, Choice], dict[str, dict[str, list[float]]]]:
        """Return what every layer becomes, and how long it then takes where that counted."""
        choices, sensitivity = measured.worth, measured.sensitivity
        cost, reference = model_cost(model), context.original_cost or model_cost(model)
        damages = [np.array([sensitivity.get(n, 1.0) * c.error for c in own]) for n, own in choices.items()]
        targets = {kind: share for kind, share in self.config.targets.items() if kind != "latency"}
        costs = {k: [np.array([self._cost_of(k, c) for c in own]) for own in choices.values()] for k in targets}
        biases = measured.biases if self.config.refit else ()
        fixed = {
            kind: self._present(kind, model, cost, context, biases) - sum(float(own[0]) for own in own_costs)
            for kind, own_costs in costs.items()
        }
        saved = self._saved(model, context, measured, costs, fixed)
        limits: dict[str, float] = {}
        for kind, share in targets.items():
            whole = self._whole(kind, model, reference, context)
            limits[kind] = share * whole - fixed[kind] - (context.spared_bytes if kind == "size" else 0.0)
            least = sum(float(own.min()) for own in costs[kind])
            if least > limits[kind] and saved is not None:
                least -= saved(cheapest(costs[kind]))[kind]
            if least > limits[kind]:
                reached = share + (least - limits[kind]) / whole
                # Rounded up, so that what is told can be reached.
                raise BudgetInfeasibleError(
                    f"{kind}={share:g} cannot be reached: with every layer at its smallest choice it is "
                    f"{math.ceil(reached * 1000) / 1000:.3f} of the original's"
                    f"{_held_by_whole_layers(kind, reference, measured.skipped)}; allow more, prune too (--prune), "
                    "or leave fewer layers out",
                    {kind: reached},
                )
        if "latency" in self.config.targets:
            share = self.config.targets["latency"] * context.latency_factor
            picked, times = allocate_within_latency(
                model, context, share, choices, damages, costs, limits, measured.sharers
            )
        elif saved is not None:
            picked, times = allocate_merged(damages, costs, limits, saved), {}
        else:
            picked, times = allocate(damages, costs, limits), {}
        return {name: choices[name][at] for name, at in zip(choices, picked, strict=True)}, times

    def _whole(self, kind: str, model: Model, reference: ModelCost, context: PassContext) -> float:
        """Return what a share is of."""
        if kind == "size":
            return float(context.original_bytes or model.size_bytes)
        return _total(kind, reference)

    def _present(self, kind: str, model: Model, cost: ModelCost, context: PassContext, biases: Sequence[int]) -> float:
        """Return what the model costs with every layer whole, in the end."""
        stored = self.config.stored
        if kind == "size":
            return stored.of_file(model, context) + stored.of_biases(biases)
        return _total(kind, cost) + (sum(biases) if kind == "params" else 0.0)

    def _saved(
        self,
        model: Model,
        context: PassContext,
        measured: _Measured,
        costs: Mapping[str, Sequence[Array]],
        fixed: Mapping[str, float],
    ) -> Saved | None:
        """Return what a choice saves in the end; None where it does not, or times decide, which are measured."""
        merges = self.config.merges and has_linear_neighbours(model)
        if "latency" in self.config.targets or not (merges or "size" in costs):
            return None
        fitted = measured.fitted if self.config.refit else {}
        finished = Finished(model, context, fitted, merges=merges, stored=self.config.stored)
        sharers, choices = measured.sharers, measured.worth

        def saved(picked: Sequence[int]) -> Mapping[str, float]:
            chosen = zip(choices.items(), picked, strict=True)
            splits = {node: own[at].split for (first, own), at in chosen for node in sharers[first]}
            own = finished.saved(splits)
            if "size" in costs:
                summed = sum(float(own[at]) for own, at in zip(costs["size"], picked, strict=True))
                own["size"] = fixed["size"] + summed - finished.size(splits)
            return own

        return saved

    def _cost_of(self, kind: str, choice: Choice) -> float:
        if kind == "macs":
            return float(choice.macs)
        return float(choice.params) if kind == "params" else self.config.stored.of_choice(choice)

    def _decisions(
        self,
        model: Model,
        chosen: Mapping[str, Choice],
        sensitivity: Mapping[str, float],
        sharers: Mapping[str, tuple[str, ...]],
    ) -> list[Decision]:
        convolutions = {site.node: site for site in find_conv_sites(model, PassContext())[0] if site.kernel_size > 1}
        matrices = {site.node: site for site in find_matrix_sites(model, PassContext())[0]}
        decisions: list[Decision] = []
        for node, choice, first in ((node, own, each) for each, own in chosen.items() for node in sharers[each]):
            if choice.rank_in is None and choice.rank_out is None:
                continue
            judged = {"response_error": choice.error, "sensitivity": sensitivity.get(first, 0.0)}
            if node in matrices and choice.rank_out is not None:
                matrix = matrices[node]
                cost = matrix.cost(choice.rank_out)
                common: dict[str, object] = {
                    "kind": "svd",
                    "ranks": [choice.rank_out],
                    "channels": list(reversed(matrix.matrix_shape)),
                }
            else:
                site = convolutions[node]
                into, out = choice.rank_in or site.in_channels, choice.rank_out or site.out_channels
                split = SplitShape(into, out, choice.rank_in is not None, choice.rank_out is not None, choice.spans)
                cost = split_cost(site, split)
                channels = [site.in_channels, site.out_channels]
                common = {"kind": "tucker", "ranks": [into, out], "channels": channels, "groups": 1}
                common |= {"factors": split.factors, **({"spans": split.spans} if split.spans else {})}
            sizes = {"macs": list(cost.macs) if cost.macs else None, "params": list(cost.params)}
            decisions.append({"node": node, **common, "error": math.nan, **sizes, **judged})
        return self._with_errors(model, decisions)


def _disturb(
    layer: RefitLayer, covariances: Covariances, choices: Sequence[Choice], metric: Metric | None
) -> Disturbance:
    choice = min(choices[1:], key=lambda each: abs(np.log(max(each.error, 1e-9) / TYPICAL_ERROR)))
    original = layer.original[0].reshape(len(covariances.xx), -1)
    slope = truncated(covariances, original, layer.kernel_shape, choice, metric)
    return Disturbance(slope, covariances.mean_x @ (original - slope), max(choice.error, 1e-9))


def _held_by_whole_layers(kind: str, cost: ModelCost, skipped: Sequence[Skipped]) -> str:
    """Return what to say of layers that no target splits: the reason that holds most of the cost, from 1 % on."""
    reasons = {each.node: each.reason for each in skipped}
    held: dict[str, float] = {}
    for layer in cost.layers:
        if layer.node in reasons:
            own = layer.macs if kind == "macs" else layer.params
            held[reasons[layer.node]] = held.get(reasons[layer.node], 0.0) + float(own or 0)
    reason = max(held, key=held.__getitem__, default="")
    share = held.get(reason, 0.0) / max(float(cost.macs or 0) if kind == "macs" else float(cost.params), 1.0)
    return f", {share:.3f} in layers left whole ({reason})" if share >= _WORTH_TELLING else ""


def _total(kind: str, cost: ModelCost) -> float:
    if kind == "macs":
        if cost.macs is None:
            raise RecipeError("target: the model's MACs are not known; a target of params needs none")
        return float(cost.macs)
    return float(cost.params)
