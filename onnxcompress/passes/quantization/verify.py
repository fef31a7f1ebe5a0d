"""A loose check of a quantised model: on calibration data it must still answer about what the other one answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.analysis.data_shapes import data_shapes
from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult, Samples
from onnxcompress.passes.execution import run_model
from onnxcompress.passes.recovery.outputs import stand_ins
from onnxcompress.passes.verification import Verification, run_both
from onnxcompress.runtime.capture import as_read

Array = npt.NDArray[Any]

TOLERANCE = 0.5
"""Root of the mean squared difference, relative to the spread of the values: beyond it little of the answer is left."""

_MOST_ROWS = 8


def calibration_batch(model: Model, context: PassContext) -> dict[str, Array] | None:
    """Return a few calibration samples, None where there are none."""
    return few_samples(model, context.calibration)


def few_samples(model: Model, samples: Samples | None) -> dict[str, Array] | None:
    """Return a few samples of a stream in one batch, None where there are none."""
    if samples is None:
        return None
    first = next(iter(samples()), None)
    if first is None:
        return None
    is_fixed = isinstance((model.shape_of(model.graph.inputs[0]) or (None,))[0], int)
    return dict(first) if is_fixed else {name: array[:_MOST_ROWS] for name, array in first.items()}


def verify_quantization(
    before: Model, result: PassResult, feeds: Mapping[str, Array], *, random: bool = False
) -> Verification:
    """Compare a quantised model with the one that it was made of: floating-point outputs, or what others come from.

    Scores before a Softmax do not count beside its probabilities: what is added to all of them changes nothing, and in
    text readers eight bits add as much as the scores differ (0.74 of the spread, 99 % of the characters the same).
    Outputs whose shape depends on the data do not count either, but what they are made from.

    Args:
        before: what was quantised.
        result: what was made of it.
        feeds: one batch of inputs.
        random: whether they are random numbers, on which a model may overflow that does not on samples.

    Raises:
        ModelError: hardly anything of the answer is left: the model does not stand so few bits.
    """
    expected, seen = run_both(before, result.model, feeds)
    given = {tensor.name for tensor in before.graph.outputs}
    made = {tensor.name for node in result.model.nodes for tensor in node.outputs}
    inside = [name for name in stand_ins(before) if name in made]
    if inside:
        given -= data_shapes(before).shaped
        expected |= run_model(before, feeds, inside)
        nodes = result.model.skeleton().graph.node
        read = {name: as_read(nodes, name) for name in inside}
        values = run_model(result.model, feeds, list(read.values()))
        seen |= {name: values[own] for name, own in read.items()}
    judged = [name for name in expected if name in given and expected[name].dtype.kind == "f"] + inside
    judged = judged or list(expected)
    worst = max(_spread_difference(expected[name], seen[name]) for name in judged)
    verification = Verification(result.plan.pass_name, worst, TOLERANCE, tuple(judged))
    if not verification.passed:
        name = result.plan.pass_name
        differ = f"its outputs differ by {worst:.2g} of their spread (at most {TOLERANCE} is accepted)"
        if random:
            raise ModelError(
                f"the model does not stand {name} on random input, where {differ}; give --calib PATH, or --data PATH, "
                "to have it judged by samples, or --no-verify to go on"
            )
        raise ModelError(
            f"the model does not stand {name}: {differ}; leave --quantize out, or --exclude sensitive nodes, or "
            "--no-verify to go on"
        )
    return verification


def _spread_difference(expected: Array, seen: Array) -> float:
    if expected.dtype.kind != "f":
        return 0.0
    wanted, got = expected.astype(np.float64), seen.astype(np.float64)
    if wanted.shape != got.shape or not np.isfinite(got[np.isfinite(wanted)]).all():
        return float("inf")
    finite = np.isfinite(wanted)
    wanted, got = wanted[finite], got[finite]
    if wanted.size == 0:
        return 0.0
    distance = float(np.sqrt(np.mean((got - wanted) ** 2)))
    spread = float(wanted.std()) or float(np.abs(wanted).max())
    return distance / spread if spread > 0 else (0.0 if distance == 0 else float("inf"))
