"""Where the way back begins: the gradient at the outputs of a loss whose targets are drawn from the network's answer.

The loss of a sample is the sum over the outputs of

- class scores s (N, C): the cross-entropy with a label drawn from p = softmax(s), whose gradient is p - onehot(label).
  The label is argmax(s + n) with n of the Gumbel distribution, which has just these probabilities. Scores that are
  probabilities already are told when the graph runs: p = s, with the gradient -onehot(label) / p.
- anything else: the weighted squared error w (y - t)^2 to a target t = y - n / sqrt(2 w) with n of the standard normal
  distribution: the negative log-likelihood of t where errors are normally distributed with variance 1 / 2 w. Its
  gradient is sqrt(2 w) n. The weights are those by which errors are judged (`output_weights`).

The squares of such gradients estimate the diagonal of the Fisher information, whose half is the loss that a small error
brings about: the divergence of classes, the weighted squared error of anything else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from onnxcompress.graph import Shape
from onnxcompress.linalg.distributions import SUM_TOLERANCE
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.recovery.backward_nodes import Array, Tape, lengths
from onnxcompress.runtime.tensors import classifies

_SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Noise:
    """The random input of an output's loss.

    Attributes:
        name: of the graph's input.
        shape: the batch is -1 where it is not fixed.
        is_gumbel: of the Gumbel distribution, else of the normal one with `deviation`, which is broadcast over it.
    """

    name: str
    shape: tuple[int, ...]
    is_gumbel: bool
    deviation: Matrix

    def draw(self, generator: np.random.Generator, batch: int) -> Array:
        """Return the noise of a batch, float32."""
        shape = tuple(batch if size < 0 else size for size in self.shape)
        drawn = generator.gumbel(size=shape) if self.is_gumbel else self.deviation * generator.standard_normal(shape)
        return drawn.astype(np.float32)

    def info(self) -> onnx.ValueInfoProto:
        """Return its declaration as an input of a graph."""
        shape = [None if size < 0 else size for size in self.shape]
        return onnx.helper.make_tensor_value_info(self.name, onnx.TensorProto.FLOAT, shape)


def begin(tape: Tape, output: str, shape: Shape | None, weights: Matrix | None) -> tuple[str, Noise] | None:
    """Append the gradient of the loss at a float32 output; return its name and the noise that it reads.

    Args:
        tape: of the nodes so far.
        output: its name.
        shape: of the output.
        weights: of its squared errors, broadcast over it, where it does not classify; None: 1, unless its shape is that
            of class scores.

    Returns:
        None where a length other than the batch is not known.
    """
    sizes = None if shape is None else lengths(shape[1:])
    if not shape or sizes is None:
        return None
    batch = shape[0] if isinstance(shape[0], int) else -1
    is_class = weights is None and classifies(shape)
    deviation = np.sqrt(2.0 * (np.ones(1) if weights is None else weights))
    noise = Noise(tape.name("backward_noise"), (batch, sizes[0]) if is_class else (batch, *sizes), is_class, deviation)
    if not is_class:
        return tape.add("Identity", noise.name), noise
    scores = tape.add("Reshape", output, [-1, sizes[0]]) if len(sizes) > 1 else output
    gradient = _cross_entropy(tape, scores, noise.name, sizes[0])
    return (tape.reshaped_as(gradient, output) if len(sizes) > 1 else gradient), noise


def _cross_entropy(tape: Tape, scores: str, noise: str, classes: int) -> str:
    deviation = tape.add("Abs", tape.add("Sub", tape.add("ReduceSum", scores, [1]), 1.0))
    sums_to_one = tape.add("Less", tape.add("ReduceMax", deviation, keepdims=0), SUM_TOLERANCE)
    least = tape.add("ReduceMin", scores, keepdims=0)
    normalised = tape.add("And", sums_to_one, tape.add("GreaterOrEqual", least, 0.0))
    probabilities = tape.add("Max", scores, _SMALLEST_PROBABILITY)
    logits = tape.add("Where", normalised, tape.add("Log", probabilities), scores)
    label = tape.add("ArgMax", tape.add("Add", logits, noise), axis=1, keepdims=0)
    drawn = tape.add("OneHot", label, [classes], np.array([0.0, 1.0], np.float32), axis=1)
    of_logits = tape.add("Sub", tape.add("Softmax", scores, axis=1), drawn)
    of_probabilities = tape.add("Neg", tape.add("Div", drawn, probabilities))
    return tape.add("Where", normalised, of_probabilities, of_logits)
