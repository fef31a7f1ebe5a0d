"""Models, data and reports at `gs://`, on a server of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxcompress.cli import main
from tests.remote.servers import gcs_server, put_inputs

QUICK = ["--no-latency", "--no-progress"]


@pytest.fixture
def bucket(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of a server with `in.onnx` and `data.npz` in a bucket; the working directory has both, too."""
    with gcs_server(monkeypatch):
        import gcsfs

        files = gcsfs.GCSFileSystem(token="anon", skip_instance_cache=True, use_listings_cache=False)
        put_inputs(files)
        yield files


def test_everything_may_lie_elsewhere(bucket: Any, tmp_path: Path) -> None:
    options = ["--prune", "0.25", "--samples", "20", *QUICK]
    assert main(["in.onnx", "out.onnx", "--data", "data.npz", *options]) == 0
    remote = ["gs://models/in.onnx", "gs://models/run/out.onnx", "--data", "gs://models/data.npz"]
    assert main([*remote, *options, "--report", "gs://models/run/report.json"]) == 0
    assert bucket.cat_file("models/run/out.onnx") == Path("out.onnx").read_bytes()
    assert json.loads(bucket.cat_file("models/run/report.json"))["output"]["path"] == remote[1]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_existing_object_needs_overwrite(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.pipe_file("models/out.onnx", b"precious")
    words = ["in.onnx", "gs://models/out.onnx", "--prune", "0.25", *QUICK]
    assert main(words) == 2
    assert "gs://models/out.onnx: exists" in capsys.readouterr().err
    assert bucket.cat_file("models/out.onnx") == b"precious"
    assert main([*words, "--overwrite"]) == 0
    assert bucket.cat_file("models/out.onnx") != b"precious"


def test_what_is_not_there_is_named(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gs://models/none.onnx", "out.onnx", "--prune", "0.25", *QUICK]) == 4
    assert "gs://models/none.onnx: no such file" in capsys.readouterr().err
    assert not Path("out.onnx").exists()
