"""Every network of the zoo through pruning, a budget of splits and a refit, as a user asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcompress
from tests.zoo import ZOO, export, sample_inputs

OPTIONS: dict[str, dict[str, Any]] = {
    "both": {"prune": 0.25, "target": {"macs": 0.5}},
    "ranks": {"prune": 0.25, "tucker": "energy=0.9", "svd": "energy=0.95"},
    "auto": {"prune": "auto", "target": {"macs": 0.8}},
}


@pytest.mark.parametrize("how", [pytest.param(how, marks=[] if how == "both" else pytest.mark.slow) for how in OPTIONS])
@pytest.mark.parametrize("name", ZOO)
def test_a_network_is_compressed_and_refitted(name: str, how: str, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, **sample_inputs(name, batch=6, seed=3))
    given = {"calib": data, "data": data, "latency": False, "round_to": 1, "recover": "refit", **OPTIONS[how]}
    report = onnxcompress.compress(export(name), **given).report
    assert report.passed
    assert report.output.params < report.input.params
    assert report.output.macs <= OPTIONS[how].get("target", {"macs": 0.95})["macs"] * report.input.macs
    (refit,) = [stage for stage in report.stages if stage.pass_name == "refit"]
    assert len(refit.decisions) >= 2
    assert report.accuracy.not_finite == 0
