"""Layers side by side: parts of a split are counted as the layer they came from."""

from __future__ import annotations

import pytest

from onnxcompress.analysis.cost import LayerCost, ModelCost, model_cost
from onnxcompress.graph import Model
from onnxcompress.pipeline.compress import compress
from onnxcompress.report.layers import LayerChange, layer_changes, origin_of
from tests.tiny_models import conv_net


def cost(*layers: LayerCost) -> ModelCost:
    return ModelCost(sum(layer.params for layer in layers), None, 0, {}, layers)


@pytest.mark.parametrize(
    ("node", "origin"),
    [
        ("conv", "conv"),
        ("conv_tucker_in", "conv"),
        ("conv_tucker_out_1", "conv"),
        ("conv_tucker_in_svd_second", "conv"),
        ("a_tucker_b_tucker_core", "a_tucker_b"),
        ("fc_svd_first", "fc"),
        ("other_tucker_in", "other_tucker_in"),
        ("_tucker_in", "_tucker_in"),
    ],
)
def test_parts_lead_back_to_their_origin(node: str, origin: str) -> None:
    assert origin_of(node, {"conv": 1, "a": 1, "a_tucker_b": 1, "fc": 1}) == origin


def test_split_gone_and_new_layers() -> None:
    before = cost(LayerCost("conv", "Conv", 100, 1000), LayerCost("bn", "BatchNormalization", 20, 0))
    after = cost(
        LayerCost("conv_tucker_in", "Conv", 10, 100),
        LayerCost("conv_tucker_out", "Conv", 20, None),
        LayerCost("new", "Gemm", 5, 50),
    )
    assert layer_changes(before, after) == (
        LayerChange("conv", "Conv", 100, 30, 1000, None, ("conv_tucker_in", "conv_tucker_out")),
        LayerChange("bn", "BatchNormalization", 20, 0, 0, 0, ()),
        LayerChange("new", "Gemm", None, 5, None, 50, ("new",)),
    )


def test_layers_of_a_real_run_add_up_to_the_model() -> None:
    result = compress(conv_net(), prune=0.2, tucker="ratio=0.5", svd="ratio=0.5", latency=False)
    original, compressed = model_cost(Model.from_proto(conv_net())), model_cost(result.model)
    changes = result.report.layers
    assert changes == layer_changes(original, compressed)
    assert [change.node for change in changes] == ["first", "second", "classifier"]
    assert any(len(change.parts) > 1 for change in changes)
    assert sum(change.original_params or 0 for change in changes) == original.params
    assert sum(change.compressed_params for change in changes) == compressed.params
    assert sum(change.compressed_macs or 0 for change in changes) == compressed.macs
