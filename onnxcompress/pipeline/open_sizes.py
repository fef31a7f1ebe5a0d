"""Sizes that a model leaves open, as the data at hand have them: what is counted and timed is what will run."""

from __future__ import annotations

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
        sources: models of the same inputs.

    Raises:
        DataError: the first sample is damaged or does not fit the models.
    """
    open_inputs = {name for source in sources for name in _open_inputs(source.model)}.difference(recipe.input_shape)
    if not open_inputs or not data_sets.in_use:
        return tuple(sources), recipe
    data = data_sets.in_use[0]
    first = next(data.batches(1)).inputs
    batch = fixed_batch(data.inputs) or 1
    shapes = {name: (batch, *first[name].shape[1:]) for name in sorted(open_inputs)}
    recipe = replace(recipe, input_shape={**recipe.input_shape, **shapes})
    return tuple(replace(source, model=source.model.at(recipe.input_shape)) for source in sources), recipe


def _open_inputs(model: Model) -> list[str]:
    """Return the inputs with a length, other than the batch, that is not known."""
    shapes = {tensor.name: model.shape_of(tensor) or () for tensor in model.graph.inputs}
    return [name for name, shape in shapes.items() if not all(isinstance(length, int) for length in shape[1:])]
