"""Clean-up in the pipeline: one line for each step, a race where latency is measured, its share of the speed-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onnxcompress
from onnxcompress.evaluation.latency import LatencySettings
from onnxcompress.graph import Model
from onnxcompress.passes.cleanup import STEPS
from onnxcompress.pipeline import race as racing
from onnxcompress.pipeline.race import race_on
from onnxcompress.runtime.providers import CPU_PROVIDER
from tests.small_models import build, lrn_network, node

QUICK: dict[str, Any] = {"threads": 1, "warmup": 1, "repeat": 20}


def test_every_step_has_its_line_and_the_race_its_result() -> None:
    report = onnxcompress.compress(lrn_network().to_proto(), prune=0.5, round_to=1, **QUICK).report
    cleanup = report.stages[0]
    steps = {step.step: step for step in cleanup.steps}
    assert list(steps) == [
        "identity",
        "fold",
        "reshape",
        "transpose",
        "split",
        "pad",
        "batchnorm",
        "scale",
        "merge",
        "conv2d",
        "activation",
        "lrn",
        "blocked",
        "unused",
    ]
    assert (steps["identity"].changes, steps["identity"].why) == (1, None)
    assert steps["lrn"].changes + steps["lrn"].skipped == 1
    assert steps["lrn"].what == "writes LRN as a convolution"
    assert 0 < sum(step.seconds for step in cleanup.steps) < cleanup.seconds
    assert cleanup.outcome is None
    why = steps["lrn"].why if steps["lrn"].changes else cleanup.skipped[0].reason
    assert "timed in the network" in str(why)
    (latency,) = report.latency
    assert latency.credit is not None
    assert latency.credit.cleaned_ms.p50 > 0


def test_without_latency_nothing_races_and_the_provider_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "measure_latency", None)
    report = onnxcompress.compress(lrn_network().to_proto(), prune=0.5, latency=False).report
    why = next(step.why for step in report.stages[0].steps if step.step == "lrn")
    assert why == "not timed; known to be faster on CPU"
    assert report.output is not None
    assert report.output.lrn_macs == 16 * 16 * 18 * 18


def test_steps_are_chosen_by_name_and_a_plan_replays_them(tmp_path: Path) -> None:
    options: dict[str, Any] = {"prune": 0.5, "cleanup": "auto,-lrn", "latency": False}
    first = onnxcompress.compress(lrn_network().to_proto(), save_plan=tmp_path / "plan.json", **options)
    steps = [step.step for step in first.report.stages[0].steps]
    assert steps == [step for step in STEPS if step not in ("lrn", "softmax", "share")]
    assert [decision["step"] for decision in first.report.stages[0].decisions] == ["identity"]
    second = onnxcompress.compress(lrn_network().to_proto(), plan=tmp_path / "plan.json", latency=False)
    assert first.model.to_bytes() == second.model.to_bytes()
    assert [step.changes for step in second.report.stages[0].steps] == [1] + [0] * (len(STEPS) - 4)


def test_a_replay_does_what_was_decided_without_a_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tmp_path / "plan.json"
    first = onnxcompress.compress(lrn_network().to_proto(), prune=0.5, latency=False, save_plan=plan)
    monkeypatch.setattr(racing, "measure_latency", None)
    second = onnxcompress.compress(lrn_network().to_proto(), plan=plan, **QUICK)
    assert first.model.to_bytes() == second.model.to_bytes()


def test_clean_up_alone_takes_no_credit_from_compression() -> None:
    report = onnxcompress.compress(lrn_network().to_proto(), cleanup="identity", **QUICK).report
    assert report.latency[0].credit is None


def test_a_race_of_what_cannot_run_as_it_is_has_no_result() -> None:
    open_sizes = build([node("Relu", ["x"], "y")], shape=("n", 3, "h", "w"))
    even_window = build([node("LRN", ["x"], "y", size=4)], shape=("n", 4, 3, 3))
    runs = build([node("Relu", ["x"], "y")], shape=("n", 4, 3, 3))
    race = race_on([CPU_PROVIDER], LatencySettings(threads=1, warmup=1))
    assert race(open_sizes, open_sizes) == ()
    assert race(even_window, runs) == ()
    (result,) = race(runs, Model.from_proto(runs.to_proto()))
    assert result.provider == "CPUExecutionProvider"
    assert result.speedup > 0
