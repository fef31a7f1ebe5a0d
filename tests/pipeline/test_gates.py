"""Gates judge what was measured, and fail on what was not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.evaluation.accuracy import Accuracy, Hits
from onnxcompress.evaluation.latency import Latency
from onnxcompress.evaluation.timing import Milliseconds
from onnxcompress.pipeline.gates import check_gates_can_be_measured, gate_results
from onnxcompress.recipe import Recipe
from onnxcompress.report.figures import CompressionFigures, GateResult
from onnxcompress.report.gate_text import gate_advice, gate_sentence, gate_value, gate_verdict
from tests.report.sample_reports import sample_report


def accuracy(drop: float | None, agreement: float | None = 90.0, *, labels: bool = True) -> Accuracy:
    return Accuracy(200, labels, "prob", Hits(78.5, 93.5), Hits(), drop_top1=drop, agreement=agreement)


def latency(speedup: float) -> Latency:
    time = Milliseconds(1.0, 1.0)
    return Latency("CPUExecutionProvider", "cpu", {}, 1, 1, None, True, 5, 10, time, time, speedup, None)


@pytest.mark.parametrize(
    ("drop", "limit", "passed"),
    [
        (1.0, 1.0, True),
        (72.4 - 71.8, 0.6, True),  # 0.6000000000000085 in floating point
        (1.5, 1.0, False),
        (-2.0, 0.0, True),
        (math.nan, 1.0, False),
        (None, 100.0, False),
    ],
)
def test_the_fall_of_top1_is_judged(drop: float | None, limit: float, passed: bool) -> None:
    (gate,) = gate_results(Recipe(max_drop=limit), accuracy(drop), (), None)
    assert (gate.name, gate.limit, gate.passed) == ("max_drop", limit, passed)


def test_without_labels_the_agreement_is_judged() -> None:
    (gate,) = gate_results(Recipe(max_drop=11.0), accuracy(None, 90.0, labels=False), (), None)
    assert gate.value == pytest.approx(10.0)
    assert gate.passed
    (gate,) = gate_results(Recipe(max_drop=9.0), accuracy(None, 90.0, labels=False), (), None)
    assert not gate.passed


def test_the_error_of_the_outputs_is_judged_in_percent() -> None:
    measured = Accuracy(50, False, relative_error=0.04, relative_error_interval=(0.03, 0.06))
    (gate,) = gate_results(Recipe(max_error=4.0), measured, (), None)
    assert (gate.name, gate.value, gate.interval, gate.passed) == ("max_error", 4.0, (3.0, 6.0), True)
    assert not gate_results(Recipe(max_error=3.9), measured, (), None)[0].passed
    assert not gate_results(Recipe(max_error=5.0, strict=True), measured, (), None)[0].passed
    assert gate_results(Recipe(max_error=6.0, strict=True), measured, (), None)[0].passed
    for value in (None, math.inf):
        (gate,) = gate_results(Recipe(max_error=100.0), Accuracy(50, False, relative_error=value), (), None)
        assert not gate.passed
    both = gate_results(Recipe(max_drop=1.0, max_error=1.0), None, (), None)
    assert [(each.name, each.value, each.passed) for each in both] == [
        ("max_drop", None, False),
        ("max_error", None, False),
    ]
    with pytest.raises(RecipeError, match=r"--max-error needs .*--data"):
        check_gates_can_be_measured(Recipe(max_error=1.0), has_data=False)


def test_the_slowest_provider_counts() -> None:
    (gate,) = gate_results(Recipe(min_speedup=1.2), None, (latency(3.0), latency(1.1)), None)
    assert gate.value == 1.1
    assert not gate.passed
    (gate,) = gate_results(Recipe(min_speedup=1.1), None, (latency(3.0), latency(1.1)), None)
    assert gate.passed


@pytest.mark.parametrize(("limit", "passed", "strictly"), [(4.0, True, True), (2.0, True, False), (1.0, False, False)])
def test_strict_wants_the_whole_interval_of_the_drop_within_the_limit(
    limit: float, passed: bool, strictly: bool
) -> None:
    measured = replace(accuracy(1.5), drop_top1_interval=(-0.5, 3.5))
    (gate,) = gate_results(Recipe(max_drop=limit), measured, (), None)
    assert (gate.passed, gate.interval, gate.strict) == (passed, (-0.5, 3.5), False)
    (gate,) = gate_results(Recipe(max_drop=limit, strict=True), measured, (), None)
    assert (gate.passed, gate.interval, gate.strict) == (strictly, (-0.5, 3.5), True)


def test_strict_without_labels_judges_the_interval_of_the_agreement() -> None:
    measured = replace(accuracy(None, 95.0, labels=False), agreement_interval=(90.0, 98.0))
    (gate,) = gate_results(Recipe(max_drop=6.0, strict=True), measured, (), None)
    assert gate.interval == (2.0, 10.0)
    assert not gate.passed
    (gate,) = gate_results(Recipe(max_drop=10.0, strict=True), measured, (), None)
    assert gate.passed


def test_strict_takes_the_provider_that_may_be_slowest() -> None:
    sure, doubtful = replace(latency(1.5), interval=(1.45, 1.55)), replace(latency(1.6), interval=(1.1, 2.0))
    (gate,) = gate_results(Recipe(min_speedup=1.4), None, (sure, doubtful), None)
    assert (gate.value, gate.passed) == (1.5, True)
    (gate,) = gate_results(Recipe(min_speedup=1.4, strict=True), None, (sure, doubtful), None)
    assert (gate.value, gate.interval, gate.passed) == (1.6, (1.1, 2.0), False)
    (gate,) = gate_results(Recipe(min_speedup=1.4, strict=True), None, (sure,), None)
    assert gate.passed


def test_strict_fails_what_was_measured_too_shortly_for_an_interval() -> None:
    (gate,) = gate_results(Recipe(min_speedup=1.0, strict=True), None, (latency(3.0),), None)
    assert (gate.value, gate.interval, gate.passed) == (3.0, None, False)
    (gate,) = gate_results(Recipe(max_drop=5.0, strict=True), accuracy(0.0), (), None)
    assert not gate.passed


@pytest.mark.parametrize("strict", [False, True])
def test_a_latency_that_nobody_can_judge_fails_its_gate(strict: bool) -> None:
    sure = replace(latency(1.5), interval=(1.45, 1.55))
    noisy = replace(latency(3.0), interval=(0.9, 9.0), noisy=True)
    for measured in ((noisy,), (sure, noisy), (replace(noisy, interval=None),)):
        (gate,) = gate_results(Recipe(min_speedup=1.2, strict=strict), None, measured, None)
        assert (gate.value, gate.passed, gate.noisy) == (3.0, False, True)
        assert "too noisy to judge" in gate_verdict(gate)
        assert "too noisy to judge by" in gate_sentence(gate)
        assert "--repeat" in gate_advice(gate, sample_report())


def test_file_size_is_judged() -> None:
    (gate,) = gate_results(Recipe(min_compression=2.0), None, (), CompressionFigures(9.0, 9.0, 1.9))
    assert (gate.value, gate.passed) == (1.9, False)


def test_what_was_not_measured_fails() -> None:
    recipe = Recipe(max_drop=100.0, min_speedup=0.01, min_compression=0.01)
    gates = gate_results(recipe, None, (), None)
    assert [gate.name for gate in gates] == ["max_drop", "min_speedup", "min_compression"]
    assert [(gate.value, gate.passed) for gate in gates] == [(None, False)] * 3


def test_no_gate_asked_for_is_no_gate() -> None:
    assert gate_results(Recipe(), accuracy(50.0), (latency(0.1),), CompressionFigures(1, 1, 1)) == ()


def test_gates_on_what_will_not_be_measured_are_refused_before_any_work() -> None:
    with pytest.raises(RecipeError, match=r"--max-drop needs .*--data"):
        check_gates_can_be_measured(Recipe(max_drop=1.0), has_data=False)
    with pytest.raises(RecipeError, match=r"--min-speedup needs .*--no-latency"):
        check_gates_can_be_measured(Recipe(min_speedup=1.0, latency=False), has_data=True)
    check_gates_can_be_measured(Recipe(max_drop=1.0, min_speedup=1.0), has_data=True)


@pytest.mark.parametrize(
    ("gate", "value", "sentence"),
    [
        (GateResult("target_params", 0.5, 0.5 + 2e-5, False), "0.50002", "target_params is 0.50002, the limit is 0.5"),
        (GateResult("max_drop", 1.0, 1.004, False), "1.004", "max_drop is 1.004, the limit is 1"),
        (GateResult("max_drop", 1.0, 3.004, False), "3.00", "max_drop is 3.004, the limit is 1"),
        (GateResult("min_speedup", 1.5, 1.49999, False), "1.49999", "min_speedup is 1.49999, the limit is 1.5"),
        (GateResult("target_macs", 0.5, 0.5, True), "0.50", "target_macs is 0.5, the limit is 0.5"),
        (GateResult("target_macs", 0.5, 0.499999, True), "0.50", "target_macs is 0.5, the limit is 0.5"),
        (GateResult("target_size", 0.544, 0.5443, False), "0.5443", "target_size is 0.5443, the limit is 0.544"),
        (GateResult("target_size", 0.996, 0.9959, True), "0.996", "target_size is 0.9959, the limit is 0.996"),
        (GateResult("min_compression", 1.504, 1.5041, True), "1.504", "min_compression is 1.504, the limit is 1.504"),
    ],
)
def test_a_value_that_failed_is_told_from_its_limit(gate: GateResult, value: str, sentence: str) -> None:
    assert gate_value(gate) == value
    assert gate_sentence(gate) == sentence


def test_the_end_of_an_interval_that_failed_is_told_from_the_limit() -> None:
    gate = GateResult("max_drop", 1.0, 0.5, False, (-0.25, 1.0004), strict=True)
    assert gate_value(gate) == "0.50 (95 %: -0.25 to 1.0004)"
    assert gate_sentence(gate).startswith("max_drop is 0.5 (95 %: -0.25 to 1.0004), the limit is 1, and with --strict")


def test_a_strict_target_of_latency_says_what_failed() -> None:
    by_interval = GateResult("target_latency", 0.6, 0.58, False, (0.55, 0.62), strict=True)
    assert gate_verdict(by_interval) == "FAILED (--strict: the interval crosses the limit)"
    by_value = GateResult("target_latency", 0.6, 0.65, False, (0.64, 0.66), strict=True)
    assert gate_verdict(by_value) == "FAILED"
    assert "whole interval" not in gate_sentence(by_value)
