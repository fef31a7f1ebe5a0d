"""The report: JSON keys users hold on to, tables, escaping, and the sentences a user must hear."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.report import environment, text
from onnxcompress.report.figures import (
    CompressionFigures,
    GateResult,
    Report,
    SkippedNode,
    StageFigures,
    compression_between,
)
from onnxcompress.report.json_file import json_text, plain_json, report_to_json, write_json
from onnxcompress.report.terminal import console_for, print_report
from tests.report.measured import accuracy, report
from tests.report.sample_reports import COMPRESSED, ORIGINAL, sample_report


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
    assert [text.points(value) for value in (-0.0, -0.04, -1.25, 0.06)] == [
        "+0.0 points",
        "+0.0 points",
        "-1.2 points",
        "+0.1 points",
    ]


def test_where_a_run_took_place() -> None:
    assert {"onnxcompress", "python", "numpy", "onnx", "onnxruntime"} <= set(environment.versions())
    assert environment.machine()["cores"] >= 1
    peak = environment.peak_rss_bytes()
    assert peak is None or 10_000_000 < peak < 10**13
