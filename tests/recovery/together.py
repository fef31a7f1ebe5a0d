"""One of several processes that fine-tune the small classifier: `python -m tests.recovery.together OUT.onnx`."""

from __future__ import annotations

import atexit
import sys
import weakref
from pathlib import Path

import torch

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.recovery.augmentation import Views
from onnxcompress.passes.recovery.finetuning import FineTuning, FineTuningConfig
from onnxcompress.passes.recovery.processes import joined
from tests.recovery.small_classifier import original, pruned, samples

CONFIG = FineTuningConfig(epochs=8, rate=5e-3, batch=32, views=Views(mirror=False), device="cpu")


def context() -> PassContext:
    return PassContext(training=samples(300, 5, labels=True), original=original(), provenance=pruned()[1])


def main() -> None:
    """Fine-tune in the first process, take part in the others; at the end, say whether the group is still there."""
    groups: list[weakref.ref[object]] = []
    atexit.register(lambda: print("groups:", [each() for each in groups], torch.distributed.is_initialized()))
    with joined("cpu") as together:
        groups.append(weakref.ref(torch.distributed.group.WORLD))
        if together.is_first:
            model, done = pruned()[0], FineTuning(CONFIG)
            Path(sys.argv[1]).write_bytes(done.apply(model, done.plan(model, context()), context()).model.to_bytes())
            return
        while (job := together.next_job()) is not None:
            model, teacher = (Model.from_bytes(part) for part in (job.model, job.original))
            given = PassContext(
                job.seed, training=context().training, original=teacher, provenance=dict(job.provenance)
            )
            FineTuning(job.config).take_part(model, given, together)


if __name__ == "__main__":
    main()
