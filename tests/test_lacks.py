"""What the machine runs out of where nobody foresaw it: one line and exit code 5, no traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from google.protobuf.message import DecodeError, EncodeError

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.errors import DataError, ModelError, PassError, RecipeError, lacking
from onnxcompress.pipeline import job, sweep_work
from onnxcompress.runtime.session import Session
from tests.tiny_models import conv_net, save_data

ROOT = Path(__file__).resolve().parent.parent
MEMORY, FILES = "memory does not suffice", "raise the limit (ulimit -n)"

_WITHOUT_FILES = """
import resource, sys
import onnxcompress
from onnxcompress.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    return tmp_path


def raising(error: BaseException) -> Any:
    def raised(*arguments: Any, **options: Any) -> Any:
        raise error

    return raised


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("Unable to allocate 7 GiB"), f"{MEMORY} (Unable to allocate 7 GiB)"),
        (MemoryError(), f"{MEMORY}; give"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MEMORY),
        (OSError(errno.EMFILE, "Too many open files"), FILES),
        (OSError(errno.ENOSPC, "No space left on device"), "give another folder for temporary ones by TMPDIR"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_one_line_and_no_traceback(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "compression_warnings", raising(error))
    assert main(["in.onnx", "out.onnx", "--prune", "0.5", "--no-latency", "--no-progress"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), OSError(errno.ENOENT, "No such file or directory"), ValueError("memory")]
)
def test_any_other_error_stays_a_bug(error: Exception) -> None:
    assert lacking(error) is None


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX systems")
def test_no_folder_takes_temporary_files() -> None:
    command = [sys.executable, "-c", _WITHOUT_FILES, "inspect", "in.onnx", "--profile", "-q"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 5
    (line,) = result.stderr.splitlines()
    assert "temporary files need a folder that can be written" in line
    assert "give one by TMPDIR" in line


def test_a_point_of_a_sweep_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    save_data(Path("data.npz"), conv_net())
    monkeypatch.setattr(sweep_work, "compress", raising(MemoryError("Unable to allocate 7 GiB")))
    words = ["sweep", "in.onnx", "--out", "out", "--data", "data.npz", "--method", "prune", "--prune-range", "0.5"]
    assert main([*words, "--no-latency", "-q"]) == 5
    (kept,) = Path("out/points").iterdir()
    point = json.loads(kept.read_text())
    assert MEMORY in point["reason"]
    assert "traceback" not in point


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ModelError("in.onnx: is not an ONNX model"), DecodeError("Error parsing message: Arena alloc failed")),
        (ModelError("its shapes contradict each other"), EncodeError("Failed to serialize proto")),
        (DataError("the model does not run on data"), RuntimeError("Status Message: std::bad_alloc")),
        (ImportError("core.so: failed to map segment from shared object"), None),
        (PassError("pass 'prune' produced an invalid model"), MemoryError()),
    ],
)
def test_what_memory_ran_out_in_is_not_to_blame(
    error: Exception, cause: Exception | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error.__cause__ = cause
    monkeypatch.setattr(job, "compression_warnings", raising(error))
    assert main(["in.onnx", "out.onnx", "--prune", "0.5", "--no-latency", "--no-progress"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert MEMORY in line


def test_a_file_that_is_no_model_is_to_blame(capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.onnx").write_bytes(b"no model")
    assert main(["in.onnx", "out.onnx", "--prune", "0.5", "--no-latency"]) == 4
    assert "is not an ONNX model" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["abc", "", "1e9", "9" * 20])
def test_a_variable_that_numpy_does_not_take(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", given)
    assert main(["in.onnx", "out.onnx", "--prune", "0.5", "--no-latency"]) == 2
    assert f"SOURCE_DATE_EPOCH is '{given}', no number of seconds" in capsys.readouterr().err
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert main(["in.onnx", "out.onnx", "--prune", "0.5", "--no-latency", "-q"]) == 0


@pytest.mark.parametrize("given", ["a\0b", 3, b"out", None])
def test_what_is_no_path(given: Any) -> None:
    options: dict[str, Any] = {"latency": False, "data": "data.npz"}
    with pytest.raises(RecipeError, match="is not the path of a file or folder"):
        onnxcompress.sweep("in.onnx", out=given, **options)
    if given is not None:
        with pytest.raises(RecipeError, match="is not the path of a file or folder"):
            onnxcompress.compress("in.onnx", output=given, prune=0.5, **options)
        with pytest.raises(RecipeError, match=r"is not the path of a file or folder|is no recipe"):
            onnxcompress.compress("in.onnx", given, prune=0.5, **options)


def test_a_sweep_keeps_its_points_here() -> None:
    with pytest.raises(RecipeError, match="keeps its points in a folder of this machine"):
        onnxcompress.sweep("in.onnx", out="s3://bucket/sweep", data="data.npz", latency=False)
    assert not Path("s3:").exists()


def test_a_model_that_does_not_fit_into_memory_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"
    monkeypatch.setattr(onnxruntime, "InferenceSession", raising(RuntimeError(message)))
    with pytest.raises(MemoryError, match="std::bad_alloc"):
        Session(conv_net().SerializeToString())
