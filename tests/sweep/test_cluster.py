"""A cluster without workers: said in one line, and waited for."""

from __future__ import annotations

import threading
from pathlib import Path

import onnx
import pytest

from onnxcompress.cli import main
from onnxcompress.pipeline import sweep_executors
from tests.tiny_models import conv_net, save_data

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cluster_without_workers_is_said_to_be_one_and_waited_for(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    save_data(Path("data.npz"), conv_net())
    with distributed.LocalCluster(n_workers=workers, processes=False, dashboard_address=":0") as cluster:
        started = threading.Event()
        if not workers:
            monkeypatch.setattr(sweep_executors, "_CONNECT_SECONDS", 0.5)
            warn = sweep_executors.warnings.warn

            def warned(*arguments: object, **options: object) -> None:
                warn(*arguments, **options)
                cluster.scale(1)
                started.set()

            monkeypatch.setattr(sweep_executors.warnings, "warn", warned)
        words = ["sweep", str(tmp_path / "in.onnx"), "--data", str(tmp_path / "data.npz"), "--out", "out", "-q"]
        words += ["--method", "prune", "--prune-range", "0.25", "--no-latency"]
        assert main([*words, "--scheduler", cluster.scheduler_address]) == 0
    assert started.is_set() == (workers == 0)
    told = [line for line in capsys.readouterr().err.splitlines() if "onnxcompress" in line]
    if workers:
        assert told == []
    else:
        (line,) = told
        assert line.startswith(
            f"onnxcompress: warning: --scheduler {cluster.scheduler_address}: the cluster has no wor"
        )
    assert list(Path("out/models").glob("*.onnx"))
