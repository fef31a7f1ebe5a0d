"""Half precision: onnxruntime's converter turns weights and tensors into float16, inputs and outputs stay float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcompress.analysis.lrn import banded_nodes
from onnxcompress.analysis.quantised import is_quantised_operator
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.operators import is_standard
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.quantization.calibration import tensor_histograms
from onnxcompress.passes.quantization.candidates import float_tensors, require_one_file
from onnxcompress.passes.quantization.casts import free_names, without_detours
from onnxcompress.passes.quantization.given_outputs import set_given_outputs_apart
from onnxcompress.passes.quantization.inner import cast_captured, tell_apart
from onnxcompress.passes.quantization.opset import declare_types, weights_are_no_inputs
from onnxcompress.passes.quantization.quantised import quantised_nodes, told_quantised
from onnxcompress.passes.quantization.shields import shield_turned_products
from onnxcompress.runtime.quiet import quiet_logging
from onnxcompress.subgraphs import with_inner_nodes

_LARGEST = 65504.0


@dataclass(frozen=True)
class Float16Config:
    """What stays in float32.

    Attributes:
        headroom: how many times larger than on the calibration data a value may become before it overflows.
        samples: calibration samples that are looked at, at most.
    """

    headroom: float = 4.0
    samples: int = 128


class Float16Conversion(Pass):
    """Halves the size of the weights; on hardware with half-precision arithmetic also the time."""

    name: ClassVar[str] = "fp16"
    transfers: ClassVar[bool] = False

    def __init__(self, config: Float16Config | None = None) -> None:
        self.config = config or Float16Config()

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Choose the nodes; with calibration data, those whose values could overflow stay in float32.

        Raises:
            DataError: a tensor holds NaN or infinity on the calibration data; it is named.
            ModelError: the model has more than 2 GB of weights.
        """
        require_one_file(model, self.name)
        kept, banded, quantised = _kept_operators(model), banded_nodes(model), quantised_nodes(model)
        inside = _kept_inside(model, kept)
        tensors = list(float_tensors(model, model.nodes))
        largest: dict[str, float] = {}
        if context.calibration is not None and tensors:
            histograms = tensor_histograms(
                model, tensors, context.calibration, samples=self.config.samples, tell=context.tell
            )
            largest = {name: max(-own.low, own.high) for name, own in histograms.items()}
        decisions: list[Decision] = []
        skipped: list[Skipped] = []
        for node in model.nodes:
            values = max((largest.get(t.name, 0.0) for t in (*node.inputs, *node.outputs)), default=0.0)
            weights = max((_largest_constant(t) for t in node.inputs), default=0.0)
            if context.is_excluded(node.name):
                skipped.append(Skipped(node.name, "excluded (--exclude)"))
            elif node.name in banded:
                skipped.append(Skipped(node.name, "the squares of an LRN written as a convolution could overflow"))
            elif node.name in quantised:
                skipped.append(Skipped(node.name, quantised[node.name]))
            elif node.op in kept:
                skipped.append(Skipped(node.name, f"{node.op} has no half-precision form"))
            elif node.op == "ScatterND" and node.attrs.get("reduction", "none") != "none":
                skipped.append(Skipped(node.name, "onnxruntime's CPU has no half-precision kernel that reduces"))
            elif node.name in inside:
                skipped.append(Skipped(node.name, f"its sub-graph has {inside[node.name]}, which stays in float32"))
            elif node.op == "LayerNormalization" and any(tensor.name for tensor in node.outputs[1:]):
                skipped.append(Skipped(node.name, "the mean and deviation that it gives are float32 whatever it reads"))
            elif max(values * self.config.headroom, weights) > _LARGEST:
                skipped.append(Skipped(node.name, f"values up to {max(values, weights):.3g} could overflow float16"))
            elif _has_float32(model, node):
                decisions.append({"kind": "fp16", "node": node.name, "op": node.op})
        if decisions and all(decision["op"] == "Cast" for decision in decisions):
            skipped += [
                Skipped(decision["node"], "converts to or from half precision already") for decision in decisions
            ]
            decisions = []
        if quantised:
            context.note({"notes": [told_quantised(quantised, len(decisions), self.name)]})
        return Plan(self.name, tuple(decisions), tuple(skipped))

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Convert the planned nodes.

        Raises:
            RecipeError: the plan names nodes that the model does not have.
        """
        names = {node.name for node in model.nodes}
        converted = {str(decision["node"]) for decision in plan.decisions}
        if converted - names:
            raise RecipeError(f"plan: the model has no node '{min(converted - names)}' to convert to float16")
        proto = model.to_proto()
        declare_types(proto.graph, model.dtypes)
        model.become(_converted(proto, sorted(names - converted)))
        return {}


def _has_float32(model: Model, node: Any) -> bool:
    tensors = (tensor for tensor in (*node.inputs, *node.outputs) if tensor.name)
    return any(_dtype(model, tensor) == np.float32 for tensor in tensors)


def _dtype(model: Model, tensor: Any) -> Any:
    known = model.is_constant(tensor) or tensor.name in model.dtypes
    return model.dtype_of(tensor) if known else None


def _largest_constant(tensor: Any) -> float:
    if not isinstance(tensor, gs.Constant) or tensor.values.dtype != np.float32 or tensor.values.size == 0:
        return 0.0
    return float(np.abs(tensor.values).max())


def _kept_inside(model: Model, kept: frozenset[str]) -> dict[str, str]:
    """Return {node: an operator of its sub-graphs} of nodes whose sub-graphs cannot be converted."""
    nodes = [(node.name, with_inner_nodes([node])) for node in model.skeleton().graph.node]
    ops = {name: [each.op_type for each in inner][1:] for name, inner in nodes}
    stay = {name: [op for op in own if op in kept or is_quantised_operator(op)] for name, own in ops.items()}
    return {name: own[0] for name, own in stay.items() if own}


def _converter() -> Any:
    from onnxruntime.transformers import float16

    return float16


def _kept_operators(model: Model) -> frozenset[str]:
    """Return what the converter leaves by default, and the model's operators that by its opset take float32 alone."""
    ops = {each.op_type for each in with_inner_nodes(model.skeleton().graph.node) if is_standard(each)}
    return frozenset(_converter().DEFAULT_OP_BLOCK_LIST) | {op for op in ops if _takes_float32_alone(op, model.opset)}


def _takes_float32_alone(op: str, opset: int) -> bool:
    if not onnx.defs.has(op, ""):
        return False
    given = onnx.defs.get_schema(op, opset, "").inputs[:1]
    return any("tensor(float)" in each.types and "tensor(float16)" not in each.types for each in given)


def _converted(proto: onnx.ModelProto, float32_nodes: list[str]) -> onnx.ModelProto:
    from onnxruntime.quantization.onnx_model import ONNXModel

    renamed = free_names(proto.graph)
    float32_nodes = [renamed.get(name, name) for name in float32_nodes]
    given = {node.name for node in proto.graph.node}
    weights_are_no_inputs(proto)
    tell_apart(proto.graph)
    given_outputs = set_given_outputs_apart(proto)
    floats = _float32_tensors(proto.graph)
    with quiet_logging():
        result = _converter().convert_float_to_float16(
            proto, keep_io_types=True, op_block_list=[], node_block_list=float32_nodes
        )
        cast_captured(result.graph, float32_nodes, floats)
        without_detours(result.graph, given)
        ordered = ONNXModel(result)
        ordered.topological_sort()
    shield_turned_products(ordered.model.graph)
    del ordered.model.graph.value_info[:]
    given_outputs.put_back(ordered.model.graph)
    checked: onnx.ModelProto = ordered.model
    return checked


def _float32_tensors(graph: onnx.GraphProto) -> set[str]:
    made = (info.name for info in graph.value_info if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)
    return {*made, *(tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)}
