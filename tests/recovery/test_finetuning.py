"""Fine-tuning from labels, from the original, or from both; checkpoints and what is asked of the data."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import LABELS, PassContext, PassResult
from onnxcompress.passes.recovery.augmentation import Views
from onnxcompress.passes.recovery.block_errors import Pair
from onnxcompress.passes.recovery.checkpoints import Checkpoint
from onnxcompress.passes.recovery.finetuning import FineTuning, FineTuningConfig, default_batch
from onnxcompress.passes.recovery.graph_module import GraphModule
from onnxcompress.passes.recovery.output_errors import log_probabilities
from onnxcompress.passes.recovery.refit import Refit, RefitConfig
from onnxcompress.passes.recovery.training_data import TrainingData
from tests.recovery.small_classifier import accuracy, images, original, pruned, samples

CONFIG = FineTuningConfig(epochs=6, rate=2e-2, batch=32, views=Views(mirror=False), device="cpu")


def with_batch(model: Model, batch: int) -> Model:
    proto = model.to_proto()
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = batch
    return Model.from_proto(proto)


def fine_tune(
    config: FineTuningConfig = CONFIG, model: Model | None = None, **changed: Any
) -> tuple[PassResult, Mapping[str, Any]]:
    model, provenance = (model or pruned()[0]), pruned()[1]
    notes: list[Mapping[str, Any]] = []
    context = PassContext(
        training=samples(300, 5, labels=True), original=original(), provenance=provenance, note=notes.append
    )
    context = replace(context, **changed)
    done = FineTuning(config)
    return done.apply(model, done.plan(model, context), context), notes[0]


@pytest.mark.parametrize(("loss", "labels_weight"), [("labels", 1.0), ("both", 0.5), ("distill", 0.0), ("auto", 0.5)])
def test_accuracy_comes_back(loss: str, labels_weight: float) -> None:
    result, outcome = fine_tune(replace(CONFIG, loss=loss))
    assert accuracy(pruned()[0]) < 0.6
    assert accuracy(result.model) > 0.85
    assert outcome["loss"] == {"labels": labels_weight, "original": 1.0 - labels_weight}
    assert outcome["score"][1] < outcome["score"][0]


def test_labels_are_smoothed_only_where_they_alone_teach() -> None:
    """Smoothed ones draw the network away from the original's answers: no epoch came nearer to them than a refit."""
    start = refitted(300, 5)
    results = {
        (loss, share): fine_tune(replace(CONFIG, loss=loss, smoothing=share, epochs=2, rate=1e-2), start)
        for loss in ("both", "labels")
        for share in (0.0, 0.2)
    }
    states = {key: result.model.to_bytes() for key, (result, _) in results.items()}
    epochs = {key: outcome["epochs"] for key, (_, outcome) in results.items()}
    assert epochs["both", 0.2] == epochs["both", 0.0]
    assert states["both", 0.2] == states["both", 0.0]
    assert epochs["labels", 0.2] != epochs["labels", 0.0]


def refitted(count: int, seed: int) -> Model:
    model, provenance = pruned()
    context = PassContext(calibration=samples(count, seed), original=original(), provenance=provenance)
    done = Refit(RefitConfig())
    return done.apply(model, done.plan(model, context), context).model


@pytest.mark.parametrize("seed", [6, 7])
def test_of_few_images_what_may_be_chance_keeps_the_start(seed: int) -> None:
    start = refitted(64, seed)
    result, outcome = fine_tune(
        replace(CONFIG, epochs=10), start, training=samples(64, seed, labels=True), calibration=samples(64, seed)
    )
    assert outcome["samples"] == {"trained": 34, "held_out": 30}
    assert min(epoch["score"] for epoch in outcome["epochs"]) < outcome["score"][0] == outcome["score"][1]
    assert any("less than chance explains" in note for note in outcome["notes"])
    assert result.model.to_bytes() == start.to_bytes()


def test_what_a_refit_was_fitted_to_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[set[int]] = []
    made = TrainingData.__init__

    def noted(self: TrainingData, files: Any, trained: Any, held_out: Any, *others: Any) -> None:
        given.extend((set(trained.tolist()), set(held_out.tolist())))
        made(self, files, trained, held_out, *others)

    monkeypatch.setattr(TrainingData, "__init__", noted)
    pixels, _ = images(100, 5)
    fine_tune(
        replace(CONFIG, epochs=1),
        training=samples(100, 5, labels=True),
        calibration=lambda: iter([{"input": pixels[:50]}]),
    )
    trained, judging = given
    assert trained | judging == set(range(100))
    assert {each for each in range(50) if each % 5 != 4} <= trained
    assert len(judging) == 30


def training_data(monkeypatch: pytest.MonkeyPatch) -> list[TrainingData]:
    """Return a list that will hold the data of every training."""
    seen: list[TrainingData] = []
    made = TrainingData.__init__

    def noted(self: TrainingData, *arguments: Any) -> None:
        made(self, *arguments)
        seen.append(self)

    monkeypatch.setattr(TrainingData, "__init__", noted)
    return seen


@pytest.mark.parametrize("loss", ["both", "labels"])
def test_beside_wrong_answers_what_teaches_judges(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = training_data(monkeypatch)
    _, outcome = fine_tune(replace(CONFIG, loss=loss, epochs=1))
    pixels, labels = images(300, 5)
    chosen = judged[0].held_out
    student, teacher = (
        log_probabilities(GraphModule(model).run({"input": torch.from_numpy(pixels[chosen])}, ("prob",))["prob"])
        for model in (pruned()[0], original())
    )
    truth = torch.from_numpy(labels[chosen])
    wrong = (student.argmax(1) != truth).float().mean()
    own = {
        "both": 0.5 * ((teacher.exp() * (teacher - student)).sum(1) - student[torch.arange(len(truth)), truth]).mean(),
        "labels": -0.01 * student[torch.arange(len(truth)), truth].mean(),
    }
    assert outcome["score"][0] == pytest.approx((wrong + own[loss]).item(), rel=1e-4)


def test_few_images_held_out_are_warned_of() -> None:
    warned = {}
    for count in (40, 64):
        _, outcome = fine_tune(replace(CONFIG, epochs=1), training=samples(count, 5, labels=True))
        warned[count] = [note for note in outcome["notes"] if "held out say whether" in note]
    assert warned == {
        40: [
            "only 20 samples held out say whether fine-tuning helped: give 60 or more to --train, better some hundreds"
        ],
        64: [],
    }


def test_without_labels_the_original_teaches() -> None:
    result, outcome = fine_tune(training=samples(300, 5))
    assert accuracy(result.model) > 0.85
    assert outcome["loss"] == {"labels": 0.0, "original": 1.0}
    assert outcome["original_accuracy"] is None
    assert outcome["samples"] == {"trained": 240, "held_out": 60}


@pytest.mark.parametrize("loss", ["labels", "both"])
def test_labels_are_missing_where_they_are_needed(loss: str) -> None:
    with pytest.raises(DataError, match=f"no labels, and --loss {loss} needs them"):
        fine_tune(replace(CONFIG, loss=loss), training=samples(300, 5))


def test_labels_of_other_classes_are_refused() -> None:
    pixels, labels = images(300, 5)
    swapped = np.random.default_rng(0).permutation(labels)
    with pytest.raises(DataError, match=r"recognises .* of the training labels, guessing gives 25\.0%"):
        fine_tune(training=lambda: iter([{"input": pixels, LABELS: swapped}]))
    # From the original alone it can be trained all the same.
    fine_tune(replace(CONFIG, epochs=1, loss="distill"), training=lambda: iter([{"input": pixels, LABELS: swapped}]))


def test_a_class_the_model_does_not_have_is_refused() -> None:
    pixels, labels = images(300, 5)
    with pytest.raises(DataError, match="label 7 is not a class; the model has classes 0 to 3"):
        fine_tune(training=lambda: iter([{"input": pixels, LABELS: np.where(labels == 3, 7, labels)}]))


def test_a_few_samples_that_the_original_misses_do_not_refuse_the_labels() -> None:
    pixels, labels = images(4, 5)
    others = np.where(np.arange(4) < 3, (labels + 1) % 4, labels)  # what a network of 75 % may miss once
    fine_tune(replace(CONFIG, epochs=1), training=lambda: iter([{"input": pixels, LABELS: others}]))


@pytest.mark.parametrize("seed", range(4))
def test_labels_are_judged_by_all_of_few_samples(seed: int) -> None:
    pixels, labels = images(12, 5)
    others = np.where(np.arange(12) < 5, (labels + 1) % 4, labels)
    _, outcome = fine_tune(
        replace(CONFIG, epochs=1), training=lambda: iter([{"input": pixels, LABELS: others}]), seed=seed
    )
    assert outcome["original_accuracy"] == pytest.approx(7 / 12)


@pytest.mark.parametrize("batch", [1, 10])
def test_a_fixed_batch_is_kept_to_whatever_a_step_takes(batch: int) -> None:
    told: list[tuple[int, int | None]] = []
    _, outcome = fine_tune(
        replace(CONFIG, epochs=1, batch=batch, held_out=0.5),
        training=samples(30, 5, labels=True, batch=4),
        model=with_batch(pruned()[0], 4),
        original=with_batch(original(), 4),
        tell=lambda doing, done, total: told.append((done, total)),
    )
    assert outcome["samples"] == {"trained": 15, "held_out": 15}
    steps = 16 // (4 if batch == 1 else 12)
    assert told == [(step, steps) for step in range(1, steps + 1)]


def test_images_are_mirrored_only_where_the_original_does_not_mind() -> None:
    # A stripe on the left is another class than one on the right.
    _, outcome = fine_tune(replace(CONFIG, epochs=1, views=Views(mirror=True)))
    assert any("not mirrored" in note for note in outcome["notes"])


@pytest.mark.parametrize(("shift", "kept"), [(0.1, True), (0.5, False)])
def test_images_are_shifted_only_where_the_original_does_not_mind(shift: float, kept: bool) -> None:
    # Half of the image further, a stripe is one of another class.
    _, outcome = fine_tune(replace(CONFIG, epochs=1, views=Views(mirror=False, shift=shift)))
    assert any("not shifted" in note for note in outcome["notes"]) != kept


@pytest.mark.parametrize(
    ("trained", "batch"), [(1, 8), (160, 8), (319, 8), (320, 16), (640, 32), (1279, 32), (1280, 64), (10**6, 64)]
)
def test_unless_given_the_batch_leaves_an_epoch_enough_steps(trained: int, batch: int) -> None:
    assert default_batch(trained) == batch


def test_of_few_images_a_step_takes_few() -> None:
    told: list[int | None] = []
    _, outcome = fine_tune(
        replace(CONFIG, epochs=1, batch=None),
        training=samples(100, 5, labels=True),
        tell=lambda doing, done, total: told.append(total),
    )
    assert outcome["samples"]["trained"] == 70
    assert told == [8] * 8


def test_training_data_are_needed() -> None:
    model, _ = pruned()
    with pytest.raises(DataError, match="--train"):
        FineTuning(CONFIG).plan(model, PassContext())


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(doing: str, done: int, total: int | None) -> None:
        if done == 27:  # in the fourth of six epochs of seven steps
            raise Killed

    path = tmp_path / "out.onnx.training"
    whole = fine_tune()[0].model.to_bytes()
    with pytest.raises(Killed):
        fine_tune(checkpoint=path, tell=kill)
    assert path.exists()
    told: list[int] = []
    result, outcome = fine_tune(checkpoint=path, resume=True, tell=lambda doing, done, total: told.append(done))
    assert told[0] == 22
    assert result.model.to_bytes() == whole
    assert [epoch["epoch"] for epoch in outcome["epochs"]] == list(range(7))
    # What is finished stays finished until the run that it belongs to is: resumed again, nothing is trained.
    told.clear()
    result, _ = fine_tune(checkpoint=path, resume=True, tell=lambda doing, done, total: told.append(done))
    assert told == []
    assert result.model.to_bytes() == whole


def test_without_resume_a_checkpoint_is_started_afresh(tmp_path: Path) -> None:
    path = tmp_path / "training"
    path.write_bytes(b"something old")
    result, _ = fine_tune(replace(CONFIG, epochs=1), checkpoint=path)
    assert result.model.to_bytes() == fine_tune(replace(CONFIG, epochs=1))[0].model.to_bytes()


def test_another_trainings_checkpoint_is_refused(tmp_path: Path) -> None:
    def interrupt(doing: str, done: int, total: int | None) -> None:
        if done == 10:
            raise KeyboardInterrupt

    path = tmp_path / "training"
    fine_tune(checkpoint=path, tell=interrupt)
    assert path.exists()  # an interrupted run can be taken up again
    with pytest.raises(RecipeError, match="checkpoint of another training"):
        fine_tune(replace(CONFIG, batch=16), checkpoint=path, resume=True)
    with pytest.raises(RecipeError, match="checkpoint of another training"):  # --task regression
        fine_tune(checkpoint=path, resume=True, numbers=frozenset({"y"}))
    with pytest.raises(RecipeError, match="checkpoint of another training"):
        fine_tune(checkpoint=path, resume=True, training=samples(300, 6, labels=True))
    with pytest.raises(RecipeError, match="checkpoint of another training"):
        fine_tune(checkpoint=path, resume=True, seed=1)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02cos\nsystem\n(S'exit 1'\ntR."])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "training"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="is not a readable checkpoint"):
        Checkpoint(path, "identity", resume=True).load()


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "training"

    def interrupt(doing: str, done: int, total: int | None) -> None:
        if done == 10:
            raise KeyboardInterrupt

    fine_tune(checkpoint=path, tell=interrupt)
    before = path.read_bytes()

    def full(value: object, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RecipeError, match="No space left"):
        fine_tune(checkpoint=path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["training"]


def test_a_loss_that_is_not_a_number_keeps_the_best_so_far() -> None:
    pixels, labels = images(300, 5)
    result, outcome = fine_tune(replace(CONFIG, rate=1e30), training=lambda: iter([{"input": pixels, LABELS: labels}]))
    assert any("ended early: the loss became" in note and "--lr" in note for note in outcome["notes"])
    assert result.model.to_bytes() == pruned()[0].to_bytes()


def test_running_out_of_memory_tells_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(self: Pair, feeds: object, *, apart: bool = False) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 ...")

    monkeypatch.setattr(Pair, "compared", exhausted)
    with pytest.raises(RecipeError, match=r"train with 32 images at once .*--train-batch"):
        fine_tune()


def test_parts_of_a_batch_give_the_step_of_the_whole() -> None:
    plain = replace(CONFIG, epochs=1, features=0.0)
    whole, parts = (fine_tune(replace(plain, at_once=size))[0].model for size in (None, 8))
    first, second = (np.concatenate([t.values.ravel() for t in m.constants().values()]) for m in (whole, parts))
    assert not np.array_equal(first, second)
    assert np.abs(first - second).max() < 2e-3 * np.abs(first).max()


def test_statistics_of_batch_normalisation_follow_the_training() -> None:
    from tests.zoo import export, sample_inputs

    model = Model.from_proto(export("resnet-basic", "torchscript-bn"))
    notes: list[Mapping[str, Any]] = []
    inputs = sample_inputs("resnet-basic", batch=40)
    settled = GraphModule(model).train()  # statistics of these inputs, as a trained network has them
    for _ in range(60):
        settled(torch.from_numpy(inputs["input"]))
    model = settled.to_model()
    context = PassContext(training=lambda: iter([inputs]), original=model, note=notes.append)
    damaged = model.copy()
    conv = next(node for node in damaged.nodes if node.op == "Conv")
    damaged.set_input(conv, 1, conv.inputs[1].values * np.float32(0.5))
    done = FineTuning(replace(CONFIG, epochs=4, batch=16, held_out=0.2))
    result = done.apply(damaged, done.plan(damaged, context), context)
    assert notes[0]["score"][1] < notes[0]["score"][0]
    statistics = [n.inputs[3].name for n in model.nodes if n.op == "BatchNormalization"]
    after, before = result.model.constants(), damaged.constants()
    assert all(not np.array_equal(after[name].values, before[name].values) for name in statistics)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
def test_sigterm_in_training_leaves_out_untouched_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxcompress.cli import main
    from tests.recovery.small_classifier import images, trained

    (tmp_path / "in.onnx").write_bytes(trained())
    pixels, labels = images(200, 5)
    np.savez(tmp_path / "train.npz", input=pixels, labels=labels)
    out, progress = tmp_path / "out.onnx", tmp_path / "out.onnx.training"
    out.write_bytes(b"what was there before")
    command = [str(tmp_path / "in.onnx"), str(out), "--prune", "0.5", "--train", str(tmp_path / "train.npz")]
    command += ["--epochs", "3", "--loss", "labels", "--no-latency", "--overwrite", "-q", "--device", "cpu"]
    save = Checkpoint.save

    def terminated(self: Checkpoint, progressed: Any) -> None:
        save(self, progressed)
        if progressed.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", terminated)
        assert main(command) == 130
    assert re.search(r"interrupted by SIGTERM: .*out\.onnx\.training keeps .* --resume", capsys.readouterr().err)
    assert out.read_bytes() == b"what was there before"
    assert progress.exists()
    assert main([*command, "--resume"]) == 0
    resumed = out.read_bytes()
    assert not progress.exists()
    assert main(command) == 0
    assert out.read_bytes() == resumed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx", "train.npz"]
