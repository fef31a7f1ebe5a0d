"""Filter pruning: whole filters leave, and every shape that depends on them follows.

Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017; the dependency groups are those of `analysis.channels`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxcompress.analysis.channels import ChannelAnalysis, ChannelGroups, Group, Surgery, find_groups
from onnxcompress.analysis.channels.labels import Mask
from onnxcompress.analysis.shapes import fold_static_values
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model, Shape
from onnxcompress.passes.base import Decision, Pass, PassContext, PassResult, Plan, Provenance, Skipped
from onnxcompress.passes.execution import run_model
from onnxcompress.passes.pruning.importance import IMPORTANCES, class_scores
from onnxcompress.passes.pruning.oracle import masked_reference
from onnxcompress.passes.pruning.selection import select, wished_widths
from onnxcompress.passes.verification import Verification, verify

SCOPES = ("uniform", "global")


@dataclass(frozen=True)
class PruningConfig:
    """What to prune.

    Attributes:
        ratio: fraction of the filters to remove, 0 <= ratio < 1; of those that the original had, where an earlier
            pass has removed some already.
        scope: `uniform` (the ratio of every group) or `global` (of all filters, ranked together).
        importance: see `importance`.

    Raises:
        RecipeError: a value out of range or unknown.
    """

    ratio: float
    scope: str = "uniform"
    importance: str = "l1"

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio < 1.0:
            raise RecipeError(f"prune: the ratio is {self.ratio}, expected 0 <= R < 1")
        if self.scope not in SCOPES:
            raise RecipeError(f"prune: unknown scope '{self.scope}', expected one of {', '.join(SCOPES)}")
        if self.importance not in IMPORTANCES:
            raise RecipeError(
                f"prune: unknown importance '{self.importance}', expected one of {', '.join(IMPORTANCES)}"
            )


def analyse(model: Model, context: PassContext) -> tuple[Model, ChannelGroups]:
    """Return a copy of `model` with lengths known before the run made constant, and its groups."""
    prepared = model.copy()
    if fold_static_values(prepared):
        prepared.refresh_shapes()
    excluded = frozenset(node.name for node in prepared.nodes if context.is_excluded(node.name))
    return prepared, find_groups(ChannelAnalysis(prepared), excluded)


class FilterPruning(Pass):
    """Removes the least important filters of every dependency group."""

    name: ClassVar[str] = "prune"

    def __init__(self, config: PruningConfig) -> None:
        self.config = config

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Choose the filters to remove; every group that keeps all of them says why."""
        if self.config.ratio == 0.0:
            return Plan(self.name)
        prepared, groups = analyse(model, context)
        scores = class_scores(prepared, groups, self.config.importance, context)
        widths = wished_widths(
            groups,
            scores,
            self.config.ratio,
            self.config.scope,
            context.round_to,
            _former_sizes(groups, prepared, context.original),
            round_up=context.round_up,
        )
        removed = select(groups, scores, widths, context.align_to)
        decisions: list[Decision] = []
        skipped: list[Skipped] = []
        stays = groups.keep_atoms(removed)
        for group, width in zip(groups.groups, widths, strict=True):
            if not all(stays[record.ids].all() for record in group.records):
                decisions.append(_decision(group, stays))
            else:
                reasons = _reasons(group, width.keep, width.block, round_up=context.round_up)
                skipped += [Skipped(node, reason) for node, reason in reasons]
        return Plan(self.name, tuple(decisions), tuple(skipped))

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Remove the planned filters from `model`.

        Raises:
            RecipeError: the plan names nodes or filters that the model does not have.
        """
        if fold_static_values(model):
            model.refresh_shapes()
        groups = find_groups(ChannelAnalysis(model))
        keep = groups.keep_atoms(planned_classes(groups, plan))
        labelled = {t.name: labels for n in model.nodes for t in n.outputs if (labels := groups.analysis.of(t))}
        surgery = Surgery(model, groups.analysis, keep)
        surgery.run()
        provenance = {}
        for name, labels in labelled.items():
            kept = surgery.kept(labels.ids)
            if len(labels.axes) == 1 and labels.inner == (1,) and not kept.all():
                before = context.provenance.get(name, np.arange(len(kept), dtype=np.int64))
                provenance[name] = before[kept]
        return provenance


def _former_sizes(groups: ChannelGroups, model: Model, original: Model | None) -> list[int]:
    """Return how many classes each group had in the original: in step with the filters of its first producer."""
    if original is None:
        return [group.size for group in groups.groups]
    before = {node.name: node for node in original.nodes}
    after = {node.name: node for node in model.nodes}
    sizes = []
    for group in groups.groups:
        record = group.records[0]
        now, then = (nodes.get(record.node) for nodes in (after, before))
        own, former = (_length(node, record.weight, record.labels.axes[0]) for node in (now, then))
        sizes.append(max(group.size, round(group.size * former / own)) if own and former else group.size)
    return sizes


def _length(node: Any, position: int, axis: int) -> int:
    if node is None or position >= len(node.inputs) or not Model.is_constant(node.inputs[position]):
        return 0
    return int(node.inputs[position].values.shape[axis])


def planned_classes(groups: ChannelGroups, plan: Plan) -> set[int]:
    """Return the classes that a plan removes.

    Raises:
        RecipeError: the plan does not fit the model.
    """
    producers = {producer.node: producer for producer in groups.analysis.findings.producers}
    removed: set[int] = set()
    for decision in plan.decisions:
        for node, filters in decision["removed"].items():
            producer = producers.get(node)
            if producer is None:
                raise RecipeError(f"plan: node '{node}' has no filters in this model; the plan is another model's")
            numbers = np.array([operator.index(number) for number in filters], np.int64)
            if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(producer.ids)):
                raise RecipeError(
                    f"plan: node '{node}' has {len(producer.ids)} filters, the plan removes {max(filters)}"
                )
            removed |= {int(c) for c in groups.class_of[producer.ids[numbers]]}
    for group in groups.groups:
        for at, reason in group.frozen.items():
            if int(group.classes[at]) in removed:
                raise RecipeError(f"plan: filters of '{group.name}' cannot be removed: {reason}")
    return removed


def _decision(group: Group, stays: Mask) -> Decision:
    """Return what a group's producers lose; it goes by the name of the first that loses something."""
    filters = {record.node: np.flatnonzero(~stays[record.ids]).tolist() for record in group.records}
    removed = {node: numbers for node, numbers in filters.items() if numbers}
    first = next(record for record in group.records if record.node in removed)
    width = len(first.ids)
    return {
        "kind": "prune",
        "node": first.node,
        "filters": [width, width - len(removed[first.node])],
        "removed": removed,
    }


def _reasons(group: Group, keep: int, block: int, *, round_up: bool) -> list[tuple[str, str]]:
    if group.frozen and not group.prunable.any():
        reason = group.frozen[min(group.frozen)]
    elif group.frozen and keep == group.size:
        reason = f"{len(group.frozen)} of {group.size} channels stay: {group.frozen[min(group.frozen)]}"
    elif group.size == 1:
        reason = "has one removable channel, which stays"
    elif block > 1 and group.size <= block:
        reason = f"its {group.size} channels are one block of {block} (--round-to)"
    elif round_up and block > 1 and keep == group.size:
        reason = f"removing less than a block of {block} is no faster: given back (--round-to N removes nearest)"
    else:
        reason = "the ratio, rounded to whole blocks and equal groups, removes none"
    return [(node, reason) for node in group.producers]


def verify_pruning(model: Model, result: PassResult, feeds: Mapping[str, npt.NDArray[Any]]) -> Verification:
    """Prove that the pruned model is `model` with the removed channels neutralised where they are consumed.

    Args:
        model: what the pass was given.
        result: what it returned.
        feeds: one batch of inputs.
    """
    prepared, groups = analyse(model, PassContext())
    keep = groups.keep_atoms(planned_classes(groups, result.plan))
    reference = masked_reference(prepared, groups, keep, _lengths(prepared, groups, feeds))
    return verify(result.plan.pass_name, reference, result.model, feeds)


def _lengths(model: Model, groups: ChannelGroups, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, Shape]:
    """Return {tensor name: shape} as `feeds` run; what consumers read is measured where inference leaves it open."""
    shapes = model.shapes_for({name: values.shape for name, values in feeds.items()})
    inputs = {node.name: node.inputs for node in model.nodes}
    read = [(inputs[each.node][each.position].name, each.labels) for each in groups.analysis.findings.consumers]
    needed = dict.fromkeys(name for name, labels in read if None in labels.inner or name not in shapes)
    unknown = [name for name in needed if not all(isinstance(length, int) for length in shapes.get(name, (None,)))]
    measured = run_model(model, feeds, unknown) if unknown else {}
    return {**shapes, **{name: values.shape for name, values in measured.items()}}
