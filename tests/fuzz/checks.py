"""What must hold of a compressed model, whatever the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxcompress.graph import Model
from onnxcompress.passes.base import Pass, PassContext, PassResult, Plan
from onnxcompress.passes.execution import run_model
from onnxcompress.passes.pruning import FilterPruning, PruningConfig, verify_pruning
from onnxcompress.passes.tucker import TuckerConfig, TuckerDecomposition, verify_splits
from onnxcompress.passes.verification import relative_difference
from tests.fuzz.graphs import Example

# float32 in another order of summation, through up to 25 nodes.
TOLERANCE = 1e-4


def run(content: bytes, feeds: Mapping[str, Any]) -> list[Any]:
    """Run serialized bytes on one thread; onnxruntime refuses node names that stand twice, so they go."""
    proto = onnx.load_from_string(content)
    for node in proto.graph.node:
        node.ClearField("name")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def assert_valid(content: bytes) -> None:
    """Assert that the checker, with strict shape inference, accepts a model."""
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto, full_check=True)


def compress(model: Model, one: Pass, context: PassContext) -> PassResult:
    """Plan and apply twice, the second time with the plan through JSON: the same bytes, the input untouched."""
    before = model.to_bytes()
    plan = one.plan(model, context)
    assert one.plan(model, context) == plan
    result = one.apply(model, plan, context)
    replayed = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert replayed == plan
    assert one.apply(model, replayed, context).model.to_bytes() == result.model.to_bytes()
    assert model.to_bytes() == before
    assert result.modified == bool(plan.decisions)
    return result


def check_rewrite(example: Example, model: Model, result: PassResult) -> None:
    """Assert that a rewritten model is valid, loads, runs, and keeps its inputs and outputs."""
    content = result.model.to_bytes()
    assert_valid(content)
    before, after = model.to_proto().graph, result.model.to_proto().graph
    assert list(before.output) == list(after.output)
    constants = {tensor.name for tensor in (*before.initializer, *after.initializer)}
    free = [[info for info in graph.input if info.name not in constants] for graph in (before, after)]
    assert free[0] == free[1]
    assert Model.from_bytes(content).to_bytes() == content
    expected, seen = run(example.proto.SerializeToString(), example.feeds), run(content, example.feeds)
    assert [(e.shape, e.dtype) for e in expected] == [(s.shape, s.dtype) for s in seen]


def check_pruning(example: Example, config: PruningConfig, context: PassContext) -> PassResult:
    """Assert everything that a pruned model promises; return the result."""
    model = Model.from_bytes(example.proto.SerializeToString())
    result = compress(model, FilterPruning(config), context)
    if not result.modified:
        return result
    check_rewrite(example, model, result)
    verification = verify_pruning(model, result, example.feeds)
    assert verification.difference <= TOLERANCE, verification
    for decision in result.plan.decisions:
        before, after = decision["filters"]
        assert 1 <= after < before
    return result


def widths(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight that a layer reads, by node."""
    layers = [n for n in model.nodes if n.op in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    return {n.name: tuple(np.shape(t.values)) for n in layers for t in n.inputs if model.is_constant(t)}


def check_tucker(example: Example, model: Model, spec: str, context: PassContext) -> PassResult:
    """Assert what a split model promises: at full rank it computes the original."""
    result = compress(model, TuckerDecomposition(TuckerConfig.from_spec(spec)), context)
    if not result.modified:
        return result
    check_rewrite(example, model, result)
    verification = verify_splits(model, result, example.feeds)
    assert verification.difference <= TOLERANCE, verification
    if spec == "ratio=1.0":
        tensors = [tensor.name for tensor in model.graph.outputs]
        expected, seen = (run_model(m, example.feeds, tensors) for m in (model, result.model))
        assert max(relative_difference(expected[name], seen[name]) for name in tensors) <= TOLERANCE
    return result
