"""Times by layer: onnxruntime's names led back to the model's."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnxcompress.cli import main
from onnxcompress.evaluation.profile import NodeTime
from onnxcompress.graph import Model
from onnxcompress.pipeline import layer_times
from onnxcompress.pipeline.compress import compress
from onnxcompress.pipeline.layer_times import OTHERS, times_by_layer
from onnxcompress.report.html import html_report
from onnxcompress.report.markdown import markdown_summary
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


def test_a_profile_shows_both_models_side_by_side_and_what_ran_each_node() -> None:
    report = compress(conv_net(), tucker="ratio=0.5", repeat=20, warmup=1, threads=1, profile=True).report
    profile = report.profile
    assert profile is not None
    convolutions = next(row for row in profile.by_op if row.op_type == "Conv")
    assert convolutions.original_nodes == 2
    assert convolutions.compressed_nodes == 6
    assert all(row.original_ms is None or row.original_provider == "CPUExecutionProvider" for row in profile.by_node)
    total = sum(row.compressed_ms or 0.0 for row in profile.by_node)
    assert total == pytest.approx(sum(row.compressed_ms or 0.0 for row in profile.by_op))
    text = markdown_summary(report)
    assert "### Time by operator" in text
    assert "on CPUExecutionProvider" in html_report(report)


def test_inspect_profiles_one_model(tmp_path: Path) -> None:
    path, written = tmp_path / "m.onnx", tmp_path / "i.json"
    onnx.save(conv_net(), path)
    assert main(["inspect", str(path), "--profile", "--threads", "1", "--json", str(written), "-q"]) == 0
    profile = json.loads(written.read_text())["profile"]
    assert {row["op_type"] for row in profile["by_op"]} >= {"Conv", "Gemm"}
    assert all(row["original_ms"] >= 0 and row["compressed_ms"] is None for row in profile["by_node"])
    assert {row["original_provider"] for row in profile["by_node"]} == {"CPUExecutionProvider"}


def test_a_model_of_open_sizes_asks_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = conv_net()
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    onnx.save(proto, tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx"), "--profile", "-q"]) == 5
    assert "--input-shape x:" in capsys.readouterr().err
