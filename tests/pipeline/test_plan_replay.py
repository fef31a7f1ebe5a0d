"""Plans on other weights: the same filters and ranks, weights and figures of the model at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.pipeline.structure import structure_sha256
from tests.tiny_models import conv_net, save_data

MADE_OF: dict[str, Any] = {"prune": 0.25, "tucker": "ratio=0.5", "svd": "ratio=0.5", "exclude": ["first"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("first.onnx", 0), ("retrained.onnx", 1)):
        onnx.save(conv_net(seed=seed), name)
    return tmp_path


def decisions(result: onnxcompress.CompressionResult) -> list[dict[str, Any]]:
    return [dict(decision) for plan in result.plan.plans for decision in plan.decisions]


def without_error(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in decision.items() if key != "error"} for decision in found]


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.constants().items()}


def test_retrained_weights_lose_the_same_filters_at_the_same_ranks(folder: Path) -> None:
    first = onnxcompress.compress("first.onnx", **MADE_OF, save_plan="plan.json", latency=False)
    again = onnxcompress.compress("retrained.onnx", plan="plan.json", plan_structure_only=True, latency=False)
    assert without_error(decisions(again)) == without_error(decisions(first))
    assert shapes(again.model) == shapes(first.model)
    # Weights and errors are those of the model at hand: what a plan of its own with these decisions would give.
    own = onnxcompress.compress("retrained.onnx", **MADE_OF, latency=False)
    split = [decision for decision in decisions(again) if "error" in decision]
    kinds = {str(decision["kind"]) for decision in split}
    assert kinds == {"tucker", "svd"}
    assert [d["error"] for d in split] != [d["error"] for d in decisions(first) if "error" in d]
    first_kernel = onnx.numpy_helper.to_array(conv_net(seed=1).graph.initializer[0])
    kept = [n for n in range(16) if n not in _removed(decisions(again), "first")]
    assert np.array_equal(Model.values(again.model.constants()["w1"]), first_kernel[kept])
    assert shapes(own.model) == shapes(again.model)
    assert again.report.self_checks


def _removed(found: list[dict[str, Any]], node: str) -> list[int]:
    return [number for decision in found for number in decision.get("removed", {}).get(node, [])]


def test_a_plan_of_a_target_replays_to_the_same_bytes_and_on_retrained_weights(folder: Path) -> None:
    save_data(Path("data.npz"), conv_net())
    given: dict[str, Any] = {"latency": False, "calib": "data.npz"}
    onnxcompress.compress(
        "first.onnx", target={"macs": 0.8}, round_to=1, save_plan="plan.json", output="a.onnx", **given
    )
    again = onnxcompress.compress("first.onnx", plan="plan.json", output="b.onnx", **given)
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert [plan.pass_name for plan in again.plan.plans] == ["cleanup", "allocate", "refit"]
    other = onnxcompress.compress("retrained.onnx", plan="plan.json", plan_structure_only=True, **given)
    (allocate,) = (plan for plan in other.plan.plans if plan.pass_name == "allocate")
    assert allocate.decisions
    for decision, made in zip(allocate.decisions, again.plan.plans[1].decisions, strict=True):
        assert decision["ranks"] == made["ranks"]
        assert decision["error"] != made["error"]
        assert decision.keys() == made.keys() - {"response_error", "sensitivity"}
    assert shapes(other.model) == shapes(again.model)


@pytest.mark.parametrize("option", ["plan_structure_only", "force_plan"])
def test_on_the_same_model_the_options_change_nothing(option: str, folder: Path) -> None:
    onnxcompress.compress("first.onnx", **MADE_OF, save_plan="plan.json", output="a.onnx", latency=False)
    again = onnxcompress.compress("first.onnx", plan="plan.json", output="b.onnx", latency=False, **{option: True})
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert json.loads(Path("plan.json").read_text()) == again.plan.to_json()


def test_another_architecture_is_refused_unless_forced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxcompress.compress("first.onnx", prune=0.25, exclude=["second"], save_plan="plan.json", latency=False)
    strided = conv_net()
    strided.graph.node[2].attribute.extend([onnx.helper.make_attribute("dilations", [1, 1])])
    onnx.save(strided, "other.onnx")
    command = ["other.onnx", "out.onnx", "--plan", "plan.json", "--no-latency", "--no-progress"]
    assert main([*command, "--plan-structure-only"]) == 2
    assert "whose architecture is not this model's: operators, attributes" in capsys.readouterr().err
    assert not Path("out.onnx").exists()
    assert main([*command, "--force-plan"]) == 0
    onnx.checker.check_model("out.onnx", full_check=True)


def test_a_forced_plan_that_does_not_fit_is_refused_with_the_node(folder: Path) -> None:
    onnxcompress.compress("first.onnx", prune=0.25, save_plan="plan.json", latency=False)
    onnx.save(conv_net(channels=8), "narrow.onnx")
    renamed = conv_net()
    for node in renamed.graph.node:
        node.name = f"my_{node.name}"
    onnx.save(renamed, "renamed.onnx")
    with pytest.raises(RecipeError, match="has 8 filters"):
        onnxcompress.compress("narrow.onnx", plan="plan.json", force_plan=True, latency=False)
    with pytest.raises(RecipeError, match="node 'first' has no filters in this model"):
        onnxcompress.compress("renamed.onnx", plan="plan.json", force_plan=True, latency=False)


@pytest.mark.parametrize("option", ["plan_structure_only", "force_plan"])
def test_the_options_need_a_plan(option: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=f"--{option.replace('_', '-')} is about a plan to replay"):
        onnxcompress.compress("first.onnx", prune=0.25, latency=False, **{option: True})


def test_a_plan_of_an_older_version_names_no_structure(folder: Path) -> None:
    onnxcompress.compress("first.onnx", prune=0.25, save_plan="plan.json", latency=False)
    value = json.loads(Path("plan.json").read_text())
    del value["input"]["structure"]
    Path("plan.json").write_text(json.dumps(value))
    assert onnxcompress.compress("first.onnx", plan="plan.json", latency=False).passed
    with pytest.raises(RecipeError, match="does not say for which structure"):
        onnxcompress.compress("retrained.onnx", plan="plan.json", plan_structure_only=True, latency=False)


def test_each_decision_stands_on_one_line(folder: Path) -> None:
    made = onnxcompress.compress("first.onnx", prune=0.25, tucker="ratio=0.5", save_plan="plan.json", latency=False)
    text = Path("plan.json").read_text()
    assert json.loads(text) == made.plan.to_json()
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    for plan in made.plan.to_json()["passes"]:
        for entry in (*plan["decisions"], *plan["skipped"]):
            assert json.dumps(entry) in lines
    # A pruned filter more changes one line.
    assert len(lines) < 80


def test_structure_is_what_stays_when_weights_are_trained_again() -> None:
    model = conv_net()
    same = structure_sha256(Model.from_proto(model))
    documented = conv_net(seed=3)
    documented.graph.node[0].doc_string = "line 7"
    documented.graph.node[0].metadata_props.add(key="trace", value="train.py")
    documented.producer_version = "2"
    assert structure_sha256(Model.from_proto(documented)) == same
    assert structure_sha256(Model.from_bytes(conv_net(seed=3).SerializeToString())) == same
    assert structure_sha256(Model.from_proto(conv_net(batch=1))) != same
    assert structure_sha256(Model.from_proto(conv_net(channels=8))) != same
    renamed = conv_net()
    renamed.graph.node[0].name = "other"
    assert structure_sha256(Model.from_proto(renamed)) != same


def test_values_of_shapes_belong_to_the_structure() -> None:
    def reshaped(*sizes: int) -> str:
        model = conv_net()
        model.graph.node[4].CopyFrom(onnx.helper.make_node("Reshape", ["r2", "sizes"], ["f"], "flatten"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(sizes, np.int64), "sizes"))
        return structure_sha256(Model.from_proto(model))

    assert reshaped(0, -1) == reshaped(0, -1)
    assert reshaped(0, -1) != reshaped(-1, 256)


def test_a_dry_run_says_what_it_decided_without_the_training_before_it(folder: Path) -> None:
    pytest.importorskip("torch")
    save_data(Path("data.npz"), conv_net(), count=100)
    given: dict[str, Any] = {"latency": False, "train": "data.npz", "calib": "data.npz", "device": "cpu"}
    made_of: dict[str, Any] = {**given, "prune": 0.25, "epochs": 1}
    dry = onnxcompress.compress("first.onnx", **made_of, dry_run=True, save_plan="plan.json")
    assert not [line for line in dry.report.warnings if "without that training" in line]
    onnxcompress.compress("first.onnx", plan="plan.json", output="a.onnx", **given)
    onnxcompress.compress("first.onnx", **made_of, output="b.onnx")
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    dry = onnxcompress.compress("first.onnx", **made_of, quantize="int8", dry_run=True)
    (said,) = (line for line in dry.report.warnings if "without that training" in line)
    assert said.startswith("What int8 would do after finetune")
