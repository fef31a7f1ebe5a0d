"""A working directory with a model and data, and a folder for temporary files that must be empty at the end."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import pytest

from tests.tiny_models import conv_net, save_data


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `in.onnx` and `data.npz`; temporary files go to `temporary` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    onnx.save(conv_net(), "in.onnx")
    save_data(Path("data.npz"), conv_net())
    return tmp_path
