"""A latency target: the limit on the sum of layer times is corrected by what the whole model is measured at."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.analysis.split import WHOLE, Split
from onnxcompress.errors import BudgetInfeasibleError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import ModelTime, PassContext
from onnxcompress.passes.recovery.allocation_choices import Choice
from onnxcompress.passes.recovery.allocation_latency import allocate_within_latency
from onnxcompress.passes.tucker.trial import SplitTrials
from tests.tiny_models import conv_net

LAYERS = ("second", "classifier")
RANKS = (12, 10, 8, 6, 4, 2)


def choices() -> dict[str, list[Choice]]:
    """More damage the lower the rank."""
    own = [Choice(None, None, 100, 100, 0.0), *(Choice(None, rank, rank, rank, 1.0 / rank) for rank in RANKS)]
    return {"second": own, "classifier": [own[0], Choice(None, 3, 3, 3, 0.2), Choice(None, 1, 1, 1, 0.5)]}


def split_times(model: Model, wanted):
    return {n: {s: 6.0 if s == WHOLE else 0.4 * s.rank_out for s in (WHOLE, *splits)} for n, splits in wanted.items()}


def ranks_in(model: Model) -> dict[str, int | None]:
    """The rank of each layer of a trial model, None where it stands whole."""
    shapes = {node.name: node.inputs[1].shape for node in model.nodes if len(node.inputs) > 1}
    core, first = shapes.get("second_tucker_core"), shapes.get("classifier_svd_first")
    return {"second": core and core[0], "classifier": first and first[0]}


class Machine:
    """A model takes what its layers take, times an error of the table, and 3 ms that no split concerns."""

    def __init__(self, error: float, given_ms: float = 20.0) -> None:
        self.error, self.given_ms, self.measured = error, given_ms, []

    def __call__(self, model: Model) -> ModelTime:
        own = [6.0 if rank is None else 0.4 * rank * self.error for rank in ranks_in(model).values()]
        self.measured.append((3.0 + sum(own)) / self.given_ms)
        return ModelTime(self.measured[-1], self.given_ms)


def run(share: float, machine: Machine | None, **context) -> list[int]:
    own = choices()
    damages = [np.array([choice.error for choice in of]) for of in own.values()]
    given = PassContext(split_times=split_times, measure_model=machine, **context)
    return allocate_within_latency(Model.from_proto(conv_net()), given, share, own, damages, {}, {})[0]


@pytest.mark.parametrize("error", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("share", [0.6, 0.45, 0.35])
def test_the_measured_latency_keeps_the_target_whatever_the_tables_error(error: float, share: float) -> None:
    machine = Machine(error)
    picked = run(share, machine)
    own = choices()
    splits = {layer: own[layer][at].split for layer, at in zip(LAYERS, picked, strict=True)}
    reached = Machine(error)(SplitTrials(Model.from_proto(conv_net())).build(splits)).share
    assert reached <= share
    assert len(machine.measured) <= 7
    # A choice with less damage must be too slow, or have been out of sight by a step of the ranks.
    assert reached > share - 0.12


def test_a_target_that_is_kept_already_splits_nothing() -> None:
    assert run(0.9, Machine(1.0)) == [0, 0]


def test_a_target_out_of_reach_says_what_is_reached() -> None:
    with pytest.raises(BudgetInfeasibleError, match=r"latency=0\.1 cannot be reached: .* 0\.210 of the given"):
        run(0.1, Machine(1.0))


def test_without_times_it_is_refused() -> None:
    own = choices()
    with pytest.raises(RecipeError, match="--no-latency"):
        allocate_within_latency(Model.from_proto(conv_net()), PassContext(), 0.5, own, [], {}, {})


def test_for_another_machine_the_table_alone_decides() -> None:
    picked = run(0.45, None, known_time=ModelTime(0.75, 20.0))
    own = choices()
    total = sum(6.0 if not at else 0.4 * own[n][at].split.rank_out for n, at in zip(LAYERS, picked, strict=True))
    assert 0.75 + (total - 12.0) / 20.0 <= 0.45


def test_a_layer_of_unknown_time_stays_whole() -> None:
    def only_the_second(model: Model, wanted):
        return {name: times for name, times in split_times(model, wanted).items() if name == "second"}

    own = choices()
    damages = [np.array([choice.error for choice in of]) for of in own.values()]
    given = PassContext(split_times=only_the_second, measure_model=Machine(1.0))
    picked, times = allocate_within_latency(Model.from_proto(conv_net()), given, 0.6, own, damages, {}, {})
    assert picked[1] == 0
    assert list(times) == ["second"]
    assert times["second"]["ms"] == pytest.approx([6.0, 0.4 * RANKS[picked[0] - 1]])


def test_layers_that_share_a_weight_take_their_times_together() -> None:
    own = {"second": choices()["second"]}
    damages = [np.array([choice.error for choice in own["second"]])]
    given = PassContext(split_times=split_times, known_time=ModelTime(0.75, 20.0))
    sharers = {"second": ("second", "twin")}
    model = Model.from_proto(conv_net())
    (picked,), times = allocate_within_latency(model, given, 0.5, own, damages, {}, {}, sharers)
    rank = own["second"][picked].split.rank_out
    assert times == {name: {"ms": pytest.approx([6.0, 0.4 * rank])} for name in ("second", "twin")}
    assert 0.75 + 2 * (0.4 * rank - 6.0) / 20.0 <= 0.5
    (alone,), _ = allocate_within_latency(model, given, 0.5, own, damages, {}, {})
    assert own["second"][alone].split.rank_out < rank


def test_trials_have_the_shapes_of_real_splits() -> None:
    trials = SplitTrials(Model.from_proto(conv_net()))
    assert trials.layers == ("first", "second", "classifier")
    model = trials.build({"first": Split(2, 8), "second": Split(8, None), "classifier": Split(None, 3)})
    model.refresh_shapes()
    model.check()
    shapes = {node.name: tuple(node.inputs[1].shape) for node in model.nodes if "_tucker_" in node.name}
    assert shapes["first_tucker_in"] == (2, 3, 1, 1)
    assert shapes["first_tucker_core"] == (8, 2, 3, 3)
    assert shapes["first_tucker_out"] == (16, 8, 1, 1)
    assert shapes["second_tucker_core"] == (16, 8, 3, 3)
    spanning = trials.build({"second": Split(12, 8, 1)})
    spanning.refresh_shapes()
    spanning.check()
    shapes = {node.name: tuple(node.inputs[1].shape) for node in spanning.nodes if "_tucker_" in node.name}
    assert [shapes[f"second_tucker_{part}"] for part in ("in", "core", "out")] == [
        (12, 16, 3, 1),
        (8, 12, 1, 3),
        (16, 8, 1, 1),
    ]
