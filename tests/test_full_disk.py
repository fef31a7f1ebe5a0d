"""A disk that is full, a folder that takes no files, a path that goes away: one line, exit code 2, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcompress.cli import main
from onnxcompress.passes.recovery import refit_waves
from tests.tiny_models import conv_net

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["--cleanup", "off", "--prune", "0.02", "--no-latency", "-q"]
OLD = b"an older model"

_LIMITED = """
import resource, sys
from onnxcompress.cli import main
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    onnx.save(conv_net(channels=128), path)
    assert path.stat().st_size > 600_000
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root mounts a file system")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run([umount, folder], check=True)


def listed(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("external", [[], ["--external-data"]])
def test_a_full_disk_loses_nothing(
    external: list[str], source: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "out.onnx").write_bytes(OLD)
    (disk / "ballast").write_bytes(bytes(700_000))
    before = listed(disk)
    report = ["--report", str(disk / "r.json")]
    assert main([str(source), str(disk / "out.onnx"), "--overwrite", *report, *OPTIONS, *external]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "out.onnx" in message
    assert "No space left on device" in message
    assert listed(disk) == before
    (disk / "ballast").unlink()
    assert main([str(source), str(disk / "out.onnx"), "--overwrite", *report, *OPTIONS, *external]) == 0
    onnx.checker.check_model(str(disk / "out.onnx"))


def test_a_report_that_does_not_fit_takes_the_model_back(
    source: Path, tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "ballast").write_bytes(bytes(2**20 - 4096))
    report = ["--report", str(disk / "r.json")]
    assert main([str(source), str(tmp_path / "out.onnx"), *report, *OPTIONS]) == 2
    assert "r.json: cannot be written (No space left on device)" in capsys.readouterr().err
    assert sorted(path.name for path in disk.iterdir()) == ["ballast"]
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("options", [["--recover", "refit"], ["--recover", "refit", "--target", "macs=0.9"]])
def test_temporary_files_that_do_not_fit_end_the_run(
    options: list[str],
    source: Path,
    tmp_path: Path,
    disk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=images)
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(refit_waves, "_IN_MEMORY_BYTES", 0)
    arguments = [str(source), str(tmp_path / "out.onnx"), *OPTIONS, "--data", str(tmp_path / "images.npz"), *options]
    assert main(arguments) == 5
    message = capsys.readouterr().err.strip()
    assert message.endswith(
        f"error: temporary files fill the disk of {disk}; give --samples N with fewer, or another folder by TMPDIR "
        "(No space left on device)"
    )
    assert not (tmp_path / "out.onnx").exists()
    assert list(disk.iterdir()) == []
    assert main([*arguments, "--samples", "8"]) == 0


def test_a_read_only_file_system_is_refused_before_the_work(
    source: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "out.onnx").write_bytes(OLD)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert main([str(source), str(disk / "out.onnx"), "--overwrite", *OPTIONS]) == 2
    assert "is not writable" in capsys.readouterr().err
    assert listed(disk) == {"out.onnx": OLD}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX systems")
def test_a_file_beyond_the_limit_loses_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(OLD)
    before = set(listed(tmp_path))
    command = [sys.executable, "-c", _LIMITED, "100000", str(source), str(out), "--overwrite", *OPTIONS]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 2
    assert "cannot be written (File too large)" in result.stderr
    assert out.read_bytes() == OLD
    assert set(listed(tmp_path)) == before


def test_a_folder_that_goes_away_during_the_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxcompress.pipeline import job

    folder = tmp_path / "share"
    folder.mkdir()
    real = job.compression_warnings

    def gone(*arguments: object) -> object:
        folder.rmdir()
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "compression_warnings", gone)
    assert main([str(source), str(folder / "out.onnx"), *OPTIONS]) == 2
    message = capsys.readouterr().err
    assert "share does not exist" in message
    assert "Traceback" not in message
    assert not folder.exists()


def test_a_model_that_goes_away_is_told_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "gone.onnx"), str(tmp_path / "out.onnx"), *OPTIONS]) == 4
    assert "gone.onnx: no such file" in capsys.readouterr().err
