"""Exact clean-up of a graph: a pipeline of rules, each a pass of its own, repeated until none has work left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.cleanup.batchnorm import BatchNormFolding
from onnxcompress.passes.cleanup.fold import ConstantFolding
from onnxcompress.passes.cleanup.identity import IdentityRemoval
from onnxcompress.passes.cleanup.reshape import ReshapeSettling
from onnxcompress.passes.cleanup.unused import UnusedRemoval

RULES: Mapping[str, type[Pass]] = {
    rule.name: rule for rule in (IdentityRemoval, ConstantFolding, ReshapeSettling, BatchNormFolding, UnusedRemoval)
}
STEPS = tuple(RULES)
"""Names of all steps, in the order in which they run."""

_MAX_ROUNDS = 20


@dataclass(frozen=True)
class CleanupConfig:
    """Which steps to take.

    Attributes:
        steps: names out of `STEPS`, in the order in which they run.

    Raises:
        RecipeError: an unknown step.
    """

    steps: tuple[str, ...] = STEPS

    def __post_init__(self) -> None:
        for step in self.steps:
            if step not in RULES:
                raise RecipeError(f"cleanup: unknown step '{step}', expected some of {', '.join(STEPS)}")


class Cleanup(Pass):
    """Removes what costs time and says nothing; the network computes the same, BatchNorm's rounding apart."""

    name: ClassVar[str] = "cleanup"

    def __init__(self, config: CleanupConfig | None = None) -> None:
        self.config = config or CleanupConfig()

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Plan every step on what the steps before it leave; decisions carry `step` and `round`."""
        decisions: list[Decision] = []
        skipped: dict[str, tuple[Skipped, ...]] = {}
        for number in range(1, _MAX_ROUNDS + 1):
            changed = False
            for step in self.config.steps:
                rule = RULES[step]()
                plan = rule.plan(model, context)
                skipped[step] = tuple(Skipped(s.node, f"{step}: {s.reason}") for s in plan.skipped)
                decisions += [{"step": step, "round": number, **decision} for decision in plan.decisions]
                if plan.decisions:
                    model, changed = rule.apply(model, plan, context).model, True
            if not changed:
                break
        return Plan(self.name, tuple(decisions), tuple(s for found in skipped.values() for s in found))

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Take the planned steps.

        Raises:
            RecipeError: the plan holds unknown steps or nodes that the model does not have.
        """
        for (_, step), decisions in groupby(plan.decisions, key=lambda d: (d["round"], d["step"])):
            if step not in RULES:
                raise RecipeError(f"plan: clean-up has no step '{step}', expected one of {', '.join(STEPS)}")
            RULES[step]().rewrite(model, Plan(step, tuple(decisions)), context)
            model.refresh_shapes()
        return {}
