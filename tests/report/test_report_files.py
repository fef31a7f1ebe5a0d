"""Reports as files: written by compress and compare, also when a gate fails, together or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

from onnxcompress.cli import main
from onnxcompress.pipeline.report_files import report_paths
from onnxcompress.recipe import Recipe
from tests.tiny_models import conv_net, save_data

REPORTS = ["--html", "h.html", "--junit", "j.xml", "--markdown", "s.md", "--report", "r.json"]
WRITTEN = {"h.html", "j.xml", "s.md", "r.json"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and data for it."""
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    save_data(Path("data.npz"), conv_net())
    return tmp_path


def compress(*options: str) -> int:
    return main(["in.onnx", "out.onnx", "--data", "data.npz", "--no-latency", "--no-progress", "-q", *options])


def test_every_report_is_written_when_a_gate_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress("--prune", "0.7", "--max-drop", "0", *REPORTS) == 3
    assert {path.name for path in folder.iterdir()} == {"in.onnx", "data.npz"} | WRITTEN
    failure = ElementTree.parse("j.xml").find(".//testcase[@name='max_drop']/failure")
    assert failure is not None
    assert str(failure.get("message")) in capsys.readouterr().err
    assert "1 of 1 gates failed" in Path("s.md").read_text()
    report = json.loads(Path("r.json").read_text())
    assert [check["pass"] for check in report["self_checks"]] == ["prune"]
    assert report["gates"][0]["interval"] == report["accuracy"]["drop_top1_interval"]


def test_they_are_written_when_all_is_well_and_replace_old_ones(folder: Path) -> None:
    Path("s.md").write_text("old")
    assert compress("--prune", "0.1", "--max-drop", "100", *REPORTS) == 0
    assert Path("out.onnx").exists()
    assert "1 of 1 gates passed" in Path("s.md").read_text()
    assert ElementTree.parse("j.xml").find(".//failure") is None


def test_comparing_writes_them_too(folder: Path) -> None:
    options = ["--data", "data.npz", "--no-latency", "--no-progress", "-q", "--max-drop", "0"]
    assert main(["compare", "in.onnx", "in.onnx", *options, *REPORTS]) == 0
    assert {path.name for path in folder.iterdir()} >= WRITTEN
    assert json.loads(Path("r.json").read_text())["command"] == "compare"
    # Forty samples cannot prove that nothing was lost.
    assert main(["compare", "in.onnx", "in.onnx", *options, *REPORTS, "--strict"]) == 3
    failure = ElementTree.parse("j.xml").find(".//failure")
    assert failure is not None
    assert "--strict" in str(failure.get("message"))


def test_nothing_is_written_where_one_of_them_cannot_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcompress.pipeline import report_files

    def broken(report: object) -> str:
        raise OSError("planted")

    monkeypatch.setattr(report_files, "_WRITERS", {**report_files._WRITERS, "junit": broken})
    assert compress("--prune", "0.1", *REPORTS) == 70
    assert {path.name for path in folder.iterdir()} == {"in.onnx", "data.npz"}


@pytest.mark.parametrize("option", sorted(report_paths(Recipe())))
def test_a_report_never_takes_the_place_of_another_file(option: str, folder: Path) -> None:
    before = Path("in.onnx").read_bytes()
    assert compress("--prune", "0.1", option, "in.onnx") == 2
    assert compress("--prune", "0.1", option, "out.onnx") == 2
    assert compress("--prune", "0.1", option, "same", "--save-plan", "same") == 2
    assert compress("--prune", "0.1", option, "missing/x") == 2
    assert Path("in.onnx").read_bytes() == before


def test_a_dry_run_writes_them_and_a_plan_that_replays(folder: Path) -> None:
    done = ["--prune", "0.3", "--tucker", "ratio=0.5", "--quantize", "int8", "--max-drop", "100"]
    assert compress(*done, "--dry-run", "--save-plan", "p.json", *REPORTS) == 0
    assert {path.name for path in folder.iterdir()} == {"in.onnx", "data.npz", "p.json"} | WRITTEN
    report = json.loads(Path("r.json").read_text())
    assert (report["recipe"]["dry_run"], report["accuracy"], report["gates"]) == (True, None, [])
    said = "Dry run: the result was not measured, no gate was judged (max_drop), and OUT was not written."
    assert said in Path("h.html").read_text()
    assert said.replace("_", "&#95;") in Path("s.md").read_text()
    assert ElementTree.parse("j.xml").find(".//testcase[@name='max_drop']/skipped") is not None
    assert compress("--plan", "p.json") == 0
    replayed = Path("out.onnx").read_bytes()
    assert compress(*done, "--overwrite") == 0
    assert replayed == Path("out.onnx").read_bytes()


def test_a_dry_run_never_writes_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.onnx").write_text("old")
    assert compress("--prune", "0.1", "--dry-run", "--overwrite", "--keep-failed", *REPORTS) == 0
    assert compress("--prune", "0.1", "--dry-run", "--report", "out.onnx") == 2
    assert "OUT and --report are the same file" in capsys.readouterr().err
    assert compress("--prune", "0.1", "--dry-run", "--save-plan", "missing/p.json") == 2
    assert Path("out.onnx").read_text() == "old"
