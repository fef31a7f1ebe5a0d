"""A run that is killed never leaves a partial or changed OUT: at random moments, and at the worst ones."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from tests.tiny_models import conv_net, save_data

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["in.onnx", "out.onnx", "--prune", "0.5", "--tucker", "ratio=0.5", "--quantize", "int8", "--overwrite", "-q"]
OPTIONS += ["--calib", "data.npz", "--no-latency", "--report", "r.json"]
OLD, OLD_REPORT = b"an older model", b"an older report"

# Kills the process itself at the given call of a function of `os`, before or after it.
_KILLED_AT = """
import os, signal, sys
from onnxcompress.cli import main
name, number, before = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "before"
real, calls = getattr(os, name), 0
def counted(*arguments, **options):
    global calls
    calls += 1
    if calls == number and before:
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(os, name, counted)
sys.exit(main(sys.argv[4:]))
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Whole:
    """A run to the end: what it reads, what it writes, and how long it takes, s."""

    source: bytes
    data: bytes
    new: bytes
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    model = conv_net(channels=64)
    onnx.save(model, folder / "in.onnx")
    save_data(folder / "data.npz", model)
    started = time.monotonic()
    command = [sys.executable, "-m", "onnxcompress", *OPTIONS]
    assert subprocess.run(command, env=environment, cwd=folder, capture_output=True).returncode == 0
    read = [(folder / name).read_bytes() for name in ("in.onnx", "data.npz", "out.onnx")]
    return Whole(*read, time.monotonic() - started)


@pytest.fixture
def folder(tmp_path: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.onnx").write_bytes(whole.source)
    Path("data.npz").write_bytes(whole.data)
    put_old_files()
    return tmp_path


def put_old_files() -> None:
    Path("out.onnx").write_bytes(OLD)
    Path("r.json").write_bytes(OLD_REPORT)


def check_nothing_is_partial(whole: Whole) -> bool:
    """Whether OUT is the new model; it is the old one otherwise, and nothing else."""
    assert Path("in.onnx").read_bytes() == whole.source
    report = Path("r.json").read_bytes()
    assert report == OLD_REPORT or report.rstrip().endswith(b"}")
    found = Path("out.onnx").read_bytes()
    assert found in (OLD, whole.new)
    return found == whole.new


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int, folder: Path, whole: Whole, environment: dict[str, str]) -> None:
    moments = random.Random(0)
    outcomes = {True: 0, False: 0}
    survived = 0
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "onnxcompress", *OPTIONS], env=environment, stderr=subprocess.PIPE
        )
        try:
            process.wait(moments.uniform(0.0, 1.1 * whole.seconds))
            survived += 1
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        is_new = check_nothing_is_partial(whole)
        assert is_new or process.returncode != 0
        outcomes[is_new] += 1
        put_old_files()
    assert outcomes[False] > 0
    assert survived < kills


@pytest.mark.parametrize(
    ("name", "number", "when", "is_new"),
    [
        ("fsync", 1, "before", False),  # the temporary file is half on the disk
        ("replace", 1, "before", False),
        ("replace", 1, "after", True),  # OUT stands in its place, the reports are not written yet
    ],
)
def test_killed_at_the_worst_moments(
    name: str, number: int, when: str, is_new: bool, folder: Path, whole: Whole, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", _KILLED_AT, name, str(number), when, *OPTIONS]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert check_nothing_is_partial(whole) is is_new


@pytest.mark.parametrize("number", [1, 2])
def test_killed_between_a_model_and_its_side_file(number: int, folder: Path, environment: dict[str, str]) -> None:
    """Side file first, then the model that refers to it: in between the old model stands, with its own side file."""
    Path("out.onnx").unlink()
    assert (
        subprocess.run(
            [sys.executable, "-m", "onnxcompress", *OPTIONS, "--external-data", "--seed", "1"],
            env=environment,
            capture_output=True,
        ).returncode
        == 0
    )
    before = {path.name: path.read_bytes() for path in folder.glob("out.onnx*")}
    assert len(before) == 2
    gentler = [*OPTIONS, "--external-data", "--prune", "0.25"]
    command = [sys.executable, "-c", _KILLED_AT, "replace", str(number), "after", *gentler]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    model = onnx.load("out.onnx")  # with its side file, whichever of the two it is
    onnx.checker.check_model(model, full_check=True)
    if number == 1:
        assert all((folder / name).read_bytes() == content for name, content in before.items())
