"""Processes of a sweep that are killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import onnx
import pytest

import onnxcompress
from tests.tiny_models import conv_net

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
