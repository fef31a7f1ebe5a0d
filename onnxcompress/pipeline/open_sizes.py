"""Sizes that a model leaves open, as the data at hand have them: what is counted and timed is what will run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxcompress.analysis.cost import open_inputs
from onnxcompress.pipeline.measure import DataSets
from onnxcompress.pipeline.source import Source
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.tensors import fixed_batch


def with_sizes_of_data(
    sources: Sequence[Source], recipe: Recipe, data_sets: DataSets
) -> tuple[tuple[Source, ...], Recipe]:
    """Return models and recipe with the shapes of the first sample, batch 1, where the recipe gives an input none.

    Nothing changes without data, or where the models leave no size but the batch open.

    Args:
        sources: models that take these data.

    Raises:
        DataError: the first sample is damaged or does not fit the models.
    """
    unknown = [set(open_inputs(source.model)).difference(recipe.input_shape) for source in sources]
    if not any(unknown) or not data_sets.in_use:
        return tuple(sources), recipe
    data = data_sets.in_use[0]
    first = next(data.batches(1)).inputs
    batch = fixed_batch(data.inputs) or next((shape[0] for shape in recipe.input_shape.values() if shape), 1)
    sized, found = [], dict(recipe.input_shape)
    for source, names in zip(sources, unknown, strict=True):
        own = {name: (batch, *first[name].shape[1:]) for name in sorted(names.intersection(first))}
        sized.append(replace(source, model=source.model.at({**recipe.input_shape, **own})))
        found |= own
    return tuple(sized), replace(recipe, input_shape=found)
