"""What latency cannot be measured from, or with: one line, or a result without what was not to be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxcompress
from onnxcompress.errors import DataError, ModelError, RecipeError
from onnxcompress.evaluation.latency import Latency
from onnxcompress.evaluation.timing import Milliseconds
from onnxcompress.graph import Model
from onnxcompress.pipeline import layer_times, split_timer
from onnxcompress.report.advice import noise_lines
from onnxcompress.report.rows import before_and_after
from tests.report.measured import report
from tests.small_models import build, node

QUICK: dict[str, Any] = {"threads": 1, "warmup": 1, "repeat": 20}


def network(batch: int | str = "n", channels: int = 8) -> Model:
    nodes = [node("Conv", ["x", "w"], "a", name="first"), node("Relu", ["a"], "y", name="bend")]
    return build(nodes, {"w": np.ones((channels, 3, 3, 3), np.float32)}, shape=(batch, 3, 8, 8))


def test_runs_of_different_batches_are_not_compared() -> None:
    with pytest.raises(DataError, match="a run of the one model takes 4 samples, of the other 1"):
        onnxcompress.compare(network(4).to_proto(), network(1).to_proto(), **QUICK)
    same = onnxcompress.compare(network(4).to_proto(), network(4).to_proto(), **QUICK)
    assert same.latency[0].batch == 4


def test_inputs_may_stand_in_another_order() -> None:
    first = network(1, channels=4).to_proto()
    first.graph.node.append(helper.make_node("Mul", ["y", "factors"], ["z"], "scale"))
    first.graph.input.append(helper.make_tensor_value_info("factors", TensorProto.FLOAT, [4, 1, 1]))
    first.graph.output[0].name = "z"
    second = onnx.ModelProto.FromString(first.SerializeToString())
    second.graph.input.reverse()
    (seen,) = onnxcompress.compare(first, second, **QUICK).latency
    assert (seen.batch, seen.speedup > 0.0) == (1, True)


def test_more_threads_than_a_machine_bears_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(RecipeError, match="threads: 5000 is out of range here; give at most 32"):
        onnxcompress.compress(network().to_proto(), prune=0.5, threads=5000)
    monkeypatch.setattr("os.cpu_count", lambda: 2000)
    with pytest.raises(RecipeError, match="give at most 8000"):
        onnxcompress.compress(network().to_proto(), prune=0.5, threads=9000)


def test_without_a_home_times_are_kept_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(split_timer.Path, "home", homeless)
    result = onnxcompress.compress(network(channels=32).to_proto(), tucker="auto", **QUICK)
    assert [stage.pass_name for stage in result.report.stages][:2] == ["cleanup", "tucker"]


def test_a_profile_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise ModelError("onnxruntime cannot load it: no space left")

    monkeypatch.setattr(layer_times, "profile_model", full)
    model = network().to_proto()
    for made in (
        onnxcompress.compare(model, model, profile=True, **QUICK),
        onnxcompress.compress(model, prune=0.25, round_to=1, profile=True, **QUICK).report,
    ):
        assert made.profile is None
        assert "No layer could be timed: onnxruntime cannot load it: no space left" in made.warnings


def latency(speedup: float, interval: tuple[float, float], *, noisy: bool) -> Latency:
    before, after = Milliseconds(1.0, 1.0), Milliseconds(1.0 / speedup, 1.0 / speedup)
    return Latency(
        *("CPUExecutionProvider", "cpu", {}, 1, 1, None, True, 1, 20, before, after), speedup, interval, noisy=noisy
    )


def test_a_slower_model_has_its_interval_in_the_same_figure() -> None:
    rows = {
        name: change for name, *_, change in before_and_after(report(latency=(latency(0.25, (0.2, 0.4), noisy=False),)))
    }
    assert "4.00 x slower (95 %: 2.50 to 5.00)" in rows.values()


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.6, 2.1), "which model is faster"),
        ((18.0, 64.0), "how much faster the compressed model is"),
        ((0.2, 0.4), "how much slower the compressed model is"),
    ],
)
def test_noise_leaves_open_what_the_interval_does(interval: tuple[float, float], expected: str) -> None:
    (line,) = noise_lines((latency(float(np.sqrt(interval[0] * interval[1])), interval, noisy=True),))
    assert f"too noisy to say {expected}: the ratio is somewhere" in line
