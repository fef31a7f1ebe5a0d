"""A process that a launcher started beside the one that compresses: it takes part in its trainings."""

from __future__ import annotations

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.recovery.finetuning import FineTuning
from onnxcompress.passes.recovery.processes import ProcessGoneError, SharedProcesses
from onnxcompress.pipeline.measure import open_data
from onnxcompress.pipeline.source import ModelLike, read_source
from onnxcompress.recipe import Recipe


def take_part(model: ModelLike, recipe: Recipe, together: SharedProcesses) -> None:
    """Train along, one training after the other, until the first process has no more.

    Raises:
        DataError, RecipeError, ModelError: as for `compress`, which says the same in the first process.
    """
    while (job := together.next_job()) is not None:
        data = open_data(read_source(model).content, recipe, None, None, recipe.train)
        context = PassContext(
            job.seed,
            original=Model.from_bytes(job.original),
            provenance=dict(job.provenance),
            training=data.training_samples,
            numbers=job.numbers,
        )
        try:
            FineTuning(job.config).take_part(Model.from_bytes(job.model), context, together)
        except ProcessGoneError:  # the first one is, as after an interrupt, or says itself that another is
            return
