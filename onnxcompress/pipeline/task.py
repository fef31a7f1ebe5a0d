"""Which outputs hold scores of classes, and which numbers of another kind: both may have the shape (N, C).

By its shape an embedding, landmarks or tags cannot be told from class scores, as which next to nothing but their
largest number would count. Scores favour few classes: where the likeliest of many has hardly any probability, on
average over samples, an output does not classify.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxcompress.analysis.data_shapes import data_shapes
from onnxcompress.evaluation.metrics import class_scores
from onnxcompress.evaluation.reference import OutputTraits, real_outputs
from onnxcompress.graph import Model
from onnxcompress.linalg.distributions import Kind, are_probabilities, probabilities
from onnxcompress.passes.recovery.outputs import Output, compared_outputs, stand_ins
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.dataset import Dataset
from onnxcompress.runtime.session import Session
from onnxcompress.runtime.tensors import Array, classifies

_SAMPLES = 32
_LABELLED_SAMPLES, _SURE = 256, 3.0
"""How many labels tell which of several outputs they are of, and by how many standard deviations of a count."""

_LEAST_CONFIDENCE = 0.05
"""Mean probability of the likeliest class. Of classifiers in use it is ten times that; C numbers of one size have 1 / C
or somewhat more."""

_FEW_CLASSES = 20
"""So many always reach it: of so few only tags are told apart, each between 0 and 1 by itself."""

_MOST_BESIDE_ONE = 0.2
"""By which the numbers of a sample miss a sum of 1 on average, where they are probabilities of one class or another."""


def number_outputs(model: Model, content: bytes | Path, recipe: Recipe, data: Sequence[Dataset]) -> frozenset[str]:
    """Return the tensors of the shape of class scores that are judged as numbers: outputs, and what stands for them.

    Args:
        model: the original; `content` is what onnxruntime loads of it.
        recipe: its `task` decides. With `auto` an output classifies that ends with a Softmax or has few classes, and
            every one where there are labels; what is left is looked at on the first data that there are. Of few
            classes those are none that lie between 0 and 1 and sum to anything.
        data: what is given.

    Raises:
        DataError: the data cannot be read.
    """
    shaped = [each for each in compared_outputs(model, model) if classifies(model.shape_of(each.name) or ())]
    labelled = next((each for each in data if each.has_labels), None)
    if recipe.task == "classification":
        shaped = []
    elif recipe.task == "auto" and labelled is not None:
        shaped = _before_the_classes(shaped, content, labelled) if len(shaped) > 1 else []
    elif recipe.task == "auto" and shaped:
        shaped = [each for each in shaped if _may_be_numbers(model, each)]
        shaped = _undecided(shaped, content, data[0]) if shaped and data else []
    return frozenset(name for each in shaped for name in (each.name, each.compared))


def output_traits(model: Model) -> OutputTraits:
    """Return what a model's graph tells of its outputs."""
    shaped = data_shapes(model).shaped
    names = frozenset(tensor.name for tensor in model.graph.outputs if tensor.name in shaped)
    apart = frozenset(each.name for each in compared_outputs(model, model) if each.apart)
    return OutputTraits(names, stand_ins(model) if names else (), apart)


def _may_be_numbers(model: Model, output: Output) -> bool:
    is_output = any(output.name == tensor.name for tensor in model.graph.outputs)
    return is_output and output.compared == output.name


def _before_the_classes(outputs: Sequence[Output], content: bytes | Path, data: Dataset) -> list[Output]:
    """Return the outputs in front of the first that the labels are of: clearly less of them meet these than others do.

    Several heads of one task meet about as many.
    """
    session = Session(content)
    hits = np.zeros(len(outputs))
    for batch in data.limit(_LABELLED_SAMPLES).batches():
        answers = real_outputs(session, batch)
        for number, each in enumerate(outputs):
            scores = class_scores(answers[each.name], batch.size) if each.name in answers else None
            if scores is not None and batch.labels is not None:
                hits[number] += np.count_nonzero(scores.argmax(axis=1) == batch.labels)
    scatter = _SURE * np.sqrt(np.maximum(hits, 1.0))
    is_beaten = (2.0 * hits < hits.max()) & (hits + scatter < hits.max())
    return list(outputs[: int(np.argmin(is_beaten))])


def _undecided(outputs: Sequence[Output], content: bytes | Path, data: Dataset) -> list[Output]:
    """Return the outputs that favour no class, and those that hold tags."""
    session = Session(content)
    seen: dict[str, list[Array]] = {each.name: [] for each in outputs}
    for batch in data.limit(_SAMPLES).batches():
        answers = real_outputs(session, batch)
        for name, rows in seen.items():
            scores = class_scores(answers[name], batch.size)
            rows += [] if scores is None else [scores]
    return [each for each in outputs if seen[each.name] and _are_numbers(np.concatenate(seen[each.name]))]


def _are_numbers(scores: Array) -> bool:
    """Whether rows (n, C) are no scores of classes."""
    if are_probabilities(scores):
        return False
    if scores.shape[1] > _FEW_CLASSES:
        return float(probabilities(scores, Kind.LOGITS).max(axis=1).mean()) < _LEAST_CONFIDENCE
    wide = scores.astype(np.float64)
    beside = np.abs(wide.sum(axis=1) - 1.0).mean()
    return bool(wide.min() >= 0.0 and wide.max() <= 1.0 and beside > _MOST_BESIDE_ONE)
