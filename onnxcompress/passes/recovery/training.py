"""The training loop that reconstruction and fine-tuning share.

Steps are relative to each weight: Adam changes a weight tensor by at most about `rate` of its own root mean square a
step. The factors of a decomposition differ in scale by orders of magnitude; one absolute rate would freeze some and
destroy others. The weights that are judged and kept are a running average of the trained ones, which on few images is
better than any single step's (Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI
2018). Better than the start is what wins on the samples held out by more than the standard error: the best of many
epochs is better there by chance as well, most where few samples judge. Among the epochs the mean decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from onnxcompress.passes.base import Tell
from onnxcompress.passes.recovery.graph_module import GraphModule
from onnxcompress.passes.recovery.processes import Processes
from onnxcompress.passes.recovery.sample_files import Positions
from onnxcompress.passes.recovery.training_device import MixedPrecision

State = dict[str, Tensor]
LossOf = Callable[[Positions, torch.Generator, int], Tensor]
"""The mean loss of the samples at some positions, views of them drawn by the generator, in an epoch (from 0)."""

FEW_JUDGE = 30
"""Fewer samples say little of which weights are better."""

_WARMUP_SHARE = 0.05
_SMALLEST_SIZE = 1e-3  # of a weight tensor, for its steps: a bias of zeros must be able to move
_AVERAGED_STEPS = 50
_BY_CHANCE = "it was better on the samples held out by less than chance explains"
_STEPS_BETWEEN_LOOKS = 16  # at the loss: each look waits for an accelerator to finish its queue


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast.

    Attributes:
        epochs: passes over the samples.
        rate: of the largest steps, relative to each weight tensor's root mean square.
        batch: samples of one step.
        at_once: samples in memory at once; a step adds the gradients of several such parts.
        decay: share of each weight that is lost in a step of rate 1.
        seed: of order and views.
    """

    epochs: int
    rate: float
    batch: int
    at_once: int
    decay: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: its mean training loss, and the score (lower is better) on what is held out."""

    number: int
    loss: float
    score: float


def _no_errors() -> Tensor:
    return torch.full((1,), math.inf)


@dataclass
class Progressed:
    """Everything that a later run needs to go on where this one stands.

    Attributes:
        start_errors, best_errors: of the samples held out, (n,), by the weights of the start and the best since.
    """

    done: int = 0
    history: list[Epoch] = field(default_factory=list)
    best: State = field(default_factory=dict)
    start_errors: Tensor = field(default_factory=_no_errors)
    best_errors: Tensor = field(default_factory=_no_errors)
    trained: State = field(default_factory=dict)
    average: State = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)

    @property
    def best_score(self) -> float:
        """The best score so far."""
        return _mean(self.best_errors)


class Keeper(Protocol):
    """Keeps progress on disk."""

    def load(self) -> Progressed | None:
        """Return what a killed run left, None where there is nothing."""

    def save(self, progressed: Progressed) -> None:
        """Replace what is kept, whole or not at all."""


class TrainingSplit(Protocol):
    """How many samples are trained on, and how many only judge."""

    counts: Mapping[str, int]


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        start_score, best_score: on what is held out, of the start and of the weights that the module holds.
        stopped: why it ended early, None where it did not; `interrupted` where the user ended it, who may go on.
        by_chance: whether there were better weights than the start's, by no more than chance explains.
    """

    history: tuple[Epoch, ...]
    start_score: float
    best_score: float
    stopped: str | None = None
    by_chance: bool = False
    interrupted: bool = False

    def outcome(self, name: str, data: TrainingSplit) -> dict[str, Any]:
        """Return what the report says of it, as JSON values; `name` is the training's in its notes."""
        notes = [] if self.stopped is None else [f"{name} ended early: {self.stopped}"]
        if not self.improved:
            notes.append(f"{name} found nothing better than what it started from, which is kept")
        if self.by_chance:
            notes.append(_BY_CHANCE)
        return {
            "samples": dict(data.counts),
            "epochs": self.history_json(),
            "score": [self.start_score, self.best_score],
            "stopped": self.stopped,
            "interrupted": self.interrupted,
            "notes": notes,
        }

    def history_json(self) -> list[dict[str, float | int | None]]:
        """Return the epochs as JSON values; epoch 0 is the start, which has no loss."""
        return [
            {"epoch": each.number, "loss": each.loss if each.number else None, "score": each.score}
            for each in self.history
        ]

    @property
    def improved(self) -> bool:
        """Whether the kept weights are better than those at the start."""
        return self.best_score < self.start_score


class Trainer:
    """Trains a module's weights and leaves the best it has seen in it.

    Args:
        module: on its device.
        positions: of the samples to train on.
        judge: gives the errors of the samples that judge, (n,), by the module as it stands; their mean is its score.
        doubt: of weights that are better than the start's; see `is_better`.
        training_mode: whether BatchNormalization uses batch statistics while training.
        together: the processes that train this module together, all with the same samples and settings; only the first
            judges.
    """

    def __init__(
        self,
        module: GraphModule,
        settings: TrainingSettings,
        positions: Positions,
        judge: Callable[[], Tensor],
        *,
        doubt: float = 0.0,
        training_mode: bool = False,
        together: Processes | None = None,
    ) -> None:
        self._module = module
        self._together = together or Processes()
        self._settings = settings
        self._positions = positions
        self._judge = judge
        self._doubt = doubt
        self._training_mode = training_mode
        self._precision = MixedPrecision(module.device)
        self._sizes = [_size(weight) for weight in module.weights.values()]
        self._optimizer = torch.optim.AdamW(
            [
                # Relative too: torch multiplies the decay by the rate, which here carries the tensor's size.
                {"params": [weight], "weight_decay": settings.decay / size}
                for weight, size in zip(module.weights.values(), self._sizes, strict=True)
            ],
            lr=settings.rate,
            betas=(0.9, 0.99),
            fused=module.device.type == "cuda" or None,  # one kernel for each tensor, not a dozen
        )
        self._average: State = {}

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch, at least one."""
        return max(1, len(self._positions) // self._settings.batch)

    def run(self, loss_of: LossOf, doing: str, tell: Tell, keeper: Keeper | None = None) -> Training:
        """Train; the module ends with the best weights, or with those of the start where chance explains the best.

        An interrupt (Ctrl-C) or a loss that is not a number ends the training early and keeps the best so far.
        """
        start = self._module.state()
        progressed = self._resumed(keeper)
        start_score = progressed.history[0].score
        stopped: str | None = None
        interrupted = False
        try:
            for number in range(progressed.done, self._settings.epochs):
                loss = self._epoch(number, loss_of, doing, tell)
                if not math.isfinite(loss):
                    stopped = f"the loss became {loss} in epoch {number + 1}; a lower --lr may help"
                    break
                self._finish_epoch(number, loss, progressed)
                if keeper is not None:
                    keeper.save(progressed)
        except KeyboardInterrupt:
            self._together.leave()
            interrupted = True
            stopped = f"interrupted in epoch {len(progressed.history)} of {self._settings.epochs}"
        by_chance = progressed.best_score < start_score and not is_better(
            progressed.start_errors, progressed.best_errors, self._doubt
        )
        self._module.load_state(start if by_chance else progressed.best)
        self._module.eval()
        best_score = start_score if by_chance else progressed.best_score
        return Training(tuple(progressed.history), start_score, best_score, stopped, by_chance, interrupted)

    def _resumed(self, keeper: Keeper | None) -> Progressed:
        kept = self._together.of_first(None if keeper is None else keeper.load())
        if kept is not None:
            self._module.load_state(kept.trained)
            self._average = {name: tensor.to(self._module.device) for name, tensor in kept.average.items()}
            self._optimizer.load_state_dict(kept.optimizer)
            return kept
        self._module.eval()
        start = self._module.state()
        errors = self._judged()
        self._average = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        history = [Epoch(0, math.nan, _mean(errors))]
        return Progressed(history=history, best=start, start_errors=errors, best_errors=errors)

    def _judged(self) -> Tensor:
        return self._judge().cpu() if self._together.is_first else _no_errors()

    def _tensors(self) -> Mapping[str, Tensor]:
        return {**self._module.weights, **self._module.statistics}

    def _epoch(self, number: int, loss_of: LossOf, doing: str, tell: Tell) -> float:
        self._module.train(self._training_mode)
        generator = torch.Generator().manual_seed(_seed(self._settings.seed, number, self._together.rank))
        order = np.random.default_rng((self._settings.seed, number)).permutation(self._positions)
        total = torch.zeros((), dtype=torch.float64, device=self._module.device)
        steps = self.steps_per_epoch
        for step in range(steps):
            chosen = order[step * self._settings.batch : (step + 1) * self._settings.batch]
            self._set_rates(number * steps + step, self._settings.epochs * steps)
            total += self._step(chosen, lambda part: loss_of(part, generator, number))
            if step % _STEPS_BETWEEN_LOOKS == _STEPS_BETWEEN_LOOKS - 1 and not math.isfinite(float(total)):
                break
            self._update_average(number * steps + step)
            tell(doing, number * steps + step + 1, self._settings.epochs * steps)
        return float(total) / steps

    def _step(self, chosen: Positions, loss_of: Callable[[Positions], Tensor]) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in _parts(self._together.share(chosen), self._settings.at_once):
            with self._precision.autocast():
                loss = loss_of(part) * (len(part) / len(chosen))
            self._precision.backward(loss)
            losses.append(loss.detach().double())
        total = self._together.sum_gradients(self._module.weights.values(), torch.stack(losses).sum())
        self._precision.step(self._optimizer)
        return total

    def _set_rates(self, step: int, steps: int) -> None:
        """Warm up linearly, then follow half a cosine down to zero (Loshchilov and Hutter, SGDR, ICLR 2017)."""
        warmup = max(1, round(_WARMUP_SHARE * steps))
        factor = min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        for group, size in zip(self._optimizer.param_groups, self._sizes, strict=True):
            group["lr"] = self._settings.rate * factor * size

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        # Over the last steps, fewer at the beginning: the start must not linger.
        share = max(1.0 / _AVERAGED_STEPS, 1.0 - (step + 1) / (step + 10))
        tensors = self._tensors()
        torch._foreach_lerp_([self._average[name] for name in tensors], [*tensors.values()], share)

    def _finish_epoch(self, number: int, loss: float, progressed: Progressed) -> None:
        # Each process has seen other samples.
        self._together.average(self._module.statistics.values())
        self._together.average(self._average[name] for name in self._module.statistics)
        trained = self._module.state()
        self._module.load_state(self._average)
        self._module.eval()
        errors = self._judged()
        progressed.history.append(Epoch(number + 1, loss, _mean(errors)))
        progressed.average = self._module.state()
        if _mean(errors) < progressed.best_score:
            progressed.best, progressed.best_errors = progressed.average, errors
        self._module.load_state(trained)
        progressed.done, progressed.trained = number + 1, trained
        progressed.optimizer = self._optimizer.state_dict()


def is_better(before: Tensor, after: Tensor, doubt: float = 0.0) -> bool:
    """Return whether errors of the same samples, (n,), fell by more than the standard error of that in the mean.

    With `doubt`, as though so many samples more had changed by 1, half of them up and half down.
    """
    won = (before - after).double()
    spread = float(won.var()) * len(won) if len(won) > 1 else 0.0
    return float(won.sum()) > math.sqrt(spread + doubt)


def _mean(errors: Tensor) -> float:
    return float(errors.double().mean())


def _size(weight: Tensor) -> float:
    return max(float(weight.detach().square().mean().sqrt()), _SMALLEST_SIZE)


def _seed(seed: int, epoch: int, rank: int) -> int:
    entropy = (seed, epoch, rank) if rank else (seed, epoch)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def _parts(positions: Positions, size: int) -> Iterator[Positions]:
    for start in range(0, len(positions), size):
        yield positions[start : start + size]
