"""Side files of a model that is replaced: only those go that it named and that nothing else needs."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from onnxcompress.cli import main
from onnxcompress.graph import Model
from tests.tiny_models import conv_net


def save(path: Path, seed: int) -> Path:
    """Write a model with its weights beside it, in place of what stands there; return the side file."""
    known = set(path.parent.iterdir())
    Model.from_proto(conv_net(seed=seed)).save(path, external=True, overwrite=True)
    (side_file,) = {file for file in path.parent.iterdir() if file.suffix == ".data"} - known
    return side_file


def test_the_weights_of_a_renamed_model_stay(tmp_path: Path) -> None:
    kept = save(tmp_path / "stage.onnx", seed=1)
    (tmp_path / "stage.onnx").rename(tmp_path / "base.bin")
    save(tmp_path / "stage.onnx", seed=2)
    assert kept.exists()
    assert Model.load(tmp_path / "base.bin").to_bytes() == Model.from_proto(conv_net(seed=1)).to_bytes()


@pytest.mark.parametrize("broken", [False, True])
def test_the_weights_of_a_copied_model_stay(broken: bool, tmp_path: Path) -> None:
    kept = save(tmp_path / "stage.onnx", seed=1)
    content = (tmp_path / "stage.onnx").read_bytes()
    (tmp_path / "copy.ONNX").write_bytes(content[:-20] if broken else content)
    save(tmp_path / "stage.onnx", seed=2)
    assert kept.exists()


def test_the_weights_of_a_linked_model_stay(tmp_path: Path) -> None:
    kept = save(tmp_path / "real.onnx", seed=1)
    (tmp_path / "link.onnx").symlink_to("real.onnx")
    save(tmp_path / "link.onnx", seed=2)
    assert kept.exists()


def test_files_that_are_no_models_keep_nothing(tmp_path: Path) -> None:
    stale = save(tmp_path / "stage.onnx", seed=1)
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "nowhere.onnx").symlink_to("gone.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    save(tmp_path / "stage.onnx", seed=2)
    assert not stale.exists()


def test_the_weights_of_in_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where IN's name tells no model, or lies in another folder."""
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    kept = save(Path("parts/stage.onnx").absolute(), seed=1)
    model = onnx.load("parts/stage.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"parts/{kept.name}"
    Path("base.model").write_bytes(model.SerializeToString())
    options = ["--prune", "0.5", "--external-data", "--no-latency", "--overwrite", "-q"]
    assert main(["base.model", "parts/stage.onnx", *options]) == 0
    assert kept.exists()
    assert main(["inspect", "base.model", "-q"]) == 0
