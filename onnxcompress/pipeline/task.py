"""Which outputs hold scores of classes, and which numbers of another kind: both may have the shape (N, C).

By its shape an embedding, landmarks or tags cannot be told from class scores, as which next to nothing but their
largest number would count. Scores favour few classes: where the likeliest of many has hardly any probability, on
average over samples, an output does not classify.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxcompress.analysis.data_shapes import data_shapes
from onnxcompress.evaluation.metrics import are_probabilities, class_scores, probabilities
from onnxcompress.evaluation.reference import NO_OPEN_OUTPUTS, OpenOutputs, real_outputs
from onnxcompress.graph import Model
from onnxcompress.passes.recovery.outputs import Output, compared_outputs, stand_ins
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.dataset import Dataset
from onnxcompress.runtime.session import Session
from onnxcompress.runtime.tensors import classifies

_SAMPLES = 32
_LEAST_CONFIDENCE = 0.05
"""Mean probability of the likeliest class. Of classifiers in use it is ten times that; C numbers of one size have 1 / C
or somewhat more."""

_FEW_CLASSES = 20
"""So many always reach it."""


def number_outputs(model: Model, content: bytes | Path, recipe: Recipe, data: Sequence[Dataset]) -> frozenset[str]:
    """Return the tensors of the shape of class scores that are judged as numbers: outputs, and what stands for them.

    Args:
        model: the original; `content` is what onnxruntime loads of it.
        recipe: its `task` decides. With `auto` an output classifies that ends with a Softmax or has few classes, and
            every one where there are labels; what is left is looked at on the first data that there are.
        data: what is given.

    Raises:
        DataError: the data cannot be read.
    """
    shaped = [each for each in compared_outputs(model, model) if classifies(model.shape_of(each.name) or ())]
    if recipe.task == "classification" or (recipe.task == "auto" and any(each.has_labels for each in data)):
        shaped = []
    if recipe.task == "auto" and shaped:
        shaped = [each for each in shaped if _may_be_numbers(model, each)]
        shaped = _undecided(shaped, content, data[0]) if shaped and data else []
    return frozenset(name for each in shaped for name in (each.name, each.compared))


def open_outputs(model: Model) -> OpenOutputs:
    """Return a model's outputs whose shape depends on the data, and the tensors that are compared in their place."""
    shaped = data_shapes(model).shaped
    names = frozenset(tensor.name for tensor in model.graph.outputs if tensor.name in shaped)
    return OpenOutputs(names, stand_ins(model)) if names else NO_OPEN_OUTPUTS


def _may_be_numbers(model: Model, output: Output) -> bool:
    classes = (model.shape_of(output.name) or (None, None))[1]
    is_output = any(output.name == tensor.name for tensor in model.graph.outputs)
    is_few = isinstance(classes, int) and classes <= _FEW_CLASSES
    return is_output and output.compared == output.name and not is_few


def _undecided(outputs: Sequence[Output], content: bytes | Path, data: Dataset) -> list[Output]:
    """Return the outputs that favour no class."""
    session = Session(content)
    confidence = dict.fromkeys((each.name for each in outputs), 0.0)
    samples = 0
    for batch in data.limit(_SAMPLES).batches():
        answers = real_outputs(session, batch)
        samples += batch.size
        for name in confidence:
            scores = class_scores(answers[name], batch.size)
            if scores is None or are_probabilities(scores):
                confidence[name] += batch.size
            else:
                confidence[name] += float(probabilities(scores, normalised=False).max(axis=1).sum())
    return [each for each in outputs if confidence[each.name] < _LEAST_CONFIDENCE * samples]
