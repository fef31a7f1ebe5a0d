"""Reconstruction: accuracy comes back without labels, and nothing ever gets worse than it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import onnxcompress
from onnxcompress.errors import DataError, ProviderUnavailableError, RecipeError, UnsupportedOpError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult, Plan
from onnxcompress.passes.recovery import training
from onnxcompress.passes.recovery.augmentation import Views
from onnxcompress.passes.recovery.block_errors import make_pair
from onnxcompress.passes.recovery.blocks import find_blocks
from onnxcompress.passes.recovery.output_errors import Output, divergence, relative_error, sample_errors
from onnxcompress.passes.recovery.reconstruction import Reconstruction, ReconstructionConfig
from onnxcompress.passes.recovery.refit_solve import held_out
from onnxcompress.passes.recovery.training import is_better
from tests.recovery.small_classifier import accuracy, original, pruned, samples
from tests.tiny_models import detector_net, filtered_net
from tests.tiny_models import samples as small_inputs

PLAIN = Views(mirror=False)
CONFIG = ReconstructionConfig(epochs=6, rate=2e-2, batch=32, views=PLAIN, device="cpu")


def reconstruct(config: ReconstructionConfig = CONFIG, **changed: Any) -> tuple[PassResult, Mapping[str, Any]]:
    model, provenance = pruned()
    notes: list[Mapping[str, Any]] = []
    context = PassContext(calibration=samples(200, 5), original=original(), provenance=provenance, note=notes.append)
    context = replace(context, **changed)
    done = Reconstruction(config)
    return done.apply(model, done.plan(model, context), context), notes[0]


def test_accuracy_comes_back_without_labels() -> None:
    before = accuracy(pruned()[0])
    result, outcome = reconstruct(replace(CONFIG, epochs=10))
    assert before < 0.6
    assert accuracy(result.model) > 0.88
    assert outcome["score"][1] < 0.3 * outcome["score"][0]
    assert outcome["samples"] == {"trained": 160, "held_out": 40}
    assert [epoch["epoch"] for epoch in outcome["epochs"]] == list(range(11))
    assert all(last < first for first, last in (block["error"] for block in outcome["blocks"]))


def test_only_weights_change() -> None:
    result, _ = reconstruct(replace(CONFIG, epochs=1))
    before, after = pruned()[0], result.model
    assert [(n.op, n.name, [t.name for t in n.inputs]) for n in before.nodes] == [
        (n.op, n.name, [t.name for t in n.inputs]) for n in after.nodes
    ]
    assert before.to_bytes() == pruned()[0].to_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    config = replace(CONFIG, epochs=2)
    first, second, other = (reconstruct(config, seed=seed)[0].model.to_bytes() for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_a_rate_that_destroys_returns_the_start() -> None:
    result, outcome = reconstruct(replace(CONFIG, epochs=2, rate=50.0))
    assert result.model.to_bytes() == pruned()[0].to_bytes()
    assert outcome["score"][0] == outcome["score"][1]
    assert any("nothing better than what it started from" in note for note in outcome["notes"])


def test_what_chance_explains_returns_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[torch.Tensor, torch.Tensor]] = []

    def by_chance(before: torch.Tensor, after: torch.Tensor, doubt: float) -> bool:
        compared.append((before, after))
        return False

    monkeypatch.setattr(training, "is_better", by_chance)
    result, outcome = reconstruct()
    assert result.model.to_bytes() == pruned()[0].to_bytes()
    assert outcome["score"][0] == outcome["score"][1]
    assert all(first == last for first, last in (block["error"] for block in outcome["blocks"]))
    assert any("less than chance explains" in note for note in outcome["notes"])
    ((before, after),) = compared
    assert before.shape == after.shape == (40,)
    assert float(before.mean()) == pytest.approx(outcome["score"][0], rel=1e-4)
    assert float(after.mean()) == pytest.approx(min(epoch["score"] for epoch in outcome["epochs"]), rel=1e-4)


@pytest.mark.parametrize(
    ("won", "better"),
    [
        ([1.0, 2.0, 1.5, 1.0], True),
        ([3.0, -2.0, 1.0, -1.0], False),
        ([-1.0, -1.0], False),
        ([0.5], True),
        ([0.0], False),
    ],
)
def test_better_is_what_exceeds_its_standard_error(won: list[float], better: bool) -> None:
    before = torch.arange(len(won)) + 4.0
    assert is_better(before, before - torch.tensor(won)) is better


@pytest.mark.parametrize(
    ("fixed", "broken", "samples", "better"),
    [
        (1, 0, 30, False),
        (3, 0, 30, False),
        (8, 4, 30, False),
        (6, 0, 30, True),
        (12, 4, 30, True),
        (60, 45, 2000, True),
    ],
)
def test_answers_that_may_have_turned_by_chance_are_doubted(
    fixed: int, broken: int, samples: int, better: bool
) -> None:
    before, after = torch.zeros(samples), torch.zeros(samples)
    before[:fixed], after[fixed : fixed + broken] = 1.0, 1.0
    assert is_better(before, after, doubt=16.0) is better


def test_errors_of_samples_have_the_error_of_all_as_their_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = (Output("a", "a"), Output("b", "b"))
    first, second = (
        {"a": torch.randn(6, 5, generator=generator), "b": torch.randn(6, 3, 4, 4, generator=generator)}
        for _ in range(2)
    )
    for count in (6, 4):
        first["b"], second["b"] = first["b"][:count], second["b"][:count]
        errors = sample_errors(outputs, first, second)
        assert errors.shape == ((6,) if count == 6 else (1,))
        together = divergence(first["a"], second["a"]).mean() + relative_error(first["b"], second["b"])
        torch.testing.assert_close(errors.mean(), together)


def test_an_output_that_is_one_number_has_one_error() -> None:
    outputs = (Output("a", "a"),)
    errors = sample_errors(outputs, {"a": torch.tensor(3.0)}, {"a": torch.tensor(2.0)})
    torch.testing.assert_close(errors, torch.tensor([0.25]))


def test_an_uncompressed_model_stays_as_it_is() -> None:
    notes: list[Mapping[str, Any]] = []
    model = original()
    context = PassContext(calibration=samples(64, 5), original=model, note=notes.append)
    done = Reconstruction(replace(CONFIG, epochs=1))
    result = done.apply(model, done.plan(model, context), context)
    assert result.model.to_bytes() == model.to_bytes()
    assert notes[0]["score"] == [0.0, 0.0]


def test_it_is_judged_on_the_images_that_a_refit_holds_out() -> None:
    _, outcome = reconstruct(replace(CONFIG, epochs=1))
    name = original().graph.inputs[0].name
    data = np.concatenate([batch[name] for batch in samples(200, 5)()])
    model, provenance = pruned()
    context = PassContext(original=original(), provenance=provenance)
    pair = make_pair(model, find_blocks(model, original(), provenance), torch.device("cpu"), context)
    with torch.no_grad():
        _, errors = pair.compared({name: torch.from_numpy(data[held_out(200)])})
    assert outcome["score"][0] == pytest.approx(float(errors.outputs), rel=1e-4)


def test_few_samples_are_divided_too() -> None:
    _, outcome = reconstruct(replace(CONFIG, epochs=1), calibration=samples(4, 5))
    assert outcome["samples"] == {"trained": 3, "held_out": 1}


def test_an_interrupt_keeps_the_best_so_far() -> None:
    def interrupt(doing: str, done: int, total: int | None) -> None:
        if done == 17:  # in the fourth epoch of five steps
            raise KeyboardInterrupt

    result, outcome = reconstruct(tell=interrupt)
    assert [epoch["epoch"] for epoch in outcome["epochs"]] == [0, 1, 2, 3]
    assert outcome["score"][1] == min(epoch["score"] for epoch in outcome["epochs"])
    assert "interrupted in epoch 4 of 6" in outcome["notes"][0]
    assert result.model.to_bytes() != pruned()[0].to_bytes()


def test_a_fixed_batch_is_kept_to() -> None:
    proto = original().to_proto()
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 8
    model = Model.from_proto(proto)
    module_weights = {name: tensor.values for name, tensor in model.constants().items()}
    damaged = model.copy()
    first = next(node for node in damaged.nodes if node.op == "Conv")
    damaged.set_input(first, 1, module_weights[first.inputs[1].name] * np.float32(0.7))
    notes: list[Mapping[str, Any]] = []
    context = PassContext(calibration=samples(100, 5, batch=8), original=model, note=notes.append)
    done = Reconstruction(replace(CONFIG, epochs=6, batch=16))
    done.apply(damaged, done.plan(damaged, context), context)
    assert notes[0]["samples"] == {"trained": 80, "held_out": 20}
    assert notes[0]["score"][1] < 0.5 * notes[0]["score"][0]


def test_progress_counts_the_steps() -> None:
    told: list[tuple[str, int, int | None]] = []
    reconstruct(replace(CONFIG, epochs=2), tell=lambda *told_now: told.append(told_now))
    assert told == [("reconstructing", step, 10) for step in range(1, 11)]


def test_bad_input() -> None:
    model, provenance = pruned()
    done = Reconstruction(CONFIG)
    context = PassContext(original=original(), provenance=provenance)
    with pytest.raises(DataError, match="--calib"):
        done.plan(model, context)
    context = replace(context, calibration=samples(1, 5))
    with pytest.raises(DataError, match="at least 2 samples"):
        done.apply(model, done.plan(model, context), context)
    context = replace(context, calibration=samples(32, 5))
    plan = Plan("reconstruct", ({"kind": "reconstruct", "outputs": ["nowhere"], "layers": ["x"]},))
    with pytest.raises(RecipeError, match="'nowhere'"):
        done.apply(model, plan, context)
    with pytest.raises(RecipeError, match="epochs 0"):
        ReconstructionConfig(epochs=0)
    plan = done.plan(model, context)
    with pytest.raises(ProviderUnavailableError, match="cuda:99"):
        Reconstruction(replace(CONFIG, device="cuda:99")).apply(model, plan, context)
    with pytest.raises(RecipeError, match="'tricorder'"):
        Reconstruction(replace(CONFIG, device="tricorder")).apply(model, plan, context)


def test_an_operator_that_cannot_be_trained_is_named_before_any_work() -> None:
    model = original()
    model.nodes[-1].op = "Hardmax"
    with pytest.raises(UnsupportedOpError, match="Hardmax"):
        Reconstruction(CONFIG).plan(model, PassContext(calibration=samples(8, 5)))


@pytest.mark.parametrize("options", [{"recover": "reconstruct"}, {"recover": "finetune", "loss": "distill"}])
def test_what_stands_behind_the_tensors_that_are_compared_is_not_trained_through(options: dict[str, Any]) -> None:
    """What a detector filters its boxes by has no gradient: the boxes before teach as those of a plain detector do."""
    data = [{"x": small_inputs(160, seed=5)}]
    scores = []
    for net in (filtered_net(), detector_net(joined=False)):
        training = {**options, "train": data if "loss" in options else None, "epochs": 4}
        result = onnxcompress.compress(net, prune=0.4, calib=data, latency=False, round_to=1, **training)
        (outcome,) = (stage.outcome for stage in result.report.stages if stage.outcome and "score" in stage.outcome)
        scores.append(outcome["score"])
    assert scores[0] == pytest.approx(scores[1], rel=0.02)
    assert scores[0][1] < 0.995 * scores[0][0]


def test_a_tensor_that_is_not_finite_is_named() -> None:
    model, provenance = pruned()
    broken = original()
    gemm = next(node for node in broken.nodes if node.op == "Gemm")
    broken.set_input(gemm, 1, np.full_like(gemm.inputs[1].values, np.inf))
    context = PassContext(calibration=samples(32, 5), original=broken, provenance=provenance)
    done = Reconstruction(CONFIG)
    with pytest.raises(DataError, match=f"'{gemm.outputs[0].name}' of the original holds NaN"):
        done.apply(model, done.plan(model, context), context)


def test_samples_that_are_not_finite_are_named() -> None:
    model, provenance = pruned()
    context = PassContext(
        calibration=lambda: iter([{"input": np.full((4, 1, 12, 12), np.nan, np.float32)}]),
        original=original(),
        provenance=provenance,
    )
    done = Reconstruction(CONFIG)
    with pytest.raises(DataError, match="calibration data: 'input' holds NaN"):
        done.apply(model, done.plan(model, context), context)


def test_samples_that_are_all_equal_do_no_harm() -> None:
    one = next(iter(samples(1, 5)()))["input"]
    result, outcome = reconstruct(replace(CONFIG, epochs=1), calibration=lambda: iter([{"input": one.repeat(32, 0)}]))
    assert outcome["score"][1] <= outcome["score"][0]
    assert all(np.isfinite(t.values).all() for t in result.model.constants().values() if t.values.dtype.kind == "f")
