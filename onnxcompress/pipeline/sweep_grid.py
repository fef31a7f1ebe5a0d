"""The points of a sweep, each a recipe, and the hash that tells whether a result on disk is still that point's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder
from itertools import product
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from onnxcompress import __version__
from onnxcompress.errors import RecipeError
from onnxcompress.pipeline.source import file_sha256
from onnxcompress.recipe import Recipe
from onnxcompress.recipe.options import COMPRESSION, DATA, LATENCY, TRAINING, options_of
from onnxcompress.recipe.ranges import Fractions, Splits, TargetShares
from onnxcompress.recipe.sweep_options import SET_BY_POINTS, SweepOptions, recipe_names
from onnxcompress.runtime.data import is_callable

_INSTALLED = ("site-packages", "dist-packages")
_NEVER_DECIDES = ("resume", "device")
_HASHED_CHARACTERS = 10
_PRUNING_ALONE = {"svd": "off"}
"""A split of matrices belongs to the methods that split kernels."""


@dataclass(frozen=True)
class GridPoint:
    """One point: its name, its method, and the options that make it."""

    name: str
    method: str
    options: Mapping[str, Any]

    def recipe(self, base: Recipe) -> Recipe:
        """Return what is compressed with: `base` with this point's options, and without latency, measured later."""
        steps = base.steps if "prune" in self.options else 1
        return replace(base, latency=False, steps=steps, **self.options)


def check_recipe(recipe: Recipe) -> None:
    """Refuse what a sweep sets itself, or would have to ignore.

    Raises:
        RecipeError: such an option is set.
    """
    default = Recipe()
    for name in options_of(Recipe):
        if name in recipe_names() or getattr(recipe, name) == getattr(default, name):
            continue
        option = name.replace("_", "-")
        if name in SET_BY_POINTS:
            raise RecipeError(f"{option}: a sweep goes through it; leave it out, and give --{option}-range")
        if name == "profile":
            raise RecipeError(f"{option}: a sweep times whole models; profile one with inspect MODEL --profile")
        raise RecipeError(f"{option}: has no meaning in a sweep, which judges nothing and writes into its folder")


def grid_of(options: SweepOptions) -> tuple[GridPoint, ...]:
    """Return the points, prune only first, then Tucker only, then both; gentle before harsh.

    Raises:
        RecipeError: a range cannot be used.
    """
    if options.target_range is not None:
        kind, shares = TargetShares().values(options.target_range, options.points, "target_range")
        ways: dict[str, dict[str, Any]] = {
            "prune": {"prune": "auto", **_PRUNING_ALONE},
            "tucker": {"tucker": "auto"},
            "both": {"prune": "auto", "tucker": "auto"},
        }
        return tuple(
            GridPoint(f"{method}-{kind}-{share:g}", method, {**ways[method], "target": {kind: share}})
            for method in ("prune", "tucker", "both")
            if method in options.method
            for share in reversed(shares)
        )
    rates = Fractions().values(options.prune_range, options.points, "prune_range")
    specs = Splits().values(options.tucker_range, options.points, "tucker_range")
    if options.pairs == "steps" and len(rates) != len(specs) and "both" in options.method:
        raise RecipeError(
            f"pairs: steps needs as many values of prune ({len(rates)}) as of tucker ({len(specs)}); give --pairs all"
        )
    pairs = zip(rates, specs, strict=True) if options.pairs == "steps" and len(rates) == len(specs) else ()
    found: dict[str, list[dict[str, Any]]] = {
        "prune": [{"prune": rate, **_PRUNING_ALONE} for rate in rates],
        "tucker": [{"tucker": spec} for spec in specs],
        "both": [
            {"prune": rate, "tucker": spec}
            for rate, spec in (pairs if options.pairs == "steps" else product(rates, specs))
        ],
    }
    return tuple(
        GridPoint(_name(own), method, own)
        for method in ("prune", "tucker", "both")
        if method in options.method
        for own in found[method]
    )


def point_key(recipe: Recipe, model: Mapping[str, str], data: Mapping[str, str | None]) -> str:
    """Return the hash of everything that decides a point's result: version, model, data and the deciding options.

    Args:
        model: {file: sha256}; data: {use: fingerprint}.
    """
    plain = recipe.to_json()
    names = [n for n in options_of(Recipe) if options_of(Recipe)[n].group in (COMPRESSION, DATA, TRAINING)]
    decided = {name: plain[name] for name in names if name not in _NEVER_DECIDES}
    decided |= {"provider": plain["provider"][:1], "input_shape": plain["input_shape"]}
    return _hashed({"version": __version__, "model": dict(model), "data": dict(data), "recipe": decided})


def latency_key(recipe: Recipe, machine: Mapping[str, Any]) -> str:
    """Return the hash of what latency depends on besides the model: its options and the machine."""
    plain = recipe.to_json()
    names = [n for n in options_of(Recipe) if options_of(Recipe)[n].group == LATENCY and n != "latency"]
    return _hashed({"machine": dict(machine), **{name: plain[name] for name in names}})


def fingerprint(data: object) -> str | None:
    """Return what tells data from others: names, sizes and times of the files at a path, the code of a callable.

    The text itself elsewhere.
    """
    if data is None:
        return None
    if not isinstance(data, (str, Path)):
        return f"{type(data).__name__} in memory"
    path = Path(data)
    if not os.path.exists(path):  # also where no file can have such a name
        return _hashed({"callable": str(data), "files": code_of(str(data))}) if is_callable(str(data)) else str(data)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return _hashed({"path": str(path.resolve()), "files": stats})


def contents(recipe: Recipe) -> dict[str, str | None]:
    """Return {option: sha256} of the files that decide a point by what stands in them."""
    files = {"preprocess": recipe.preprocess, "time_table": recipe.time_table}
    here = {option: Path(str(file)) for option, file in files.items() if file is not None}
    return {option: file_sha256(path) for option, path in here.items() if os.path.isfile(path)}


def code_of(text: str) -> dict[str, str]:
    """Return {file: sha256} of the code behind `module:callable`: the module and what it imports beside it.

    Nothing is run. What is installed is told by its own files alone: its versions do not change under a sweep's way.
    """
    name = text.partition(":")[0]
    top = name.partition(".")[0]
    spec = PathFinder.find_spec(top, [os.getcwd(), *sys.path])
    if spec is None:
        return {}
    if spec.submodule_search_locations:
        root = Path(next(iter(spec.submodule_search_locations)))
        files = set(root.rglob("*.py"))
        root = root.parent
    elif spec.origin is not None and os.path.isfile(spec.origin):
        root, files = Path(spec.origin).parent, {Path(spec.origin)}
    else:
        return {}
    if not any(part in _INSTALLED for part in root.parts):
        finder = ModuleFinder(path=[str(root)])
        with contextlib.suppress(Exception):  # code that does not compile fails when it is imported
            finder.import_hook(name)
        found = (getattr(module, "__file__", None) for module in finder.modules.values())
        files |= {Path(file) for file in found if file}
    return {str(file.relative_to(root)): file_sha256(file) for file in sorted(files)}


def _hashed(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def short(key: str) -> str:
    """Return the part of a hash that goes into a file's name."""
    return key[:_HASHED_CHARACTERS]


def _name(options: Mapping[str, Any]) -> str:
    parts = [f"prune-{options['prune']:g}"] if "prune" in options else []
    parts += [f"tucker-{str(options['tucker']).replace('=', '-')}"] if "tucker" in options else []
    return "-".join(parts)
