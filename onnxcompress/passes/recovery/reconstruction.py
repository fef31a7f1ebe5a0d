"""Reconstruction: the compressed network learns, block by block, to answer what the original's blocks answer.

For a block with output y, fed by the compressed blocks before it, and the original's output t, the loss is
||y - t||^2 / ||t||^2 over the channels that remain. In the first part of the epochs no gradient crosses from one block
to another: each learns to make good what was lost in it and before it. In the second part gradients flow through, and
the divergence of the outputs from the original's is part of the loss, so that a block also learns which of its errors
matter behind it. Nothing needs labels: the original answers any view of an image. What is kept is the best on images
held out, the start included, so that the result is never worse there than what training began with; and where it is
better there by no more than chance explains, the start is kept. A refit holds the same images out: to set others aside
cost it more than training won.

Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, ICLR 2021; Nagel et al., Up
or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020; He et al., Channel Pruning for Accelerating Very
Deep Neural Networks, ICCV 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.recovery.augmentation import Views
from onnxcompress.passes.recovery.block_errors import Errors, Pair, make_pair
from onnxcompress.passes.recovery.blocks import Block, find_blocks
from onnxcompress.passes.recovery.graph_module import GraphModule
from onnxcompress.passes.recovery.output_errors import compared_outputs
from onnxcompress.passes.recovery.refit_solve import held_out
from onnxcompress.passes.recovery.sample_files import Positions, SampleFiles
from onnxcompress.passes.recovery.strange_views import Recognition
from onnxcompress.passes.recovery.training import Trainer, Training, TrainingSettings
from onnxcompress.passes.recovery.training_data import TrainingData, model_batch, split_off
from onnxcompress.passes.recovery.training_device import memory_advice, training_device

# A block that starts out worse than answering nothing is not the original's counterpart: it is left out.
_UNRELATED = 2.0

_FEW_HELD_OUT = 0.2
"""Share that judges where there are too few images for a refit to hold any out."""


@dataclass(frozen=True)
class ReconstructionConfig:
    """How the blocks are trained.

    Attributes:
        epochs: passes over the calibration data: the time it takes.
        apart: share of the epochs in which no gradient crosses from one block to another.
        rate: of the largest steps, relative to each weight tensor's root mean square.
        batch: samples of one step.
        device: of torch, or `auto`.
        views: how samples that are images are varied.

    Raises:
        RecipeError: a value out of range.
    """

    epochs: int = 16
    apart: float = 0.25
    rate: float = 3e-4
    batch: int = 16
    device: str = "auto"
    views: Views = Views()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise RecipeError(f"reconstruct: epochs {self.epochs} and batch {self.batch} must be at least 1")
        if not self.rate > 0.0:
            raise RecipeError(f"reconstruct: the rate is {self.rate}, expected a number above 0")
        if not 0.0 <= self.apart <= 1.0:
            raise RecipeError("reconstruct: apart must lie in [0, 1]")


class Reconstruction(Pass):
    """Trains a compressed model's weights towards the answers of the model that it was made from."""

    name: ClassVar[str] = "reconstruct"
    trains: ClassVar[bool] = True

    def __init__(self, config: ReconstructionConfig) -> None:
        self.config = config

    def plan(self, model: Model, context: PassContext) -> Plan:
        """List the blocks.

        Raises:
            DataError: there are no calibration data.
            UnsupportedOpError: a node cannot be trained through.
        """
        if context.calibration is None:
            raise DataError("reconstruction needs calibration data; give --calib PATH or --data PATH")
        outputs = compared_outputs(model, context.original or model)
        module = GraphModule(model, [output.compared for output in outputs])
        if not module.weights:
            return Plan(self.name, (), tuple(Skipped(node.name, "holds no weights") for node in model.nodes[:1]))
        blocks = find_blocks(model, context.original or model, context.provenance)
        decisions: list[Decision] = [
            {"kind": "reconstruct", "outputs": list(block.outputs), "layers": list(block.layers)} for block in blocks
        ]
        decisions.append({"kind": "reconstruct", "outputs": [output.name for output in outputs], "layers": []})
        return Plan(self.name, tuple(decisions))

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Train the weights of `model`.

        Raises:
            RecipeError: the plan names tensors that the model does not have, or the device lacks memory.
            DataError: there are no or too few calibration data, or a tensor holds NaN or infinity.
            ProviderUnavailableError: the device is not there.
        """
        if context.calibration is None:
            raise DataError("reconstruction needs calibration data; give --calib PATH or --data PATH")
        known = {tensor.name for node in model.nodes for tensor in node.outputs}
        blocks = [Block(tuple(d["outputs"]), tuple(d["layers"])) for d in plan.decisions if d["layers"]]
        unknown = [name for block in blocks for name in block.outputs if name not in known]
        if unknown:
            raise RecipeError(f"plan: there is no tensor '{unknown[0]}' in this model; it is another model's plan")
        device = training_device(self.config.device)
        pair = make_pair(model, blocks, device, context)
        with SampleFiles("calibration data") as files:
            trained, judging = _parted(files.add(context.calibration()), context.seed)
            data = TrainingData(files, trained, judging, device, model_batch(model))
            with memory_advice(self.config.batch):
                context.note(_Reconstructing(self.config, pair, data, context).run())
        pair.student.write_to(model)
        return {}


def _parted(positions: Positions, seed: int) -> tuple[Positions, Positions]:
    """Return positions to train on and positions to judge by.

    Raises:
        DataError: there is only one.
    """
    judging = held_out(len(positions))
    return (positions[~judging], positions[judging]) if judging.any() else split_off(positions, _FEW_HELD_OUT, seed)


class _Reconstructing:
    """One run of the pass."""

    def __init__(self, config: ReconstructionConfig, pair: Pair, data: TrainingData, context: PassContext) -> None:
        self._config = config
        self._pair = pair
        self._data = data
        self._context = context
        self._at_once = data.fixed_batch or config.batch
        self._weights = torch.ones(len(pair.blocks), device=pair.student.device)
        self._views, self._notes = config.views, list[str]()
        self._apart = max(1, round(config.epochs * config.apart)) if config.apart > 0 else 0

    def run(self) -> dict[str, Any]:
        """Train; return what came of it."""
        first, _ = next(self._data.batches(self._data.held_out, self._at_once))
        self._pair.check_finite(first)
        output = self._pair.classifying(self._pair.expected(first))
        if output is not None:
            scores = partial(self._pair.original_scores, output)
            recognition = Recognition(self._data, scores, self._at_once, labelled=False)
            self._views, self._notes = recognition.without_strange(self._views, self._context.seed)
        before = self._measured()
        self._weights = (before.blocks < _UNRELATED).float()
        settings = TrainingSettings(
            self._config.epochs,
            self._config.rate,
            self._data.step(self._config.batch),
            self._at_once,
            seed=self._context.seed,
        )
        trainer = Trainer(self._pair.student, settings, self._data.trained, lambda: self._measured().samples)
        training = trainer.run(self._loss, "reconstructing", self._context.tell)
        after = self._measured()
        return self._outcome(training, before, after)

    def _loss(self, positions: Positions, generator: torch.Generator, epoch: int) -> Tensor:
        feeds, _ = self._data.views(positions, self._views, generator)
        _, errors = self._pair.compared(feeds, apart=epoch < self._apart)
        return (errors.blocks * self._weights).sum() + errors.outputs

    @torch.no_grad()
    def _measured(self) -> Errors:
        """Return the errors on what is held out, as it is."""
        sums, samples = [], []
        for feeds, _ in self._data.batches(self._data.held_out, self._at_once):
            size = len(next(iter(feeds.values())))
            _, errors = self._pair.compared(feeds)
            sums.append(errors.blocks * size)
            samples.append(errors.of_each(size))
        own = torch.cat(samples)[: self._data.counts["held_out"]]
        return Errors(torch.stack(sums).sum(0) / len(self._data.held_out), own)

    def _outcome(self, training: Training, before: Errors, after: Errors) -> dict[str, Any]:
        blocks = [
            {"outputs": list(block.outputs), "error": [float(first), float(last)]}
            for block, first, last in zip(self._pair.blocks, before.blocks, after.blocks, strict=True)
        ]
        outcome = training.outcome("reconstruction", self._data)
        return {**outcome, "blocks": blocks, "notes": [*self._notes, *outcome["notes"]]}
