"""The recipe's JSON schema for editors: current, and never stricter than the recipe itself."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.recipe import Recipe
from onnxcompress.recipe.options import options_of
from onnxcompress.recipe.schema import SCHEMA_FILE, recipe_schema, schema_text


def test_the_shipped_schema_is_current() -> None:
    current = SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()
    assert current, "an option has changed: write the schema anew with python -m onnxcompress.recipe.schema"


def test_every_option_is_described() -> None:
    properties = recipe_schema()["properties"]
    assert set(properties) == {name.replace("_", "-") for name in options_of(Recipe)}
    assert all(len(value["description"]) > 10 for value in properties.values())
    assert properties["verify"]["description"].startswith("false: do not prove")
    assert properties["strict"]["description"].startswith("true: a gate")


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"prune": 0.4, "tucker": "energy=0.98", "svd": "auto", "exclude": ["^fc"], "max-drop": 1},
    {"prune_scope": "global", "round-to": "auto", "seed": 3},
    {"tucker": "ranks=r.json", "round_to": 8, "provider": ["cpu", "CUDAExecutionProvider"], "strict": True},
    {"input-shape": {"data:0": [1, 3, 8, 8]}, "provider-option": {"cuda": {"device_id": 1, "x": True}}},
    {"target": "macs=0.7", "exclude": "^fc", "provider": "CUDA", "input-shape": "data:0:1x3", "tucker": "ratio=1"},
    {"target": ["macs=7e-1", "latency=.5"], "provider-option": "cuda.device_id=1", "input-shape": ["x:1x3", "y:2"]},
    {"provider-option": ["cpu.a=", "CPUExecutionProvider.b=c=d"], "target": {"size": 1}, "svd": "energy=1.0"},
    {"cleanup": "off"},
    {"cleanup": "auto, -lrn,-fold"},
    {"cleanup": "fold,unused"},
    {"data": "val/", "preprocess": "caffe", "report": "r.json", "html": "r.html", "verify": False},
]
REFUSED: list[dict[str, Any]] = [
    {"prune": 1.0},
    {"prune": "0.4"},
    {"prunee": 0.4},
    {"prune-scope": "local"},
    {"tucker": "energy"},
    {"svd": "ranks=r.json"},
    {"cleanup": "auto,lrn"},
    {"cleanup": "polish"},
    {"cleanup": False},
    {"round-to": 0},
    {"seed": -1},
    {"exclude": 3},
    {"tucker": "energy=2"},
    {"tucker": "energy=0.0"},
    {"tucker": "ratio=abc"},
    {"svd": "energy="},
    {"provider": []},
    {"provider": "gpu"},
    {"provider": ["cpu", "CUDAProvider"]},
    {"provider-option": {"gpu": {"device_id": 1}}},
    {"provider-option": "cuda=1"},
    {"target": "macs"},
    {"target": ["macs=0.7", "flops=0.5"]},
    {"target": "macs=1.5"},
    {"input-shape": "1x3"},
    {"input-shape": ["x:1x0"]},
    {"min-speedup": math.inf},
    {"steps": 2.5},
    {"max-drop": 101},
    {"min-speedup": 0},
    {"input-shape": {"x": "1x3"}},
    {"report": ""},
    {"latency": "no"},
]


def complaints(recipe: dict[str, Any]) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema", reason="a development dependency")
    jsonschema.Draft7Validator.check_schema(recipe_schema())
    return [error.message for error in jsonschema.Draft7Validator(recipe_schema()).iter_errors(recipe)]


@pytest.mark.parametrize("recipe", ACCEPTED)
def test_what_a_recipe_accepts_the_schema_accepts(recipe: dict[str, Any]) -> None:
    Recipe.from_mapping(recipe)
    assert complaints(recipe) == []


@pytest.mark.parametrize("recipe", REFUSED)
def test_typing_errors_are_marked(recipe: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_mapping(recipe)
    assert len(complaints(recipe)) == 1


def test_the_defaults_are_accepted() -> None:
    values = {name: value for name, value in Recipe().to_json().items() if value is not None}
    assert complaints(json.loads(json.dumps(values))) == []
