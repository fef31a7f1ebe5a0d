"""Exact clean-up of a graph: a pipeline of rules, each a pass of its own, repeated until none has work left.

Most rules only take away. Those of `RACED` write an operator in another form, which is not faster everywhere: their
work is kept where a race of the whole network, as it is with and without it, is won on the asked provider. Where no
race can be run, `RACED` says on which providers the form is known to be faster.
"""

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
from onnxcompress.passes.cleanup.lrn import LrnRewriting
from onnxcompress.passes.cleanup.reshape import ReshapeSettling
from onnxcompress.passes.cleanup.unused import UnusedRemoval
from onnxcompress.passes.race import is_faster, race_text

RULES: Mapping[str, type[Pass]] = {
    rule.name: rule
    for rule in (IdentityRemoval, ConstantFolding, ReshapeSettling, BatchNormFolding, LrnRewriting, UnusedRemoval)
}
STEPS = tuple(RULES)
"""Names of all steps, in the order in which they run."""

RACED: Mapping[str, frozenset[str]] = {LrnRewriting.name: frozenset({"CPUExecutionProvider"})}
"""Steps that are taken where they are faster, and the providers on which that is taken for granted without a race."""

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
    """Removes what costs time and says nothing; the network computes the same, rounding apart."""

    name: ClassVar[str] = "cleanup"

    def __init__(self, config: CleanupConfig | None = None) -> None:
        self.config = config or CleanupConfig()

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Plan every step on what the steps before it leave; decisions carry `step` and `round`."""
        decisions: list[Decision] = []
        skipped: dict[str, tuple[Skipped, ...]] = {}
        lost: dict[str, Plan] = {}
        for number in range(1, _MAX_ROUNDS + 1):
            changed = False
            for step in self.config.steps:
                if step in lost:
                    continue
                plan = RULES[step]().plan(model, context)
                cleaned = RULES[step]().apply(model, plan, context).model if plan.decisions else model
                if plan.decisions and step in RACED:
                    plan = _raced(step, model, cleaned, plan, context)
                    if not plan.decisions:
                        lost[step] = plan
                skipped[step] = tuple(Skipped(s.node, f"{step}: {s.reason}") for s in plan.skipped)
                decisions += [{"step": step, "round": number, **decision} for decision in plan.decisions]
                if plan.decisions:
                    model, changed = cleaned, True
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


def _raced(step: str, before: Model, after: Model, plan: Plan, context: PassContext) -> Plan:
    """Return the plan with why it is carried out, or without decisions and why not."""
    results = context.race(before, after) if context.race is not None else ()
    if results:
        keeps, why = is_faster(results), f"the network runs {race_text(results)}"
    else:
        keeps = set(context.providers) <= RACED[step]
        known = "known to be faster" if keeps else "not known to be faster"
        why = f"not timed; {known} on {', '.join(context.providers)}"
    if keeps:
        return Plan(plan.pass_name, tuple({**decision, "why": why} for decision in plan.decisions), plan.skipped)
    lost = tuple(Skipped(str(decision["node"]), f"left as it is: {why}") for decision in plan.decisions)
    return Plan(plan.pass_name, (), plan.skipped + lost)
