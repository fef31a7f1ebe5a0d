"""Signals that end a run: whatever they come to by, the exit code is that of an interrupt, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from onnxcompress import cli
from tests.tiny_models import conv_net

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX systems")

ROOT = Path(__file__).resolve().parent.parent
WAITS = """
import multiprocessing, time
from pathlib import Path
import numpy as np
from onnxcompress.serialization import atomic_file

def give():
    if multiprocessing.parent_process() is not None:
        with atomic_file(Path("out/models/point.training")) as stream:
            print("at work", flush=True)
            time.sleep(60)
    yield {"x": np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    return tmp_path


@pytest.fixture
def hangs_up(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[], int]:
    """A run in the middle of whose writing the terminal is closed; gives its exit code."""
    from onnxcompress.pipeline import compress

    def close(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.2)

    monkeypatch.setattr(compress.CompressedModel, "save", close)
    command = ["in.onnx", "out.onnx", "--prune", "0.5", "--report", "r.json", "--no-latency", "-q"]
    return lambda: cli.main(command)


def test_a_closed_terminal_leaves_nothing_behind(
    hangs_up: Callable[[], int], folder: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    assert hangs_up() == 130
    assert capsys.readouterr().err == "onnxcompress: interrupted by SIGHUP\n"
    assert [path.name for path in folder.iterdir()] == ["in.onnx"]
    assert signal.getsignal(signal.SIGHUP) is signal.default_int_handler


def test_under_nohup_the_run_goes_on(hangs_up: Callable[[], int], folder: Path, request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    assert hangs_up() == 0
    assert Path("r.json").exists()


def test_an_interrupt_that_a_compiled_module_makes_another_error_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def initialise(arguments: object) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(cli, "_run", initialise)
    assert cli.main(["in.onnx", "out.onnx"]) == 130
    assert capsys.readouterr().err == "onnxcompress: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_processes_of_a_sweep_clear_away_what_they_write(
    number: int, folder: Path, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # a nohup of the tests would hold for the sweep, too
    request.addfinalizer(lambda: signal.signal(number, before))
    Path("waits.py").write_text(WAITS)
    command = [sys.executable, "-m", "onnxcompress", "sweep", "in.onnx", "--data", "waits:give", "--out", "out", "-q"]
    command += ["--method", "prune", "--prune-range", "0.1,0.2", "--no-latency", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
        assert len(list(Path("out/models").iterdir())) == 2
        process.send_signal(number)
        _, error = process.communicate()
    assert process.returncode == 130
    assert error == f"onnxcompress: interrupted by {signal.Signals(number).name}\n"
    assert not list(Path("out/models").iterdir())
    assert not list(Path("out/points").iterdir())
