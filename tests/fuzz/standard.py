"""The ONNX standard's own examples of operators, each put between two convolutions of which one channel is idle.

The filter of an idle channel is zero, and nobody reads what depends on it: without it the network computes the same,
whatever the operator does. That is known by trying: what changes when the filter is not zero depends on it.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import DataError, ModelError
from onnxcompress.runtime.session import Session, SessionSettings

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]

_MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class Example:
    """One input of an example is what a convolution gives."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[Any, ...]
    position: int


@functools.cache
def examples() -> tuple[Example, ...]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None) if case.model is not None and case.data_sets]
    return tuple(
        Example(case.name, case.model, tuple(case.data_sets[0][0]), position)
        for case in cases
        if len(case.data_sets[0][0]) == len(case.model.graph.input)
        for position, values in enumerate(case.data_sets[0][0])
        if _may_come_from_a_convolution(values, case.model.graph.input[position])
    )


def one_of_each_operator() -> list[Example]:
    found: dict[str, Example] = {}
    for example in examples():
        found.setdefault(example.model.graph.node[0].op_type, example)
    return list(found.values())


def _may_come_from_a_convolution(values: Any, info: onnx.ValueInfoProto) -> bool:
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim not in (3, 4, 5):
        return False
    return (
        values.shape[1] > 1 and 0 < values.size < _MOST_VALUES and len(info.type.tensor_type.shape.dim) == values.ndim
    )


def run(model: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    session = Session(model.SerializeToString(), settings=SessionSettings(threads=1))
    return list(session.run({info.name: feeds[info.name] for info in session.inputs}).values())


@dataclass(frozen=True)
class Network:
    """An example between convolutions.

    Attributes:
        model, feeds, wanted: what is run, on what, and what it gives.
        lossy: outputs that are the example's own, read by no convolution, and change with the idle channel.
    """

    model: onnx.ModelProto
    feeds: Feeds
    wanted: list[Any]
    lossy: frozenset[str]

    def differing(self, given: list[Any]) -> list[str]:
        """Return the outputs that differ from the wanted ones."""
        pairs = zip(self.model.graph.output, self.wanted, given, strict=True)
        return [info.name for info, one, other in pairs if not _same(one, other)]


def between_convolutions(example: Example, *, constants: bool) -> Network | None:
    """Return the network; None where onnxruntime cannot run it, or it gives no numbers.

    Args:
        constants: whether the example's other inputs are constants, or inputs of the network.
    """
    outputs, uneven = example.model.graph.output, _uneven(example)
    try:
        idle, feeds = _network(uneven, constants=constants, idle=True)
        busy, _ = _network(uneven, constants=constants, idle=False)
        pairs = list(zip(outputs, run(idle, feeds), run(busy, feeds), strict=True))
        unread = {info.name: _changed_channels(*both) for info, *both in pairs if _has_channels(info)}
        model, feeds = _network(example, constants=constants, idle=True, unread=unread)
        wanted = run(model, feeds)
    except (ModelError, DataError):
        return None
    numbers = [np.asarray(each) for each in wanted if isinstance(each, np.ndarray) and each.dtype.kind == "f"]
    if not all(np.isfinite(each).all() for each in numbers):
        return None
    lossy = frozenset(info.name for info, *both in pairs if info.name not in unread and not _same(*both))
    return Network(model, feeds, wanted, lossy)


def _uneven(example: Example) -> Example:
    """Return the example with no input of one value all over: attention to equal keys hides what it depends on."""
    generator = np.random.default_rng(0)

    def varied(values: Any) -> Any:
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim < 3 or np.ptp(values):
            return values
        return (values * generator.uniform(0.5, 1.5, values.shape)).astype(np.float32)

    return replace(example, inputs=tuple(map(varied, example.inputs)))


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray) and first.dtype.kind == "f":
        return first.shape == second.shape and np.allclose(first, second, rtol=1e-3, atol=1e-4)
    return bool(np.array_equal(first, second)) if isinstance(first, np.ndarray) else str(first) == str(second)


def _changed_channels(first: Array, second: Array) -> list[int]:
    changed = ~np.isclose(first, second, equal_nan=True)
    return [int(at) for at in np.flatnonzero(changed.any(axis=tuple(a for a in range(changed.ndim) if a != 1)))]


def _has_channels(info: onnx.ValueInfoProto) -> bool:
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type") or kind.elem_type != TensorProto.FLOAT:
        return False
    return len(kind.shape.dim) in (3, 4, 5) and kind.shape.dim[1].dim_value > 0


def _network(
    example: Example, *, constants: bool, idle: bool, unread: dict[str, list[int]] | None = None
) -> tuple[onnx.ModelProto, Feeds]:
    """Return the example behind a convolution, and with `unread` (the channels nobody reads) in front of others."""
    model = onnx.ModelProto()
    model.CopyFrom(example.model)
    graph = model.graph
    generator = np.random.default_rng(0)
    values = np.abs(example.inputs[example.position])
    channels, ones = values.shape[1], (1,) * (values.ndim - 2)
    # Positive, and the last filter drawn whether it is used or not: the others are the same then.
    weight = (np.eye(channels) + generator.uniform(0.05, 0.3, (channels, channels))).astype(np.float32)
    bias = generator.uniform(0.05, 0.2, channels).astype(np.float32)
    if idle:
        weight[-1], bias[-1] = 0.0, 0.0
    name = graph.input[example.position].name
    inputs = [helper.make_tensor_value_info("given", TensorProto.FLOAT, values.shape)]
    feeds: Feeds = {"given": values}
    for info, other in zip(graph.input, example.inputs, strict=True):
        if info.name == name:
            continue
        if constants and isinstance(other, np.ndarray) and other.dtype != object:
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(other), info.name))
        else:
            inputs.append(info)
            feeds[info.name] = other
    graph.initializer.append(numpy_helper.from_array(weight.reshape(channels, channels, *ones), "first.weight"))
    graph.initializer.append(numpy_helper.from_array(bias, "first.bias"))
    graph.node.insert(0, helper.make_node("Conv", ["given", "first.weight", "first.bias"], [name], "first"))
    outputs = []
    for info in graph.output:
        if unread is None or info.name not in unread:
            outputs.append(info)
            continue
        shape = [dim.dim_value or f"{info.name}{axis}" for axis, dim in enumerate(info.type.tensor_type.shape.dim)]
        reader = generator.uniform(-1.0, 1.0, (3, int(shape[1]))).astype(np.float32)
        reader[:, unread[info.name]] = 0.0
        reader = reader.reshape(*reader.shape, *(1,) * (len(shape) - 2))
        graph.initializer.append(numpy_helper.from_array(reader, f"{info.name}.weight"))
        read = f"{info.name}.read"
        graph.node.append(helper.make_node("Conv", [info.name, f"{info.name}.weight"], [read], f"{info.name}.reader"))
        outputs.append(helper.make_tensor_value_info(read, TensorProto.FLOAT, [shape[0], 3, *shape[2:]]))
    del graph.input[:], graph.output[:]
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    return model, feeds
