"""A model's file that another takes the place of during the run: nothing is judged by two models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnxcompress
from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.pipeline import source as source_module
from tests.tiny_models import conv_net, save_data

GIVEN: dict[str, Any] = {"data": "data.npz", "latency": False, "report": "r.json"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    onnx.save(conv_net(seed=1), "other.onnx")
    save_data(Path("data.npz"), conv_net())
    return tmp_path


def at(step: str, change: Callable[[], object]) -> Callable[..., None]:
    """Return a progress that makes a change when a step is told for the first time."""
    waiting = [change]

    def progress(what: str, *told: object) -> None:
        if what == step and waiting:
            waiting.pop()()

    return progress


def replace_model() -> None:
    shutil.copy("other.onnx", "new.onnx")
    os.replace("new.onnx", "in.onnx")


@pytest.mark.parametrize("change", [replace_model, lambda: shutil.copy("other.onnx", "in.onnx")])
def test_a_model_that_was_replaced_is_not_what_the_result_is_judged_by(
    change: Callable[[], object], folder: Path
) -> None:
    with pytest.raises(ModelError, match=r"in\.onnx: was replaced or written to while the run went on; run again"):
        onnxcompress.compress("in.onnx", prune=0.25, output="out.onnx", progress=at("prune", change), **GIVEN)
    assert not Path("out.onnx").exists()
    assert not Path("r.json").exists()


@pytest.mark.parametrize("name", ["in.onnx", "other.onnx"])
def test_neither_of_two_that_are_compared_may_be_replaced(name: str, folder: Path) -> None:
    onnx.save(conv_net(seed=2), "third.onnx")
    progress = at("accuracy of the compressed model", lambda: shutil.copy("third.onnx", name))
    with pytest.raises(ModelError, match="was replaced"):
        onnxcompress.compare("in.onnx", "other.onnx", progress=progress, **GIVEN)
    assert not Path("r.json").exists()


def test_weights_beside_the_model_may_not_be_replaced_either(folder: Path) -> None:
    for name, seed in (("in.onnx", 0), ("other.onnx", 1)):
        onnx.save(conv_net(seed=seed), name, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    progress = at("prune", lambda: shutil.copy("other.onnx.data", "in.onnx.data"))
    with pytest.raises(ModelError, match=r"in\.onnx\.data: was replaced"):
        onnxcompress.compress("in.onnx", prune=0.25, verify=False, progress=progress, **GIVEN)


def test_the_same_bytes_again_change_nothing(folder: Path) -> None:
    shutil.copy("in.onnx", "same.onnx")
    for change in (lambda: os.utime("in.onnx"), lambda: os.replace("same.onnx", "in.onnx")):
        assert onnxcompress.compress("in.onnx", prune=0.25, progress=at("prune", change), **GIVEN).report.accuracy


def test_a_file_that_changes_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Model.load

    def slow(path: Path) -> Model:
        model = load(path)
        replace_model()
        return model

    monkeypatch.setattr(source_module.Model, "load", slow)
    with pytest.raises(ModelError, match="while it was read"):
        onnxcompress.inspect("in.onnx")
