"""The Python API: what it takes, what it returns, what it leaves alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxcompress
from onnxcompress.errors import BudgetInfeasibleError, DataError, ModelError, ProviderUnavailableError, RecipeError
from tests.small_models import build, node
from tests.tiny_models import conv_net, dense_net, samples, save_data

QUICK: dict[str, Any] = {"latency": False}


def outputs(model: onnxcompress.Model, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": inputs})[0]
    return result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(conv_net(), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def test_a_model_may_be_given_in_any_form(path: Path) -> None:
    given = [path, str(path), path.read_bytes(), onnx.load(path), onnxcompress.Model.load(path)]
    results = [onnxcompress.compress(model, prune=0.5, **QUICK) for model in given]
    assert len({result.model.to_bytes() for result in results}) == 1
    assert results[0].report.input.path == str(path)
    assert results[2].report.input.path is None
    with pytest.raises(ModelError, match="a float is no model"):
        onnxcompress.compress(0.5)  # type: ignore[arg-type]


def test_the_given_model_is_not_changed(path: Path) -> None:
    proto, model = onnx.load(path), onnxcompress.Model.load(path)
    before = proto.SerializeToString(deterministic=True), model.to_bytes()
    for given in (proto, model):
        onnxcompress.compress(given, prune=0.5, tucker="ratio=0.5", svd="ratio=0.5", **QUICK)
    assert (proto.SerializeToString(deterministic=True), model.to_bytes()) == before


def test_a_recipe_may_be_given_in_any_form_and_options_win(path: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("prune = 0.25\nlatency = false\n")
    recipe = onnxcompress.Recipe(prune=0.25, latency=False)
    for given in (recipe, {"prune": 0.25, "latency": False}, tmp_path / "recipe.toml"):
        assert onnxcompress.compress(path, given).report.recipe["prune"] == 0.25
        assert onnxcompress.compress(path, given, prune=0.5).report.recipe["prune"] == 0.5
    with pytest.raises(RecipeError, match="prume: unknown key; did you mean 'prune'"):
        onnxcompress.compress(path, prume=0.5)
    with pytest.raises(RecipeError, match="is no recipe"):
        onnxcompress.compress(path, 0.5)  # type: ignore[arg-type]


def test_nothing_asked_for_changes_no_output_bit(path: Path) -> None:
    result = onnxcompress.compress(path, prune=0, tucker="off", cleanup="off", **QUICK)
    inputs = samples()
    assert np.array_equal(outputs(result.model, inputs), outputs(onnxcompress.Model.load(path), inputs))
    assert result.report.stages == ()
    assert "nothing was asked for" in result.report.warnings[0]


def test_tucker_at_full_rank_reproduces_the_original(path: Path) -> None:
    result = onnxcompress.compress(path, tucker="ratio=1.0", **QUICK)
    expected, seen = (outputs(model, samples()) for model in (onnxcompress.Model.load(path), result.model))
    assert len(result.plan.plans[-1].decisions) == 2
    assert np.abs(expected - seen).max() <= 1e-5 * np.abs(expected).max()


def test_stages_add_up(path: Path) -> None:
    report = onnxcompress.compress(path, prune=0.5, tucker="energy=0.9", svd="ratio=0.5", **QUICK).report
    assert [stage.pass_name for stage in report.stages] == ["cleanup", "prune", "tucker", "svd"]
    assert report.output is not None
    assert report.output.params == report.stages[-1].params
    assert report.output.macs == report.stages[-1].macs
    assert report.input.params > report.stages[1].params > report.stages[2].params
    assert report.compression is not None
    assert report.compression.params == report.input.params / report.output.params
    assert report.output.bytes == len(onnxcompress.compress(path, report.recipe).model.to_bytes())


def test_excluded_nodes_are_left_alone(path: Path) -> None:
    report = onnxcompress.compress(path, prune=0.5, tucker="ratio=0.5", exclude=["^second$"], **QUICK).report
    for stage in report.stages[1:]:
        assert "second" not in {decision["node"] for decision in stage.decisions}
        assert any(skipped.node == "second" for skipped in stage.skipped)


def test_data_may_be_arrays_without_a_file(path: Path) -> None:
    feeds = [{"x": samples(8), "labels": np.zeros(8, np.int64)}, {"x": samples(8, 2), "labels": np.ones(8, np.int64)}]
    report = onnxcompress.compress(path, prune=0.5, data=feeds, **QUICK).report
    assert report.accuracy is not None
    assert (report.accuracy.samples, report.accuracy.labels) == (16, True)

    def unlabelled() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": samples(8)}

    report = onnxcompress.compress(path, prune=0.5, data=unlabelled, samples=5, **QUICK).report
    assert report.accuracy is not None
    assert (report.accuracy.samples, report.accuracy.labels) == (5, False)
    assert report.accuracy.original.top1 is None


def test_calibration_is_split_off_the_data_where_there_is_no_other(path: Path, tmp_path: Path) -> None:
    data = save_data(tmp_path / "data.npz", conv_net(), count=40)
    report = onnxcompress.compress(path, prune=0.5, importance="activation", data=data, **QUICK).report
    assert report.accuracy is not None
    assert report.accuracy.samples == 30
    report = onnxcompress.compress(path, prune=0.5, importance="activation", data=data, calib=data, **QUICK).report
    assert report.accuracy is not None
    assert report.accuracy.samples == 40
    few = save_data(tmp_path / "few.npz", conv_net(), count=1)
    with pytest.raises(DataError, match="too few"):
        onnxcompress.compress(path, prune=0.5, importance="activation", data=few, **QUICK)


def test_failed_gates_raise_nothing_and_write_nothing(path: Path, tmp_path: Path) -> None:
    result = onnxcompress.compress(path, prune=0.5, min_compression=99, output=tmp_path / "out.onnx", **QUICK)
    assert not result.passed
    assert not (tmp_path / "out.onnx").exists()
    assert onnxcompress.compress(path, prune=0.5, min_compression=1, **QUICK).passed


def test_the_plan_of_a_result_replays(path: Path, tmp_path: Path) -> None:
    first = onnxcompress.compress(path, prune=0.5, tucker="auto", save_plan=tmp_path / "plan.json", **QUICK)
    again = onnxcompress.compress(path, plan=tmp_path / "plan.json", **QUICK)
    assert first.model.to_bytes() == again.model.to_bytes()
    assert json.loads((tmp_path / "plan.json").read_text()) == first.plan.to_json()
    assert [plan.to_json() for plan in again.plan.plans] == [plan.to_json() for plan in first.plan.plans]


def test_progress_is_told_and_nothing_is_printed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int | None]] = []
    data = [{"x": samples(8)}]
    onnxcompress.compress(path, prune=0.5, data=data, progress=lambda *event: told.append(event), **QUICK)
    assert {"prune", "verifying prune", "writing"} <= {doing for doing, _, _ in told}
    assert any("accuracy" in doing and done == 8 for doing, done, _ in told)
    assert capsys.readouterr() == ("", "")


def test_errors_are_raised_as_documented(path: Path) -> None:
    with pytest.raises(ModelError):
        onnxcompress.compress(dense_net(), prune=0.5)
    with pytest.raises(RecipeError):
        onnxcompress.compress(path, prune=1.5)
    with pytest.raises(ProviderUnavailableError):
        onnxcompress.compress(path, prune=0.5, provider=["coreml"])


def test_filters_of_a_network_without_convolutions_are_removed(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = {"v": generator.standard_normal((6, 32)), "w": generator.standard_normal((32, 3))}
    nodes = [node("MatMul", ["x", "v"], "a", name="first"), node("Relu", ["a"], "b"), node("MatMul", ["b", "w"], "y")]
    model = build(nodes, {name: each.astype(np.float32) for name, each in weights.items()}, shape=("n", 6))
    model.save(tmp_path / "in.onnx")
    result = onnxcompress.compress(tmp_path / "in.onnx", prune=0.5, latency=False)
    assert result.model.constants()["v"].shape == (6, 16)
    np.savez(tmp_path / "x.npz", x=generator.standard_normal((20, 6)).astype(np.float32))
    options = {"prune_range": "0.5", "tucker_range": "energy=0.9", "recover": "none", "latency": False}
    given = {"data": str(tmp_path / "x.npz"), "out": tmp_path / "sweep"}
    points = onnxcompress.sweep(tmp_path / "in.onnx", **given, **options).points
    assert max(point.compression.get("params", 0.0) for point in points) == 2.0


def test_compare_and_inspect(path: Path, tmp_path: Path) -> None:
    onnxcompress.compress(path, prune=0.5, output=tmp_path / "out.onnx", **QUICK)
    report = onnxcompress.compare(path, tmp_path / "out.onnx", data=[{"x": samples(8)}], latency=False, max_drop=100)
    assert report.passed
    assert report.accuracy is not None
    assert report.accuracy.samples == 8
    assert report.output is not None
    assert report.output.params < report.input.params
    inspection = onnxcompress.inspect(path)
    assert {group.name for group in inspection.groups} == {"first", "second", "classifier"}


@pytest.mark.parametrize(("first", "second"), [("n", 1), ("n", 5), (2, 5), (3, "n")])
def test_one_of_two_models_may_fix_its_batch(first: int | str, second: int | str) -> None:
    given = {"data": [{"x": samples(8)}], "latency": False}
    accuracy = onnxcompress.compare(conv_net(batch=first), conv_net(seed=1, batch=second), **given).accuracy
    open_batch = onnxcompress.compare(conv_net(), conv_net(seed=1), **given).accuracy
    assert accuracy is not None
    assert open_batch is not None
    assert (accuracy.samples, accuracy.agreement) == (8, open_batch.agreement)
    assert accuracy.kl == pytest.approx(open_batch.kl)


def test_public_names_are_importable_in_any_order() -> None:
    import onnxcompress.pipeline.compress
    import onnxcompress.pipeline.inspect

    for name in onnxcompress.__all__:
        assert getattr(onnxcompress, name) is not None
    assert callable(onnxcompress.compress)
    assert callable(onnxcompress.inspect)
    assert set(onnxcompress.__all__) <= set(dir(onnxcompress))
    with pytest.raises(AttributeError, match="no attribute 'expand'"):
        _ = onnxcompress.expand


def test_int8_comes_last_and_is_measured_like_the_rest(tmp_path: Path) -> None:
    model = conv_net(channels=32)
    options: dict[str, Any] = {"prune": 0.25, "tucker": "ratio=0.5", "quantize": "int8", "latency": False}
    data = {"x": samples()}
    result = onnxcompress.compress(
        model, output=tmp_path / "o.onnx", calib=[data], save_plan=tmp_path / "p.json", **options
    )
    assert [stage.pass_name for stage in result.report.stages] == ["cleanup", "prune", "tucker", "int8"]
    sizes = [stage.bytes or 0 for stage in result.report.stages]
    assert sizes[-1] == (tmp_path / "o.onnx").stat().st_size
    assert sizes == sorted(sizes, reverse=True)
    assert result.report.self_checks[-1].pass_name == "int8"
    assert 0 < result.report.self_checks[-1].difference < 0.3
    assert result.report.stages[-1].params == result.report.stages[-2].params
    onnxcompress.compress(model, output=tmp_path / "again.onnx", plan=tmp_path / "p.json", latency=False)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()


def test_a_quantised_model_can_be_inspected_compared_and_is_left_as_it_is(tmp_path: Path) -> None:
    data = {"x": samples()}
    small = onnxcompress.compress(conv_net(), calib=[data], quantize="int8", latency=False).model
    looked = onnxcompress.inspect(small)
    assert {layer.node for layer in looked.layers} == {"first", "second", "classifier"}
    assert all(layer.split is None for layer in looked.layers)
    report = onnxcompress.compare(conv_net(), small, data=[data], latency=False)
    assert report.accuracy is not None
    assert report.accuracy.agreement is not None
    assert report.compression is not None
    assert report.compression.params == 1.0
    again = onnxcompress.compress(small, prune=0.5, tucker="auto", latency=False)
    assert any("Nothing was compressed" in line for line in again.report.warnings)
    hint = "; DequantizeLinear, QuantizeLinear tell of a model that is quantised already: give the float one"
    assert again.report.warnings[0].endswith(hint)
    with pytest.raises(BudgetInfeasibleError) as caught:
        onnxcompress.compress(small, calib=[data], target={"macs": 0.5}, latency=False, report=tmp_path / "r.json")
    assert str(caught.value).endswith(hint)
    assert caught.value.reached == {"macs": 1.0}
    assert json.loads((tmp_path / "r.json").read_text())["warnings"] == [str(caught.value)]


def test_int8_without_data_is_refused_and_other_weights_get_ranges_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--quantize int8 needs data"):
        onnxcompress.compress(conv_net(), quantize="int8")
    data, plan = {"x": samples()}, tmp_path / "p.json"
    first = onnxcompress.compress(conv_net(0), calib=[data], quantize="int8", latency=False, save_plan=plan)
    with pytest.raises(RecipeError, match="--quantize int8 needs data"):
        onnxcompress.compress(conv_net(1), plan=plan, plan_structure_only=True)
    other = onnxcompress.compress(conv_net(1), calib=[data], plan=plan, plan_structure_only=True, latency=False)
    ranges = [r.report.stages[-1].decisions[0]["ranges"] for r in (first, other)]
    assert ranges[0].keys() == ranges[1].keys()
    assert ranges[0] != ranges[1]


def test_a_model_out_of_a_pipe_is_read_once() -> None:
    content, (reading, writing) = conv_net().SerializeToString(), os.pipe()
    os.write(writing, content)  # less than a pipe holds
    os.close(writing)
    result = onnxcompress.compress(f"/dev/fd/{reading}", prune=0.2, data=[{"x": samples()}], latency=False)
    os.close(reading)
    assert result.report.input.sha256 == hashlib.sha256(content).hexdigest()
    assert result.report.input.bytes == len(content)
    assert result.report.accuracy is not None
