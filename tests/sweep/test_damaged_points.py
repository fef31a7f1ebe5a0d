"""A point whose file was damaged and is JSON all the same is run anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import onnxcompress
from tests.tiny_models import conv_net, save_data

GRID: dict[str, Any] = {"method": ["prune"], "prune_range": "0.25,0.5", "latency": False}


def without_accuracy(value: dict[str, Any]) -> None:
    value["report"]["accuracy"] = None


def a_word_for_a_number(value: dict[str, Any]) -> None:
    value["report"]["output"]["macs"] = "many"


def no_number(value: dict[str, Any]) -> None:
    value["report"]["compression"]["macs"] = float("nan")


def latency_of_another_kind(value: dict[str, Any]) -> None:
    value["latency"] = [1]


def a_report_of_another_kind(value: dict[str, Any]) -> None:
    value["report"] = [1]


def a_failure_without_a_reason(value: dict[str, Any]) -> None:
    del value["report"]
    value["exit_code"] = 3


@pytest.mark.parametrize(
    "damage",
    [
        without_accuracy,
        a_word_for_a_number,
        no_number,
        latency_of_another_kind,
        a_report_of_another_kind,
        a_failure_without_a_reason,
    ],
    ids=lambda damage: damage.__name__,
)
def test_it_is_run_anew(
    damage: Callable[[dict[str, Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    save_data(Path("data.npz"), conv_net(), count=24)
    first = onnxcompress.sweep("in.onnx", out="out", data="data.npz", **GRID)
    file = next(Path("out/points").glob("prune-0.25-*"))
    value = json.loads(file.read_text())
    damage(value)
    file.write_text(json.dumps(value))
    again = onnxcompress.sweep("in.onnx", out="out", data="data.npz", **GRID)
    assert [point.resumed for point in again.points] == [False, True]
    assert [(p.macs, p.accuracy, p.compression) for p in again.points] == [
        (p.macs, p.accuracy, p.compression) for p in first.points
    ]
