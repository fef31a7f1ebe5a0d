"""What a run keeps in memory: of the models that passes made, only what is still needed."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from onnxcompress.graph import Model
from onnxcompress.pipeline import job as pipeline
from onnxcompress.pipeline.compress import compress
from onnxcompress.pipeline.outputs import CompressedModel
from tests.recovery.small_classifier import trained


def test_weights_that_a_later_pass_replaced_are_gone_before_the_model_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[str, list[weakref.ref[Any]]]] = []
    alive: list[set[str]] = []
    run_pass = pipeline.run_pass

    def watched(*given: Any, **options: Any) -> Any:
        done = run_pass(*given, **options)
        if done[0].modified:
            owned = [t.values for t in done[0].model.constants().values() if t.name.endswith("weight")]
            made.append((given[0].name, [weakref.ref(values) for values in owned]))
        return done

    def written(model: Model, *, external: bool) -> CompressedModel:
        alive.append({name for name, arrays in made if any(array() is not None for array in arrays)})
        return CompressedModel(model, external=external)

    monkeypatch.setattr(pipeline, "run_pass", watched)
    monkeypatch.setattr(pipeline, "CompressedModel", written)
    monkeypatch.setattr(pipeline, "_COLLECTED_BYTES", 0)
    gc.disable()  # the run itself must free them
    try:
        result = compress(trained(), prune=0.5, quantize="fp16", latency=False)
    finally:
        gc.enable()
    assert [name for name, _ in made][-2:] == ["prune", "fp16"]
    assert "prune" not in alive[0]
    assert result.passed
    assert "fp16" in alive[0]


def test_a_model_below_the_limit_is_serialized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.from_bytes(trained())
    model.save(tmp_path / "saved.onnx")
    compressed = CompressedModel(model, external=False)
    monkeypatch.setattr(Model, "_export", None)
    compressed.save(tmp_path / "out.onnx", overwrite=False)
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "saved.onnx").read_bytes()
