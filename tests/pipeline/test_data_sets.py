"""Whose labels are read: those of evaluation and training data, of networks that classify."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxcompress.errors import DataError
from onnxcompress.pipeline.measure import open_data
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.dataset import Dataset
from tests.runtime.test_packed import packed
from tests.small_models import build, node

CLASSES = 4


def classifier() -> bytes:
    nodes = [node("Conv", ["x", "w"], "c"), node("GlobalAveragePool", ["c"], "p"), node("Flatten", ["p"], "y")]
    return build(nodes, {"w": np.ones((CLASSES, 3, 1, 1), np.float32)}, shape=("n", 3, 2, 2)).to_bytes()


@pytest.fixture
def of_other_classes(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", x=np.ones((9, 3, 2, 2), np.float32), labels=np.arange(9))
    return tmp_path / "d.npz"


def test_calibration_data_may_be_of_other_classes(of_other_classes: Path) -> None:
    data = open_data(classifier(), Recipe(), None, of_other_classes)
    assert data.calibration is not None
    assert data.calibration.length == 9


@pytest.mark.parametrize("given", [{"data": True}, {"data": None, "train": True}])
def test_labels_that_are_read_must_be_classes(given: dict[str, Any], of_other_classes: Path) -> None:
    paths = {name: of_other_classes if used else None for name, used in given.items()}
    with pytest.raises(DataError, match="label 4 at position 4 is not a class; the model has classes 0 to 3"):
        open_data(classifier(), Recipe(), **paths)


def test_numbers_of_another_kind_have_no_classes(of_other_classes: Path) -> None:
    data = open_data(classifier(), Recipe(task="regression"), of_other_classes, None, of_other_classes)
    assert data.evaluation is not None
    assert data.training is not None


def regressor() -> bytes:
    nodes = [node("Conv", ["x", "w"], "c"), node("GlobalAveragePool", ["c"], "p"), node("Flatten", ["p"], "y")]
    return build(nodes, {"w": np.ones((1, 3, 1, 1), np.float32)}, shape=("n", 3, 2, 2)).to_bytes()


def read_to_the_end(data: Dataset | None) -> None:
    assert data is not None
    for batch in data.batches():
        assert batch.labels is not None


NO_CLASSES = {
    "numbers": np.linspace(0, 1, 9, dtype=np.float32),
    "rows": np.zeros((9, 2), np.float32),
    "text": np.array(list("abcdefghi")),
    "negative": np.arange(9) - 1,
    "objects": np.array([[0] * n for n in range(9)], dtype=object),
    "of others": np.arange(4),
}


@pytest.mark.parametrize("kind", NO_CLASSES)
@pytest.mark.parametrize("form", ["npz", "stream", "packed"])
def test_labels_that_nobody_reads_may_be_anything(kind: str, form: str, tmp_path: Path) -> None:
    labels = NO_CLASSES[kind]
    given: Any = tmp_path / "d.npz"
    preprocess = None
    if form == "npz":
        np.savez(given, x=np.ones((9, 3, 2, 2), np.float32), labels=labels)
    elif form == "packed":
        np.savez(given, **packed("train", np.zeros((9, 2, 2, 3), np.uint8), labels))
        preprocess = "unit"
    else:
        given = [{"x": np.ones((1, 3, 2, 2), np.float32), "labels": labels[n : n + 1]} for n in range(len(labels))]
    recipe = Recipe(preprocess=preprocess)
    for opened in (
        open_data(classifier(), recipe, None, given).calibration,
        open_data(classifier(), replace(recipe, loss="distill"), None, None, given).training,
        open_data(classifier(), replace(recipe, task="regression"), given).evaluation,
        open_data(regressor(), recipe, given).evaluation,
    ):
        assert opened is not None
        assert not opened.has_labels
        assert sum(batch.size for batch in opened.batches()) == (len(labels) if form == "stream" else 9)
    if kind != "of others":
        with pytest.raises(DataError, match=r"labels are|label -1 is negative|holds pickled objects"):
            read_to_the_end(open_data(classifier(), recipe, given).evaluation)


def test_a_list_of_images_gives_them_whatever_its_labels_are(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("a.png,0.5\na.png,cat\n")
    data = open_data(classifier(), Recipe(preprocess="unit"), None, tmp_path)
    assert data.calibration is not None
    assert not data.calibration.has_labels
    assert data.calibration.length == 2
    with pytest.raises(DataError, match=r"line 1: label '0\.5' is not a whole number"):
        open_data(classifier(), Recipe(preprocess="unit"), tmp_path)
