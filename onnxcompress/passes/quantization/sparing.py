"""Tensors that eight bits are too few for, by what each costs at the outputs.

Where a network in eight bits is far from itself, a few of its tensors are most often why: an early activation whose
channels differ a hundredfold, boxes in pixels joined with scores from 0 to 1. Stretches of tensors are quantised alone
and judged by the squared error of the outputs; those that cost most are divided until single tensors are found. What
costs most for what it saves is spared, one, two, four, ... tensors, until the whole keeps within the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxcompress.analysis.cost import model_cost
from onnxcompress.graph import Model
from onnxcompress.linalg.histogram import Range
from onnxcompress.linalg.sizes import Sizes
from onnxcompress.passes.base import Samples, Tell
from onnxcompress.passes.quantization.calibration import spread_batches
from onnxcompress.passes.quantization.opset import with_opset
from onnxcompress.passes.recovery.outputs import judged_tensors, stand_ins
from onnxcompress.runtime.capture import exposing
from onnxcompress.runtime.session import Session, SessionSettings

Array = npt.NDArray[Any]

MOST_ERROR = 0.15
"""Of the outputs, relative to their size; beyond it tensors are spared. A SqueezeNet in eight bits has 0.11."""

_MOST_SPARED = 0.25
"""Share of the model that may stay in floating point for it: the mean of the shares of parameters and MACs."""

_SAMPLES, _SAMPLES_OF_EACH = 8, 2
"""That judge the whole, and each tensor alone: which cost most shows on few."""

_LARGEST = 1e6
_MOST_TRIALS = 80
_FIRST_PARTS, _PARTS = 8, 4
"""Of all tensors to begin with, and of a stretch that is divided."""

_NAME = "onnxcompress.eight_bits"


class Judge:
    """The error of a model's floating-point outputs on a few calibration samples, kinds of numbers judged apart.

    Of outputs whose shape depends on the data, what they are made from is judged in their place.

    Args:
        model: the one that others are compared with.
        calibration: data.
        samples: so many of them are looked at.
    """

    def __init__(self, model: Model, calibration: Samples, samples: int = _SAMPLES) -> None:
        first = (model.shape_of(model.graph.inputs[0]) or (None,))[0]
        self._inside = stand_ins(model)
        given = [tensor.name for tensor in model.graph.outputs]
        judged = judged_tensors(model) if self._inside else given
        single = onnx.TensorProto.FLOAT
        self._outputs = [name for name in judged if model.dtypes.get(name) == single]
        self._batches = spread_batches(calibration(), samples, first if isinstance(first, int) else None)
        session = Session(exposing(model.to_bytes(), self._inside), settings=SessionSettings())
        self._expected = [session.run(batch, self._outputs) for batch in self._batches] if self._outputs else []
        self._weights = {}
        for name in self._outputs:
            sizes = Sizes()
            for batch, expected in zip(self._batches, self._expected, strict=True):
                sizes.add(expected[name], _count(batch))
            self._weights[name] = sizes.weights()

    @property
    def can_tell(self) -> bool:
        """Whether there are outputs to compare."""
        return bool(self._outputs)

    def error(self, content: bytes) -> float:
        """Return the root of the mean squared error relative to the outputs' size, of the output where it is largest.

        Rounding is judged, not the kernels of this machine, some of which saturate.

        Args:
            content: the model that is judged.
        """
        session = Session(exposing(content, self._inside), settings=SessionSettings(integers=False))
        sums = dict.fromkeys(self._outputs, 0.0)
        for batch, expected in zip(self._batches, self._expected, strict=True):
            seen = session.run(batch, self._outputs)
            for name in self._outputs:
                missed = np.square(seen[name].astype(np.float64) - expected[name])
                sums[name] += float((self._weights[name] * missed).sum())
        worst = max(sums.values()) / sum(map(_count, self._batches))
        return float(np.sqrt(worst)) if np.isfinite(worst) else float("inf")


def spared_nodes(
    model: Model,
    nodes: Sequence[gs.Node],
    ranges: Mapping[str, Range],
    quantised: Callable[[Mapping[str, str]], bytes],
    calibration: Samples,
    *,
    symmetric: bool,
    tell: Tell,
) -> dict[str, str]:
    """Return {node: why} of nodes that stay in floating point, none where the outputs keep within `MOST_ERROR`.

    Args:
        nodes: that would be quantised.
        ranges: of the tensors that they read and write.
        quantised: from such nodes and reasons to the quantised model.
        symmetric: whether activations are signed integers around zero.
    """
    judge = Judge(model, calibration)
    if not judge.can_tell:
        return {}
    best: dict[str, str] = {}
    least = judge.error(quantised({}))
    if least <= MOST_ERROR:
        return {}
    touching: dict[str, list[gs.Node]] = {}
    for node in nodes:
        for name in dict.fromkeys(tensor.name for tensor in (*node.inputs, *node.outputs)):
            if name in ranges and ranges[name].high > ranges[name].low:
                touching.setdefault(name, []).append(node)
    few = Judge(model, calibration, _SAMPLES_OF_EACH)
    damages = _damages(model, {name: ranges[name] for name in touching}, few, symmetric=symmetric, tell=tell)
    shares = _shares(model)
    worth = {
        name: damage**2 / (1.0 / len(nodes) + sum(shares.get(node.name, 0.0) for node in touching[name]))
        for name, damage in damages.items()
    }
    order = sorted(damages, key=lambda name: -worth[name])
    count = 1
    while least > MOST_ERROR and count < len(order):
        refused: dict[str, str] = {}
        for name in order[:count]:
            reason = f"eight bits for '{name}' alone would change the outputs by {damages[name]:.1%} of their size"
            refused = {**{node.name: reason for node in touching[name]}, **refused}
        if sum(shares.get(name, 0.0) for name in refused) > _MOST_SPARED:
            break
        error = judge.error(quantised(refused))
        if error < least:
            best, least = refused, error
        count *= 2
    return best


def _damages(
    model: Model, ranges: Mapping[str, Range], judge: Judge, *, symmetric: bool, tell: Tell
) -> dict[str, float]:
    """Return the error of the outputs with each tensor alone in eight bits; in stretches of little error, its share.

    Args:
        ranges: of the tensors, in the graph's order.
    """
    proto = with_opset(model.to_proto())
    trials = 0

    def judged(own: Sequence[str], parts: int) -> list[tuple[float, Sequence[str]]]:
        nonlocal trials
        ends = np.linspace(0, len(own), min(parts, len(own)) + 1).astype(int)
        found = []
        for start, end in pairwise(ends):
            tell("what eight bits cost", trials, _MOST_TRIALS)
            trials += 1
            damage = judge.error(_passed_through(proto, own[start:end], ranges, symmetric=symmetric))
            found.append((min(damage, _LARGEST) ** 2, own[start:end]))
        return found

    stretches = judged(list(ranges), _FIRST_PARTS)
    while trials < _MOST_TRIALS:
        together = [each for each in stretches if len(each[1]) > 1]
        if sum(damage for damage, _ in together) <= MOST_ERROR**2 / 4:
            break
        worst = max(together, key=lambda each: each[0])
        stretches = [each for each in stretches if each is not worst] + judged(worst[1], _PARTS)
    return {name: float(np.sqrt(damage / len(own))) for damage, own in stretches for name in own}


def _passed_through(
    proto: onnx.ModelProto, names: Sequence[str], ranges: Mapping[str, Range], *, symmetric: bool
) -> bytes:
    """Return a model that passes these tensors through eight bits, for whatever reads them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    given = {info.name for info in graph.input} & set(names)
    made = set(names) - given
    # What a node makes is renamed; what is given to the model is not: its readers are led elsewhere.
    nodes: list[onnx.NodeProto] = []
    for name in sorted(given):
        nodes += _eight_bits(graph, name, _other(name), ranges[name], symmetric=symmetric)
    for node in graph.node:
        own = [name for name in node.output if name in made]
        node.input[:] = [_other(name) if name in given else name for name in node.input]
        node.output[:] = [_other(name) if name in made else name for name in node.output]
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        for name in own:
            nodes += _eight_bits(graph, _other(name), name, ranges[name], symmetric=symmetric)
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(copy.SerializeToString())


def _other(name: str) -> str:
    return f"{name}.{_NAME}"


def _eight_bits(
    graph: onnx.GraphProto, source: str, target: str, own: Range, *, symmetric: bool
) -> list[onnx.NodeProto]:
    """Return nodes that make `target` of `source` through eight bits, and add their constants to the graph."""
    scale = max(-own.low, own.high) / 127 if symmetric else (own.high - own.low) / 255
    zero: Array = np.array(0, np.int8)
    if not symmetric:
        zero = np.array(np.clip(np.rint(-own.low / scale), 0, 255), np.uint8)
    prefix = f"{source}.{target}.{_NAME}"
    constants = [f"{prefix}.scale", f"{prefix}.zero"]
    for name, value in zip(constants, (np.array(scale, np.float32), zero), strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return [
        onnx.helper.make_node("QuantizeLinear", [source, *constants], [f"{prefix}.stored"]),
        onnx.helper.make_node("DequantizeLinear", [f"{prefix}.stored", *constants], [target]),
    ]


def _shares(model: Model) -> dict[str, float]:
    """Return {layer: its share of the model's parameters and MACs}, the mean of both (MACs where known)."""
    cost = model_cost(model)
    shares = {layer.node: layer.params / max(cost.params, 1) for layer in cost.layers}
    if not cost.macs:
        return shares
    return {layer.node: (shares[layer.node] + (layer.macs or 0) / cost.macs) / 2 for layer in cost.layers}


def _count(batch: Mapping[str, Array]) -> int:
    return len(next(iter(batch.values())))
