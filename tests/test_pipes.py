"""A model that comes through a pipe, as the output of another command does: it can be read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.tiny_models import conv_net, save_data

pytestmark = pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="no /dev/stdin on this system")

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ["sweep", "/dev/stdin", "--data", "data.npz", "--method", "prune", "--prune-range", "0.25,0.5", "--no-latency"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    save_data(Path("data.npz"), conv_net())
    return tmp_path


def piped(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "onnxcompress", *arguments, "-q"]
    return subprocess.run(command, input=Path("in.onnx").read_bytes(), capture_output=True, env=environment)


def test_it_is_inspected_profiled_and_written_about(folder: Path) -> None:
    result = piped("inspect", "/dev/stdin", "--json", "i.json", "--profile", "--threads", "1")
    assert result.returncode == 0, result.stderr
    seen = json.loads(Path("i.json").read_text())
    assert seen["groups"]
    assert seen["profile"]


def test_every_point_of_a_sweep_has_it(folder: Path) -> None:
    assert piped(*SWEEP, "--out", "out").returncode == 0
    points = json.loads(Path("out/sweep.json").read_text())["points"]
    assert [point["reason"] for point in points] == [None, None]
    assert all(point["accuracy"] is not None for point in points)
    # From the file itself the points are the same ones.
    result = piped(*["in.onnx" if word == "/dev/stdin" else word for word in SWEEP], "--out", "out")
    assert result.returncode == 0
    assert all(point["resumed"] for point in json.loads(Path("out/sweep.json").read_text())["points"])


def test_other_processes_cannot_read_it(folder: Path) -> None:
    result = piped(*SWEEP, "--out", "out", "--jobs", "2")
    assert result.returncode == 2
    assert b"--jobs and --scheduler need the model as a file" in result.stderr
    assert not Path("out").exists()
