"""The sentences that a user must hear about a result, and what they recommend."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from onnxcompress.evaluation.accuracy import Accuracy
from onnxcompress.evaluation.class_errors import OneClass
from onnxcompress.evaluation.relative_error import SmallNumbers
from onnxcompress.recipe import Recipe
from onnxcompress.report.advice import comparison_warnings, compression_warnings, how_to_keep_more
from onnxcompress.report.figures import (
    GateResult,
    StageFigures,
    compression_between,
)
from onnxcompress.report.gate_text import gate_about, gate_advice
from onnxcompress.report.rows import before_and_after
from tests.report.measured import LATENCY, accuracy, report
from tests.report.sample_reports import COMPRESSED, ORIGINAL


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (accuracy(), "Top-1 fell from 78.5 % to 1.0 %: the model is not usable as it is. To keep more"),
        (accuracy(78.5, 76.0), "Top-1 fell from 78.5 % to 76.0 %. To keep more"),
        (accuracy(labels=False), "agrees with the original on 2.0 % of the samples: the model is not usable"),
        (accuracy(labels=False, agreement=98.0), "agrees with the original on 98.0 % of the samples. To keep more"),
        (Accuracy(9, False, relative_error=0.5), "outputs differ from the original's by 50.0 % of their size. To keep"),
        (Accuracy(9, False, "y", agreement=100.0, not_finite=3), "NaN or infinity on 3 of 9 samples. To keep more"),
    ],
)
def test_a_fall_of_accuracy_is_said_with_what_to_do(figures: Accuracy, expected: str) -> None:
    (line,) = compression_warnings(report(accuracy=figures), Recipe(prune=0.4, tucker="auto"))
    assert expected in line
    assert "--prune (now 0.4" in line
    assert "--tucker energy=0.98" in line
    assert "--svd" not in line
    assert "\n" not in line
    (compared,) = comparison_warnings(report(accuracy=figures))
    assert "--prune" not in compared
    assert line.startswith(compared.strip())


def test_the_gate_that_is_recommended_is_one_that_can_judge() -> None:
    error = Accuracy(9, False, relative_error=0.5)
    (line,) = compression_warnings(report(accuracy=error), Recipe(prune=0.4))
    assert line.endswith("With --max-error P such a difference is an error (exit code 3)")
    (line,) = compression_warnings(report(accuracy=accuracy()), Recipe(prune=0.4))
    assert line.endswith("With --max-drop P such a fall is an error (exit code 3)")
    for limit in ({"max_drop": 1.0}, {"max_error": 1.0}):
        (line,) = compression_warnings(report(accuracy=error), Recipe(prune=0.4, **limit))
        assert "exit code 3" not in line


def test_outputs_beside_the_classes_are_told_of() -> None:
    beside = dataclasses.replace(accuracy(78.5, 78.5), relative_error=0.3, relative_error_output="boxes")
    beside = dataclasses.replace(beside, not_compared=("kept",))
    error, left_out = comparison_warnings(report(accuracy=beside))
    assert error.startswith("Output 'boxes' of the compressed model differs from the original's by 30.0 %")
    assert left_out.startswith(
        "Not compared: 'kept'. The second model does not have them, on some samples the two give them other"
    )
    small = dataclasses.replace(beside, relative_error_part=SmallNumbers(1, 18, 22, 4), not_compared=())
    (line,) = comparison_warnings(report(accuracy=small))
    assert line.startswith(
        "The small numbers of output 'boxes' (18 of 22 along axis 1, from 4 on) differ from the original's by 30.0 % "
        "of their size"
    )
    rows = {row[0]: row[2] for row in before_and_after(report(accuracy=small))}
    assert rows["Relative error of 'boxes', small numbers (18 of 22 along axis 1, from 4 on)"] == "30.0 %"
    rare = Accuracy(9, False, relative_error=0.3, relative_error_output="map", relative_error_part=OneClass(7, 0.018))
    (line,) = comparison_warnings(report(accuracy=rare))
    assert line.startswith(
        "Of the elements of output 'map' to which either model gives class 7 (1.8 % of all) 30.0 % have"
    )
    rows = {row[0]: row[2] for row in before_and_after(report(accuracy=rare))}
    assert rows["Relative error of 'map', class 7 (1.8 % of all), 1 - IoU"] == "30.0 %"
    assert rare.to_json()["relative_error_part"] == {"value": 7, "share": 0.018}
    scores = dataclasses.replace(beside, relative_error_output=beside.output, not_compared=())
    assert comparison_warnings(report(accuracy=scores)) == ()
    rows = {row[0]: row[2] for row in before_and_after(report(accuracy=beside))}
    assert rows["Relative error of 'boxes'"] == "30.0 %"
    assert not any("Relative error" in row[0] for row in before_and_after(report(accuracy=scores)))


@pytest.mark.parametrize(
    ("classes", "top1", "samples", "told"),
    [
        (1000, 4.9, 200, True),
        (1000, 5.1, 200, False),
        (10, 19.0, 200, True),
        (10, 21.0, 200, False),
        (2, 49.0, 200, True),
        (2, 51.0, 200, False),
        (10, 0.0, 19, False),
    ],
)
def test_labels_that_the_original_does_not_meet(classes: int, top1: float, samples: int, told: bool) -> None:
    seen = dataclasses.replace(accuracy(top1, top1), classes=classes, samples=samples)
    for lines in (
        comparison_warnings(report(accuracy=seen)),
        compression_warnings(report(accuracy=seen), Recipe(prune=0.4)),
    ):
        assert any("of the labels, where guessing gives" in line for line in lines) == told


@pytest.mark.parametrize(
    ("classes", "majority", "labels", "told"),
    [(1000, 51.0, False, True), (1000, 51.0, True, True), (1000, 49.0, False, False), (10, 90.0, False, False)],
)
def test_samples_to_which_the_original_gives_one_class(classes: int, majority: float, labels: bool, told: bool) -> None:
    seen = dataclasses.replace(accuracy(78.5, 78.5), classes=classes, majority=majority)
    if not labels:
        seen = Accuracy(200, False, output="y", agreement=100.0, classes=classes, majority=majority)
    lines = comparison_warnings(report(accuracy=seen))
    assert any("of the samples the same one of" in line for line in lines) == told


def test_a_small_fall_and_a_gain_are_left_to_the_table() -> None:
    assert compression_warnings(report(accuracy=accuracy(78.5, 78.0)), Recipe(prune=0.4)) == ()
    assert compression_warnings(report(accuracy=accuracy(78.5, 79.0)), Recipe(prune=0.4)) == ()
    assert compression_warnings(report(accuracy=Accuracy(9, False, relative_error=0.001)), Recipe(prune=0.4)) == ()


def test_unmeasured_accuracy_slowness_and_idleness_are_said() -> None:
    (line,) = compression_warnings(report(accuracy=None), Recipe(prune=0.4))
    assert "Accuracy was not measured" in line
    assert compression_warnings(report(accuracy=None), Recipe(prune=0.4, dry_run=True)) == ()
    slow = dataclasses.replace(LATENCY, speedup=0.8, interval=(0.7, 0.9))
    (line,) = compression_warnings(report(accuracy=accuracy(78.5, 78.5), latency=(slow,)), Recipe(prune=0.4))
    assert "1.25 x slower" in line
    unknown = dataclasses.replace(LATENCY, interval=(0.6, 2.1), noisy=True, original_interrupted=0.6)
    (line,) = compression_warnings(report(accuracy=accuracy(78.5, 78.5), latency=(unknown,)), Recipe(prune=0.4))
    assert "too noisy to say which model is faster: the ratio is somewhere from 0.60 to 2.10, and 60.0 %" in line
    few = dataclasses.replace(unknown, interval=None, runs=3)
    *_, line = comparison_warnings(report(accuracy=None, latency=(few,)))
    assert "3 runs of each are too few" in line
    (line,) = compression_warnings(report(accuracy=None, stages=()), Recipe())
    assert "give --prune R, --tucker SPEC, --svd SPEC, --target KIND=F or --quantize KIND" in line
    (line,) = compression_warnings(report(accuracy=None, stages=()), Recipe(prune=0.4))
    assert "no pass found anything to change" in line


SLOW = dataclasses.replace(LATENCY, provider="CPUExecutionProvider", speedup=0.8, interval=(0.7, 0.9))


def slow(recipe: Recipe, provider: str = SLOW.provider) -> str:
    figures = dataclasses.replace(SLOW, provider=provider)
    (line,) = compression_warnings(report(accuracy=accuracy(78.5, 78.5), latency=(figures,)), recipe)
    gate = GateResult("min_speedup", 1.0, 0.8, False)
    told = gate_advice(gate, report(latency=(figures,), recipe=recipe.to_json()))
    assert line.endswith(f"1.25 x slower. {told}")
    return told


def test_what_makes_it_faster_goes_by_what_was_done() -> None:
    integers = slow(Recipe(quantize="int8"))
    assert integers.startswith("Eight bits do not pay on this processor for every layer: --exclude REGEX those")
    assert "MACs" not in integers
    half = slow(Recipe(quantize="fp16"))
    assert half.startswith("This processor does not compute in half precision")
    assert "MACs" not in half
    assert "leave --quantize fp16 out" in slow(Recipe(quantize="fp16"), "CUDAExecutionProvider")
    assert slow(Recipe(prune=0.4)) == "Fewer MACs are not always less time: try --round-to 8 or 16"
    assert slow(Recipe(tucker="auto")).endswith("try --round-to 8 or 16, or a gentler --tucker")
    assert slow(Recipe(svd="auto", round_to=8)).endswith("try --round-to 16, or a gentler --svd")
    assert slow(Recipe(prune=0.4, round_to=16)).endswith("try a lower --prune")
    both = slow(Recipe(quantize="int8", target={"macs": 0.5}))
    assert both.startswith("Eight bits")
    assert both.endswith("try --round-to 8 or 16, or --target latency=F, which times what it chooses")


def test_where_nothing_was_compressed_what_is_wrong_with_the_data_is_said_all_the_same() -> None:
    wrong = dataclasses.replace(accuracy(1.0, 1.0), classes=10)
    cleaned = StageFigures("cleanup", 0.1, 1, 1, ({"step": "identity", "node": "n"},))
    for stages in ((), (cleaned,)):
        nothing, lines = compression_warnings(report(accuracy=wrong, stages=stages), Recipe())
        assert nothing.startswith("Nothing was compressed")
        assert lines.startswith("The original gives 1.0 % of the labels, where guessing gives 10.0 %")
    nothing, line = compression_warnings(report(accuracy=None, stages=(cleaned,), latency=(SLOW,)), Recipe())
    assert line == "Latency on CPUExecutionProvider: the compressed model is 1.25 x slower."


def test_a_model_that_costs_more_is_said() -> None:
    dearer = dataclasses.replace(COMPRESSED, macs=2 * 1_582_671_616)
    costly = report(accuracy=accuracy(78.5, 78.5), compression=compression_between(ORIGINAL, dearer))
    (line,) = compression_warnings(costly, Recipe(tucker="energy=0.99"))
    assert line.startswith("The compressed model has 2.00 x more MACs than the original; --tucker auto")
    (line,) = compression_warnings(costly, Recipe(prune=0.01))
    assert line == "The compressed model has 2.00 x more MACs than the original"


@pytest.mark.parametrize("interval", [None, (0.7, 1.01)])
def test_slowness_within_the_noise_is_not_said(interval: tuple[float, float] | None) -> None:
    doubtful = dataclasses.replace(LATENCY, speedup=0.9, interval=interval)
    assert compression_warnings(report(accuracy=accuracy(78.5, 78.5), latency=(doubtful,)), Recipe(prune=0.4)) == ()


def test_advice_names_only_options_that_exist() -> None:
    from onnxcompress.recipe.options import options_of

    known = {f"--{name.replace('_', '-')}" for name in options_of(Recipe)}
    recipe = Recipe(prune=0.4, tucker="auto", svd="auto")
    everything = [
        *compression_warnings(report(latency=(SLOW,)), recipe),
        slow(Recipe(quantize="int8", target={"macs": 0.5})),
        slow(Recipe(quantize="fp16", prune=0.4)),
        *compression_warnings(report(accuracy=None), recipe),
        *compression_warnings(report(stages=()), Recipe()),
    ]
    named = {word.strip(".,;:()") for line in everything for word in line.split() if word.startswith(("--", "(--"))}
    assert len(named) > 5
    assert named <= known


def test_what_was_given_and_had_no_effect_is_said() -> None:
    quiet = report(accuracy=accuracy(78.5, 78.5))
    (line,) = compression_warnings(quiet, Recipe(prune=0.4, epochs=3, lr=0.1))
    assert line.startswith("--epochs, --lr have no effect, because nothing is trained")
    (line,) = compression_warnings(quiet, Recipe(prune=0.4, device="cpu"))
    assert line.startswith("--device has no effect")
    (line,) = compression_warnings(quiet, Recipe(prune=0.4, train="d", recover="none"))
    assert "not used to train, because of --recover none" in line
    (line,) = compression_warnings(quiet, Recipe(prune=0.4, calib="d"))
    assert "--quantize int8" in line
    trained = StageFigures("finetune", 1.0, 1, 1, ({"kind": "finetune"},))
    done = dataclasses.replace(quiet, stages=(*quiet.stages, trained))
    assert compression_warnings(done, Recipe(prune=0.4, train="d", epochs=3)) == ()


def test_the_advice_goes_as_far_as_the_recipe_has_not() -> None:
    assert "lower --prune (now 0.02)" in how_to_keep_more(Recipe(prune=0.02))
    plain = how_to_keep_more(Recipe(prune=0.4, tucker="auto"))
    assert "--recover refit" in plain
    assert "--target macs=F" in plain
    assert "--train PATH" in plain
    refitted = how_to_keep_more(Recipe(target={"macs": 0.5}, recover="refit"))
    assert "ask for less (--target, now macs=0.5)" in refitted
    assert "--recover reconstruct" in refitted
    assert "--recover refit" not in refitted
    trained = how_to_keep_more(Recipe(prune=0.4, train="d", quantize="int8"))
    assert "train it longer (--epochs N)" in trained
    assert "--quantize fp16" in trained
    only = how_to_keep_more(Recipe(quantize="int8"))
    assert "refit" not in only


def test_a_search_that_kept_its_limit_names_the_limit() -> None:
    asked = Recipe(tucker="auto", max_error=5.0)
    made = report(accuracy=Accuracy(9, False, relative_error=0.03), recipe=asked.to_json())
    (line,) = compression_warnings(made, asked.updated({"target": {"macs": 0.87}}))
    assert line.endswith("To keep more: lower --max-error (now 5)")


def test_filters_that_a_target_chose_are_not_the_users_to_lower() -> None:
    asked = Recipe(prune="auto", tucker="auto", target={"macs": 0.2})
    made = report(accuracy=Accuracy(9, False, relative_error=0.03), recipe=asked.to_json())
    (line,) = compression_warnings(made, asked.updated({"prune": 0.4}))
    assert "To keep more: ask for less (--target, now macs=0.2)" in line
    assert "--prune" not in line


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("target_latency", {"latency": (LATENCY,)}, "ask for a little less, or measure on an idle machine"),
        ("target_latency", {"latency": ()}, "Ask for a little less than what is predicted"),
        ("target_macs", {}, "What comes behind the splits is not known where they are chosen"),
        ("target_macs", {"output": None}, "the warning says how far it goes"),
    ],
)
def test_what_to_do_about_a_target_goes_by_why_it_failed(name: str, changes: dict[str, Any], expected: str) -> None:
    gate = GateResult(name, 0.5, 0.6, passed=False)
    made = report(gates=(gate,), **changes)
    assert expected in gate_advice(gate, made)
    assert gate_about(gate).endswith("compressed / original")
