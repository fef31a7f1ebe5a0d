"""Static 8-bit quantisation: onnxruntime's quantizer writes the graph, with ranges of the least squared error.

The result is a QDQ model: every quantised tensor passes a QuantizeLinear and a DequantizeLinear, weights (8 bits, one
scale for each output channel) and biases (32 bits) are stored as integers behind a DequantizeLinear. Runtimes fuse
these into 8-bit kernels. What the quantizer spends on names and repeated constants is saved afterwards (`compact`).
onnxruntime's own calibration keeps every activation of every sample in memory unless it only looks at extremes, which a
single outlier stretches; here histograms are streamed (`linalg.histogram`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcompress.analysis.lrn import is_window
from onnxcompress.errors import DataError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg.histogram import Range
from onnxcompress.operators import LAYERS
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Samples
from onnxcompress.passes.quantization.calibration import masked_tensors, tensor_histograms
from onnxcompress.passes.quantization.candidates import (
    OPERATORS,
    find_candidates,
    float_tensors,
    range_sources,
    require_one_file,
)
from onnxcompress.passes.quantization.compact import compact, tensor_names
from onnxcompress.passes.quantization.curves import curves
from onnxcompress.passes.quantization.given_outputs import set_given_outputs_apart
from onnxcompress.passes.quantization.opset import declare_types, unshare_biases, with_opset
from onnxcompress.passes.quantization.quantised import quantised_nodes, told_quantised
from onnxcompress.passes.quantization.results import keep_results
from onnxcompress.passes.quantization.shields import shield_float_nodes
from onnxcompress.passes.quantization.sparing import spared_nodes
from onnxcompress.passes.quantization.spelling import write_plainly
from onnxcompress.runtime.block import saturates_signed_weights
from onnxcompress.runtime.quiet import quiet_logging

_MOST_LOST = 0.5
_EMPTY = "it reads or writes what held no numbers on the calibration data"
_MASKED = "it reads or writes what a constant masks with infinities"

_FEW_SAMPLES = 16
"""With fewer the ranges of other samples are guessed: from one image a MobileNet lost a fifth of its answers."""


@dataclass(frozen=True)
class Int8Config:
    """How activations are quantised.

    Attributes:
        samples: calibration samples that are looked at, at most.
        symmetric: activations as signed integers around zero, which TensorRT asks for, instead of unsigned ones with
            a zero point, which CPUs prefer and which resolve what a rectifier gives twice as finely.

    Raises:
        RecipeError: no samples.
    """

    samples: int = 128
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RecipeError(f"int8: {self.samples} calibration samples, expected at least 1")


class Int8Quantization(Pass):
    """Stores weights in 8 bits and computes with 8-bit activations where that is known to work."""

    name: ClassVar[str] = "int8"
    transfers: ClassVar[bool] = False

    def __init__(self, config: Int8Config | None = None) -> None:
        self.config = config or Int8Config()

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Choose the nodes, and ranges for what they read and write.

        Raises:
            DataError: there are no calibration data, or a tensor holds NaN or infinity; it is named.
            ModelError: the model has more than 2 GB of weights.
        """
        require_one_file(model, self.name)
        if context.calibration is None:
            raise DataError("--quantize int8 needs calibration data; give --calib PATH or --data PATH")
        quantised = quantised_nodes(model)
        nodes, skipped = find_candidates(model, context, quantised)
        if not any(node.op in LAYERS for node in nodes):
            _tell(context, _notes(model, quantised, 0))
            return Plan(self.name, (), tuple(skipped))
        calibration = _Counted(context.calibration)
        sources = range_sources(model, nodes)
        histograms = tensor_histograms(
            model,
            list(dict.fromkeys(sources.values())),
            calibration,
            samples=self.config.samples,
            tell=context.tell,
        )
        behind = curves(model, histograms)
        measured = {
            name: own.best_range(symmetric=self.config.symmetric, curve=behind.get(name))
            for name, own in histograms.items()
        }
        ranges = {name: measured[source] for name, source in sources.items() if source in measured}
        coarse = {node.name: reason for node in nodes if (reason := _why_too_coarse(node, ranges)) is not None}
        masked = masked_tensors(model)
        missing = {node.name: float_tensors(model, [node]).keys() - ranges.keys() for node in nodes}
        empty = {name: _EMPTY if own - masked else _MASKED for name, own in missing.items() if own}
        left = {**quantised, **coarse, **empty}
        if coarse or empty:
            nodes, skipped = find_candidates(model, context, left)
        spared = self._spared(model, context, nodes, ranges, left)
        if spared:
            nodes, skipped = find_candidates(model, context, {**spared, **left})
        _tell(context, [*_notes(model, quantised, len(nodes)), *calibration.notes()])
        return Plan(self.name, self._decisions(model, nodes, ranges, context), tuple(skipped))

    def _spared(
        self,
        model: Model,
        context: PassContext,
        nodes: Sequence[gs.Node],
        ranges: Mapping[str, Range],
        left: Mapping[str, str],
    ) -> dict[str, str]:
        """Return {node: why} of those of the nodes that stay in floating point for the outputs' sake.

        Args:
            left: {node: why} of others that stay as they are.
        """
        if context.calibration is None or not nodes:
            return {}

        def quantised(spared: Mapping[str, str]) -> bytes:
            chosen = find_candidates(model, context, {**spared, **left})[0]
            trial = model.copy()
            if chosen:
                self.rewrite(trial, Plan(self.name, self._decisions(model, chosen, ranges, context), ()), context)
            return trial.to_bytes()

        return spared_nodes(
            model, nodes, ranges, quantised, context.calibration, symmetric=self.config.symmetric, tell=context.tell
        )

    def _decisions(
        self, model: Model, nodes: Sequence[gs.Node], ranges: Mapping[str, Range], context: PassContext
    ) -> tuple[Decision, ...]:
        saturates = not self.config.symmetric and any(map(saturates_signed_weights, context.providers))
        weights = {"weights": "uint8"} if saturates else {}
        decisions: list[Decision] = []
        first_user = float_tensors(model, nodes)
        for node in nodes:
            own_ranges = {n: [ranges[n].low, ranges[n].high] for n, first in first_user.items() if first is node}
            activations = "int8" if self.config.symmetric else "uint8"
            common = {"kind": "int8", "node": node.name, "op": node.op, "activations": activations, **weights}
            decisions.append({**common, "ranges": own_ranges})
        return tuple(decisions)

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Put `model` in QDQ form.

        Raises:
            RecipeError: the plan names nodes that the model does not have.
            ModelError: its opset knows no such form, and it cannot be converted to one that does.
        """
        known = {node.name for node in model.nodes}
        unknown = [d["node"] for d in plan.decisions if d["node"] not in known]
        if unknown:
            raise RecipeError(f"plan: the model has no node '{unknown[0]}' to quantise")
        ranges = {name: pair for decision in plan.decisions for name, pair in decision["ranges"].items()}
        symmetric = any(decision["activations"] == "int8" for decision in plan.decisions)
        unsigned = any(decision.get("weights") == "uint8" for decision in plan.decisions)
        proto = with_opset(model.to_proto())
        declare_types(proto.graph, model.dtypes)
        unshare_biases(proto)
        windows = [node.inputs[1].name for node in model.nodes if is_window(node)]
        nodes = [str(decision["node"]) for decision in plan.decisions]
        write_plainly(proto.graph, nodes, model.shapes)
        quantized = _quantized(proto, nodes, ranges, symmetric=symmetric)
        keep_results(quantized.graph, set(nodes))
        shield_float_nodes(quantized.graph, set(nodes))
        if unsigned:
            _shift_weights(quantized.graph)
        # TensorRT, for which activations are symmetric, reads scales as it builds its engine.
        compact(quantized, windows, kept=tensor_names(proto), computed=not symmetric)
        model.become(quantized)
        return {}


class _Counted:
    """A stream of samples that knows how many it gave."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.rows = 0

    def __call__(self) -> Iterator[Mapping[str, Any]]:
        self.rows = 0
        for batch in self._samples():
            self.rows += min((len(array) for array in batch.values()), default=0)
            yield batch

    def notes(self) -> list[str]:
        """Return what to say of samples that are too few."""
        if self.rows >= _FEW_SAMPLES:
            return []
        return [
            f"--quantize int8 took its ranges from {self.rows} calibration sample{'s' * (self.rows != 1)}: give "
            f"{_FEW_SAMPLES} or more, unlabelled ones will do (--calib PATH)"
        ]


def _tell(context: PassContext, notes: list[str]) -> None:
    if notes:
        context.note({"notes": notes})


def _notes(model: Model, quantised: Mapping[str, str], converted: int) -> list[str]:
    """Return what to say of a model that does not come in float32 throughout."""
    notes = [told_quantised(quantised, converted, Int8Quantization.name)] if quantised else []
    half = [node for node in model.nodes if node.op in LAYERS and _is_half(model, node.inputs[0])]
    if half:
        notes.append(
            f"--quantize int8: {len(half)} layers compute in half precision and stay as they are: give the model in "
            "float32"
        )
    return notes


def _is_half(model: Model, tensor: gs.Tensor) -> bool:
    return tensor.name in model.dtypes and model.dtype_of(tensor) == np.dtype(np.float16)


def _why_too_coarse(node: Any, ranges: Mapping[str, Range]) -> str | None:
    """Say that 256 steps are too few for what a node reads: squares and exponentials span too many magnitudes."""
    if node.op in LAYERS:
        tensors = node.inputs
    elif node.op == "Mul":
        tensors = [*node.inputs, *node.outputs]
    else:
        return None
    worst = max((t.name for t in tensors if t.name in ranges), key=lambda name: ranges[name].lost, default=None)
    if worst is None or ranges[worst].lost <= _MOST_LOST:
        return None
    return f"{ranges[worst].lost:.0%} of the values of '{worst}' would become zero"


def _quantized(
    proto: onnx.ModelProto,
    nodes: list[str],
    ranges: Mapping[str, tuple[float, float]],
    *,
    symmetric: bool,
) -> onnx.ModelProto:
    with quiet_logging():
        from onnxruntime.quantization import QDQQuantizer, QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

        inferred = onnx.shape_inference.infer_shapes(proto)
        found = {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
        }
        # Old releases (1.20) replace the range of every Softmax by 0 to 1, also of one that stays in float.
        for node in proto.graph.node:
            if node.op_type == "Softmax":
                found.setdefault(node.output[0], TensorData(lowest=np.float32(0.0), highest=np.float32(1.0)))
        given_outputs = set_given_outputs_apart(inferred)
        quantizer = QDQQuantizer(
            inferred,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, found),
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=sorted(OPERATORS),
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "TensorQuantOverrides": {name: [{"quant_type": QuantType.QInt8}] for name in _of_one_scale(proto)},
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        result: onnx.ModelProto = quantizer.model.model
        del result.graph.value_info[:]
        given_outputs.put_back(result.graph)
        return result


def _of_one_scale(proto: onnx.ModelProto) -> list[str]:
    """Return the weights of grouped transposed convolutions that have a bias.

    An axis of (I, O/g, k...) has a scale for each channel of a group, and the bias, one for each of O, none that fits.
    """
    nodes = (node for node in proto.graph.node if node.op_type == "ConvTranspose" and len(node.input) > 2)
    grouped = (node for node in nodes if any(a.name == "group" and a.i > 1 for a in node.attribute))
    return list(dict.fromkeys(node.input[1] for node in grouped))


def _shift_weights(graph: onnx.GraphProto) -> None:
    """Store signed weights as unsigned ones around 128, the same numbers.

    Not left to the quantizer, some releases of which sign the weights of a channel's scale whatever they are asked for.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    read = [node.input for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    for name in dict.fromkeys(name for inputs in read for name in (inputs[0], *inputs[2:3])):
        values = onnx.numpy_helper.to_array(stored[name]).astype(np.int16) + 128
        stored[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.uint8), name))
