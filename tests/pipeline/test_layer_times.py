"""Times by layer: onnxruntime's names led back to the model's."""

from __future__ import annotations

import pytest

from onnxcompress.evaluation.profile import NodeTime
from onnxcompress.graph import Model
from onnxcompress.pipeline import layer_times
from onnxcompress.pipeline.compress import compress
from onnxcompress.pipeline.layer_times import OTHERS, times_by_layer
from tests.tiny_models import conv_net

LAYERS = {"first", "second", "classifier"}


@pytest.mark.parametrize(
    ("profiled", "layer"),
    [
        ("first", "first"),
        ("first_nchwc", "first"),
        ("c1_nchwc", "first"),  # the tensor that the Conv computes
        ("r1_nchwc", "first"),  # the tensor behind the Relu that was fused into it
        ("r2_nchwc_token_7", "second"),
        ("relu2", "second"),
        ("classifier", "classifier"),
        ("flatten", "flatten"),
        ("ReorderOutput_token_3", OTHERS),
        ("ReorderInput", OTHERS),
    ],
)
def test_fused_and_renamed_nodes_lead_back(profiled: str, layer: str) -> None:
    model = Model.from_proto(conv_net())
    assert times_by_layer([NodeTime(profiled, "Conv", "CPU", 1.5)], model, LAYERS) == {layer: 1.5}


def test_parts_of_a_split_add_up() -> None:
    split = compress(conv_net(), tucker="ratio=0.5", latency=False).model
    nodes = [NodeTime(node.name, node.op, "CPU", 1.0) for node in split.nodes if node.name.startswith("second")]
    assert len(nodes) > 1
    assert times_by_layer(nodes, split, LAYERS) == {"second": float(len(nodes))}


def test_a_report_in_html_has_times(tmp_path: object) -> None:
    options = {"repeat": 20, "warmup": 1, "threads": 1, "html": f"{tmp_path}/r.html"}
    report = compress(conv_net(), tucker="ratio=0.5", **options).report
    timed = {layer.node: layer for layer in report.layers}
    assert set(timed) >= LAYERS
    for name in LAYERS:
        assert timed[name].original_ms is not None
        assert timed[name].original_ms > 0
        assert timed[name].compressed_ms is not None
    without = compress(conv_net(), tucker="ratio=0.5", latency=False, html=f"{tmp_path}/r.html").report
    assert all(layer.original_ms is None for layer in without.layers)


def test_a_provider_without_a_profile_costs_the_times_only(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    from onnxcompress.errors import ModelError

    def refused(*arguments: object, **options: object) -> None:
        raise ModelError("planted")

    monkeypatch.setattr(layer_times, "profile_model", refused)
    report = compress(conv_net(), tucker="ratio=0.5", repeat=20, threads=1, html=f"{tmp_path}/r.html").report
    assert {layer.node for layer in report.layers} == LAYERS
    assert all(layer.compressed_ms is None for layer in report.layers)
