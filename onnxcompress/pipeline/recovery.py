"""How accuracy is won back: which passes a mode means, and that what it needs is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxcompress.errors import ProviderUnavailableError
from onnxcompress.passes.base import Pass
from onnxcompress.passes.recovery.refit import Refit, RefitConfig
from onnxcompress.recipe import Recipe
from onnxcompress.remote import Location, RemoteFile

TRAINED = ("reconstruct", "finetune")
"""Modes that need PyTorch."""

CHECKPOINT_SUFFIX = ".training"
"""What OUT's name is followed by in the name of the file that keeps the progress of fine-tuning."""


def chosen_mode(recipe: Recipe, *, data: Any, calib: Any, train: Any) -> str:
    """Return none, refit, reconstruct or finetune: what was asked for, or the best for the data that are given.

    Left to us, reconstruction is never chosen: it takes minutes where a refit takes seconds.
    """
    asked = recipe.recover or ("auto" if recipe.target or recipe.is_searched or train is not None else "none")
    if asked != "auto":
        return asked
    if train is not None:
        return "finetune"
    return "none" if calib is None and data is None else "refit"


STEP_SHARE = 0.1
"""What training between two steps of pruning takes of the epochs of the last one."""


def recovery_passes(recipe: Recipe, mode: str, *, share: float = 1.0) -> tuple[Pass, ...]:
    """Return the passes of a mode: training starts from a refit, and takes a share of its epochs, at least one.

    Raises:
        ProviderUnavailableError: the mode needs PyTorch, which is not installed, or a device that is not there.
        RecipeError: PyTorch knows no such device, or an option is out of range.
    """
    if mode == "none":
        return ()
    refit = Refit(RefitConfig())
    return (refit, _training_pass(recipe, mode, share)) if mode in TRAINED else (refit,)


def checkpoint_path(output: Location | None, number: int = 0) -> Path | None:
    """Return where fine-tuning keeps its progress: beside OUT, nowhere without OUT or with one that lies elsewhere.

    `number` is 0 for the last training of a run, and counts those of the steps before it from 1.
    """
    suffix = f"{CHECKPOINT_SUFFIX}.{number}" if number else CHECKPOINT_SUFFIX
    return None if output is None or isinstance(output, RemoteFile) else output.with_name(output.name + suffix)


def require_torch(what: str, instead: str) -> None:
    """Refuse what needs PyTorch where it is not installed.

    Raises:
        ProviderUnavailableError: it is not; the message says what to do, or what to use instead.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ProviderUnavailableError(
            f"{what} needs PyTorch, which is not installed: pip install 'onnxcompress[train]', or {instead}"
        ) from error


def _training_pass(recipe: Recipe, mode: str, share: float) -> Pass:
    require_torch(f"--recover {mode}", "--recover refit, which needs none")
    from onnxcompress.passes.recovery.training_device import training_device

    training_device(recipe.device)
    options = {"epochs": recipe.epochs, "rate": recipe.lr, "batch": recipe.train_batch}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if mode == "reconstruct":
        from onnxcompress.passes.recovery.reconstruction import Reconstruction, ReconstructionConfig

        blocks = replace(ReconstructionConfig(device=recipe.device), **given)
        return Reconstruction(replace(blocks, epochs=_share(blocks.epochs, share)))
    from onnxcompress.passes.recovery.finetuning import FineTuning, FineTuningConfig

    whole = replace(FineTuningConfig(device=recipe.device, loss=recipe.loss), **given)
    return FineTuning(replace(whole, epochs=_share(whole.epochs, share)))


def _share(epochs: int, share: float) -> int:
    return max(1, round(epochs * share))
