"""How operators compute on tensors of which only some elements are known: one function each, in `RULES`.

A function returns the elements of the output, or a list of them, one for each output.
Data movement applies one numpy function to values, known flags and origins alike. Arithmetic is numpy's in the tensor's
own type, which for integers and for + - * / floor and ceil of IEEE floats is what every runtime computes. A rule raises
where it has nothing to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcompress.analysis.elements import MAX_ELEMENTS, Array, Call, Elements

Rule = Callable[[Call], Elements | list[Elements]]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_SLICE_WITH_INPUTS = 10
_WIDE_INTEGER_BYTES = 4


def _shape(call: Call) -> Elements:
    shape = call.shapes[0]
    if shape is None:
        raise LookupError("unknown rank")
    axes = range(len(shape))[call.attributes.get("start", 0) : call.attributes.get("end", len(shape))]
    dims = [shape[axis] for axis in axes]
    return Elements.of(
        np.array([dim if isinstance(dim, int) else 0 for dim in dims], np.int64),
        np.array([isinstance(dim, int) for dim in dims], np.bool_),
        np.array([call.origin(0, axis) for axis in axes], np.int64),
    )


def _size(call: Call) -> Elements:
    dims = [dim for dim in call.shapes[0] or (None,) if isinstance(dim, int)]
    if call.shapes[0] is None or len(dims) != len(call.shapes[0]):
        raise LookupError("size is not static")
    return Elements.of(np.array(math.prod(dims), np.int64))


def _gather(call: Call) -> Elements:
    operand, taken, axis = call.operand(0), call.static(1), call.attributes.get("axis", 0)
    _check_size((operand.values.size // max(operand.values.shape[axis], 1), taken.size))
    return operand.moved(lambda a: np.take(a, taken, axis=axis))


def _slice(call: Call) -> Elements:
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    if starts is None or ends is None:
        raise LookupError("no starts or ends")
    has_inputs = call.opset >= _SLICE_WITH_INPUTS
    axes = call.integers(3, "axes") if has_inputs or "axes" in call.attributes else None
    steps = call.integers(4, "steps") if has_inputs else None
    cuts = [slice(None)] * call.operand(0).values.ndim
    for position, start in enumerate(starts):
        axis = axes[position] if axes is not None else position
        cuts[axis] = slice(start, ends[position], steps[position] if steps is not None else 1)
    return call.operand(0).moved(lambda a: a[tuple(cuts)])


def _concat(call: Call) -> Elements:
    parts, axis = [call.operand(i) for i in range(len(call.inputs))], call.attributes.get("axis", 1)
    return Elements(*(np.concatenate([getattr(p, f) for p in parts], axis) for f in ("values", "known", "origins")))


def _split(call: Call) -> list[Elements]:
    operand, axis = call.operand(0), call.attributes.get("axis", 0)
    sizes, length = call.integers(1, "split"), operand.values.shape[axis]
    if sizes is None:  # in parts of equal size, the last of which may be smaller
        sizes = [-(-length // call.outputs)] * call.outputs
        sizes[-1] += length - sum(sizes)
    if len(sizes) != call.outputs or sum(sizes) != length or min(sizes) < 0:
        raise LookupError(f"{length} does not split into {sizes}")
    parts = [np.split(getattr(operand, f), np.cumsum(sizes)[:-1], axis) for f in ("values", "known", "origins")]
    return [Elements(*part) for part in zip(*parts, strict=True)]


def _squeeze(call: Call) -> Elements:
    axes = call.integers(1, "axes")
    return call.operand(0).moved(lambda a: np.squeeze(a, None if axes is None else tuple(axes)))


def _unsqueeze(call: Call) -> Elements:
    axes = call.integers(1, "axes")
    if axes is None:
        raise LookupError("no axes")
    return call.operand(0).moved(lambda a: np.expand_dims(a, tuple(axes)))


def _identity(call: Call) -> Elements:
    return call.operand(0)


def _reshape(call: Call) -> Elements:
    operand, target = call.operand(0), [int(v) for v in call.static(1)]
    if not call.attributes.get("allowzero", 0):
        target = [operand.values.shape[axis] if dim == 0 else dim for axis, dim in enumerate(target)]
    return operand.moved(lambda a: a.reshape(target))


def _flatten(call: Call) -> Elements:
    shape, axis = call.operand(0).values.shape, call.attributes.get("axis", 1)
    return call.operand(0).moved(lambda a: a.reshape(math.prod(shape[:axis]), -1))


def _transpose(call: Call) -> Elements:
    return call.operand(0).moved(lambda a: np.transpose(a, call.attributes.get("perm")))


def _expand(call: Call) -> Elements:
    operand, target = call.operand(0), tuple(int(v) for v in call.static(1))
    shape = np.broadcast_shapes(operand.values.shape, target)
    _check_size(shape)
    return operand.moved(lambda a: np.broadcast_to(a, shape))


def _constant_of_shape(call: Call) -> Elements:
    shape = tuple(int(v) for v in call.static(0))
    _check_size(shape)
    fill = np.asarray(call.attributes.get("value", np.zeros(1, np.float32)))
    return Elements.of(np.full(shape, fill.reshape(-1)[0], fill.dtype))


def _range(call: Call) -> Elements:
    start, limit, delta = (call.static(i) for i in range(3))
    _check_integers(start)
    _check_size((max(0, -((int(start) - int(limit)) // int(delta))),))
    return Elements.of(np.arange(int(start), int(limit), int(delta), dtype=start.dtype))


def _check_size(shape: Sequence[int]) -> None:
    """Refuse before anything is allocated: the sizes come from the file."""
    if min(shape, default=0) < 0 or math.prod(shape) > MAX_ELEMENTS:
        raise LookupError(f"shape {tuple(shape)} is not a small tensor's")


def _check_integers(values: Array) -> None:
    if values.dtype.kind not in "iu":
        raise LookupError(f"{values.dtype} arithmetic is left to the runtime")


def _cast(call: Call) -> Elements:
    operand, dtype = call.operand(0), np.dtype(call.attributes["to"])
    values, known = operand.values, operand.known
    if dtype == np.bool_:
        return Elements.of(values != 0, known)
    if dtype in _FLOATS or np.can_cast(values.dtype, dtype):
        result = values.astype(dtype)
    elif dtype.kind in "iu":
        whole, limits = np.trunc(values), np.iinfo(dtype)
        # The upper limit of a 64-bit type is no float; the next power of two is.
        fits = np.isfinite(whole) & (whole >= limits.min) & (whole < float(limits.max) + 1)
        result, known = np.where(fits, whole, np.zeros((), whole.dtype)).astype(dtype), known & fits
    else:
        raise LookupError(f"casts to {dtype} are left to the runtime")
    unchanged = known & (result.astype(np.float64) == values.astype(np.float64))
    if values.dtype.kind in "iu" and dtype.kind in "iu" and dtype.itemsize >= _WIDE_INTEGER_BYTES:
        unchanged = unchanged | ~operand.known
    return Elements.of(result, known, np.where(unchanged, operand.origins, -1))


def _rounding(function: Callable[[Array], Array]) -> Rule:
    def rule(call: Call) -> Elements:
        operand = call.operand(0)
        result = np.asarray(function(operand.values))
        return Elements.of(result, operand.known, np.where(result == operand.values, operand.origins, -1))

    return rule


def _unary(function: Callable[[Array], Array]) -> Rule:
    def rule(call: Call) -> Elements:
        operand = call.operand(0)
        return Elements.of(np.asarray(function(operand.values)), operand.known)

    return rule


def _pair(call: Call) -> tuple[Elements, Elements]:
    first, second = call.operand(0), call.operand(1)
    if first.values.dtype != second.values.dtype:
        raise LookupError("operands differ in type")
    shape = np.broadcast_shapes(first.values.shape, second.values.shape)
    _check_size(shape)
    return first.moved(lambda a: np.broadcast_to(a, shape)), second.moved(lambda a: np.broadcast_to(a, shape))


def _arithmetic(function: Callable[[Array, Array], Array], neutral: int, *, commutes: bool) -> Rule:
    """Return the rule of a binary operator with a neutral right operand, also left where it commutes."""

    def rule(call: Call) -> Elements:
        first, second = _pair(call)
        if first.values.dtype.kind == "b":
            raise LookupError("no arithmetic on bool")
        known = first.known & second.known
        if function is _divide and second.values.dtype.kind in "iu":
            known = known & (second.values != 0)
        origins = np.where(second.known & (second.values == neutral), first.origins, -1)
        if commutes:
            origins = np.where(first.known & (first.values == neutral), second.origins, origins)
        return Elements.of(np.asarray(function(first.values, second.values)), known, origins)

    return rule


def _divide(first: Array, second: Array) -> Array:
    """Divide; integers toward zero, as ONNX does."""
    if first.dtype.kind == "f":
        return np.asarray(first / second)
    divisor = np.where(second == 0, np.ones((), second.dtype), second)
    quotient = np.abs(first) // np.abs(divisor)
    return np.asarray(np.where((first < 0) != (divisor < 0), -quotient, quotient), first.dtype)


def _mod(call: Call) -> Elements:
    first, second = _pair(call)
    _check_integers(first.values)
    divisor = np.where(second.values == 0, np.ones((), second.values.dtype), second.values)
    function = np.fmod if call.attributes.get("fmod", 0) else np.mod
    return Elements.of(function(first.values, divisor), first.known & second.known & (second.values != 0))


def _comparison(function: Callable[[Array, Array], Array]) -> Rule:
    """Return the rule of a comparison; what is not known stands as 0 in `values`, which decides two more cases."""

    def rule(call: Call) -> Elements:
        first, second = _pair(call)
        known = first.known & second.known
        # Every dimension is at least 0, so any of them compares with a negative number as 0 does.
        known = known | ((first.origins >= 0) & second.known & (second.values < 0))
        known = known | ((second.origins >= 0) & first.known & (first.values < 0))
        known = known | ((first.origins >= 0) & (first.origins == second.origins))
        return Elements.of(np.asarray(function(first.values, second.values)), known)

    return rule


def _logical(function: Callable[[Array, Array], Array], decisive: bool) -> Rule:
    """Return the rule of And (False decides) or Or (True decides)."""

    def rule(call: Call) -> Elements:
        first, second = _pair(call)
        decided = (first.known & (first.values == decisive)) | (second.known & (second.values == decisive))
        values = np.where(decided, decisive, function(first.values, second.values))
        return Elements.of(values, (first.known & second.known) | decided)

    return rule


def _where(call: Call) -> Elements:
    shape = np.broadcast_shapes(*(call.operand(i).values.shape for i in range(3)))
    _check_size(shape)
    condition, first, second = (call.operand(i).moved(lambda a: np.broadcast_to(a, shape)) for i in range(3))
    if first.values.dtype != second.values.dtype:
        raise LookupError("branches differ in type")
    chosen = [np.where(condition.values, getattr(first, f), getattr(second, f)) for f in ("values", "known", "origins")]
    return Elements.of(chosen[0], chosen[1] & condition.known, np.where(condition.known, chosen[2], -1))


def _extremum(function: Callable[[Array, Array], Array]) -> Rule:
    def rule(call: Call) -> Elements:
        parts = [call.operand(i) for i in range(len(call.inputs))]
        _check_integers(parts[0].values)
        values, known = parts[0].values, parts[0].known
        for part in parts[1:]:
            _check_size(np.broadcast_shapes(values.shape, part.values.shape))
            values, known = function(values, part.values), known & part.known
        return Elements.of(values, known, parts[0].origins if len(parts) == 1 else -1)

    return rule


def _reduction(function: Callable[..., Any]) -> Rule:
    def rule(call: Call) -> Elements:
        operand = call.operand(0)
        _check_integers(operand.values)
        axes = call.integers(1, "axes")
        if not axes and call.attributes.get("noop_with_empty_axes", 0):
            return operand
        along, keep = tuple(axes) if axes else None, bool(call.attributes.get("keepdims", 1))
        values = np.asarray(function(operand.values, axis=along, keepdims=keep), operand.values.dtype)
        known = np.asarray(np.all(operand.known, axis=along, keepdims=keep))
        # Over a single element the result is that element.
        origins = operand.origins.reshape(values.shape) if values.size == operand.origins.size else -1
        return Elements.of(values, known, origins)

    return rule


RULES: Mapping[str, Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Identity": _identity,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Cast": _cast,
    "CastLike": _cast,
    "Floor": _rounding(np.floor),
    "Ceil": _rounding(np.ceil),
    "Neg": _unary(np.negative),
    "Abs": _rounding(np.abs),
    "Not": _unary(np.logical_not),
    "Add": _arithmetic(np.add, 0, commutes=True),
    "Sub": _arithmetic(np.subtract, 0, commutes=False),
    "Mul": _arithmetic(np.multiply, 1, commutes=True),
    "Div": _arithmetic(_divide, 1, commutes=False),
    "Mod": _mod,
    "Equal": _comparison(np.equal),
    "Greater": _comparison(np.greater),
    "GreaterOrEqual": _comparison(np.greater_equal),
    "Less": _comparison(np.less),
    "LessOrEqual": _comparison(np.less_equal),
    "And": _logical(np.logical_and, False),
    "Or": _logical(np.logical_or, True),
    "Where": _where,
    "Min": _extremum(np.minimum),
    "Max": _extremum(np.maximum),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "ReduceMin": _reduction(np.min),
    "ReduceMax": _reduction(np.max),
}
