"""Exact clean-up of a graph: a pipeline of rules, each a pass of its own, repeated until none has work left.

Most rules only take away. Some write an operator in another form, which is not faster everywhere (`Rule.races`): their
work is kept where a race of the whole network, as it is with and without it, is won on the asked provider. Where no
race can be run, the rule says on which providers its form is known to be faster.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Skipped, judged
from onnxcompress.passes.cleanup.activations import ActivationWriting
from onnxcompress.passes.cleanup.affine import BatchNormFolding, ScaleFolding
from onnxcompress.passes.cleanup.blocked import BlockedForms
from onnxcompress.passes.cleanup.conv2d import PlanarConvolutions
from onnxcompress.passes.cleanup.fold import ConstantFolding
from onnxcompress.passes.cleanup.identity import IdentityRemoval
from onnxcompress.passes.cleanup.lrn import LrnRewriting
from onnxcompress.passes.cleanup.merge import LinearMerging
from onnxcompress.passes.cleanup.padding import PadFolding
from onnxcompress.passes.cleanup.reshape import ReshapeSettling
from onnxcompress.passes.cleanup.rule import Rule
from onnxcompress.passes.cleanup.share import WeightSharing
from onnxcompress.passes.cleanup.softmax import SoftmaxWriting
from onnxcompress.passes.cleanup.split import SequenceSplitting
from onnxcompress.passes.cleanup.transpose import MovementShortening
from onnxcompress.passes.cleanup.unused import UnusedRemoval
from onnxcompress.passes.race import is_faster, race_text, short_name

RULES: Mapping[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        IdentityRemoval,
        ConstantFolding,
        ReshapeSettling,
        MovementShortening,
        SequenceSplitting,
        PadFolding,
        BatchNormFolding,
        ScaleFolding,
        LinearMerging,
        PlanarConvolutions,
        ActivationWriting,
        LrnRewriting,
        BlockedForms,
        UnusedRemoval,
        SoftmaxWriting,
        WeightSharing,
    )
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
    """Removes what costs time and says nothing; the network computes the same, rounding apart."""

    name: ClassVar[str] = "cleanup"
    is_last: ClassVar[bool] = False
    """Whether it takes the steps that wait until all else is done, or the others."""

    def __init__(self, config: CleanupConfig | None = None) -> None:
        steps = (config or CleanupConfig()).steps
        self.config = CleanupConfig(tuple(step for step in steps if RULES[step].comes_last == self.is_last))

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Plan every step on what the steps before it leave; decisions carry `step` and `round`."""
        decisions: list[Decision] = []
        skipped: dict[str, tuple[Skipped, ...]] = {}
        lost: set[str] = set()
        seconds = dict.fromkeys(self.config.steps, 0.0)
        working = model.copy()
        changes = 0
        looked_at: dict[str, int] = {}
        for number in range(1, _MAX_ROUNDS + 1):
            before = changes
            for step in self.config.steps:
                rule = RULES[step]()
                # A race is between networks that are clean but for what it is about: what is left would hide the gain.
                waits = rule.races and changes > before
                if step in lost or looked_at.get(step) == changes or waits:
                    continue
                started = time.perf_counter()
                looked_at[step] = changes
                plan = rule.plan(working, context)
                if plan.decisions and rule.races:
                    other = rule.apply(working, plan, context).model
                    plan = _raced(rule, working, other, plan, context)
                    if plan.decisions:
                        working = other
                    else:
                        lost.add(step)
                elif plan.decisions:
                    rule.rewrite(working, plan, context)
                    with judged(step, model):
                        working.refresh_shapes()
                skipped[step] = tuple(Skipped(s.node, f"{step}: {s.reason}") for s in plan.skipped)
                decisions += [{"step": step, "round": number, **decision} for decision in plan.decisions]
                changes += bool(plan.decisions)
                seconds[step] += time.perf_counter() - started
            if changes == before:
                break
        context.note({"step_seconds": seconds})
        # Of nodes that a step wrote nobody asks why another left them alone.
        given = {node.name for node in model.nodes}
        left = (each for found in skipped.values() for each in found if each.node in given)
        return Plan(self.name, tuple(decisions), tuple(left))

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Take the planned steps.

        Raises:
            RecipeError: the plan holds unknown steps or nodes that the model does not have.
        """
        seconds: dict[str, float] = {}
        for (_, step), decisions in groupby(plan.decisions, key=lambda d: (d["round"], d["step"])):
            if step not in RULES:
                raise RecipeError(f"plan: clean-up has no step '{step}', expected one of {', '.join(STEPS)}")
            started = time.perf_counter()
            RULES[step]().rewrite(model, Plan(step, tuple(decisions)), context)
            model.refresh_shapes()
            seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - started
        context.note({"step_seconds": seconds})
        return {}


class Lowering(Cleanup):
    """Writes operators that other passes know by their usual form in the one that is fastest, when all else is done."""

    name: ClassVar[str] = "lowering"
    tidies: ClassVar[bool] = True
    is_last: ClassVar[bool] = True

    def again(self, model: Model, plan: Plan) -> Model:
        """Return another model of the same run, written as `plan` wrote its own as far as it has the same nodes."""
        asked = {(decision["step"], decision["node"]) for decision in plan.decisions}
        written = model.copy()
        for step in self.config.steps:
            rule = RULES[step]()
            own = rule.plan(written, PassContext())
            kept = tuple(decision for decision in own.decisions if (step, decision["node"]) in asked)
            rule.rewrite(written, Plan(step, kept), PassContext())
            written.refresh_shapes()
        return written


def _raced(rule: Rule, before: Model, after: Model, plan: Plan, context: PassContext) -> Plan:
    """Return the plan with why it is carried out, or without decisions and why not."""
    results = context.race(before, after) if context.race is not None else ()
    if results:
        keeps, why = is_faster(results), f"{race_text(results)}, timed in the network"
    else:
        keeps = set(context.providers) <= rule.faster_on
        known = "known to be faster" if keeps else "not known to be faster"
        why = f"not timed; {known} on {', '.join(map(short_name, context.providers))}"
    if keeps:
        return Plan(plan.pass_name, tuple({**decision, "why": why} for decision in plan.decisions), plan.skipped)
    lost = tuple(Skipped(str(decision["node"]), f"left as it is: {why}") for decision in plan.decisions)
    return Plan(plan.pass_name, (), plan.skipped + lost)
