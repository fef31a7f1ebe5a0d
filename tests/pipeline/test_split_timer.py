"""Times of splits from real runs: of a small model, kept in the cache, taken from a file, and what comes of them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnxcompress.analysis.split import WHOLE, Split
from onnxcompress.cli import main
from onnxcompress.errors import DataError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.passes.tucker.trial import SplitTrials
from onnxcompress.pipeline import race, time_table_file
from onnxcompress.pipeline import split_timer as module
from onnxcompress.pipeline.layer_keys import layer_keys
from onnxcompress.pipeline.split_timer import cache_file, conditions, model_feeds, split_timer
from onnxcompress.pipeline.split_times import _judge, _Round, _settled
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.block import preferred_block
from onnxcompress.runtime.providers import CPU_PROVIDER
from tests.small_models import lrn_network
from tests.tiny_models import conv_net, save_data

WIDTH = 3 * preferred_block("cpu")
"""Ranks of one and of two blocks are in a table, and there are no others: no time is taken over from a neighbour."""

WANTED = {"first": [Split(None, 8)], "second": [Split(8, 8), Split(None, 8)], "classifier": [Split(None, 2)]}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnxcompress"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    onnx.save(conv_net(channels=WIDTH), path)
    return path


def timer(**options):
    return split_timer(conv_net().SerializeToString(), Recipe(threads=1, **options), CPU_PROVIDER)


def test_every_split_gets_a_time_and_the_cache_keeps_them(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.from_proto(conv_net())
    times = timer()(model, WANTED)
    assert {name: set(own) for name, own in times.items()} == {n: {WHOLE, *own} for n, own in WANTED.items()}
    assert all(0.0 <= ms < 1000.0 for own in times.values() for ms in own.values())
    assert len(list(cache.glob("times-*.json"))) == 1

    def measured_again(*args: object, **named: object) -> None:
        pytest.fail("what the cache holds was measured again")

    monkeypatch.setattr(module, "measure_splits", measured_again)
    again = timer()(model, WANTED)
    assert again.keys() == times.keys()
    for name, own in times.items():
        assert again[name] == pytest.approx(own, abs=1e-6)


def test_a_damaged_cache_is_made_anew(cache: Path) -> None:
    here = conditions(conv_net().SerializeToString(), Recipe(threads=1), CPU_PROVIDER)
    cache_file(here).parent.mkdir(parents=True)
    cache_file(here).write_text("{")
    assert timer()(Model.from_proto(conv_net()), WANTED)
    assert json.loads(cache_file(here).read_text())["layers"]


def test_layers_of_one_shape_in_one_place_share_a_key_and_others_do_not() -> None:
    def keys(channels: int, size: int) -> dict[str, str]:
        model = Model.from_proto(conv_net(channels=channels))
        return layer_keys(model, SplitTrials(model).layers, {"x": (size, 3, 8, 8)})

    assert keys(16, 1) == keys(16, 1)
    assert len(set(keys(16, 1).values())) == 3
    assert not set(keys(16, 1).values()) & set(keys(16, 2).values())
    assert keys(16, 1)["second"] != keys(8, 1)["second"]
    assert "before Relu+Flatten" in keys(16, 1)["second"]


def test_a_slowed_round_is_seen_and_left_out() -> None:
    def round_of(split: Split, slow: float) -> _Round:
        ms = 4.0 if split == WHOLE else 2.0
        return _Round({"a": split, "b": WHOLE}, {"a": ms * slow, "b": 5.0 * slow}, {"pool": 1.0 * slow})

    half = Split(None, 8)
    rounds = [round_of(WHOLE, 1.0), round_of(half, 1.7), round_of(WHOLE, 1.5), round_of(half, 1.02)]
    _judge(rounds)
    assert [each.slowed for each in rounds] == pytest.approx([1.0, 1.7, 1.5, 1.02], rel=0.05)
    assert _settled(rounds)["a"] == pytest.approx({WHOLE: 4.0, half: 2.04})


def test_open_sizes_ask_for_an_input_shape() -> None:
    proto = conv_net()
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    with pytest.raises(DataError, match="--input-shape x:"):
        model_feeds(Model.from_proto(proto), Recipe())


def made(tiny: Path, tmp_path: Path, shape: str = "") -> Path:
    path = tmp_path / "times.json"
    words = ["--input-shape", shape] if shape else []
    assert main(["inspect", str(tiny), "--time-table", str(path), "--threads", "1", *words, "-q"]) == 0
    return path


def test_a_table_made_again_is_taken_from_the_cache_whole(
    tiny: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lrn_network().save(tiny, overwrite=True)  # its LRN is raced
    first = json.loads(made(tiny, tmp_path).read_text())
    assert len(first["pairs"]) == 2

    def measured_again(*args: object, **named: object) -> None:
        pytest.fail("what the cache holds was measured again")

    for place, name in ((module, "measure_splits"), (time_table_file, "measure_latency"), (race, "measure_latency")):
        monkeypatch.setattr(place, name, measured_again)
    assert json.loads(made(tiny, tmp_path).read_text()) == first


def test_whole_models_are_timed_anew_for_another_size_of_the_input(tiny: Path, tmp_path: Path, cache: Path) -> None:
    lrn_network("side").save(tiny, overwrite=True)
    known = [len(json.loads(made(tiny, tmp_path, f"x:1x3x{side}x{side}").read_text())["pairs"]) for side in (8, 16, 8)]
    assert known == [2, 4, 4]


def test_a_table_made_by_inspect_decides_what_auto_splits(tiny: Path, tmp_path: Path, cache: Path) -> None:
    table = made(tiny, tmp_path)
    value = json.loads(table.read_text())
    assert value["models"]
    assert len(value["layers"]) == 3
    for fast in (True, False):
        for times in value["layers"].values():
            times.update({text: (1.0 if text == "whole" else 0.5 if fast else 0.99) for text in times})
        table.write_text(json.dumps(value))
        out, report = tmp_path / f"{fast}.onnx", tmp_path / f"{fast}.json"
        words = ["--tucker", "auto", "--svd", "auto", "--time-table", str(table), "--threads", "1", "--no-latency"]
        assert main([str(tiny), str(out), *words, "--report", str(report), "-q"]) == 0
        stages = {stage["pass"]: stage for stage in json.loads(report.read_text())["stages"]}
        split = [d for name in ("tucker", "svd") for d in stages[name]["decisions"]]
        slower = [
            s for name in ("tucker", "svd") for s in stages[name]["skipped"] if "no split is faster" in s["reason"]
        ]
        if fast:
            assert split
            assert all(decision["ms"] == [1.0, 0.5] for decision in split)
            assert not slower
        else:
            assert not split
            assert all("1.0000 ms whole, 0.9900 ms split" in each["reason"] for each in slower)
            assert slower


def test_another_machines_table_is_refused_until_forced(
    tiny: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = made(tiny, tmp_path)
    value = json.loads(table.read_text())
    value["conditions"]["processor"] = "Another CPU"
    for times in value["layers"].values():
        times.update({text: (1.0 if text == "whole" else 0.25) for text in times})
    value["models"] = {sha: {"given_ms": 5.0, "clean_ms": 4.0} for sha in value["models"]}
    table.write_text(json.dumps(value))
    data = save_data(tmp_path / "data.npz", conv_net(channels=WIDTH), 200)
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    words = [str(tiny), str(out), "--target", "latency=0.6", "--calib", str(data), "--time-table", str(table)]
    words += ["--threads", "1", "--no-latency", "--report", str(report), "-q"]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "Another CPU" in message
    assert "--force-time-table" in message
    assert len(message.splitlines()) == 1
    assert not out.exists()
    assert main([*words, "--force-time-table"]) == 0
    gate = next(g for g in json.loads(report.read_text())["gates"] if g["name"] == "target_latency")
    assert gate["passed"]
    # 4 of 5 ms are left after clean-up, and every split saves 0.75 ms of them.
    assert gate["value"] == pytest.approx(0.8 - 2 * 0.15, abs=1e-6)
    assert main([*words, "--force-time-table", "--target", "latency=0.1", "--overwrite"]) == 3
    assert "latency=0.1 cannot be reached" in capsys.readouterr().err


def test_a_time_table_of_another_model_is_refused_for_a_target(tiny: Path, tmp_path: Path, cache: Path) -> None:
    table = made(tiny, tmp_path)
    value = json.loads(table.read_text())
    value["conditions"]["processor"], value["models"] = "Another CPU", {}
    table.write_text(json.dumps(value))
    from onnxcompress import compress

    with pytest.raises(RecipeError, match="holds no latency of this model"):
        compress(
            tiny,
            target={"latency": 0.5},
            calib=str(save_data(tmp_path / "data.npz", conv_net(channels=WIDTH))),
            time_table=table,
            force_time_table=True,
            latency=False,
            threads=1,
        )


def test_a_target_of_latency_is_measured_and_judged(tmp_path: Path, cache: Path) -> None:
    """A network large enough to be timed: the target is kept by splitting, and the gate says what was measured."""
    path, report = tmp_path / "wide.onnx", tmp_path / "report.json"
    proto = conv_net(channels=64, batch=1)
    onnx.save(proto, path)
    data = save_data(tmp_path / "data.npz", proto)
    words = ["--target", "latency=0.9", "--calib", str(data), "--threads", "1", "--report", str(report), "-q"]
    code = main([str(path), str(tmp_path / "out.onnx"), *words, "--repeat", "20"])
    gates = json.loads(report.read_text())["gates"]
    assert [gate["name"] for gate in gates] == ["target_latency"]
    assert code == (0 if gates[0]["passed"] else 3)
    assert gates[0]["passed"] == (gates[0]["value"] <= 0.9 and not gates[0]["noisy"])
    assert gates[0]["value"] < 1.1
