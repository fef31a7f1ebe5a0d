"""Depthwise convolutions whose number of channels leaves the runtime's blocks: said where no latency shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcompress
from onnxcompress.graph import Model
from onnxcompress.pipeline.uneven_widths import uneven_width_warnings
from onnxcompress.recipe import Recipe
from tests.small_models import build, node


def separable(channels: int) -> Model:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((channels, 3, 1, 1)).astype(np.float32),
        "d": rng.standard_normal((channels, 1, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((4, channels, 1, 1)).astype(np.float32),
    }
    nodes = [
        node("Conv", ["x", "w"], "a", name="in"),
        node("Relu", ["a"], "r", name="relu"),
        node("Conv", ["r", "d"], "b", name="depthwise", group=channels),
        node("Conv", ["b", "v"], "y", name="out"),
    ]
    return build(nodes, constants, shape=("n", 3, 8, 8))


@pytest.mark.parametrize(
    ("channels", "options", "expected"),
    [
        (32, {"prune": 0.3}, True),
        (32, {"prune": 0.3, "round_to": 4}, False),
        (32, {"prune": 0.3, "round_to": 8}, False),
        (32, {"prune": 0.375}, False),  # 20 channels, which take no longer than 24
        (32, {"prune": 0.25}, False),
        (30, {"prune": 0.3}, False),
        (32, {"prune": 0.0}, False),
    ],
)
def test_odd_widths_of_depthwise_convolutions_are_told(channels: int, options: dict[str, Any], expected: bool) -> None:
    report = onnxcompress.compress(separable(channels).to_proto(), latency=False, **options).report
    told = [line for line in report.warnings if "no multiple of " in line]
    assert bool(told) == expected
    assert all(
        line.startswith("A depthwise convolution has") and "multiple of 4" in line and "--round-to 4" in line
        for line in told
    )


def test_another_provider_has_blocks_of_its_own() -> None:
    before, after = separable(32), separable(30)
    assert uneven_width_warnings(before, after, Recipe(prune=0.3, latency=False))
    assert not uneven_width_warnings(before, after, Recipe(prune=0.3, latency=False, provider=("cuda",)))


@pytest.mark.parametrize("name", ["CPU", "CPUExecutionProvider"])
def test_the_provider_may_be_written_in_other_ways(name: str) -> None:
    assert uneven_width_warnings(separable(32), separable(30), Recipe(prune=0.3, latency=False, provider=(name,)))
