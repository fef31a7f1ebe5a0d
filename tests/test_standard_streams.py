"""Standard output and error that are closed or full change neither what is written nor the exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.tiny_models import conv_net

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a shell and /dev/full")


def run(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = f"exec {sys.executable} -m onnxcompress {arguments}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("streams", [">&-", ">/dev/full", "2>&-", "2>/dev/full", "<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_a_run_goes_on(streams: str, tmp_path: Path) -> None:
    onnx.save(conv_net(), tmp_path / "in.onnx")
    done = run(f"in.onnx out.onnx --prune 0.5 --no-latency {streams}", tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    assert ("standard output cannot be written (No space left" in done.stderr) == (streams == ">/dev/full")


@pytest.mark.parametrize(("arguments", "code"), [("--version", 0), ("inspect no.onnx", 4), ("in.onnx --no-such", 2)])
@pytest.mark.parametrize("streams", [">/dev/full 2>&1", ">&- 2>&-"])
def test_so_do_short_ones(arguments: str, code: int, streams: str, tmp_path: Path) -> None:
    assert run(f"{arguments} {streams}", tmp_path).returncode == code
