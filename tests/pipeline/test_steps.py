"""Pruning in steps, with a recovery after each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.pipeline.compress import CompressionResult, compress
from onnxcompress.pipeline.recovery import checkpoint_path
from tests.recovery.small_classifier import accuracy, images, trained

WITHOUT = {"latency": False, "device": "cpu"}


@pytest.fixture
def train(tmp_path: Path) -> str:
    pixels, labels = images(200, 5)
    np.savez(tmp_path / "train.npz", input=pixels, labels=labels)
    return str(tmp_path / "train.npz")


def run(*, output: Path | None = None, progress: Any = None, **options: Any) -> CompressionResult:
    return compress(trained(), {**WITHOUT, **options}, output=output, progress=progress)


def stages(result: CompressionResult) -> list[str]:
    return [stage.pass_name for stage in result.report.stages if stage.pass_name != "cleanup"]


def widths(model: Model) -> list[int]:
    """Return the width of every group: the residual chain ties the second, fourth and sixth convolution."""
    filters = [node.inputs[1].values.shape[0] for node in model.nodes if node.op == "Conv"]
    assert filters[1] == filters[3] == filters[5]
    return [filters[number] for number in (0, 1, 2, 4)]


def test_every_step_is_followed_by_the_recovery(train: str) -> None:
    result = run(prune=0.7, steps=3, train=train, epochs=10, loss="labels")
    assert stages(result) == ["prune", "refit", "finetune"] * 3
    trainings = [stage.outcome for stage in result.report.stages if stage.pass_name == "finetune"]
    assert [len(outcome["epochs"]) - 1 for outcome in trainings if outcome] == [1, 1, 10]
    sizes = [stage.params for stage in result.report.stages if stage.pass_name == "prune"]
    assert sizes[0] > sizes[1] > sizes[2]
    assert accuracy(result.model) > accuracy(run(prune=0.7).model) + 0.2


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("steps", [2, 5])
def test_the_last_step_ends_where_one_step_does(train: str, scope: str, steps: int) -> None:
    options = {"prune": 0.55, "recover": "refit", "calib": train, "prune_scope": scope}
    first, second = (run(**options, steps=number).model for number in (1, steps))
    if scope == "uniform":
        assert widths(first) == widths(second)
    assert sum(widths(first)) == sum(widths(second))


def test_a_saved_plan_holds_all_steps_and_replays_to_the_same_bytes(train: str, tmp_path: Path) -> None:
    plan, options = tmp_path / "plan.json", {"calib": train}
    first = run(prune=0.5, steps=2, recover="refit", tucker="ratio=0.5", save_plan=plan, **options)
    kept = [each["pass"] for each in json.loads(plan.read_text())["passes"] if each["pass"] != "cleanup"]
    assert kept == ["prune", "refit", "prune", "tucker", "refit"]
    second = run(plan=plan, **options)
    assert second.model.to_bytes() == first.model.to_bytes()


def test_a_killed_run_takes_up_the_step_it_was_in(train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcompress.passes.recovery.checkpoints import Checkpoint

    out = tmp_path / "out.onnx"
    options = {"prune": 0.6, "steps": 2, "train": train, "epochs": 20, "loss": "labels", "output": out}
    whole = run(**options).model.to_bytes()
    out.unlink()
    save, saved = Checkpoint.save, list[str]()

    class Killed(BaseException):
        pass

    def killing(self: Checkpoint, progressed: Any) -> None:
        save(self, progressed)
        saved.append(self.path.name)
        if saved == ["out.onnx.training.1"] * 2 + ["out.onnx.training"] * 3:
            raise Killed

    monkeypatch.setattr(Checkpoint, "save", killing)
    with pytest.raises(Killed):
        run(**options)
    assert not out.exists()
    saved.clear()
    assert run(**options, resume=True).model.to_bytes() == whole
    assert saved == ["out.onnx.training"] * 17
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "train.npz"]


def test_what_a_later_step_kept_is_outdated_once_an_earlier_one_goes_on(
    train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxcompress.passes.recovery.finetuning import _FineTuning

    judged = []

    def better_each_time(self: _FineTuning) -> torch.Tensor:
        judged.append(self)
        return torch.full((40,), -float(len(judged)))

    monkeypatch.setattr(_FineTuning, "_errors", better_each_time)
    out = tmp_path / "out.onnx"
    options = {"prune": 0.9, "steps": 2, "train": train, "epochs": 2, "train_batch": 16, "loss": "labels"}
    whole = run(**options).model.to_bytes()
    told = []

    def interrupt(doing: str, done: int, total: int | None) -> None:
        told.append(doing)
        if doing == "fine-tuning" and told.count(doing) == 5:  # in the only epoch of the first step
            raise KeyboardInterrupt

    ended = run(**options, output=out, progress=interrupt)
    assert ended.model.to_bytes() != whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.training", "train.npz"]
    assert run(**options, output=out, overwrite=True, resume=True).model.to_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "train.npz"]


def test_a_training_whose_loss_is_no_number_leaves_nothing_to_go_on_from(
    train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come to the same end, and a lower --lr were refused as another training."""
    from onnxcompress.passes.recovery.finetuning import _FineTuning

    whole = _FineTuning._loss

    def lost(self: _FineTuning, positions: object, generator: object, epoch: int) -> torch.Tensor:
        loss: torch.Tensor = whole(self, positions, generator, epoch)
        return loss * float("nan") if epoch == 1 else loss

    monkeypatch.setattr(_FineTuning, "_loss", lost)
    ended = run(prune=0.5, train=train, epochs=3, output=tmp_path / "out.onnx")
    assert any("the loss became nan in epoch 2; a lower --lr may help" in each for each in ended.report.warnings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "train.npz"]


def test_what_steps_need() -> None:
    with pytest.raises(RecipeError, match="--steps divides what is pruned: give --prune R"):
        run(steps=2, tucker="auto")
    with pytest.raises(RecipeError, match="--steps without a recovery between them is one step: give --train"):
        run(steps=2, prune=0.5)
    assert checkpoint_path(Path("a.onnx"), 2) == Path("a.onnx.training.2")
