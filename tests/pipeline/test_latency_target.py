"""The last word on a target of latency, on machines that come into another state while the passes run."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from onnxcompress.analysis.cost import model_cost
from onnxcompress.errors import BudgetInfeasibleError
from onnxcompress.graph import Model
from onnxcompress.passes.base import ModelTime, PassContext, Plan
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.passes.recovery.allocation import Allocation, AllocationConfig
from onnxcompress.pipeline.latency_target import Ran, can_run_again, meet_latency
from onnxcompress.pipeline.stages import Stage, Work
from onnxcompress.report.figures import StageFigures
from tests.tiny_models import conv_net

TARGET = 0.4
WORK: Work = ((Cleanup(), None), (Allocation(AllocationConfig({"latency": TARGET})), None))


class Runs:
    """A run whose allocation reaches 0.98 of its aim in the state of the moment, and ends `off` times that."""

    def __init__(self, off: Sequence[float], *, splits: bool = True, least: float = 0.0) -> None:
        self.off, self.splits, self.least = list(off), splits, least
        self.factors: list[float] = []
        self.cleanups: list[Plan | None] = []
        self.shares: dict[int, float] = {}

    def __call__(self, work: Work, context: PassContext) -> Ran:
        aim = TARGET * context.latency_factor
        if aim < self.least:
            raise BudgetInfeasibleError("too fast")
        self.factors.append(context.latency_factor)
        self.cleanups.append(work[0][1])
        context.aimed(0.98 * aim)
        model = Model.from_proto(conv_net())
        self.shares[id(model)] = 0.98 * aim * self.off[len(self.factors) - 1]
        decisions = ({"node": "second"},) if self.splits else ()
        plans = [Plan("cleanup", ({"node": str(len(self.factors))},)), Plan("allocate", decisions)]
        self.model = model  # keeps it, and so its id, alive
        return Ran([_stage(plan, model) for plan in plans], model, None)

    def end(self) -> float:
        """Return the share at which the chosen run ended."""
        self.kept = meet_latency(self, WORK, PassContext(), TARGET, lambda m: ModelTime(self.shares[id(m)], 20.0))
        return self.shares[id(self.kept.model)]


def _stage(plan: Plan, model: Model) -> Stage:
    return Stage(plan, True, model_cost(model), StageFigures(plan.pass_name, 0.0, 0, 0, (), ()))


def test_a_run_that_ends_where_it_aimed_is_not_repeated() -> None:
    runs = Runs([1.0])
    assert runs.end() == pytest.approx(0.392)
    assert runs.factors == [1.0]


def test_a_state_that_changed_once_is_measured_anew_and_not_corrected_for() -> None:
    runs = Runs([1.3, 1.0])
    assert runs.end() == pytest.approx(0.392)
    assert runs.factors == [1.0, 1.0]
    assert runs.cleanups[0] is None
    assert runs.cleanups[1] == Plan("cleanup", ({"node": "1"},)), "clean-up stays as it was planned"


@pytest.mark.parametrize("off", [1.08, 0.9])
def test_what_two_rounds_agree_upon_is_corrected_for(off: float) -> None:
    runs = Runs([off] * 3)
    assert runs.end() == pytest.approx(0.392)
    assert runs.factors == pytest.approx([1.0, 1.0, 1.0 / off])


def test_differences_of_either_sign_correct_nothing() -> None:
    runs = Runs([1.3, 0.8, 1.1])
    assert runs.end() == pytest.approx(0.98 * 0.8 * TARGET), "the one that keeps the target"
    assert runs.factors == [1.0, 1.0, 1.0]


def test_below_the_target_with_every_layer_whole_there_is_nothing_to_do() -> None:
    runs = Runs([0.5], splits=False)
    assert runs.end() == pytest.approx(0.196)


def test_a_corrected_aim_out_of_reach_keeps_what_was_reached() -> None:
    runs = Runs([1.3, 1.2], least=0.39)
    assert runs.end() == pytest.approx(0.98 * 1.2 * TARGET)
    with pytest.raises(BudgetInfeasibleError):
        Runs([1.0], least=0.9).end()


def test_a_saved_plan_and_a_work_without_allocation_run_once() -> None:
    assert can_run_again(WORK)
    assert not can_run_again(WORK[:1])
    assert not can_run_again(((WORK[1][0], Plan("allocate")),))
