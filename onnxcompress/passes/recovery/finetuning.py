"""Fine-tuning: the compressed network is trained as a whole, from labels, from its original's answers, or from both.

The loss is (1 - w) times the cross-entropy with the labels plus w times the divergence from the original's outputs
(Hinton et al., Distilling the Knowledge in a Neural Network, 2015), and the relative error of the blocks' outputs,
which helps most where much was removed (Romero et al., FitNets, ICLR 2015). From labels alone (w = 0) the original has
no part in the steps: neither its outputs nor its blocks are computed. Steps, schedule and average are those of
`training`. What is kept is the best on samples held out, the start where it wins there by no more than chance explains:
of few samples more are held out, and of all first those that no refit was fitted to. Which few of the answers turn to
right is chance, so where the original teaches the loss counts beside them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from onnxcompress.errors import DataError, RecipeError, Terminated
from onnxcompress.graph import Model
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Samples
from onnxcompress.passes.recovery.augmentation import Views
from onnxcompress.passes.recovery.block_errors import Pair, make_pair
from onnxcompress.passes.recovery.blocks import find_blocks
from onnxcompress.passes.recovery.checkpoints import Checkpoint, training_identity
from onnxcompress.passes.recovery.graph_module import GraphModule, Tensors
from onnxcompress.passes.recovery.output_errors import class_scores, divergence, label_losses
from onnxcompress.passes.recovery.outputs import Output, compared_tensors
from onnxcompress.passes.recovery.processes import Job, Processes, processes
from onnxcompress.passes.recovery.sample_files import Positions, SampleFiles
from onnxcompress.passes.recovery.strange_views import CHECKED, Recognition
from onnxcompress.passes.recovery.training import FEW_JUDGE, Trainer, Training, TrainingSettings
from onnxcompress.passes.recovery.training_data import TrainingData, fitted_keys, model_batch, split_off
from onnxcompress.passes.recovery.training_device import memory_advice, training_device

LOSSES = ("auto", "labels", "distill", "both")

# Below this multiple of what guessing gives, the labels are not this network's classes: judged on so many samples.
_LEAST_OVER_CHANCE = 2.0
_DOUBTED = 16
"""So many answers of `FEW_JUDGE` samples may have turned by chance, half of them to right: of the epochs after a refit
the best one had, of 30 images held out, one to six fewer wrong than the start, and of a thousand others up to 8 % more.
Of n samples 16 (30 / n)^2: few networks answer so many wrong that 16 could turn, and what loses is judged by 30.

Of 300 trainings (digits with more or less noise, 100 to 1,000 images that the original had seen or not, two networks,
prune 0.3 to 0.6; the best epochs together 1,113 points better on other images) 481 points were kept by 16 whatever
judges and by wrong answers and the divergence from the original alone (73 trainings, none lost 0.5), 685 so and by the
whole loss (138, one lost 0.6), 764 by no doubt (182, five lost 0.6 to 1.6, all judged by 30). Of 94 from labels alone,
whose loss only decides between equals: 162 points by 16, 186 so, none lost; by all of their loss 210, one lost 5."""

_ENOUGH_JUDGE = 200
"""Fewer are made more, at the cost of what is trained on: of a network that training on 600 images made 7 points better
60 held out did not tell that from chance, in two trainings of three."""

_LARGEST_BATCH, _SMALLEST_BATCH, _STEPS_OF_EPOCH = 64, 8, 20
"""Unless it is given, the batch is the largest power of two that leaves an epoch so many steps: 30 epochs of one or two
steps change little. By batches of 8, 16, 32 and 64 the best epoch after a refit gained, in points on other images:
11, 6, 2 and 1 (100 images of stripes), 24, 20, 17 and 14 (500), 4, 3, 1 and -1 (200 digits), 6, 7, 6 and 5 (500),
3, 3, 2 and 1 (500 of CIFAR-10; with 200 batches of 16 and 64 were alike). Above 500 nothing was compared."""


@dataclass(frozen=True)
class FineTuningConfig:
    """How the network is trained.

    Attributes:
        epochs: passes over the training data.
        rate: of the largest steps, relative to each weight tensor's root mean square.
        batch: samples of one step; None takes 64, of few samples fewer, down to 8, so that an epoch has 20 steps.
        at_once: samples in memory at once; None takes whole batches.
        loss: one of `LOSSES`; `auto` takes both where there are labels.
        distilled: weight w of the original's answers beside the labels.
        smoothing: share of a label that is spread over all classes, where labels alone teach: beside the original's
            answers it draws the network away from them, by which it is judged as well.
        features: weight of the blocks' errors; without effect where only labels teach.
        decay: of weights.
        held_out: share of the samples that only judges; twice as much, and at least 30 or half, where they are few.
        device: of torch, or `auto`.
        views: how samples that are images are varied; mirrored and shifted only where the original does not mind.

    Raises:
        RecipeError: a value out of range or unknown.
    """

    epochs: int = 30
    rate: float = 1e-2
    batch: int | None = None
    at_once: int | None = None
    loss: str = "auto"
    distilled: float = 0.5
    smoothing: float = 0.1
    features: float = 0.1
    decay: float = 0.0
    held_out: float = 0.1
    device: str = "auto"
    views: Views = Views(shift=0.1)  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        if min(self.epochs, 1 if self.batch is None else self.batch, self.at_once or 1) < 1:
            raise RecipeError(f"finetune: epochs {self.epochs} and batch {self.batch} must be at least 1")
        if not self.rate > 0.0:
            raise RecipeError(f"finetune: the rate is {self.rate}, expected a number above 0")
        if self.loss not in LOSSES:
            raise RecipeError(f"finetune: unknown loss '{self.loss}', expected one of {', '.join(LOSSES)}")
        for name in ("distilled", "smoothing", "held_out"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(f"finetune: {name} is {getattr(self, name)}, expected a number from 0 to 1")


class FineTuning(Pass):
    """Trains a compressed model on training data."""

    name: ClassVar[str] = "finetune"
    trains: ClassVar[bool] = True

    def __init__(self, config: FineTuningConfig) -> None:
        self.config = config

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Say what is trained.

        Raises:
            DataError: there are no training data.
            UnsupportedOpError: a node cannot be trained through.
        """
        if context.training is None:
            raise DataError("fine-tuning needs training data; give --train PATH")
        module = GraphModule(model, compared_tensors(model, context.original or model))
        numbers = sum(weight.numel() for weight in module.weights.values())
        decision: Decision = {"kind": "finetune", "weights": len(module.weights), "numbers": numbers}
        return Plan(self.name, (decision,) if module.weights else ())

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Train the weights of `model`.

        Raises:
            DataError: there are too few data, labels are missing or not the model's classes, or a tensor is not finite.
            RecipeError: the device lacks memory, or the checkpoint is another training's.
            ProviderUnavailableError: the device is not there.
        """
        if context.training is None:
            raise DataError("fine-tuning needs training data; give --train PATH")
        together = processes()
        if together.size > 1:
            original = (context.original or model).to_bytes()
            job = Job(model.to_bytes(), original, self.config, context.provenance, context.seed, context.numbers)
            together.begin(job)
        with SampleFiles("training data") as files:
            run = self._prepared(model, files, together, context, context.training)
            checkpoint = None
            if context.checkpoint is not None:
                options = {**asdict(self.config), "numbers": sorted(context.numbers), "seed": context.seed}
                identity = training_identity(model, context.original or model, options, files.digest())
                checkpoint = Checkpoint(context.checkpoint, identity, resume=context.resume)
            with memory_advice(run.at_once), _resume_advice(context.checkpoint):
                context.note(run.run(checkpoint))
        run.student.write_to(model)
        return {}

    def take_part(self, model: Model, context: PassContext, together: Processes) -> None:
        """Train along with the process that carries out this pass; nothing comes of it here.

        Raises:
            DataError, RecipeError, ProviderUnavailableError: as for `rewrite`.
        """
        assert context.training is not None
        with SampleFiles("training data") as files:
            run = self._prepared(model, files, together, context, context.training)
            with memory_advice(run.at_once):
                run.run(None)

    def _prepared(
        self, model: Model, files: SampleFiles, together: Processes, context: PassContext, training: Samples
    ) -> _FineTuning:
        original = context.original or model
        device = training_device(together.device(self.config.device))
        compares_blocks = self.config.features > 0 and self.config.loss != "labels"
        blocks = find_blocks(model, original, context.provenance) if compares_blocks else ()
        pair = make_pair(model, blocks, device, context)
        positions = files.add(training())
        fitted = set() if context.calibration is None else fitted_keys(context.calibration)
        known = np.array([key in fitted for key in files.keys])
        share = self.config.held_out
        least = max(FEW_JUDGE, min(_ENOUGH_JUDGE, round(2 * share * len(positions))))
        parts = split_off(positions, share, context.seed, least=least, known=known)
        trained, held_out = together.of_first(parts)  # only the first knows what calibrates
        data = TrainingData(files, trained, held_out, device, model_batch(model), together.size)
        return _FineTuning(self.config, pair, data, context, together)


@contextlib.contextmanager
def _resume_advice(checkpoint: Path | None) -> Iterator[None]:
    """Say in the end of a killed run how it can be taken up again."""
    try:
        yield
    except Terminated as stop:
        if checkpoint is None or not checkpoint.exists():
            raise
        left = f"{checkpoint} keeps the epochs that were finished; --resume goes on there"
        raise Terminated(stop.by, left) from stop


class _FineTuning:
    """One run of the pass."""

    def __init__(
        self,
        config: FineTuningConfig,
        pair: Pair,
        data: TrainingData,
        context: PassContext,
        together: Processes,
    ) -> None:
        self._together = together
        self._config = config
        self._pair = pair
        self._data = data
        self._context = context
        largest = config.batch or _LARGEST_BATCH
        self._at_once = data.fixed_batch or min(largest, config.at_once or largest)
        self._batch = data.step(config.batch or max(default_batch(len(data.trained)), together.size))
        self._views = config.views
        self._classes = 0
        self._original_scores: list[Tensor] = []
        self._classifies = self._classifying()
        self._label_weight, self._output = self._checked_loss(self._classifies)

    @property
    def at_once(self) -> int:
        """The samples of a step that are in memory at once."""
        return min(self._at_once, self._batch)

    @property
    def student(self) -> GraphModule:
        """The network that is trained."""
        return self._pair.student

    def _checked_loss(self, output: Output | None) -> tuple[float, Output | None]:
        """Return the weight of the labels, and the output they belong to: the one that classifies, or none."""
        loss = self._config.loss
        if loss in ("labels", "both") and output is None:
            raise DataError("no output of the model classifies: labels cannot be trained on; give --loss distill")
        if loss in ("labels", "both") and not self._data.has_labels:
            raise DataError(f"the training data have no labels, and --loss {loss} needs them; give --loss distill")
        if not self._data.has_labels or output is None or loss == "distill":
            return 0.0, None
        return 1.0 if loss == "labels" else 1.0 - self._config.distilled, output

    def _classifying(self) -> Output | None:
        feeds, _ = next(self._data.batches(self._data.held_out, self._at_once))
        self._pair.check_finite(feeds)
        answers = self._pair.expected(feeds)
        output = self._pair.classifying(answers)
        if output is not None:
            self._classes = answers[output.compared].shape[1]
            self._data.check_labels(self._classes)
        return output

    def run(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Train; return what came of it."""
        notes: list[str] = []
        original_accuracy = None
        if self._classifies is not None:
            output, labelled = self._classifies, self._output is not None
            recognition = Recognition(
                self._data, partial(self._pair.original_scores, output), self._at_once, labelled=labelled
            )
            if labelled:
                original_accuracy = recognition.rate()
                self._check_classes(original_accuracy)
            self._views, notes = recognition.without_strange(self._views, self._context.seed)
        settings = TrainingSettings(
            self._config.epochs,
            self._config.rate,
            self._batch,
            self._at_once,
            self._config.decay,
            self._context.seed,
        )
        trainer = Trainer(
            self._pair.student,
            settings,
            self._data.trained,
            self._errors,
            doubt=0.0 if self._output is None else doubted(self._data.counts["held_out"]),
            training_mode=True,
            together=self._together,
        )
        training = trainer.run(self._loss, "fine-tuning", self._context.tell, checkpoint)
        return self._outcome(training, original_accuracy, notes)

    def _loss(self, positions: Positions, generator: torch.Generator, epoch: int) -> Tensor:
        feeds, labels = self._data.views(positions, self._views, generator)
        if self._label_weight == 1.0 and labels is not None:
            return self._cross_entropy(self._pair.computed(feeds), labels, smoothing=self._config.smoothing)
        computed, errors = self._pair.compared(feeds)
        loss = self._config.features * errors.blocks.sum() + (1.0 - self._label_weight) * errors.outputs
        if self._output is not None and labels is not None:
            loss = loss + self._label_weight * self._cross_entropy(computed, labels)
        return loss

    def _cross_entropy(self, computed: Tensors, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
        assert self._output is not None
        return label_losses(self._scores(computed), labels, apart=self._output.apart, smoothing=smoothing).mean()

    def _scores(self, computed: Tensors) -> Tensor:
        assert self._output is not None
        scores = class_scores(computed[self._output.compared])
        assert scores is not None
        return scores

    @torch.no_grad()
    def _errors(self) -> Tensor:
        """Judge what is held out, (n,): whether an answer is wrong, and the loss that teaches.

        Where only labels teach, it decides between equals. Without labels: the error of the outputs.
        """
        errors = []
        for number, (feeds, labels) in enumerate(self._data.batches(self._data.held_out, self._at_once)):
            if self._output is None or labels is None:
                errors.append(self._pair.compared(feeds)[1].of_each(len(next(iter(feeds.values())))))
            else:
                scores = self._scores(self._pair.computed(feeds))
                apart = self._output.apart
                losses = label_losses(scores, labels, apart=apart)
                if self._label_weight == 1.0:
                    losses = 0.01 * losses
                else:
                    away = divergence(scores, self._answered(number, feeds), apart=apart)
                    losses = torch.lerp(away, losses, self._label_weight)
                errors.append((scores.argmax(1) != labels).float() + losses)
        return torch.cat(errors)[: self._data.counts["held_out"]]

    def _answered(self, number: int, feeds: Tensors) -> Tensor:
        """Return the original's scores of a batch of what is held out, computed once."""
        if number == len(self._original_scores):
            assert self._output is not None
            self._original_scores.append(self._pair.original_scores(self._output, feeds))
        return self._original_scores[number]

    def _check_classes(self, accuracy: float) -> None:
        """Refuse labels that mean other classes than the model's outputs, unless so few may be missed by chance."""
        chance = 1.0 / self._classes
        least = min(_LEAST_OVER_CHANCE * chance, 0.5)
        if accuracy < least - math.sqrt(least * (1.0 - least) / min(CHECKED, self._data.count)):
            raise DataError(
                f"the original recognises {accuracy:.1%} of the training labels, guessing gives {chance:.1%}: "
                "they are not the classes of its outputs, or --preprocess is wrong; --loss distill needs no labels"
            )

    def _outcome(self, training: Training, original_accuracy: float | None, notes: list[str]) -> dict[str, Any]:
        outcome = training.outcome("fine-tuning", self._data)
        judges = self._data.counts["held_out"]
        if judges < FEW_JUDGE:
            notes.append(
                f"only {judges} samples held out say whether fine-tuning helped: give {2 * FEW_JUDGE} or more to "
                "--train, better some hundreds"
            )
        return {
            **outcome,
            "loss": {"labels": self._label_weight, "original": 1.0 - self._label_weight},
            "original_accuracy": original_accuracy,
            "notes": [*notes, *outcome["notes"]],
        }


def doubted(judges: int) -> float:
    """Return how many answers of so many samples held out may have turned by chance."""
    return _DOUBTED * (FEW_JUDGE / max(judges, FEW_JUDGE)) ** 2


def default_batch(trained: int) -> int:
    """Return the samples of a step where so many are trained on and no batch is given."""
    batch = _LARGEST_BATCH
    while batch > _SMALLEST_BATCH and trained < _STEPS_OF_EPOCH * batch:
        batch //= 2
    return batch
