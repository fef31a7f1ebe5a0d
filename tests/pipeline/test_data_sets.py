"""Whose labels are read: those of evaluation and training data, of networks that classify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import DataError
from onnxcompress.pipeline.measure import open_data
from onnxcompress.recipe import Recipe
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
