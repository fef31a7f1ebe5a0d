"""The report: JSON keys users hold on to, tables, escaping, and the sentences a user must hear."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.evaluation.accuracy import Accuracy, Hits
from onnxcompress.evaluation.latency import Latency
from onnxcompress.evaluation.relative_error import SmallNumbers
from onnxcompress.evaluation.timing import Milliseconds
from onnxcompress.recipe import Recipe
from onnxcompress.report import environment, text
from onnxcompress.report.advice import comparison_warnings, compression_warnings, how_to_keep_more
from onnxcompress.report.figures import (
    CompressionFigures,
    GateResult,
    ModelFigures,
    Report,
    SkippedNode,
    StageFigures,
    compression_between,
)
from onnxcompress.report.json_file import json_text, plain_json, report_to_json, write_json
from onnxcompress.report.rows import before_and_after
from onnxcompress.report.terminal import console_for, print_report
from tests.report.sample_reports import sample_report

ORIGINAL = ModelFigures("a.onnx", "0a", 28_010_000, 6_998_552, 1_582_671_616, 17, {"Conv": 57, "Gemm": 1})
COMPRESSED = ModelFigures("b.onnx", "0b", 11_020_000, 2_749_000, 596_000_000, 17, {"Conv": 57, "Gemm": 1})


LATENCY = Latency(
    provider="CPUExecutionProvider",
    requested="cpu",
    options={},
    batch=1,
    threads=2,
    affinity=(0, 1),
    copies=True,
    warmup=5,
    runs=50,
    original_ms=Milliseconds(18.0, 19.0),
    compressed_ms=Milliseconds(9.0, 9.5),
    speedup=2.0,
    interval=(1.9, 2.1),
)


def accuracy(before: float = 78.5, after: float = 1.0, *, labels: bool = True, agreement: float = 2.0) -> Accuracy:
    if not labels:
        return Accuracy(200, False, "prob", agreement=agreement, kl=4.2)
    drop = before - after
    return Accuracy(
        samples=200,
        labels=True,
        output="prob",
        original=Hits(before, 93.5),
        compressed=Hits(after, 3.0),
        drop_top1=drop,
        drop_top1_interval=(drop - 2.0, drop + 3.0),
        agreement=agreement,
        kl=4.2,
    )


def report(**changes: Any) -> Report:
    stage = StageFigures(
        "pruning", 0.4, 2_749_000, 596_000_000, ({"group": "g", "removed": [1, 2]},), (), bytes=11_020_000
    )
    full = Report(
        input=ORIGINAL,
        output=COMPRESSED,
        stages=(stage,),
        accuracy=accuracy(),
        latency=(LATENCY,),
        compression=compression_between(ORIGINAL, COMPRESSED),
        gates=(GateResult("max_drop", 1.0, 77.5, False),),
        recipe=Recipe(prune=0.4).to_json(),
        seed=0,
        versions={"onnx": "1"},
        platform={"cores": 2},
        seconds=1.5,
        peak_rss_bytes=1,
    )
    return dataclasses.replace(full, **changes)


def shown(value: Report, *, verbose: bool = False) -> str:
    stream = io.StringIO()
    print_report(value, console_for(stream), verbose=verbose)
    return stream.getvalue()


def test_json_has_the_documented_keys() -> None:
    value = report_to_json(report())
    assert value["schema"] == 1
    assert {"input", "output", "stages", "accuracy", "latency", "compression", "gates"} <= set(value)
    assert {"recipe", "seed", "versions", "platform", "seconds", "peak_rss_bytes"} <= set(value)
    assert set(value["input"]) == {"path", "sha256", "bytes", "params", "macs", "opset", "ops", "lrn_macs"}
    added = {"bytes", "steps", "accuracy", "latency"}
    assert set(value["stages"][0]) == {"pass", "seconds", "params", "macs", "decisions", "skipped", "outcome"} | added
    documented = {"samples", "labels", "original", "compressed", "drop_top1", "agreement", "kl"}
    assert documented <= set(value["accuracy"])
    assert value["accuracy"]["compressed"] == {"top1": 1.0, "top5": 3.0}
    documented = {"provider", "requested", "batch", "threads", "runs", "original_ms", "compressed_ms", "speedup"}
    assert documented <= set(value["latency"][0])
    assert value["latency"][0]["original_ms"] == {"p50": 18.0, "p95": 19.0}
    assert value["compression"]["params"] == pytest.approx(6_998_552 / 2_749_000)
    (gate,) = value["gates"]
    assert {"name": "max_drop", "limit": 1.0, "value": 77.5, "passed": False}.items() <= gate.items()
    assert value["recipe"]["prune"] == 0.4


def test_what_was_not_measured_is_null() -> None:
    value = report_to_json(Report(input=ORIGINAL, output=None))
    for key in ("output", "accuracy", "compression", "seconds", "peak_rss_bytes"):
        assert value[key] is None
    assert value["latency"] == []
    assert report_to_json(report(accuracy=accuracy(labels=False)))["accuracy"]["original"] == {
        "top1": None,
        "top5": None,
    }


def test_json_holds_no_numpy_and_no_infinity(tmp_path: Path) -> None:
    decisions = ({"kept": (np.int64(1), 2), "scale": np.float32(0.5), "bad": math.inf, "file": Path("x")},)
    value = plain_json({"d": decisions, "n": math.nan})
    assert value == {"d": [{"kept": [1, 2], "scale": 0.5, "bad": None, "file": "x"}], "n": None}
    write_json(value, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == value
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write_json({"n": math.nan}, tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    with pytest.raises(RecipeError, match="cannot be written"):
        write_json({}, tmp_path / "missing" / "r.json")


def test_compression_is_a_ratio_or_unknown() -> None:
    assert compression_between(ORIGINAL, dataclasses.replace(COMPRESSED, macs=None)) == CompressionFigures(
        6_998_552 / 2_749_000, None, 28_010_000 / 11_020_000
    )
    assert compression_between(ORIGINAL, dataclasses.replace(COMPRESSED, params=0)).params is None


def test_tables_show_before_and_after() -> None:
    lines = shown(report()).splitlines()

    def row(name: str) -> str:
        return next(" ".join(line.split()) for line in lines if line.startswith(name))

    assert row("Top-1") == "Top-1 78.5 % 1.0 % -77.5 points (95 %: -80.5 to -75.5)"
    assert row("File size") == "File size 28.01 MB 11.02 MB 2.54 x smaller"
    assert row("Parameters") == "Parameters 7.00 M 2.75 M 2.55 x fewer"
    assert row("MACs") == "MACs per sample 1,582.67 M 596.00 M 2.66 x fewer"
    assert row("Latency p50") == (
        "Latency p50 (cpu, batch 1, 2 threads) 18.0 ms 9.00 ms 2.00 x faster (95 %: 1.90 to 2.10)"
    )
    assert row("max_drop") == "max_drop 1 77.50 FAILED"
    assert row("pruning") == "pruning 1 0 2.75 M 596.00 M 11.02 MB 0.40"


def test_cleanup_has_a_line_for_each_step_and_its_own_share_of_the_speed_up() -> None:
    lines = [" ".join(line.split()) for line in shown(sample_report()).splitlines()]
    assert "lrn: writes LRN as a convolution (1.52 x on CPU) 1 0 0.09" in lines
    assert not any("computes constants" in line for line in lines)
    assert "by clean-up alone 18.0 ms 12.0 ms 1.50 x faster (95 %: 1.40 to 1.60)" in lines
    assert "by compression 12.0 ms 9.00 ms 1.33 x faster" in lines
    value = report_to_json(sample_report())
    assert [step["step"] for step in value["stages"][0]["steps"]] == ["fold", "lrn"]
    assert value["latency"][0]["credit"]["cleanup_speedup"] == 1.5
    assert value["latency"][0]["credit"]["cleaned_ms"] == {"p50": 12.0, "p95": 13.0}


def test_macs_of_a_rewritten_lrn_have_their_own_row() -> None:
    banded = dataclasses.replace(COMPRESSED, lrn_macs=46_000_000)
    for value, expected in ((report(), []), (report(output=banded), ["- 46.00 M"])):
        rows = [line.split("these")[1].split() for line in shown(value).splitlines() if line.startswith("MACs of LRN")]
        assert [" ".join(row) for row in rows] == expected


def test_what_was_not_measured_is_said_in_the_tables() -> None:
    lines = shown(report(accuracy=None, latency=(), output=None, compression=None))
    assert "not measured" in lines
    assert "ms" not in lines.replace("params", "")
    assert "0.0 %" not in lines
    gate = GateResult("min_speedup", 1.2, None, False)
    assert "not measured" in shown(report(gates=(gate,)))


def test_skipped_nodes_are_summed_up_and_named_on_request() -> None:
    skipped = tuple(SkippedNode(f"node{n}", "kernel is 1x1" if n % 2 else f"reason {n}") for n in range(40))
    stage = StageFigures("tucker", 0.1, 1, 1, (), skipped)
    short, full = shown(report(stages=(stage,))), shown(report(stages=(stage,)), verbose=True)
    assert "kernel is 1x1: node1, node3, node5 and 17 more" in short
    assert "15 more nodes for 15 other reasons (-v shows all)" in short
    assert "node37" not in short
    assert "node37" in full
    assert "more" not in full.split("Left alone by tucker")[1]


def test_names_cannot_style_or_steer_the_terminal() -> None:
    evil = "[bold]x[/bold]\x1b[31m\n\u202e\ud800:smile:"
    stage = StageFigures(evil, 0.1, 1, 1, ({evil: evil},), (SkippedNode(evil, evil),))
    printed = shown(report(stages=(stage,)), verbose=True)
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert "[bold]x[/bold]\\x1b[31m\\n\\u202e\\ud800:smile:" in printed
    assert json.loads(json_text(plain_json(stage)))["pass"] == evil
    assert "\x1b" not in json_text(plain_json(stage))


def test_colour_only_where_a_terminal_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = Terminal()
    print_report(report(), console_for(coloured))
    assert "\x1b[1;31m" in coloured.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    print_report(report(), console_for(plain))
    assert "\x1b[1;31m" not in plain.getvalue()
    assert "31m" not in plain.getvalue()


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
    small = dataclasses.replace(beside, relative_error_part=SmallNumbers(1, 18, 22), not_compared=())
    (line,) = comparison_warnings(report(accuracy=small))
    assert line.startswith(
        "The small numbers of output 'boxes' (18 of 22 along axis 1) differ from the original's by 30.0 % of their size"
    )
    rows = {row[0]: row[2] for row in before_and_after(report(accuracy=small))}
    assert rows["Relative error of 'boxes', small numbers (18 of 22 along axis 1)"] == "30.0 %"
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
    slow = dataclasses.replace(LATENCY, speedup=0.8, interval=(0.7, 0.9))
    everything = [
        *compression_warnings(report(latency=(slow,)), recipe),
        *compression_warnings(report(accuracy=None), recipe),
        *compression_warnings(report(stages=()), Recipe()),
    ]
    named = {word.strip(".,;:()") for line in everything for word in line.split() if word.startswith(("--", "(--"))}
    assert len(named) > 5
    assert named <= known


def test_figures_in_words() -> None:
    assert [text.count(n) for n in (0, 9_999, 12_345, 1_234_567, 12_345_678_901)] == [
        "0",
        "9,999",
        "12.35 k",
        "1.23 M",
        "12.35 G",
    ]
    assert text.count(1_000, 5_000_000) == "0.00 M"
    assert text.size(999) == "999 B"
    assert text.size(28_010_000) == "28.01 MB"
    assert [text.counted(n, "point") for n in (0, 1, 1.0, 2.5, 1_234_567)] == [
        "0 points",
        "1 point",
        "1 point",
        "2.5 points",
        "1234567 points",
    ]
    assert (text.times(2.0, "faster", "slower"), text.times(0.5, "faster", "slower")) == (
        "2.00 x faster",
        "2.00 x slower",
    )
    assert text.times(1.001, "faster", "slower") == "same"
    assert text.times(None, "faster", "slower") == "-"


def test_where_a_run_took_place() -> None:
    assert {"onnxcompress", "python", "numpy", "onnx", "onnxruntime"} <= set(environment.versions())
    assert environment.machine()["cores"] >= 1
    peak = environment.peak_rss_bytes()
    assert peak is None or 10_000_000 < peak < 10**13


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
