"""What follows a search whose result loses more on the evaluation data than it may: something milder, a few times."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.passes.recovery import error_metric, original_run
from onnxcompress.pipeline.search import Search
from onnxcompress.pipeline.search_line import milder_position
from onnxcompress.recipe import Recipe
from onnxcompress.report.figures import GateResult
from onnxcompress.report.search_figures import Found
from onnxcompress.runtime.session import Session
from tests.recovery.small_classifier import images, trained
from tests.tiny_models import conv_net, samples, save_data

QUICK: dict[str, Any] = {"latency": False, "round_to": 1, "tucker": "auto", "svd": "auto"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a model, calibration samples, and evaluation samples that it only just tells apart."""
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    save_data(Path("easy.npz"), conv_net(), count=60)
    np.savez("calib.npz", x=samples(400, seed=5))
    given = samples(3000, seed=9)
    scores = np.sort(Session(conv_net().SerializeToString()).run({"x": given})["y"], axis=1)
    hard = given[np.argsort(scores[:, -1] - scores[:, -2])[:900][::3]]
    labels = Session(conv_net().SerializeToString()).run({"x": hard})["y"].argmax(axis=1)
    np.savez("hard.npz", x=hard, labels=labels)
    return tmp_path


def always(monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any], milder: Callable[..., Any]) -> None:
    """Let every search choose the same, and say the same of what is milder."""
    monkeypatch.setattr(Search, "run", lambda self: Found("expected_top1", 10, chosen, (), limit=1.0))
    monkeypatch.setattr(Search, "milder", milder)


def counted(measure: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    """Return a function that notes each of its calls."""

    def noted(*arguments: Any) -> Any:
        calls.append(name)
        return measure(*arguments)

    return noted


def test_a_result_that_loses_too_much_is_made_again_milder(folder: Path) -> None:
    options = {"data": "hard.npz", "calib": "calib.npz", "max_drop": 8.0, **QUICK}
    result = onnxcompress.compress("in.onnx", **options)
    found = result.report.search
    shares = [each.chosen["target"]["macs"] for each in found.judged]
    assert 1 < len(shares) <= 4
    assert shares == sorted(set(shares))
    assert [each.passed for each in found.judged] == [False] * (len(shares) - 1) + [result.passed]
    assert result.passed
    (gate,) = result.report.gates
    assert found.judged[-1].drop == gate.value <= 8.0
    assert all(each.drop > 8.0 for each in found.judged[:-1])
    assert found.chosen == found.judged[-1].chosen
    # The run that is kept is the run that these options make by themselves.
    assert result.plan.recipe["target"] == {"macs": shares[-1]}
    direct = onnxcompress.compress("in.onnx", **options, target={"macs": shares[-1]})
    assert direct.model.to_bytes() == result.model.to_bytes()
    (line,) = [line for line in result.report.warnings if "evaluation data" in line]
    assert f"judged {len(shares)} models" in line


def test_nothing_is_made_again_where_the_first_keeps_the_limit(folder: Path) -> None:
    result = onnxcompress.compress("in.onnx", data="easy.npz", calib="calib.npz", max_drop=20.0, **QUICK)
    assert result.passed
    assert [each.chosen for each in result.report.search.judged] == [result.report.search.chosen]
    assert not any("evaluation data" in line for line in result.report.warnings)


def test_a_limit_that_cannot_be_kept_ends_after_four(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    for module, name in ((original_run, "Targets"), (error_metric, "gradient_moments")):
        monkeypatch.setattr(module, name, counted(getattr(module, name), name, measured))
    chosen = {"prune": 0.0, "target": {"macs": 0.3}}
    always(
        monkeypatch, chosen, lambda self, chosen, gate: {**chosen, "target": {"macs": chosen["target"]["macs"] + 0.01}}
    )
    assert main([*WORDS, "--max-drop", "0.001"]) == 3
    assert not Path("out.onnx").exists()
    report = json.loads(Path("r.json").read_text())
    judged = report["search"]["judged"]
    assert [each["chosen"]["target"]["macs"] for each in judged] == pytest.approx([0.3, 0.31, 0.32, 0.33])
    assert not any(each["passed"] for each in judged)
    (line,) = [line for line in report["warnings"] if "evaluation data" in line]
    assert "none of 4" in line
    # What the original answers is measured once for all four.
    assert sorted(measured) == ["Targets", "gradient_moments"]


WORDS = ["in.onnx", "out.onnx", "--tucker", "auto", "--svd", "auto", "--round-to", "1", "--data", "hard.npz"]
WORDS += ["--calib", "calib.npz", "--no-latency", "--report", "r.json", "--html", "r.html"]


def test_the_plan_replays_where_filters_were_to_leave_in_steps_and_none_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always(monkeypatch, {"prune": 0.0, "target": {"macs": 0.8}}, lambda self, chosen, gate: None)
    words = [*WORDS, "--prune", "auto", "--steps", "2", "--max-drop", "50", "--save-plan", "p.json"]
    assert main(words) == 0
    again = ["--calib", "calib.npz", "--data", "hard.npz", "--no-latency", "--plan", "p.json"]
    assert main(["in.onnx", "again.onnx", *again]) == 0
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()


def test_reports_tell_every_judgement(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--max-drop", "8"]) == 0
    judged = json.loads(Path("r.json").read_text())["search"]["judged"]
    shown, page = capsys.readouterr().out, Path("r.html").read_text()
    for each in judged:
        words = f"--target macs={each['chosen']['target']['macs']:g}: {each['drop']:.2f} points lost, "
        words += "kept" if each["passed"] else "too much"
        assert words in shown
        assert words in page


def test_nothing_milder_is_tried_where_another_gate_failed_too(folder: Path) -> None:
    options = {"data": "hard.npz", "calib": "calib.npz", "max_drop": 8.0, **QUICK}
    report = onnxcompress.compress("in.onnx", min_compression=500.0, **options).report
    assert [gate.passed for gate in report.gates] == [False, False]
    assert len(report.search.judged) == 1


def test_pruning_alone_removes_fewer_filters(folder: Path) -> None:
    options = {**QUICK, "tucker": "off", "svd": "off", "prune": "auto"}
    report = onnxcompress.compress("in.onnx", data="hard.npz", calib="calib.npz", max_drop=3.0, **options).report
    rates = [each.chosen["prune"] for each in report.search.judged]
    assert len(rates) > 1
    assert rates == sorted(set(rates), reverse=True)
    assert report.recipe["prune"] == "auto"


def test_steps_of_pruning_do_not_share_what_they_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"prune": 0.5, "target": {"macs": 0.3}}
    always(monkeypatch, chosen, lambda self, chosen, gate: {**chosen, "target": {"macs": 0.32}})
    options = {**QUICK, "calib": "calib.npz", "data": "hard.npz", "max_drop": 0.001}
    result = onnxcompress.compress("in.onnx", prune="auto", steps=2, recover="refit", **options)
    assert len(result.report.search.judged) == 4
    given = {"prune": 0.5, "importance": "response", "prune_scope": "global", "target": {"macs": 0.32}}
    direct = onnxcompress.compress("in.onnx", steps=2, recover="refit", **{**options, **given})
    assert direct.model.to_bytes() == result.model.to_bytes()


def test_a_killed_run_goes_on_with_the_training_of_its_own_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.onnx").write_bytes(trained())
    pixels, labels = images(64, 5)
    np.savez("train.npz", input=pixels, labels=labels)
    np.savez("noise.npz", input=np.random.default_rng(1).standard_normal((64, *pixels.shape[1:])).astype(np.float32))
    always(monkeypatch, {"prune": 0.7}, lambda self, chosen, gate: {"prune": 0.5} if chosen["prune"] == 0.7 else None)
    options = {"data": "noise.npz", "train": "train.npz", "prune": "auto", "max_drop": 0.0, "epochs": 2}
    options |= {"latency": False, "device": "cpu", "keep_failed": True, "train_batch": 64}
    trained_steps: list[int] = []
    kill_at = 4  # the second epoch of the second model

    def watched(doing: str, done: int, total: int | None) -> None:
        if doing == "fine-tuning":
            trained_steps.append(done)
            if len(trained_steps) == kill_at:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        onnxcompress.compress("in.onnx", output="out.onnx", progress=watched, **options)
    assert trained_steps == [1, 2, 1, 2]
    assert len(list(tmp_path.glob("out.onnx.*"))) == 2
    trained_steps.clear()
    onnxcompress.compress("in.onnx", output="out.onnx", progress=watched, resume=True, **options)
    assert trained_steps == [2]
    assert not list(tmp_path.glob("out.onnx.*"))
    trained_steps.clear()
    kill_at = 0
    onnxcompress.compress("in.onnx", output="again.onnx", progress=watched, **options)
    assert trained_steps == [1, 2, 1, 2]
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()


@pytest.mark.parametrize(
    ("position", "aimed", "slope", "expected"),
    [
        (0.6, 0.5, -10.0, 0.6 + math.log(2.0) / 10.0),
        (0.6, 0.01, -10.0, 0.6 + math.log(4.0) / 10.0),
        (0.6, -3.0, -10.0, 0.6 + math.log(4.0) / 10.0),
        (0.6, math.nan, -10.0, 0.6 + math.log(4.0) / 10.0),
        (0.6, 0.99, -20.0, 0.6 + 0.025),
        (0.6, 0.5, -1.0, 0.8),
        (0.6, 0.5, None, 0.8),
        (0.96, 0.5, -10.0, None),
    ],
)
def test_how_much_milder(position: float, aimed: float, slope: float | None, expected: float | None) -> None:
    assert milder_position(position, aimed, slope, 0.025) == pytest.approx(expected, abs=1e-4)


def test_a_strict_gate_is_told_by_the_end_of_its_interval(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[GateResult] = []
    asked: list[float] = []
    milder = Search.milder

    def watched(self: Search, chosen: dict[str, Any], failed: list[GateResult]) -> dict[str, Any] | None:
        given.extend(failed)
        return milder(self, chosen, failed)

    def told(position: float, aimed: float, slope: float | None, step: float) -> float | None:
        asked.append(aimed)
        return milder_position(position, aimed, slope, step)

    monkeypatch.setattr(Search, "milder", watched)
    monkeypatch.setattr("onnxcompress.pipeline.search.milder_position", told)
    onnxcompress.compress("in.onnx", data="hard.npz", calib="calib.npz", max_drop=8.0, strict=True, **QUICK)
    assert given
    assert asked == [pytest.approx(8.0 / gate.interval[1]) for gate in given if gate.interval]
    assert given[0].name == "max_drop"


def test_of_two_failed_gates_the_one_that_asks_more_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(
        "onnxcompress.pipeline.search.milder_position", lambda position, aimed, slope, step: asked.append(aimed)
    )
    drop, error = GateResult("max_drop", 1.0, 4.0, False), GateResult("max_error", 5.0, 7.5, False)
    search = Search(Recipe(tucker="auto", max_drop=1.0, max_error=5.0), *[None] * 8)  # type: ignore[arg-type]
    chosen = {"prune": 0.0, "target": {"macs": 0.5}}
    for failed in ([drop], [error], [error, drop]):
        assert search.milder(chosen, failed) is None
    # A squared error goes with a drop.
    assert asked == pytest.approx([0.25, (5.0 / 7.5) ** 2, 0.25])


def test_trials_prune_in_steps_too(folder: Path) -> None:
    options = {**QUICK, "calib": "calib.npz", "prune": "auto", "steps": 3, "target": {"params": 0.6}}
    report = onnxcompress.compress("in.onnx", **options).report
    assert [trial.prune for trial in report.search.trials][:2] == [0.0, 0.15]
    assert report.passed
