"""Every network of the zoo, pruned by half and split at 95 % of the energy: valid, exact, and really pruned."""

from __future__ import annotations

import onnx
import pytest

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext, PassResult
from onnxcompress.passes.cleanup import Cleanup
from onnxcompress.passes.pruning import FilterPruning, PruningConfig, verify_pruning
from onnxcompress.passes.pruning.filters import analyse
from onnxcompress.passes.tucker import TuckerConfig, TuckerDecomposition, verify_splits
from tests.zoo import EXPORTERS, ZOO, export, sample_inputs

ATTENTION_OR_RECURRENT = {"attention-hybrid", "crnn"}
"""Networks with a part that is frozen with a reason; in all others only a graph output freezes anything."""


def cases() -> list[object]:
    return [
        pytest.param(name, exporter, marks=[] if exporter == "torchscript" else [pytest.mark.slow])
        for name in ZOO
        for exporter in EXPORTERS
        if exporter not in ZOO[name].cannot
    ]


def cleaned(model: Model) -> Model:
    cleanup, context = Cleanup(), PassContext()
    return cleanup.apply(model, cleanup.plan(model, context), context).model


def assert_half_of_what_can_leave_has_left(name: str, model: Model, result: PassResult) -> None:
    asked = removed = 0.0
    gone = {decision["node"]: decision["removed"] for decision in result.plan.decisions}
    for group in analyse(model, PassContext())[1].groups:
        if group.prunable.any():
            asked += 0.5 * sum(len(record.ids) for record in group.records)
            removed += sum(len(filters) for filters in gone.get(group.name, {}).values())
        elif name not in ATTENTION_OR_RECURRENT:
            reasons = set(group.frozen.values())
            assert any("graph output" in reason or "normalises over" in reason for reason in reasons), reasons
    assert removed >= 0.95 * asked


@pytest.mark.parametrize(("name", "exporter"), cases())
def test_prune_and_split(name: str, exporter: str) -> None:
    model, context = cleaned(Model.from_proto(export(name, exporter))), PassContext()
    feeds = sample_inputs(name)
    pruning = FilterPruning(PruningConfig(0.5))
    pruned = pruning.apply(model, pruning.plan(model, context), context)
    assert verify_pruning(model, pruned, feeds).difference <= 1e-5
    assert_half_of_what_can_leave_has_left(name, model, pruned)

    tucker = TuckerDecomposition(TuckerConfig.from_spec("energy=0.95"))
    plan = tucker.plan(pruned.model, context)
    split = tucker.apply(pruned.model, plan, context)
    if plan.decisions:
        assert verify_splits(pruned.model, split, feeds).difference <= 1e-4
    proto = split.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True, data_prop=True)
