"""Two models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.evaluation.compare import compare_models
from onnxcompress.evaluation.latency import LatencySettings
from onnxcompress.runtime.providers import CPU_PROVIDER
from tests.runtime.networks import classifier, image_folder

FIRST, SECOND = classifier().SerializeToString(), classifier(seed=1).SerializeToString()
QUICK = LatencySettings(threads=1, warmup=1, repeat=2)


def test_accuracy_and_latency(tmp_path: Path) -> None:
    image_folder(tmp_path, 12)
    told: list[tuple[str, int, int | None]] = []
    seen = compare_models(
        FIRST,
        SECOND,
        data=tmp_path,
        preprocess="unit",
        samples=10,
        latency=QUICK,
        providers=(CPU_PROVIDER, CPU_PROVIDER),
        progress=lambda *step: told.append(step),
    )
    assert seen.accuracy is not None
    assert (seen.accuracy.samples, seen.accuracy.labels) == (10, True)
    assert len(seen.latency) == 2
    assert told == [
        ("accuracy of the original", 10, 10),
        ("accuracy of the compressed model", 10, 10),
        ("latency on cpu", 0, 2),
        ("latency on cpu", 1, 2),
    ]
    report = json.loads(json.dumps(seen.to_json()))
    assert report["accuracy"]["original"].keys() == {"top1", "top5"}
    assert len(report["latency"]) == 2


def test_only_one_of_them() -> None:
    seen = compare_models(FIRST, SECOND, latency=QUICK)
    assert seen.accuracy is None
    assert len(seen.latency) == 1
    assert seen.to_json()["accuracy"] is None
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    seen = compare_models(FIRST, FIRST, data=[{"x": x}])
    assert seen.accuracy is not None
    assert seen.accuracy.agreement == 100.0
    assert seen.latency == ()


def test_comparing_nothing_is_an_error() -> None:
    with pytest.raises(RecipeError, match="nothing to compare"):
        compare_models(FIRST, SECOND)
    with pytest.raises(RecipeError, match="give a provider"):
        compare_models(FIRST, SECOND, latency=QUICK, providers=())
    with pytest.raises(DataError, match="no samples"):
        compare_models(FIRST, SECOND, data=[])
