"""Progress of a training on disk, so that a killed run goes on where its last whole epoch ended."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.recovery.training import Epoch, Progressed
from onnxcompress.serialization import atomic_file

FORMAT = 4


class Checkpoint:
    """One file, replaced as a whole after every epoch.

    Args:
        path: of the file.
        identity: of the training (see `training_identity`): progress of another one is refused.
        resume: whether to go on from a file that is there; without it the file is replaced.
    """

    def __init__(self, path: Path, identity: str, *, resume: bool) -> None:
        self.path = path
        self._identity = identity
        self._resume = resume

    def load(self) -> Progressed | None:
        """Return the progress to go on from, None where there is none or it is not asked for.

        Raises:
            RecipeError: the file is damaged, or is another training's.
        """
        if not self._resume or not self.path.exists():
            return None
        try:
            value = torch.load(self.path, map_location="cpu", weights_only=True)
            saved_format, identity = value["format"], value["identity"]
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RecipeError(f"{self.path}: is not a readable checkpoint ({reason}); leave --resume out") from error
        if (saved_format, identity) != (FORMAT, self._identity):
            raise RecipeError(
                f"{self.path}: is the checkpoint of another training (other model, data or options); "
                "give those again, or leave --resume out to start afresh"
            )
        fields: dict[str, Any] = value["progress"]
        return Progressed(**{**fields, "history": [Epoch(**epoch) for epoch in fields["history"]]})

    def save(self, progressed: Progressed) -> None:
        """Replace the file.

        Raises:
            RecipeError: it cannot be written.
        """
        # Only plain values and tensors, so that reading it back never runs code.
        fields = {**vars(progressed), "history": [asdict(epoch) for epoch in progressed.history]}
        with atomic_file(self.path) as stream:
            torch.save({"format": FORMAT, "identity": self._identity, "progress": fields}, stream)


def training_identity(model: Model, original: Model, options: Mapping[str, Any], samples: str) -> str:
    """Return what a training's outcome depends on, as a hash: the models, the options and the samples' own hash."""
    digest = hashlib.sha256()
    for each in (model, original):
        for name, constant in sorted(each.constants().items()):
            digest.update(name.encode())
            digest.update(Model.values(constant).tobytes())
    digest.update(repr(sorted(options.items())).encode())
    digest.update(samples.encode())
    return digest.hexdigest()
