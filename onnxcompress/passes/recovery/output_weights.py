"""How errors of a network's outputs count where they do not classify: relative to how its answers vary over samples.

An output's error is ||computed - original||^2 / ||original - its mean over samples||^2, and where it holds numbers of
several kinds, such as boxes in pixels beside scores, the mean of all kinds' (`linalg.sizes`): as weights of squared
errors, which are the same wherever such errors are weighed, in sensitivities, gradients and training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from onnxcompress.graph import Model
from onnxcompress.linalg.sizes import Sizes
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import LABELS, Samples
from onnxcompress.passes.recovery.allocation_samples import batched, sample_batch, spread
from onnxcompress.runtime.capture import Capture
from onnxcompress.runtime.tensors import Array, classifies

_IMAGES = 48


def output_weights(
    model: Model, names: Collection[str], calibration: Samples, numbers: Collection[str] = ()
) -> dict[str, Matrix]:
    """Return {tensor: weights of squared errors, broadcast over it}, without those that classify.

    Those in `numbers` do not, whatever their shape.

    The weighted sum over a sample is its relative squared error. A few dozen samples tell how the answers vary; those
    that are not finite weigh nothing.
    """
    own = [name for name in names if name in numbers or not classifies(model.shape_of(name) or ())]
    if not own:
        return {}
    size, filled = sample_batch(model)
    inputs = [{name: array for name, array in each.items() if name != LABELS} for each in spread(calibration, _IMAGES)]
    batches = batched(inputs, size, filled=filled)
    samples = [len(next(iter(batch.values()))) for batch in batches]
    capture = Capture(model, own)
    return weights_of(samples, (capture.run(batch, checked=False) for batch in batches), numbers)


def weights_of(
    samples: Iterable[int], answers: Iterable[Mapping[str, Array]], numbers: Collection[str] = ()
) -> dict[str, Matrix]:
    """Return the weights of answers {tensor: (B, ...)} to batches of so many samples; see `output_weights`."""
    sizes: dict[str, Sizes] = {}
    for size, answer in zip(samples, answers, strict=True):
        for name, array in answer.items():
            if name in numbers or not classifies(array.shape):
                sizes.setdefault(name, Sizes(about_mean=True)).add(array, size)
    return {name: own.weights() for name, own in sizes.items()}
