"""The command line that repeats a run, from its recipe: options that stand at their defaults are left out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from onnxcompress.recipe import Recipe
from onnxcompress.recipe.kinds import Flag
from onnxcompress.recipe.options import COMPRESSION, options_of
from onnxcompress.recipe.sweep_options import SweepOptions
from onnxcompress.report.figures import Report


def command_of(report: Report) -> str:
    """Return the command, quoted for a POSIX shell; `IN` and `OUT` stand for models that were given in memory."""
    words = ["onnxcompress"]
    if report.command == "compare":
        words.append("compare")
    words += [report.input.path or "IN", (report.output.path if report.output else None) or "OUT"]
    return " ".join(map(shlex.quote, [*words, *option_words(report.recipe)]))


def recipe_of(report: Report) -> Recipe:
    """Return the report's recipe, without the options that its replayed plan has settled."""
    recipe = Recipe.from_mapping(report.recipe)
    if recipe.plan is None:
        return recipe
    default = Recipe()
    return replace(recipe, **{name: getattr(default, name) for name in options_of(Recipe) if _is_deciding(name)})


def option_words(given: Mapping[str, Any], of: Recipe | SweepOptions | None = None) -> Iterator[str]:
    """Yield the words of the options that do not stand at their default.

    Args:
        given: their values as JSON holds them.
        of: the defaults; a recipe's where it is left out.
    """
    defaults = of or Recipe()
    default = defaults.to_json()
    for name, known in options_of(type(defaults)).items():
        value = given.get(name)
        settled = given.get("plan") is not None and _is_deciding(name)
        if value is None or value == default[name] or settled:
            continue
        option = name.replace("_", "-")
        if isinstance(known.kind, Flag):
            yield f"--{option}" if value else f"--no-{option}"
            continue
        for text in _texts(value):
            yield from (f"--{option}", text)


def _is_deciding(name: str) -> bool:
    """Whether a plan settles the option: giving both is an error."""
    return options_of(Recipe)[name].group == COMPRESSION and name != "verify"


def _texts(value: Any) -> Iterator[str]:
    """One text for each time the option is given."""
    if isinstance(value, list):
        yield from map(str, value)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(inner, Mapping):
                yield from (f"{name}.{key}={setting}" for key, setting in inner.items())
            elif isinstance(inner, (int, float)):
                yield f"{name}={inner}"
            else:
                yield f"{name}:{'x'.join(map(str, inner))}"
    else:
        yield str(value)
