"""`--max-error`: a gate on the numbers of the outputs, and a search that keeps it, of networks that classify or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.errors import DataError
from onnxcompress.pipeline.search import Search
from onnxcompress.report.search_figures import Found
from onnxcompress.runtime.session import Session
from tests.tiny_models import conv_net, map_net, samples, save_data

QUICK: dict[str, Any] = {"latency": False, "round_to": 1}


def two_headed() -> onnx.ModelProto:
    """Return `conv_net` with the map before its classifier as a second output."""
    model = conv_net()
    model.graph.output.append(helper.make_tensor_value_info("r2", onnx.TensorProto.FLOAT, ["batch", 16, 4, 4]))
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(map_net(), "map.onnx")
    onnx.save(conv_net(), "classes.onnx")
    np.savez("data.npz", x=samples(60, seed=2))
    np.savez("calib.npz", x=samples(400, seed=5))
    save_data(Path("labelled.npz"), conv_net(), count=60)
    return tmp_path


DATA = ["--data", "data.npz", "--calib", "calib.npz", "--no-latency", "--round-to", "1"]


def test_the_gate_judges_any_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["map.onnx", "out.onnx", "--tucker", "ratio=0.6", *DATA, "--report", "r.json", "--html", "r.html"]
    assert main([*words, "--max-error", "0.01"]) == 3
    assert not Path("out.onnx").exists()
    seen = capsys.readouterr()
    assert "gate failed: max_error is " in seen.err
    assert "Relative error of 'c2'" in seen.out
    report = json.loads(Path("r.json").read_text())
    (gate,) = report["gates"]
    assert gate["name"] == "max_error"
    assert gate["value"] == pytest.approx(100 * report["accuracy"]["relative_error"])
    low, high = gate["interval"]
    assert low < gate["value"] < high
    assert "limit of max_error: 0.01" in Path("r.html").read_text()
    # What the value keeps, the end of its interval may not.
    between = ["--max-error", str((gate["value"] + high) / 2)]
    assert main([*words, *between, "--strict", "--overwrite"]) == 3
    assert "measure more" not in capsys.readouterr().out
    assert main([*words, *between]) == 0
    assert main(["compare", "map.onnx", "out.onnx", "--data", "data.npz", "--no-latency", "--max-error", "0.01"]) == 3
    assert main(["compare", "map.onnx", "out.onnx", "--data", "data.npz", "--no-latency", *between]) == 0


def test_the_smallest_model_that_keeps_an_error_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"tucker": "auto", "data": "data.npz", "calib": "calib.npz", **QUICK}
    result = onnxcompress.compress("map.onnx", max_error=25.0, **options)
    found = result.report.search
    assert (found.measure, found.limit, found.error_limit, found.samples) == ("relative_error", None, 25.0, 100)
    assert all(trial.drop is None and trial.disagreement is None for trial in found.trials)
    keeping = [trial.share for trial in found.trials if trial.error <= 25.0]
    assert found.chosen == {"prune": 0.0, "target": {"macs": min(keeping)}}
    assert max((trial.share for trial in found.trials if trial.error > 25.0), default=0.0) < min(keeping)
    assert result.passed
    direct = onnxcompress.compress("map.onnx", target=found.chosen["target"], **options)
    assert direct.model.to_bytes() == result.model.to_bytes()
    gentler = onnxcompress.compress("map.onnx", max_error=16.0, **options).report.search
    assert gentler.chosen["target"]["macs"] > min(keeping)
    assert main(["map.onnx", "o.onnx", "--tucker", "auto", "--max-error", "25", *DATA]) == 0
    assert "relative error, at most" in capsys.readouterr().out


def test_filters_are_searched_for_too(folder: Path) -> None:
    options = {"prune": "auto", "data": "data.npz", "calib": "calib.npz", **QUICK}
    found = onnxcompress.compress("map.onnx", max_error=40.0, **options).report.search
    assert 0.0 < found.chosen["prune"] < 1.0
    under = onnxcompress.compress("map.onnx", tucker="auto", target={"macs": 0.5}, **options).report.search
    closest = min(under.trials, key=lambda trial: trial.error)
    assert under.chosen == {"prune": closest.prune}


def test_a_drop_cannot_be_asked_of_what_does_not_classify(folder: Path) -> None:
    with pytest.raises(DataError, match=r"--max-drop needs a model that classifies: .*; give --max-error P"):
        onnxcompress.compress("map.onnx", tucker="auto", max_drop=1.0, data="data.npz", **QUICK)
    assert main(["map.onnx", "out.onnx", "--tucker", "ratio=0.6", *DATA, "--max-drop", "1", "--markdown", "r.md"]) == 3
    assert "judge its outputs by --max-error P" in Path("r.md").read_text()


def test_two_limits_are_both_kept(folder: Path) -> None:
    options = {"tucker": "auto", "svd": "auto", "data": "labelled.npz", "calib": "calib.npz", **QUICK}
    alone = onnxcompress.compress("classes.onnx", max_drop=20.0, **options).report.search
    both = onnxcompress.compress("classes.onnx", max_drop=20.0, max_error=8.0, **options).report
    assert both.search.chosen["target"]["macs"] > alone.chosen["target"]["macs"]
    assert [(gate.name, gate.passed) for gate in both.gates] == [("max_drop", True), ("max_error", True)]
    chosen = next(t for t in both.search.trials if t.share == both.search.chosen["target"]["macs"])
    assert chosen.error <= 8.0
    assert chosen.drop <= 20.0
    assert both.search.measure == "expected_top1"


def test_a_result_with_too_large_an_error_is_made_again_milder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"prune": 0.0, "target": {"macs": 0.2}}
    monkeypatch.setattr(Search, "run", lambda self: Found("relative_error", 10, chosen, (), error_limit=25.0))
    words = ["map.onnx", "out.onnx", "--tucker", "auto", "--max-error", "25", *DATA, "--report", "r.json"]
    assert main(words) == 0
    judged = json.loads(Path("r.json").read_text())["search"]["judged"]
    shares = [each["chosen"]["target"]["macs"] for each in judged]
    assert shares == sorted(set(shares))
    assert len(shares) > 1
    assert [each["passed"] for each in judged] == [each["error"] <= 25.0 for each in judged]
    assert judged[-1]["passed"]


def test_the_classes_of_places_are_judged_and_searched_for(folder: Path) -> None:
    onnx.save(map_net(classes=True), "places.onnx")
    options = {"tucker": "auto", "data": "data.npz", "calib": "calib.npz", **QUICK}
    result = onnxcompress.compress("places.onnx", max_error=50.0, **options)
    assert result.passed
    assert result.report.search.chosen["target"]["macs"] < 0.95
    original, compressed = (
        Session(content).run({"x": samples(60, seed=2)})["places"]
        for content in (Path("places.onnx").read_bytes(), result.model.to_bytes())
    )
    ious = {}
    for value in np.unique(original).tolist():
        one, two = original == value, compressed == value
        if one.sum() >= 100:
            ious[value] = float((one & two).sum() / (one | two).sum())
    worst = min(ious, key=lambda each: ious[each])
    assert 0.5 <= ious[worst] < 1.0
    assert result.report.accuracy.relative_error == pytest.approx(1.0 - ious[worst])
    assert result.report.accuracy.relative_error_part.value == worst


def test_an_output_beside_the_classes_is_not_lost_from_sight(folder: Path) -> None:
    """Classes that stay as they were say nothing of a second output."""
    proto = two_headed()
    onnx.save(proto, "two.onnx")
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    halved = helper.make_node("Mul", ["r2", "half"], ["m"])
    changed.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), "half"))
    changed.graph.node.append(halved)
    changed.graph.node.append(helper.make_node("Identity", ["m"], ["r2_out"]))
    for node in changed.graph.node:
        for at, name in enumerate(node.output):
            if name == "r2":
                node.output[at] = "inner"
        for at, name in enumerate(node.input):
            if name == "r2":
                node.input[at] = "inner"
    changed.graph.node[-1].output[0] = "r2"
    onnx.save(changed, "halved.onnx")
    report = onnxcompress.compare("two.onnx", "halved.onnx", data="data.npz", latency=False, max_error=10.0)
    accuracy = report.accuracy
    assert (accuracy.agreement, accuracy.relative_error_output) == (100.0, "r2")
    assert accuracy.relative_error == pytest.approx(0.5, rel=1e-6)
    assert not report.passed
    assert any("Output 'r2' of the compressed model differs" in line for line in report.warnings)
