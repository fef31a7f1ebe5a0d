"""Recipes: every value is checked wherever it was written, and the message says where that was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.errors import RecipeError
from onnxcompress.passes.cleanup import STEPS, Cleanup
from onnxcompress.pipeline.stages import passes_of
from onnxcompress.recipe import CLEANUP, Recipe
from onnxcompress.recipe.kinds import Provider
from onnxcompress.recipe.toml import emit_toml, parse_toml
from onnxcompress.runtime.providers import SHORT_NAMES


def test_defaults_change_nothing_but_exact_cleanup() -> None:
    recipe = Recipe()
    assert (recipe.prune, recipe.tucker, recipe.svd, recipe.cleanup) == (0.0, "off", "off", "auto")
    assert recipe.verify
    assert recipe.latency
    assert recipe.provider == ("cpu",)


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 1.5, math.nan, math.inf, -math.inf, True, "a", "0.4", None, [0.4]])
def test_prune_takes_fractions_below_one_only(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"^prune: "):
        Recipe(prune=value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("importance", "l3", "give one of l1, l2, fpgm"),
        ("importance", "saliency", "is not known"),
        ("prune_scope", "layer", "uniform, global"),
        ("tucker", "half", "energy=F"),
        ("tucker", "energy=2", "out of range"),
        ("tucker", "energy=", "not a number"),
        ("tucker", "ratio=0", "out of range"),
        ("tucker", "ratio=nan", "out of range"),
        ("tucker", "ranks=", "is not known"),
        ("tucker", 0.5, "is not text"),
        ("svd", "ranks=a.json", "is not known"),
        ("cleanup", True, "is not text"),
        ("cleanup", "polish", "the steps are identity, fold"),
        ("cleanup", "", "auto, off, auto,-STEP or STEP,STEP"),
        ("cleanup", "-lrn", "is not known"),
        ("cleanup", "auto,lrn", "is not known"),
        ("cleanup", "auto,-lrn,-lrn", "is not known"),
        ("cleanup", "off,lrn", "is not known"),
        ("cleanup", "lrn,-fold", "is not known"),
        ("svd", "evbmf", "is not known"),
        ("round_to", 0, "at least 1"),
        ("round_to", 8.0, "not a whole number"),
        ("round_to", "often", "auto"),
        ("exclude", ["("], "regular expression"),
        ("exclude", "(", "regular expression"),
        ("exclude", 3, "neither text nor a list"),
        ("provider", "gpu", "cpu, cuda"),
        ("target", "macs", "macs=0.55"),
        ("target", "flops=0.5", "macs, params, size, latency"),
        ("target", "macs=half", "is not a number"),
        ("target", ["macs=0.5", 3], "not a table"),
        ("input_shape", "1x3", "NAME:1x3x224x224"),
        ("input_shape", 3, "NAME:1x3x224x224"),
        ("provider_option", "cuda=1", "PROVIDER.OPTION=VALUE"),
        ("provider_option", 3, "PROVIDER.OPTION=VALUE"),
        ("min_speedup", 10**400, "out of range"),
        ("samples", np.float64(3), "not a whole number"),
        ("provider", [], "empty"),
        ("provider", ["gpu"], "cpu, cuda"),
        ("samples", 0, "at least 1"),
        ("batch", 2**70, "out of range"),
        ("warmup", -1, "at least 0"),
        ("max_drop", 101, "out of range"),
        ("min_speedup", 0, "above 0"),
        ("min_compression", math.nan, "out of range"),
        ("verify", 1, "true or false"),
        ("report", "", "not a file path"),
        ("data", "a\0b", "not a path"),
        ("input_shape", {"x": [1, 0]}, "at least 1"),
        ("input_shape", {"x": 3}, "list of sizes"),
        ("provider_option", {"cuda": 3}, "table of options"),
        ("seed", -1, "at least 0"),
    ],
)
def test_unusable_values_are_refused_with_their_key(key: str, value: Any, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(**{key: value})
    message = str(caught.value)
    assert message.startswith(key)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("value", "written", "steps"),
    [
        ("auto", "auto", STEPS),
        ("auto, -lrn", "auto,-lrn", tuple(step for step in STEPS if step != "lrn")),
        ("lrn ,fold", "lrn,fold", ("fold", "lrn")),
        ("unused", "unused", ("unused",)),
    ],
)
def test_steps_of_the_cleanup(value: str, written: str, steps: tuple[str, ...]) -> None:
    recipe = Recipe(cleanup=value)
    assert recipe.cleanup == written
    assert CLEANUP.chosen(recipe.cleanup) == steps
    cleanup, *lowering = passes_of(recipe, recovery="none")
    assert isinstance(cleanup, Cleanup)
    assert cleanup.config.steps == tuple(step for step in steps if step not in ("softmax", "share"))
    assert [each.name for each in lowering] == ["lowering"] * ("softmax" in steps)


def test_the_steps_are_those_of_the_pass() -> None:
    assert CLEANUP.names == STEPS
    assert passes_of(Recipe(cleanup="off"), recovery="none") == ()


def test_a_recipe_file_names_file_and_key_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    for text, expected in [
        ("prune = 1.5", "prune: 1.5 is out of range"),
        ("prune = '0.4'", "prune: '0.4' is not a number"),
        ("prume = 0.5", "prume: unknown key; did you mean 'prune'?"),
        ("exclude = ['a', '(']", "exclude[1]: "),
        ("[input-shape]\nx = [1, -3]", "input-shape.x: "),
        ("[provider-option.gpu]\na = 1", "provider-option: 'gpu' is not known"),
        ("prune-scope = 'global'\nprune_scope = 'global'", "given twice"),
        ("prune = ", "is not TOML"),
    ]:
        path.write_text(text)
        with pytest.raises(RecipeError) as caught:
            Recipe.from_toml(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert expected in str(caught.value)


def test_a_recipe_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.from_toml(tmp_path / "missing.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.from_toml(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not TOML"):
        Recipe.from_toml(tmp_path / "binary.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 50_000)
    with pytest.raises(RecipeError, match="not TOML"):
        Recipe.from_toml(tmp_path / "deep.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(RecipeError, match="larger than"):
        Recipe.from_toml(tmp_path / "large.toml")


def test_the_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("prune = 0.2\nprune-scope = 'global'\nexclude = ['a']\nverify = false\n[input-shape]\nx = [1, 3]\n")
    words = {"prune": ["0.1", "0.4"], "exclude": ["b", "c"], "verify": True, "input_shape": ["y:0:2x3"]}
    recipe = Recipe.from_toml(path).updated_from_words(words)
    assert recipe.prune == 0.4
    assert recipe.prune_scope == "global"
    assert recipe.exclude == ("b", "c")
    assert recipe.verify
    assert recipe.input_shape == {"y:0": (2, 3)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"prune": ["nan"]}, "--prune: nan is out of range"),
        ({"prune": ["much"]}, "--prune: 'much' is not a number"),
        ({"round_to": ["1.5"]}, "--round-to: '1.5' is not a whole number"),
        ({"input_shape": ["1x3"]}, "--input-shape: '1x3' is not a named shape"),
        ({"input_shape": ["x:1xN"]}, "--input-shape: 'x:1xN' is not a named shape"),
        ({"input_shape": ["x:0"]}, "--input-shape.x: 0 is out of range"),
        ({"provider_option": ["cuda=1"]}, "--provider-option: 'cuda=1' is not PROVIDER.OPTION=VALUE"),
        ({"provider": ["cpu", "abacus"]}, "--provider[1]: 'abacus' is not known"),
    ],
)
def test_command_line_errors_name_the_option(words: dict[str, list[str]], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().updated_from_words(words)
    assert str(caught.value).startswith(expected)


def test_lists_and_tables_may_be_written_as_on_the_command_line() -> None:
    plain = Recipe(
        target={"macs": 0.7},
        exclude=("x",),
        provider=("openvino",),
        input_shape={"x:0": (1, 3)},
        provider_option={"openvino": {"device_type": "CPU"}},
    )
    words: dict[str, Any] = {
        "target": "macs=0.7",
        "exclude": "x",
        "provider": "openvino",
        "input-shape": "x:0:1x3",
        "provider-option": "openvino.device_type=CPU",
    }
    assert Recipe.from_mapping(words) == plain
    assert Recipe.from_mapping({key: [text] for key, text in words.items()}) == plain
    assert Recipe.from_mapping({"target": ["macs=0.7", "size=0.5"]}).target == {"macs": 0.7, "size": 0.5}


def test_numbers_of_numpy_are_numbers() -> None:
    recipe = Recipe(prune=np.float32(0.5), round_to=np.int64(8), input_shape={"x": [np.int32(1), 3]})
    assert (recipe.prune, recipe.round_to, recipe.input_shape) == (0.5, 8, {"x": (1, 3)})
    assert json.loads(json.dumps(recipe.to_json()))["round_to"] == 8
    assert Recipe(provider_option={"cuda": {"device_id": np.int64(1)}}).provider_option == {"cuda": {"device_id": "1"}}


def test_provider_options_reach_onnxruntime_as_text() -> None:
    recipe = Recipe.from_mapping({"provider-option": {"cuda": {"use_tf32": True, "device_id": 1}}})
    assert recipe.provider_option == {"cuda": {"use_tf32": "1", "device_id": "1"}}
    words = {"provider_option": ["cuda.cudnn_conv_algo_search=HEURISTIC", "cpu.a=b=c"]}
    expected = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}, "cpu": {"a": "b=c"}}
    assert Recipe().updated_from_words(words).provider_option == expected


_TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda t: "\0" not in t)
_SHAPES = st.dictionaries(_TEXT, st.lists(st.integers(1, 9), max_size=4).map(tuple), max_size=3)


@given(
    recipe=st.builds(
        Recipe,
        prune=st.floats(0, 1, exclude_max=True),
        round_to=st.none() | st.just("auto") | st.integers(1, 64),
        importance=st.sampled_from(["l1", "random"]),
        exclude=st.lists(_TEXT.map(lambda t: "".join(f"[{c}]" for c in t if c.isalnum())), max_size=3),
        data=st.none() | _TEXT,
        verify=st.booleans(),
        min_speedup=st.none() | st.floats(0.1, 1e9),
        input_shape=_SHAPES,
        provider_option=st.dictionaries(st.sampled_from(["cpu", "cuda"]), st.dictionaries(_TEXT, _TEXT, max_size=2)),
        report=st.none() | st.just(Path("a b/ü.json")),
    )
)
def test_a_recipe_reads_back_from_its_toml(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "roundtrip.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8", newline="")
    read = Recipe.from_toml(path)
    # A table without entries leaves no trace in TOML, and none in what onnxruntime is given.
    assert {k: v for k, v in read.provider_option.items() if v} == {
        k: v for k, v in recipe.provider_option.items() if v
    }
    assert read.updated({"provider-option": {}}) == recipe.updated({"provider-option": {}})


def test_the_short_names_of_providers_are_those_of_the_runtime() -> None:
    assert set(Provider.NAMES) == set(SHORT_NAMES)
    assert Recipe(provider=("CUDA", "cpuexecutionprovider")).provider == ("CUDA", "cpuexecutionprovider")


def test_nothing_but_defaults_is_an_empty_recipe_file() -> None:
    assert Recipe().to_toml() == ""
    assert Recipe(prune=0.4, exclude=("^conv1",)).to_toml() == 'prune = 0.4\nexclude = ["^conv1"]\n'


def test_emitted_toml_reads_back(tmp_path: Path) -> None:
    values = {"a b": 'quote " and \x7f\x01\n', "n": 1, "f": 1e300, "t": {"x": [1, 2], "deep": {"": True}}}
    (tmp_path / "x.toml").write_text(emit_toml(values), encoding="utf-8", newline="")
    assert parse_toml(tmp_path / "x.toml") == values


def test_recipes_are_frozen_and_hold_json_values() -> None:
    recipe = Recipe(report=Path("r.json"), input_shape={"x": (1, 3)})
    with pytest.raises(AttributeError):
        recipe.prune = 0.5  # type: ignore[misc]
    plain = recipe.to_json()
    assert plain["report"] == "r.json"
    assert plain["input_shape"] == {"x": [1, 3]}
    assert plain["max_drop"] is None
