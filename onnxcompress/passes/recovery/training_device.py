"""Where training runs: the device that was asked for or an error, mixed precision, and what to do without memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from onnxcompress.errors import ProviderUnavailableError, RecipeError


def training_device(name: str) -> torch.device:
    """Return a device of torch; `auto` is the first accelerator, else the CPU.

    Raises:
        RecipeError: torch knows no such device.
        ProviderUnavailableError: the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"device '{name}' is not known to torch; give auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ProviderUnavailableError(
                f"device '{name}' is not available: torch {torch.__version__} sees {count} GPUs"
            )
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ProviderUnavailableError(f"device '{name}' is not available: {reason}") from error
    return device


class MixedPrecision:
    """Half precision where the device gains by it, with scaled gradients where its range needs that."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._enabled = device.type == "cuda"
        has_wide_half = self._enabled and torch.cuda.is_bf16_supported(including_emulation=False)
        self._dtype = torch.bfloat16 if has_wide_half else torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._enabled and self._dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._enabled)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss."""
        self._scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step of the optimizer with the gradients that are there."""
        self._scaler.step(optimizer)
        self._scaler.update()


@contextlib.contextmanager
def memory_advice(batch: int) -> Iterator[None]:
    """Turn running out of the accelerator's memory into an error with advice.

    Raises:
        RecipeError: the memory did not suffice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        raise RecipeError(
            f"the device has too little memory to train with {batch} images at once ({reason}); "
            "give a smaller --train-batch, or --device cpu"
        ) from error
