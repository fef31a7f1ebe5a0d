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
    asked = recipe.recover or ("auto" if recipe.target or train is not None else "none")
    if asked != "auto":
        return asked
    if train is not None:
        return "finetune"
    return "none" if calib is None and data is None else "refit"


def recovery_passes(recipe: Recipe, mode: str) -> tuple[Pass, ...]:
    """Return the passes of a mode: training starts from a refit.

    Raises:
        ProviderUnavailableError: the mode needs PyTorch, which is not installed, or a device that is not there.
        RecipeError: PyTorch knows no such device, or an option is out of range.
    """
    if mode == "none":
        return ()
    refit = Refit(RefitConfig())
    return (refit, _training_pass(recipe, mode)) if mode in TRAINED else (refit,)


def checkpoint_path(output: Location | None) -> Path | None:
    """Return where fine-tuning keeps its progress: beside OUT, nowhere without OUT or with one that lies elsewhere."""
    return (
        None if output is None or isinstance(output, RemoteFile) else output.with_name(output.name + CHECKPOINT_SUFFIX)
    )


def _training_pass(recipe: Recipe, mode: str) -> Pass:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ProviderUnavailableError(
            f"--recover {mode} needs PyTorch, which is not installed: pip install 'onnxcompress[train]', "
            "or --recover refit, which needs none"
        ) from error
    from onnxcompress.passes.recovery.training_device import training_device

    training_device(recipe.device)
    options = {"epochs": recipe.epochs, "rate": recipe.lr, "batch": recipe.train_batch}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if mode == "reconstruct":
        from onnxcompress.passes.recovery.reconstruction import Reconstruction, ReconstructionConfig

        return Reconstruction(replace(ReconstructionConfig(device=recipe.device), **given))
    from onnxcompress.passes.recovery.finetuning import FineTuning, FineTuningConfig

    return FineTuning(replace(FineTuningConfig(device=recipe.device, loss=recipe.loss), **given))
