"""Training shared among several processes, of this machine or of several, through Hugging Face Accelerate.

`torchrun` or `accelerate launch` starts the same command once for each. The first process compresses as it would alone;
the others wait, and take part where it trains: each computes its share of every batch, and the gradients are summed.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from onnxcompress.errors import ProviderUnavailableError, RecipeError
from onnxcompress.passes.base import Provenance
from onnxcompress.passes.recovery.sample_files import Positions

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=7)
"""For the first process, which prunes, decomposes and measures meanwhile."""


@dataclass(frozen=True)
class Job:
    """A training that other processes take part in.

    Attributes:
        model, original: serialized; trained is `model`.
        config: of the pass that trains.
        provenance: which channels of the original's tensors remain.
        seed: of order and views.
        numbers: tensors of the shape of class scores that hold numbers of another kind.
    """

    model: bytes
    original: bytes
    config: Any
    provenance: Provenance
    seed: int
    numbers: frozenset[str]


class Processes:
    """The processes that train together; by itself, only this one."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that compresses, judges and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return the device that this process trains on, for what was asked."""
        return name

    def share(self, positions: Positions) -> Positions:
        """Return this process's part of a batch.

        Raises:
            RecipeError: there are fewer samples than processes.
        """
        if len(positions) < self.size:
            raise RecipeError(
                f"{self.size} processes cannot share a batch of {len(positions)}; give a larger --train-batch or more "
                "data, or start fewer"
            )
        return positions[self.rank :: self.size]

    def sum_gradients(self, weights: Iterable[Tensor], loss: Tensor) -> Tensor:
        """Give the weights the sums of all processes' gradients; return the sum of their losses."""
        return loss

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the mean of their values in all processes."""

    def of_first(self, value: T) -> T:
        """Return the value that the first process holds."""
        return value

    def begin(self, job: Job) -> None:
        """Let the other processes take part in a training."""

    def leave(self) -> None:
        """Go on alone: a training ended where the others do not expect it."""


class SharedProcesses(Processes):
    """Several processes, joined by Accelerate.

    Raises (constructor):
        ProviderUnavailableError: Accelerate is not installed.
    """

    def __init__(self, *, on_cpu: bool) -> None:
        try:
            from accelerate import Accelerator, InitProcessGroupKwargs
        except ImportError as error:
            raise ProviderUnavailableError(
                "several processes train together with accelerate, which is not installed: "
                "pip install 'onnxcompress[distributed]'"
            ) from error
        # Before there is a group: its functions keep, as a default, the one that is there when they are imported, as
        # optimizers do through torch.compile. `_disband` could not end the threads of a group that is kept.
        import torch.distributed.nn  # noqa: F401

        patient = InitProcessGroupKwargs(timeout=_LONGEST_WAIT)
        self._accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[patient])
        self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes
        self._left = False

    def device(self, name: str) -> str:
        """Return the GPU that belongs to this process, where none is named."""
        own: torch.device = self._accelerator.device
        return str(own) if name in ("auto", "cuda") else name

    def sum_gradients(self, weights: Iterable[Tensor], loss: Tensor) -> Tensor:
        """Sum gradients and losses, in one message."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = torch.cat([*(each.reshape(-1) for each in gradients), loss.reshape(1).to(torch.float32)])
        parts = self._reduced(flat, "sum").split([*(each.numel() for each in gradients), 1])
        for gradient, part in zip(gradients, parts[:-1], strict=True):
            gradient.copy_(part.view(gradient.shape))
        summed: Tensor = parts[-1][0]
        return summed.double()

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average tensors one by one."""
        for tensor in tensors:
            tensor.copy_(self._reduced(tensor, "mean"))

    def of_first(self, value: T) -> T:
        """Send an object from the first process to the others."""
        with _all_are_there():
            return self._sent(value)

    def _sent(self, value: T) -> T:
        from accelerate.utils import broadcast_object_list

        received: list[T] = broadcast_object_list([value if self.is_first else None], from_process=0)
        return received[0]

    def begin(self, job: Job) -> None:
        """Send a training to the processes that wait in `next_job`."""
        self.of_first(job)

    def next_job(self) -> Job | None:
        """Wait for a training of the first process; None where it has no more, or ended and says why itself."""
        try:
            return self._sent(None)
        except RuntimeError:
            return None

    def end(self) -> None:
        """Let the other processes go."""
        if not self._left:
            with contextlib.suppress(RuntimeError):  # whoever is gone need not be told
                self._sent(None)

    def leave(self) -> None:
        """Expect nothing of the others, and send them nothing.

        From now on interrupts do nothing: launchers send theirs behind the terminal's, which ended the training.
        """
        self._left, self.size = True, 1
        _ignore_interrupts()

    def _reduced(self, tensor: Tensor, how: str) -> Tensor:
        with _all_are_there():
            result: Tensor = self._accelerator.reduce(tensor, reduction=how)
            return result


class ProcessGoneError(ProviderUnavailableError):
    """A process that trains along is not there any more."""


@contextlib.contextmanager
def _all_are_there() -> Iterator[None]:
    """Say in plain words that another process is gone, whose connection broke.

    Raises:
        ProcessGoneError: it is.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ProcessGoneError(
            f"a process that trains along is not there any more ({reason}); start them all again, with --resume "
            "to go on from the last epoch"
        ) from error


_joined: list[Processes] = [Processes()]


def processes() -> Processes:
    """Return the processes that train together now."""
    return _joined[-1]


@contextlib.contextmanager
def joined(device: str) -> Iterator[SharedProcesses]:
    """Join the processes that were started together, to train on a device; the first lets the others go at the end.

    Raises:
        ProviderUnavailableError: Accelerate is not installed.
    """
    together = SharedProcesses(on_cpu=device == "cpu")
    _joined.append(together)
    if not together.is_first:
        # Which ends a training when it is interrupted, or the run, and this process with it; were this one to leave a
        # step, the first would wait for it.
        _ignore_interrupts()
    try:
        yield together
    finally:
        _joined.pop()
    # Not after an error: whoever waits then is ended by the launcher.
    if together.is_first:
        together.end()
    # Later: the process may join again. Threads of a group that is still there when the interpreter goes end the
    # process with SIGABRT, now and then: they need it to give up the tensors of the last message.
    atexit.unregister(_disband)
    atexit.register(_disband)


def _ignore_interrupts() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _disband() -> None:
    """Leave the group of processes, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
