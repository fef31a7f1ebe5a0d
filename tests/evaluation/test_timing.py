"""The measurement's order and statistics, on a clock that the tests wind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest

from onnxcompress.evaluation.timing import Rounds, alternate, is_useless, summarise


class Machine:
    """A clock, and two models that take the time they are told; `load` slows the whole machine down."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.runs: list[str] = []
        self.generator = np.random.default_rng(seed)
        self.load: Callable[[float], float] = lambda now: 1.0
        self.waits: Callable[[float], float] = lambda now: 0.0
        self.waited = 0.0

    def clock(self) -> int:
        return int(self.now)

    def wait(self) -> int:
        return int(self.waited)

    def model(self, name: str, ms: float, noise: float = 0.0) -> Callable[[], None]:
        def run() -> None:
            self.runs.append(name)
            factor = self.load(self.now) * np.exp(noise * self.generator.standard_normal())
            wait = self.waits(self.now) * 1e6
            self.waited += wait
            self.now += ms * 1e6 * factor + wait

        return run


def test_turns_alternate_and_their_order_is_swapped() -> None:
    machine = Machine()
    rounds = alternate([machine.model("a", 40), machine.model("b", 40)], warmup=2, repeat=4, clock=machine.clock)
    assert "".join(machine.runs) == "aabb" + "abba" + "baab"
    assert rounds.times.shape == (2, 4, 1)
    assert rounds.warmup == 2


def test_fast_models_run_several_times_a_turn_after_an_untimed_run() -> None:
    machine = Machine()
    rounds = alternate([machine.model("a", 10), machine.model("b", 5)], warmup=1, repeat=60, clock=machine.clock)
    assert rounds.times.shape == (2, 20, 3)
    assert "".join(machine.runs[2:]) == "aaaabbbbbbbbaaaabbbbaaaaaaaabbbb" * 5


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_model_runs_at_every_place_and_on_either_side_of_every_other(count: int) -> None:
    machine = Machine()
    models = [machine.model(str(number), 40) for number in range(count)]
    alternate(models, warmup=0, repeat=2 * count, clock=machine.clock)
    rounds = np.array(machine.runs[count:]).reshape(2 * count, count)
    for number in range(count):
        assert sorted(np.argwhere(rounds == str(number))[:, 1]) == sorted([*range(count)] * 2)
    before = Counter((a, b) for order in rounds.tolist() for a, b in combinations(order, 2))
    assert all(before[a, b] == count for a, b in permutations(map(str, range(count)), 2))


def test_three_models_are_compared_in_pairs() -> None:
    machine = Machine()
    models = [machine.model(name, ms, 0.05) for name, ms in (("original", 9), ("cleaned", 6), ("compressed", 3))]
    rounds = alternate(models, clock=machine.clock)
    for first, second, ratio in ((0, 1, 1.5), (0, 2, 3.0), (1, 2, 2.0)):
        seen = summarise(rounds, first=first, second=second)
        assert seen.interval is not None
        assert seen.interval[0] <= ratio * 1.005
        assert seen.interval[1] >= ratio / 1.005
        assert np.log(seen.interval[1] / seen.interval[0]) <= 0.04
        assert seen.original_ms.p50 == pytest.approx(seen.compressed_ms.p50 * ratio, rel=0.05)


@pytest.mark.parametrize("repeat", [1, 7, 60, 100])
def test_at_least_the_runs_that_were_asked_for(repeat: int) -> None:
    machine = Machine()
    rounds = alternate([machine.model("a", 1), machine.model("b", 1)], repeat=repeat, clock=machine.clock)
    assert repeat <= rounds.times[0].size <= repeat + 20


def test_a_model_against_itself_reads_one() -> None:
    machine = Machine()
    seen = summarise(alternate([machine.model("a", 8), machine.model("b", 8)], clock=machine.clock))
    assert seen.speedup == 1.0
    assert seen.interval == pytest.approx((0.992, 1.008), abs=1e-4)
    assert seen.original_ms == seen.compressed_ms
    assert seen.original_ms.p50 == pytest.approx(8.0)


@pytest.mark.parametrize(("original", "compressed"), [(8.0, 4.0), (4.0, 8.0), (0.05, 0.04)])
def test_the_ratio_under_noise(original: float, compressed: float) -> None:
    covered = 0
    for seed in range(20):
        machine = Machine(seed)
        a, b = machine.model("a", original, 0.05), machine.model("b", compressed, 0.05)
        seen = summarise(alternate([a, b], clock=machine.clock), seed)
        assert seen.interval is not None
        assert seen.speedup == pytest.approx(original / compressed, rel=0.05)
        assert seen.interval[0] <= seen.speedup <= seen.interval[1]
        assert np.log(seen.interval[1] / seen.interval[0]) <= 0.035
        covered += seen.interval[0] <= original / compressed <= seen.interval[1]
    assert covered >= 16


def test_other_work_on_the_machine_hits_both_models_alike() -> None:
    """Every 0.7 s the machine is three times slower for 0.3 s, which a pooled p50 would see and a pair does not."""
    machine = Machine()
    machine.load = lambda now: 3.0 if now % 1e9 > 0.7e9 else 1.0
    seen = summarise(alternate([machine.model("a", 9, 0.02), machine.model("b", 6, 0.02)], clock=machine.clock))
    assert seen.speedup == pytest.approx(1.5, rel=0.02)
    assert seen.original_ms.p95 > 2 * seen.original_ms.p50


@pytest.mark.parametrize("often", [0.3, 0.7])
def test_runs_that_waited_for_a_cpu_are_left_out(often: float) -> None:
    machine = Machine()
    machine.waits = lambda now: machine.generator.exponential(12.0) if machine.generator.random() < often else 0.0
    models = [machine.model("a", 30, 0.01), machine.model("b", 20, 0.01)]
    seen = summarise(alternate(models, clock=machine.clock, waited=machine.wait))
    assert seen.speedup == pytest.approx(1.5, rel=0.01)
    assert seen.interval is not None
    assert np.log(seen.interval[1] / seen.interval[0]) < 0.04
    assert seen.left_out
    assert seen.interrupted == pytest.approx((often, often), abs=0.15)
    assert seen.original_ms.p95 < 31
    # Without the system's word on it the same machine tells less.
    blind = summarise(alternate(models, clock=machine.clock))
    assert (blind.interrupted, blind.left_out) == ((0.0, 0.0), False)
    assert blind.original_ms.p95 > 35


def test_where_every_run_waits_all_of_them_count() -> None:
    machine = Machine()
    machine.waits = lambda now: 10.0 * machine.generator.random() + 1.0
    models = [machine.model("a", 60), machine.model("b", 60)]
    seen = summarise(alternate(models, clock=machine.clock, waited=machine.wait))
    assert (seen.interrupted, seen.left_out) == ((1.0, 1.0), False)
    assert seen.interval is not None
    assert seen.interval[0] < 1.0 < seen.interval[1]


def test_waiting_a_little_is_no_interruption() -> None:
    machine = Machine()
    machine.waits = lambda now: 0.05
    rounds = alternate([machine.model("a", 1), machine.model("b", 1)], repeat=40, clock=machine.clock)
    assert not rounds.interrupted.any()


def test_rounds_are_joined_until_both_models_have_a_whole_run() -> None:
    times = np.array([[[4.0], [9.0], [4.0], [4.0]], [[9.0], [2.0], [2.0], [9.0]]])
    rounds = Rounds(times, np.where(times == 9.0, 5.0, 0.0), 0)
    assert rounds.used.all()  # two pairs of four rounds are too few to leave anything out
    many = Rounds(np.tile(times, (1, 20, 1)), np.tile(rounds.waits, (1, 20, 1)), 0)
    assert many.used.sum() == 100
    np.testing.assert_allclose(np.exp(many.log_ratios(0, 1)), 2.0)
    np.testing.assert_allclose(np.exp(many.log_ratios(1, 0)), 0.5)
    assert summarise(many).original_ms.p95 == 4.0


@pytest.mark.parametrize(
    ("interval", "useless"), [(None, True), ((0.95, 1.05), False), ((1.9, 2.2), False), ((0.85, 1.06), True)]
)
def test_intervals_that_tell_nothing(interval: tuple[float, float] | None, useless: bool) -> None:
    assert is_useless(interval) == useless


def test_hopeless_noise_ends_after_a_while_with_a_wide_interval() -> None:
    machine = Machine()
    seen = summarise(alternate([machine.model("a", 30, 1.0), machine.model("b", 30, 1.0)], clock=machine.clock))
    assert machine.now < 70e9
    assert seen.interval is not None
    assert seen.interval[1] / seen.interval[0] > 1.05
    assert is_useless(seen.interval) == (seen.interval[1] / seen.interval[0] > 1.1**2)


def test_slow_models_are_measured_often_enough_for_an_interval() -> None:
    machine = Machine()
    seen = summarise(alternate([machine.model("a", 5000), machine.model("b", 4000)], clock=machine.clock))
    assert seen.runs == 20
    assert seen.interval == pytest.approx((1.25 * 0.992, 1.25 * 1.008), rel=1e-4)


def test_few_runs_have_no_interval() -> None:
    machine = Machine()
    seen = summarise(alternate([machine.model("a", 40), machine.model("b", 20)], repeat=3, clock=machine.clock))
    assert (seen.speedup, seen.interval, seen.runs) == (pytest.approx(2.0), None, 3)


def test_warm_up_goes_on_until_runs_are_stable() -> None:
    machine = Machine()
    first = 12
    machine.load = lambda now: max(1.0, first - len(machine.runs))
    rounds = alternate([machine.model("a", 30), machine.model("b", 30)], repeat=4, clock=machine.clock)
    assert rounds.warmup > first
    assert rounds.times[0].max() == pytest.approx(30.0)


def test_warm_up_of_a_model_that_never_settles_ends() -> None:
    machine = Machine()
    machine.load = lambda now: 1000.0 / (1 + len(machine.runs))
    alternate([machine.model("a", 30), machine.model("b", 30)], repeat=2, clock=machine.clock)
    assert len(machine.runs) < 500


def test_a_clock_that_sees_nothing_gives_no_division_by_zero() -> None:
    machine = Machine()
    seen = summarise(alternate([machine.model("a", 0), machine.model("b", 0)], clock=machine.clock))
    assert seen.speedup == 1.0
    assert not is_useless(seen.interval)


def test_percentiles_are_of_all_runs() -> None:
    times = np.arange(1.0, 101.0).reshape(20, 5)
    seen = summarise(Rounds(np.stack([times, times / 2]), np.zeros((2, 20, 5)), 0))
    assert (seen.original_ms.p50, seen.original_ms.p95) == (pytest.approx(50.5), pytest.approx(95.05))
    assert seen.compressed_ms.p50 == pytest.approx(25.25)
    assert seen.runs == 100
