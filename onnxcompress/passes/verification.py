"""Proof on the user's own model that a rewrite computes what it says: two models, the same input, one difference."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.analysis.data_shapes import holds_numbers
from onnxcompress.errors import DataError, ModelError, PassError
from onnxcompress.graph import Model
from onnxcompress.lengths import may_agree
from onnxcompress.passes.execution import NONE_MADE, WIDENED, WeightMakers, run_model
from onnxcompress.passes.recovery.outputs import stand_ins
from onnxcompress.passes.rounding import moved_weights
from onnxcompress.runtime.providers import one_line
from onnxcompress.runtime.session import Session
from onnxcompress.runtime.tensors import TensorInfo, concrete_shapes, random_inputs
from onnxcompress.serialization import tensor_dtype

Array = npt.NDArray[Any]

TOLERANCE = 1e-3
"""Largest difference, relative to a tensor's range, that float32 summation order may explain."""
HALF_TOLERANCE = 5e-2

_LARGE = 2.0**64  # squares of it end float32
_LARGE_HALF = 2.0**12

_MOST_ELEMENTS = 2**28
_MOST_ELEMENTS_INSIDE = 2**31
_GUESSED_LENGTHS = (64, 224, 32, 16, 8, 128)
_GUESSED_LENGTHS_3D = (16, 32, 8, 64, 112)
_BOUNDED = frozenset({"Softmax", "Sigmoid", "HardSigmoid", "Tanh"})
_SATURATING = _BOUNDED | {"LogSoftmax", "Clip", "ArgMax", "ArgMin", "TopK"}
_REARRANGING = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_ROUNDINGS_OF_ONE = 4
_ROUNDINGS_TRIED = 8


@dataclass(frozen=True)
class Verification:
    """What was compared and how far apart it is.

    Attributes:
        pass_name: the pass whose rewrite was proved.
        difference: largest absolute difference relative to the range of the reference's tensor.
        tolerance: what is accepted.
        tensors: the tensors compared.
    """

    pass_name: str
    difference: float
    tolerance: float
    tensors: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance

    def require(self) -> None:
        """Raise PassError unless the models agree."""
        if not self.passed:
            raise PassError(
                f"self-check of pass '{self.pass_name}': the rewritten model differs from its reference by "
                f"{self.difference:.3g} of the range (tolerance {self.tolerance:.3g}) at {', '.join(self.tensors)}"
            )


def verify(
    pass_name: str,
    reference: Model,
    candidate: Model,
    feeds: Mapping[str, Array],
    made: WeightMakers = NONE_MADE,
) -> Verification:
    """Run both models on `feeds` and compare their outputs, and what stands before a saturating last operator.

    Args:
        pass_name: the pass that is proved.
        reference: what the candidate has to compute.
        candidate: what the pass made.
        feeds: one batch of inputs.
        made: weights of the reference that are made when they are read; see `run_model`.

    Raises:
        ModelError: they differ where the values overflow or come near it, or no more than the reference does from
            itself once its weights are moved by a rounding, which proves nothing.
    """
    expected, seen = run_both(reference, candidate, feeds, made, integers=False)
    tensors = tuple(expected)
    worst = _worst_difference(reference, expected, seen)
    if math.isinf(worst) and not all(_is_finite(values) for values in expected.values()):
        raise ModelError(_overflows(f"the values at {', '.join(tensors)} are not finite"))
    if math.isinf(worst) and not all(_is_finite(values) for values in seen.values()):
        _refuse_overflow(reference, feeds, made)
    half = any(t.values.dtype.itemsize == 2 and t.values.dtype.kind in "fV" for t in candidate.constants().values())
    verification = Verification(pass_name, worst, HALF_TOLERANCE if half else TOLERANCE, tensors)
    if not verification.passed:
        _refuse_amplified(verification, reference, feeds, made, expected)
    return verification


def _worst_difference(reference: Model, expected: Mapping[str, Array], seen: Mapping[str, Array]) -> float:
    outputs = {tensor.name: tensor for tensor in reference.graph.outputs}
    worst = 0.0
    for name, values in expected.items():
        least = _resolution(outputs[name], values.dtype, expected) if name in outputs else 0.0
        worst = max(worst, relative_difference(values, seen[name], least))
    return worst


def _refuse_amplified(
    found: Verification, reference: Model, feeds: Mapping[str, Array], made: WeightMakers, expected: Mapping[str, Array]
) -> None:
    """Refuse a model that differs from itself as much as the candidate does, its weights moved by a rounding.

    Raises:
        ModelError: it is such a model.
    """
    for seed in range(_ROUNDINGS_TRIED):
        moved = run_model(reference, feeds, found.tensors, moved_weights(reference, made, seed), integers=False)
        own = _worst_difference(reference, expected, moved)
        if own >= found.difference:
            raise ModelError(
                f"the model amplifies rounding: on random input {', '.join(found.tensors)} differs by {own:.3g} of its "
                f"range where the weights move by their last digit, as much as pass '{found.pass_name}' changes it "
                f"({found.difference:.3g}), so that nothing can be verified; give --no-verify to go on"
            )


def _overflows(what: str) -> str:
    return (
        f"{what} on random input, so that nothing can be verified: damaged weights, or none that fit such input; "
        f"give --no-verify to go on"
    )


def _refuse_overflow(model: Model, feeds: Mapping[str, Array], made: WeightMakers) -> None:
    """Refuse a model inside which values come near the end of their type: their sums overflow in one order or another.

    Raises:
        ModelError: it is such a model.
    """
    names = [t.name for node in model.nodes for t in node.outputs if t.name in model.dtypes]
    floats = [name for name in names if tensor_dtype(model.dtypes[name]).kind in "fV"]
    for name, values in run_model(model, feeds, floats, made).items():
        size = float(np.abs(values.astype(np.float64)).max(initial=0.0))
        if not size <= (_LARGE_HALF if values.dtype.itemsize == 2 else _LARGE):
            raise ModelError(_overflows(f"the values at {name} reach {size:.3g} in {values.dtype}"))


def _is_finite(values: Array) -> bool:
    return values.dtype.kind not in "fV" or bool(np.isfinite(values.astype(np.float64)).all())


@dataclass(frozen=True)
class _Saturation:
    """What stands between an output and the tensor before its last saturating operators.

    Attributes:
        tensor: that tensor, None where there is no such operator.
        operators: from the output back.
    """

    tensor: gs.Tensor | None
    operators: tuple[str, ...]

    @property
    def is_bounded(self) -> bool:
        """Whether the output's values lie in -1..1 because an operator ends there."""
        return next((op in _BOUNDED for op in self.operators if op in _SATURATING), False)


def _before_saturation(output: gs.Tensor) -> _Saturation:
    tensor, found, operators = output, _Saturation(None, ()), []
    while not isinstance(tensor, gs.Constant) and tensor.inputs and tensor.inputs[0].op in _SATURATING | _REARRANGING:
        operators.append(tensor.inputs[0].op)
        tensor = tensor.inputs[0].inputs[0]
        if operators[-1] in _SATURATING:
            found = _Saturation(tensor, tuple(operators))
    return found


def _resolution(output: gs.Tensor, dtype: np.dtype[Any], tensors: Collection[str]) -> float:
    """Return the difference of an output that rounding explains at any size: of what lies in -1..1 by its operator.

    Runtimes approximate such functions to a few roundings of 1, which is all there is of a Sigmoid far below 0. What
    stands before it, if it is compared, tells models apart all the same.
    """
    before = _before_saturation(output)
    if before.tensor is None or before.tensor.name not in tensors or not before.is_bounded or dtype.kind != "f":
        return 0.0
    return _ROUNDINGS_OF_ONE * float(np.finfo(dtype).eps)


def relative_difference(expected: Array, seen: Array, resolution: float = 0.0) -> float:
    """Return max |expected - seen| over max |expected|; infinite where shapes or non-finite values disagree.

    Args:
        expected: what should have been computed.
        seen: what was.
        resolution: differences up to it are none.
    """
    if expected.shape != seen.shape:
        return float("inf")
    if expected.dtype.kind not in "fV":
        return 0.0 if np.array_equal(expected, seen) else float("inf")
    wanted, got = expected.astype(np.float64), seen.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    if not finite.all():
        wanted, got = wanted[finite], got[finite]
    got -= wanted
    distance, size = float(np.abs(got, out=got).max()), float(np.abs(wanted, out=wanted).max())
    if distance <= resolution:
        return 0.0
    return distance / size if size > 0 else float("inf")


def run_both(
    reference: Model,
    candidate: Model,
    feeds: Mapping[str, Array],
    made: WeightMakers = NONE_MADE,
    *,
    integers: bool = True,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return what both models compute of the tensors that are compared, by the reference's names; see `run_model`."""
    pairs = compared_tensors(reference, candidate)
    seen = run_model(candidate, feeds, tuple(dict.fromkeys(pairs.values())), integers=integers)
    wanted = run_model(reference, feeds, tuple(pairs), made, integers=integers)
    return wanted, {name: seen[own] for name, own in pairs.items()}


def compared_tensors(reference: Model, candidate: Model) -> dict[str, str]:
    """Return {tensor: the candidate's name for it} of the graph outputs, and of the float tensors before saturation.

    Words, sequences and maps cannot be compared: the float tensors that they are made from are.
    """
    pairs: dict[str, str] = {}
    computed = {t.name for node in candidate.nodes for t in node.outputs}
    for output, own in zip(reference.graph.outputs, candidate.graph.outputs, strict=True):
        before, its_own = _before_saturation(output), _before_saturation(own)
        if before.tensor is not None:
            name = before.tensor.name
            renamed = name not in computed and its_own.operators == before.operators
            same = its_own.tensor.name if renamed and its_own.tensor is not None else name
            if same in computed and may_agree(reference.shape_of(before.tensor), candidate.shape_of(same)):
                pairs[name] = same
        if holds_numbers(reference, output) and reference.dtype_of(output).kind in "fV":
            pairs[output.name] = output.name
    if not all(holds_numbers(reference, output) for output in reference.graph.outputs):
        same = (name for name in stand_ins(reference) if name in computed)
        pairs |= {n: n for n in same if may_agree(reference.shape_of(n), candidate.shape_of(n))}
    return pairs or {t.name: t.name for t in reference.graph.outputs}


def sample_feeds(
    model: Model, input_shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> dict[str, Array]:
    """Return one random batch that the model runs on; lengths it leaves open are tried from common image sizes.

    Raises:
        DataError: no tried length fits; `--input-shape` is asked for.
        ModelError: onnxruntime does not load the model, or it does not run though it leaves nothing open.
    """
    inputs = [_input_info(model, tensor) for tensor in model.graph.inputs]
    given = dict(input_shapes or {})
    try:
        tried = [concrete_shapes(inputs, given)]
        asked = None
    except DataError as error:
        if given:
            raise
        lengths = _GUESSED_LENGTHS_3D if any(len(info.shape) > 4 for info in inputs) else _GUESSED_LENGTHS
        tried = [{info.name: _guessed(info, length) for info in inputs} for length in lengths]
        asked = error
    outputs = [tensor.name for tensor in model.graph.outputs]
    failure: Exception | None = None
    for shapes in tried:
        feeds = _random_feeds(inputs, shapes, seed)
        try:
            _check_sizes(model, feeds)
            run_model(model, feeds, outputs)
            return feeds
        except Exception as error:
            failure = error
    if isinstance(failure, ModelError) and not _loads(model):
        why = one_line(failure, 200)
        raise ModelError(
            f"the model does not run, so that nothing can be verified: {why}; give --no-verify"
        ) from failure
    if asked is not None:
        raise asked
    shown = ", ".join(f"{name} {list(shape)}" for name, shape in tried[0].items())
    where = (
        f"the model does not run on {shown or 'no input'}, so that nothing can be verified: {one_line(failure, 200)}"
    )
    if any(not isinstance(dim, int) for info in inputs for dim in info.shape):
        raise DataError(f"{where}; give --input-shape, or --no-verify") from failure
    raise ModelError(where) from failure


def _loads(model: Model) -> bool:
    """Whether onnxruntime knows every operator of a model, whatever it is given to run on."""
    try:
        Session(model.skeleton().SerializeToString())
    except ModelError:
        return False
    return True


def _random_feeds(inputs: Sequence[TensorInfo], shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Array]:
    for name, shape in shapes.items():
        if math.prod(shape) > _MOST_ELEMENTS:
            raise DataError(
                f"input '{name}' has {math.prod(shape):.3g} elements at shape {list(shape)}, too many to verify with; "
                f"give --input-shape, or --no-verify"
            )
    return random_inputs(inputs, shapes, seed)


def _check_sizes(model: Model, feeds: Mapping[str, Array]) -> None:
    """Refuse to run a model one of whose tensors would be absurdly large: the machine would die of it."""
    for name, shape in model.shapes_for({name: values.shape for name, values in feeds.items()}).items():
        elements = math.prod(dim for dim in shape if isinstance(dim, int))
        if elements > _MOST_ELEMENTS_INSIDE:
            raise ModelError(
                f"tensor '{name}' would have {elements:.3g} elements at shape {list(shape)}, too many to verify with"
            )


def _input_info(model: Model, tensor: gs.Tensor) -> TensorInfo:
    dtype = model.dtype_of(tensor)
    element = model.dtypes[tensor.name]
    return TensorInfo(tensor.name, np.dtype(np.float32) if element in WIDENED else dtype, model.shapes[tensor.name])


def _guessed(info: TensorInfo, length: int) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else (1 if axis == 0 else length) for axis, d in enumerate(info.shape))


def output_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return {graph output: its shape} of one random batch; nothing where the model does not run."""
    outputs = [tensor.name for tensor in model.graph.outputs]
    try:
        made = run_model(model, sample_feeds(model), outputs)
    except Exception:
        return {}
    return {name: made[name].shape for name in outputs}


def refusal(model: Model) -> str | None:
    """Return why onnxruntime does not run `model`, None if it does: the judge between a bad model and a bad rewrite.

    One random batch, because lengths that are computed contradict each other only when it runs.
    """
    try:
        sample_feeds(model)
    except Exception as error:
        return one_line(error, 200)
    return None
