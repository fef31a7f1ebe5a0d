"""The command in a report repeats the run it stands in."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from onnxcompress.cli_options import parse_arguments, recipe_of
from onnxcompress.recipe import Recipe
from onnxcompress.report.command import command_of
from onnxcompress.report.command import recipe_of as recipe_of_report
from tests.report.sample_reports import COMPRESSED, ORIGINAL, sample_report

RECIPES = [
    Recipe(),
    Recipe(prune=0.4, tucker="energy=0.98", exclude=("a b", "$HOME"), max_drop=0.0, verify=False, overwrite=True),
    Recipe(target={"macs": 0.5, "size": 0.25}, recover="refit", calib="my images/"),
    Recipe(
        provider=("cpu", "cuda"),
        provider_option={"cuda": {"device_id": "1"}},
        input_shape={"data:0": (1, 3, 8, 8)},
        latency=False,
        round_to=8,
        strict=True,
    ),
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("command", ["compress", "compare"])
def test_parsing_the_command_gives_the_recipe_back(recipe: Recipe, command: str) -> None:
    if command == "compare":
        recipe = Recipe(**{name: getattr(recipe, name) for name in ("provider", "input_shape", "strict", "max_drop")})
    words = shlex.split(command_of(sample_report(recipe=recipe.to_json(), command=command)))
    assert words[0] == "onnxcompress"
    parsed = parse_arguments(words[1:])
    assert recipe_of(parsed) == recipe
    assert (parsed.command, str(parsed.input), str(parsed.output)) == (command, "a.onnx", "b.onnx")


def test_what_a_plan_has_settled_is_not_given_beside_it() -> None:
    recipe = Recipe(prune=0.4, round_to=8, seed=3, plan="p.json")
    report = sample_report(recipe=recipe.to_json())
    assert command_of(report) == "onnxcompress a.onnx b.onnx --plan p.json"
    assert recipe_of_report(report) == Recipe(plan="p.json")


def test_models_without_a_file_have_a_placeholder_and_odd_paths_are_quoted() -> None:
    odd = dataclasses.replace(ORIGINAL, path="my model;rm.onnx")
    report = sample_report(input=odd, output=dataclasses.replace(COMPRESSED, path=None), recipe=Recipe().to_json())
    assert command_of(report) == "onnxcompress 'my model;rm.onnx' OUT"
