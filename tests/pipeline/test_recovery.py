"""Which recovery the given data allow, and what is refused before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxcompress.errors import ProviderUnavailableError, RecipeError
from onnxcompress.pipeline.recovery import checkpoint_path, chosen_mode, recovery_passes
from onnxcompress.pipeline.request import make_request
from onnxcompress.recipe import Recipe


@pytest.mark.parametrize(
    ("recover", "given", "mode"),
    [
        (None, {}, "none"),
        (None, {"train": "t"}, "finetune"),
        ("auto", {}, "none"),
        ("auto", {"calib": "c"}, "refit"),
        ("auto", {"calib": "c", "train": "t"}, "finetune"),
        ("reconstruct", {"calib": "c"}, "reconstruct"),
        ("none", {"train": "t"}, "none"),
    ],
)
def test_the_best_that_the_data_allow(recover: str | None, given: dict[str, str], mode: str) -> None:
    data = {"data": None, "calib": None, "train": None, **given}
    assert chosen_mode(Recipe(recover=recover), **data) == mode


def test_training_starts_from_a_refit() -> None:
    pytest.importorskip("torch")
    assert recovery_passes(Recipe(), "none") == ()
    names = [[each.name for each in recovery_passes(Recipe(), mode)] for mode in ("refit", "reconstruct", "finetune")]
    assert names == [["refit"], ["refit", "reconstruct"], ["refit", "finetune"]]


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ProviderUnavailableError, match=r"onnxcompress\[train\]"):
        recovery_passes(Recipe(), "reconstruct")


def test_the_checkpoint_lies_beside_the_output() -> None:
    assert checkpoint_path(Path("a/small.onnx")) == Path("a/small.onnx.training")
    assert checkpoint_path(None) is None


def test_training_needs_data() -> None:
    for options, message in (({"recover": "finetune"}, "--train PATH"), ({"resume": True}, "--resume")):
        with pytest.raises(RecipeError, match=message):
            make_request(None, options, model=None, output=None, data=None, calib=None)
