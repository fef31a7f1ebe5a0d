"""A target of latency by a time table alone: what it predicts decides and is judged, whatever machine this is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxcompress.cli import main
from onnxcompress.runtime.block import preferred_block
from tests.tiny_models import conv_net, save_data

WIDTH = 3 * preferred_block("cpu")
TARGET = ["--target", "latency=0.6"]
PREDICTED = 0.8 - 2 * 0.15
"""4 of 5 ms are left after clean-up, and every split saves 0.75 ms of them."""

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data for it, and a table made here, every split of which takes a quarter of the layer."""
    folder = tmp_path_factory.mktemp("tables")
    onnx.save(conv_net(channels=WIDTH), folder / "tiny.onnx")
    save_data(folder / "data.npz", conv_net(channels=WIDTH), 100)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        words = ["--time-table", str(folder / "here.json"), "--threads", "1", "-q"]
        assert main(["inspect", str(folder / "tiny.onnx"), *words]) == 0
    value = json.loads((folder / "here.json").read_text())
    for times in value["layers"].values():
        times.update({text: (1.0 if text == "whole" else 0.25) for text in times})
    value["models"] = {sha: {"given_ms": 5.0, "clean_ms": 4.0} for sha in value["models"]}
    (folder / "here.json").write_text(json.dumps(value))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for path in made.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def changed(change: Change) -> str:
    """Write a table that differs from the one made here, return its name."""
    value = json.loads(Path("here.json").read_text())
    change(value)
    Path("changed.json").write_text(json.dumps(value))
    return "changed.json"


def elsewhere(value: dict[str, Any]) -> None:
    value["conditions"]["processor"] = "Another CPU"


def run(*words: str, table: str = "here.json", calib: bool = True) -> int:
    given = ["--time-table", table, "--threads", "1", "--repeat", "5", "--report", "report.json", "-q", "--overwrite"]
    return main(["tiny.onnx", "out.onnx", *words, *given, *(["--calib", "data.npz"] if calib else [])])


def latency_gate() -> dict[str, Any]:
    (gate,) = (each for each in report()["gates"] if each["name"] == "target_latency")
    return gate


def report() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(Path("report.json").read_text())
    return value


@pytest.mark.parametrize("words", [["--no-latency"], ["--no-latency", "--force-time-table"], ["--force-time-table"]])
def test_a_table_of_this_very_machine_is_judged_by_what_it_predicts(words: list[str], folder: Path) -> None:
    assert run(*TARGET, *words) == 0
    assert latency_gate()["passed"]
    assert latency_gate()["value"] == pytest.approx(PREDICTED, abs=1e-6)


def no_layers(value: dict[str, Any]) -> None:
    value["layers"] = {}


def only_whole(value: dict[str, Any]) -> None:
    value["layers"] = {key: {"whole": 1.0} for key in value["layers"]}


@pytest.mark.parametrize(("change", "batch"), [(no_layers, 1), (only_whole, 1), (elsewhere, 4)])
def test_a_table_that_knows_no_layer_is_refused(
    change: Change, batch: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--no-latency", "--force-time-table", "--batch", str(batch)]
    assert run(*TARGET, *words, table=changed(change)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"changed.json: holds no times of this model's layers at inputs of x:{batch}x3x8x8 (it was made at" in line
    assert "onnxcompress inspect IN --time-table FILE" in line
    # Without a target of latency such a table is no mistake: what it does not know stays whole.
    assert run("--tucker", "auto", *words, table="changed.json", calib=False) == 0


def test_a_target_out_of_reach_says_of_how_many_layers_there_are_no_times(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def all_but_one(value: dict[str, Any]) -> None:
        value["layers"] = dict([next((key, own) for key, own in value["layers"].items() if len(own) > 3)])

    assert run("--target", "latency=0.5", "--no-latency", table=changed(all_but_one)) == 3
    message = capsys.readouterr().err
    assert "it is 0.650 of the given model's, as the time table predicts, and 1 of 2 layers stay whole" in message
    assert "measured" not in message


def test_times_of_nothing_reach_no_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def all_zero(value: dict[str, Any]) -> None:
        value["layers"] = {key: dict.fromkeys(own, 0.0) for key, own in value["layers"].items()}

    assert run(*TARGET, "--no-latency", table=changed(all_zero)) == 3
    assert (
        "it is 0.800 of the given model's, as the time table predicts; allow more, or leave fewer layers out"
        in capsys.readouterr().err
    )


def replay(*words: str, model: str = "tiny.onnx") -> int:
    given = ["--plan", "plan.json", "--calib", "data.npz", "--threads", "1", "--report", "report.json", "-q"]
    return main([model, "again.onnx", *given, "--force-time-table", "--no-latency", "--overwrite", *words])


def test_a_plan_made_by_a_table_is_replayed_by_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phone = changed(elsewhere)
    assert run(*TARGET, "--force-time-table", "--no-latency", "--save-plan", "plan.json", table=phone) == 0
    assert replay("--time-table", phone) == 0
    assert latency_gate()["value"] == pytest.approx(PREDICTED, abs=1e-6)
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()
    onnx.save(conv_net(channels=WIDTH, seed=1), "retrained.onnx")
    assert replay("--time-table", phone, "--plan-structure-only", model="retrained.onnx") == 0
    assert latency_gate()["value"] == pytest.approx(PREDICTED, abs=1e-6)
    capsys.readouterr()

    def measured_anew(value: dict[str, Any]) -> None:
        for times in value["layers"].values():
            times["whole"] = 1.25

    assert replay("--time-table", changed(measured_anew)) == 2
    assert "chosen by other times than those of changed.json" in capsys.readouterr().err


def test_a_replay_whose_latency_nobody_could_judge_is_refused_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*TARGET, "--no-latency", "--save-plan", "plan.json") == 0
    capsys.readouterr()
    words = ["--plan", "plan.json", "--calib", "data.npz", "--threads", "1", "--no-latency", "-q"]
    assert main(["tiny.onnx", "again.onnx", *words]) == 2
    message = capsys.readouterr().err
    assert "plan.json: the plan's --target latency needs latency to be measured: leave --no-latency out" in message
    assert main(["tiny.onnx", *words, "--dry-run"]) == 0


def test_a_replay_without_the_data_that_its_plan_refits_to_asks_for_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--force-time-table", "--no-latency", "--save-plan", "plan.json"]
    assert run(*TARGET, *words, table=changed(elsewhere)) == 0
    capsys.readouterr()
    assert main(["tiny.onnx", "again.onnx", "--plan", "plan.json", "--threads", "1", "-q"]) == 2
    message = capsys.readouterr().err
    assert message.endswith("plan.json: the plan refits the weights to calibration data: give --calib PATH\n")


@pytest.mark.parametrize("quantize", ["off", "int8"])
def test_a_predicted_latency_is_said_to_be_one_and_to_know_nothing_of_quantisation(quantize: str, folder: Path) -> None:
    assert run(*TARGET, "--no-latency", "--quantize", quantize) == 0
    (line,) = (line for line in report()["warnings"] if "target_latency" in line)
    assert line.startswith("target_latency is not measured: it is what here.json predicts for its machine")
    assert ("what --quantize int8 does is not in it" in line) == (quantize == "int8")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--tucker", "auto", "--max-error", "30", "--data", "data.npz"], "a search asks for shares of MACs"),
        (["--target", "macs=0.8"], "no time counted"),
        (["--prune", "0.3"], "no time counted"),
    ],
)
def test_a_table_that_decides_nothing_is_told(words: list[str], why: str, folder: Path) -> None:
    run(*words, "--no-latency", "--round-to", "1")
    told = [line for line in report()["warnings"] if "here.json" in line]
    assert [line.split(":")[0] for line in told] == [f"No split was chosen by the times of here.json, because {why}"]


def test_a_table_that_decides_is_not_told_to_be_idle(folder: Path) -> None:
    for words in (TARGET, ["--tucker", "auto"]):
        run(*words, "--no-latency")
        assert not any("No split was chosen" in line for line in report()["warnings"])
