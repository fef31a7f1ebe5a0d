"""Runs a clean-up on a small model and compares it with the original on random input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, Plan
from onnxcompress.passes.cleanup import STEPS, Cleanup, CleanupConfig
from onnxcompress.passes.race import RaceResult
from tests.small_models import session

CPU = "CPUExecutionProvider"


def won(before: Model, after: Model) -> tuple[RaceResult, ...]:
    """A race that whatever is new wins."""
    return (RaceResult(CPU, 1.3, (1.2, 1.4)),)


WON = PassContext(race=won)


def weight(*shape: int, seed: int = 2) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def clean(
    model: Model, *steps: str, context: PassContext | None = None, kind: type[Cleanup] = Cleanup
) -> tuple[Model, Plan]:
    """Return the cleaned model and the plan; the plan survives JSON, and a second clean-up finds nothing to do."""
    context = context or PassContext()
    cleanup = kind(CleanupConfig(steps or STEPS))
    before = model.to_bytes()
    plan = cleanup.plan(model, context)
    replayed = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    result = cleanup.apply(model, replayed, context)
    assert model.to_bytes() == before
    assert result.modified == bool(plan.decisions)
    assert result.model.to_bytes() == cleanup.apply(model, plan, context).model.to_bytes()
    again = cleanup.plan(result.model, context)
    assert again.decisions == ()
    return result.model, plan


def outputs(model: Model, feeds: dict[str, Any]) -> list[Any]:
    """Return the graph outputs, by onnxruntime without its optimiser; onnx's reference for what it lacks on the CPU."""
    if any(t.values.dtype == np.float64 for t in model.constants().values()):
        return list(ReferenceEvaluator(model.to_proto()).run(None, feeds))
    return list(session(model.to_bytes()).run(None, feeds))


def random_input(model: Model, seed: int = 0, **symbols: int) -> dict[str, Any]:
    """Return standard normal input; symbolic dimensions are 3, or as given."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for tensor in model.graph.inputs:
        shape = [d if isinstance(d, int) else symbols.get(str(d), 3) for d in model.shape_of(tensor) or ()]
        dtype = {10: np.float16, 11: np.float64}.get(model.dtypes[tensor.name], np.float32)
        feeds[tensor.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def assert_same_bits(first: Model, second: Model, **symbols: int) -> None:
    """Fail if an output differs in any bit."""
    feeds = random_input(first, **symbols)
    for one, other in zip(outputs(first, feeds), outputs(second, feeds), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def assert_close(first: Model, second: Model, tolerance: float, **symbols: int) -> None:
    """Fail if an output differs by more than `tolerance` of its range."""
    feeds = random_input(first, **symbols)
    for one, other in zip(outputs(first, feeds), outputs(second, feeds), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        difference = np.abs(one.astype(np.float64) - other.astype(np.float64)).max()
        assert difference <= tolerance * np.ptp(one.astype(np.float64)), difference
        assert np.ptp(one.astype(np.float64)) > 0


def ops(model: Model) -> list[str]:
    """Return the operators in order."""
    return [node.op for node in model.nodes]


def reasons(plan: Plan) -> dict[str, str]:
    """Return {node: reason} of what was skipped."""
    return {skipped.node: skipped.reason for skipped in plan.skipped}
