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


def test_processes_that_are_started_have_them(tmp_path: Path) -> None:
    child = "import os; open('seen', 'w').write(str([os.fstat(number).st_rdev for number in (0, 1, 2)]))"
    code = "import subprocess, sys; import onnxcompress.standard_streams as s; s.open_closed_streams(); "
    (tmp_path / "start.py").write_text(f"{code}subprocess.run([sys.executable, '-c', {child!r}])")
    command = f"exec {sys.executable} start.py <&- >&- 2>&-"
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert (tmp_path / "seen").read_text() == str([os.stat(os.devnull).st_rdev] * 3)
