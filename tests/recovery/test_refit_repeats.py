"""Calibration samples that say nothing, black ones or one many times over: a refit to them must not do harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcompress
from onnxcompress.graph import Model
from onnxcompress.linalg.moments import distinct_rows
from onnxcompress.linalg.regression import input_spectrum
from tests.small_models import build, node, session

SIDE = 16
OPTIONS: dict[str, Any] = {"tucker": "ratio=0.5", "svd": "ratio=0.7", "latency": False, "round_to": 1}


def network(batch: int | str = "n") -> Model:
    rng, nodes, constants, tensor = np.random.default_rng(0), [], {}, "x"
    for number, (inputs, outputs, kernel) in enumerate([(3, 16, 5), (16, 24, 3), (24, 24, 1), (24, 16, 3)]):
        # Channels of unequal size, as those of trained networks are: half of them hold most.
        scale = np.exp(-4.0 * np.arange(outputs) / outputs)[:, None, None, None]
        weight = rng.standard_normal((outputs, inputs, kernel, kernel)) * scale / kernel
        constants |= {f"w{number}": weight.astype(np.float32), f"b{number}": np.full(outputs, 0.1, np.float32)}
        nodes += [
            node("Conv", [tensor, f"w{number}", f"b{number}"], f"c{number}", name=f"c{number}", pads=[kernel // 2] * 4),
            node("Relu", [f"c{number}"], f"r{number}", name=f"r{number}"),
        ]
        tensor = f"r{number}"
    nodes += [node("GlobalAveragePool", [tensor], "p", name="p"), node("Flatten", ["p"], "y", name="y")]
    return build(nodes, constants, shape=(batch, 3, SIDE, SIDE))


def images(count: int) -> Any:
    return np.random.default_rng(1).random((count, 3, SIDE, SIDE)).astype(np.float32)


def error(model: Model, original: Model) -> float:
    feeds = {"x": np.random.default_rng(2).random((64, 3, SIDE, SIDE)).astype(np.float32)}
    wanted, got = (session(each.to_bytes()).run(None, feeds)[0] for each in (original, model))
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted - wanted.mean(axis=0)))


SAYING_NOTHING = {
    "black": np.zeros((120, 3, SIDE, SIDE), np.float32),
    "grey": np.full((120, 3, SIDE, SIDE), 0.5, np.float32),
    "one image": np.repeat(images(1), 120, axis=0),
}


@pytest.mark.parametrize("kind", SAYING_NOTHING)
def test_a_refit_to_samples_that_say_nothing_does_no_harm(kind: str) -> None:
    model = network()
    calibration = [{"x": SAYING_NOTHING[kind]}]
    without = onnxcompress.compress(model.to_proto(), recover="none", **OPTIONS)
    fitted = onnxcompress.compress(model.to_proto(), recover="refit", calib=calibration, **OPTIONS)
    assert error(fitted.model, model) < 1.2 * error(without.model, model)
    assert "The refit had 120 calibration samples (1 different)" in " ".join(fitted.report.warnings)


def test_a_refit_to_samples_that_differ_helps() -> None:
    model = network()
    without = onnxcompress.compress(model.to_proto(), recover="none", **OPTIONS)
    fitted = onnxcompress.compress(model.to_proto(), recover="refit", calib=[{"x": images(120)}], **OPTIONS)
    assert error(fitted.model, model) < 0.7 * error(without.model, model)
    assert "different" not in " ".join(fitted.report.warnings)


def test_what_fills_up_the_last_batch_counts_as_no_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", x=images(20))
    for batch in ("n", 8):
        model = network(batch).to_proto()
        report = onnxcompress.compress(model, recover="refit", calib=tmp_path / "calib.npz", **OPTIONS).report
        assert "The refit had 20 calibration samples, and held back" in " ".join(report.warnings)


def test_rows_count_once() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    assert distinct_rows(rows) == 50
    assert distinct_rows(np.concatenate([rows, rows[:20]])) == 50
    assert distinct_rows(np.zeros((9, 7), np.float32)) == 1
    assert distinct_rows(np.zeros((0, 7), np.float32)) == 0


@pytest.mark.parametrize("features", [64, 288, 576, 1152])
def test_rows_count_once_wherever_they_stand(features: int) -> None:
    rows = np.random.default_rng(0).standard_normal((3, features)).astype(np.float32)
    for count in (5, 33, 997, 5001):
        assert distinct_rows(rows[np.arange(count) % 3]) == 3


def test_where_inputs_do_not_vary_the_weights_choose_the_directions() -> None:
    slope = np.random.default_rng(0).standard_normal((4, 5))
    directions = input_spectrum(np.zeros((4, 4)), slope, 1)[1]
    leading = np.linalg.svd(slope)[0][:, 0]
    assert abs(leading @ directions[:, 0]) / np.linalg.norm(directions[:, 0]) == pytest.approx(1.0)


def test_a_position_that_never_varies_goes_with_no_other() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((100, 2, 3))
    rows[:, 0] = 1e-30 * rng.standard_normal((100, 3))
    xx = np.cov(rows.reshape(100, 6).T)
    energies, directions = input_spectrum(xx, rng.standard_normal((6, 5)), 2)
    assert np.isfinite(energies).all()
    assert np.isfinite(directions).all()
