"""Processes of a sweep that are killed: a worker, whose point alone is lost, and the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import onnxcompress
from tests.tiny_models import conv_net, save_data

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")

ROOT = Path(__file__).resolve().parents[2]
POINTS = ["prune-0.1", "prune-0.2", "prune-0.3", "prune-0.4"]

_DATA = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
import numpy as np

def give():
    if multiprocessing.parent_process() is not None:
        BODY
    yield {"x": np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)}
"""
_KILLS_ONE = """
        try:
            Path("killed").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
"""
_WAITS_FOR_THE_PARENT = """
        parent = os.getppid()
        print("at work", flush=True)
        while os.getppid() == parent:
            time.sleep(0.05)
        time.sleep(5.0)
        Path("lived on").touch()
        os._exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    return tmp_path


def test_a_killed_process_takes_no_other_point_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("kills_one.py").write_text(_DATA.replace("BODY", _KILLS_ONE.strip()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(folder)]))
    options = {"method": ["prune"], "prune_range": "0.1,0.2,0.3,0.4", "latency": False, "jobs": 2}
    report = onnxcompress.sweep("in.onnx", out="out", data="kills_one:give", **options)
    assert [point.name for point in report.points] == POINTS
    (lost,) = report.failed
    assert "its process ended without a word" in str(lost.reason)
    again = onnxcompress.sweep("in.onnx", out="out", data="kills_one:give", **options)
    assert [point.resumed for point in again.points] == [name != lost.name for name in POINTS]
    assert not again.failed


def test_processes_end_with_the_one_that_started_them(folder: Path) -> None:
    Path("waits.py").write_text(_DATA.replace("BODY", _WAITS_FOR_THE_PARENT.strip()))
    command = [sys.executable, "-m", "onnxcompress", "sweep", "in.onnx", "--data", "waits:give", "--out", "out", "-q"]
    command += ["--method", "prune", "--prune-range", "0.1,0.2", "--no-latency", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
        process.kill()
        assert process.stdout.read() == ""  # its end comes once no process is left that could write
    assert not Path("lived on").exists()
    assert not list(Path("out/points").iterdir())


_SCRIPT = """
import onnxcompress

options = {"method": ["prune"], "prune_range": "0.1,0.2", "latency": False, "jobs": 2}
onnxcompress.sweep("in.onnx", out="out", data="data.npz", **options)
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_that_starts_a_sweep_whenever_it_is_imported(guarded: bool, folder: Path) -> None:
    save_data(Path("data.npz"), conv_net())
    lines = _SCRIPT.splitlines()
    indented = ["if __name__ == '__main__':", *(f"    {line}" for line in lines[1:])]
    Path("script.py").write_text("\n".join(indented if guarded else lines))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "script.py"], env=environment, capture_output=True, text=True)
    if guarded:
        assert (result.returncode, result.stderr) == (0, "")
        return
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("onnxcompress.errors.RecipeError: --jobs: no process of the sweep came up.")
    assert "if __name__ == '__main__':" in last
    assert not list(Path("out/points").iterdir())
