"""A detector that filters its boxes itself: as many rows as were found, which another model finds others of."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress
from onnxcompress.graph import Model
from onnxcompress.passes.recovery.outputs import judged_tensors
from tests.tiny_models import detector_net, samples

CALIB = [{"x": samples(60, seed=5)}]
DATA = [{"x": samples(40, seed=2)}]


def filtered_net() -> onnx.ModelProto:
    """Return `detector_net` with a NonMaxSuppression behind it: kept (D, 4), rates (D,), classes (D,)."""
    model = detector_net(joined=False)
    graph = model.graph
    constants = {
        "most": np.array([5], np.int64),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.1], np.float32),
        "of_box": np.array([0, 2], np.int64),
        "of_class": np.array(1, np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    graph.node.extend(
        [
            helper.make_node("Transpose", ["boxes"], ["corners"], "corners", perm=[0, 2, 1]),
            helper.make_node("NonMaxSuppression", ["corners", "scores", "most", "overlap", "least"], ["chosen"], "nms"),
            helper.make_node("Gather", ["chosen", "of_box"], ["places"], "places", axis=1),
            helper.make_node("GatherND", ["corners", "places"], ["kept"], "kept"),
            helper.make_node("GatherND", ["scores", "chosen"], ["rates"], "rates"),
            helper.make_node("Gather", ["chosen", "of_class"], ["classes"], "classes", axis=1),
        ]
    )
    del graph.output[:]
    for name, kind, shape in (
        ("kept", TensorProto.FLOAT, ["found", 4]),
        ("rates", TensorProto.FLOAT, ["found"]),
        ("classes", TensorProto.INT64, ["found"]),
    ):
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="module")
def net() -> onnx.ModelProto:
    return filtered_net()


def decided(result: Any, name: str) -> list[Any]:
    return [plan.decisions for plan in result.plan.plans if plan.pass_name == name]


def test_what_was_filtered_is_judged_by_what_it_was_chosen_from(net: onnx.ModelProto) -> None:
    assert set(judged_tensors(Model.from_proto(net))) == {"scaled", "rated"}


@pytest.mark.parametrize(
    ("options", "name"),
    [({"target": {"macs": 0.7}}, "allocate"), ({"prune": 0.1, "importance": "response"}, "prune")],
)
def test_as_much_is_taken_as_of_the_network_without_the_filter(
    net: onnx.ModelProto, options: dict[str, Any], name: str
) -> None:
    own, unfiltered = (
        onnxcompress.compress(each, calib=CALIB, latency=False, **options) for each in (net, detector_net(joined=False))
    )
    assert decided(own, name) == decided(unfiltered, name) != []


def test_eight_bits_are_judged(net: onnx.ModelProto) -> None:
    result = onnxcompress.compress(net, quantize="int8", calib=CALIB, data=DATA, latency=False)
    assert any(node.op == "QuantizeLinear" for node in result.model.nodes)
