"""By which tensors a network's answers are judged, where its outputs are whole numbers too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnxcompress
from onnxcompress.graph import Model
from onnxcompress.passes.recovery.outputs import Output, compared_outputs, judged_tensors
from tests.runtime.networks import proto_of
from tests.tiny_models import conv_net, map_net, samples

CALIB = [{"x": samples(400, seed=5)}]


def test_floating_outputs_stand_for_themselves() -> None:
    assert judged_tensors(Model.from_proto(conv_net())) == ("y",)
    both = map_net(classes=True)
    both.graph.output.append(helper.make_tensor_value_info("c2", TensorProto.FLOAT, ["batch", 16, 4, 4]))
    assert judged_tensors(Model.from_proto(both)) == ("c2",)


def test_whole_numbers_are_judged_by_what_they_are_made_from() -> None:
    """Past other whole numbers, each path up to its own tensor; neither inputs nor constants."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["x"], ["b"]),
        helper.make_node("ArgMax", ["a"], ["first"], axis=1),
        helper.make_node("Mul", ["first", "two"], ["doubled"]),
        helper.make_node("Greater", ["b", "limit"], ["is_above"]),
        helper.make_node("Cast", ["is_above"], ["second"], to=TensorProto.INT64),
        helper.make_node("ArgMin", ["x"], ["third"], axis=1),
    ]
    outputs = {
        "doubled": (TensorProto.INT64, ("n", 1)),
        "second": (TensorProto.INT64, ("n", 4)),
        "third": (TensorProto.INT64, ("n", 1)),
    }
    constants: dict[str, Any] = {"two": np.int64(2), "limit": np.float32(0.5)}
    model = Model.from_proto(proto_of(nodes, {"x": (TensorProto.FLOAT, ("n", 4))}, outputs, constants))
    assert set(judged_tensors(model)) == {"a", "b"}
    assert set(compared_outputs(model, model)) == {Output("a", "a"), Output("b", "b")}


def test_what_the_other_does_not_have_is_not_compared() -> None:
    model = Model.from_proto(map_net(classes=True))
    renamed = map_net(classes=True)
    for node in renamed.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == "c2" else name for name in names]
    assert compared_outputs(model, Model.from_proto(renamed)) == ()


def test_ranks_are_those_of_the_network_without_its_last_step() -> None:
    options = {"target": {"macs": 0.5}, "calib": CALIB, "latency": False, "round_to": 1}
    with_classes, without = (onnxcompress.compress(map_net(classes=given), **options) for given in (True, False))
    plans = [next(plan for plan in each.plan.plans if plan.pass_name == "allocate") for each in (with_classes, without)]
    assert plans[0].decisions == plans[1].decisions
    assert all(decision["sensitivity"] > 0.0 for decision in plans[0].decisions)


def test_a_reconstruction_has_something_to_train_for() -> None:
    pytest.importorskip("torch")
    options = {"tucker": "ratio=0.4", "recover": "reconstruct", "epochs": 2, "calib": CALIB, "latency": False}
    result = onnxcompress.compress(map_net(classes=True), data=[{"x": samples(100, seed=2)}], **options)
    (stage,) = [stage for stage in result.report.stages if stage.pass_name == "reconstruct"]
    before, after = stage.outcome["score"]
    assert 0.0 < after <= before
