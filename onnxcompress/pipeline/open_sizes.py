"""Sizes that a model leaves open, as the data at hand have them: what is counted and timed is what will run."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace

from onnxcompress.graph import Model
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
    open_inputs = [_open_inputs(source.model, recipe) for source in sources]
    if not any(open_inputs) or not data_sets.in_use:
        return tuple(sources), recipe
    data = data_sets.in_use[0]
    first = next(data.batches(1)).inputs
    batch = fixed_batch(data.inputs) or 1
    found = {name: (batch, *array.shape[1:]) for name, array in first.items()}
    shapes = [{name: found[name] for name in names if name in found} for names in open_inputs]
    sized = [
        replace(source, model=source.model.at({**recipe.input_shape, **own}))
        for source, own in zip(sources, shapes, strict=True)
    ]
    return tuple(sized), replace(recipe, input_shape={**recipe.input_shape, **dict(ChainMap(*shapes))})


def _open_inputs(model: Model, recipe: Recipe) -> list[str]:
    """Return the inputs with a length, other than the batch, that neither the model nor the recipe gives."""
    shapes = {tensor.name: model.shape_of(tensor) or () for tensor in model.graph.inputs}
    return [
        name
        for name, shape in shapes.items()
        if name not in recipe.input_shape and not all(isinstance(length, int) for length in shape[1:])
    ]
