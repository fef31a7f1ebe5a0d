"""The JSON schema of a recipe, from its declarations: editors complete keys, explain them and mark wrong values.

The schema is shipped as `recipe.schema.json` beside this module; `python -m onnxcompress.recipe.schema` writes it anew.
It never refuses what a recipe accepts. What only the code can judge (whether a regular expression compiles, whether a
provider exists) it lets through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxcompress.recipe.kinds import (
    Choice,
    Flag,
    InputShapes,
    Kind,
    ManyOf,
    Number,
    Provider,
    ProviderOptions,
    Regex,
    SplitSpec,
    Steps,
    Targets,
    Whole,
)
from onnxcompress.recipe.options import Option, options_of
from onnxcompress.recipe.recipe import Recipe

SCHEMA_FILE = Path(__file__).with_name("recipe.schema.json")

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """Return the schema; keys are written with `-`, and their spelling with `_` is accepted too."""
    default = Recipe().to_json()
    properties: Schema = {}
    spellings: Schema = {}
    for name, known in options_of(Recipe).items():
        key = name.replace("_", "-")
        properties[key] = {"description": _description(known, default[name]), **schema_of(known.kind)}
        if default[name] not in (None, [], {}):
            properties[key]["default"] = default[name]
        if key != name:
            spellings[f"^{name}$"] = {"$ref": f"#/properties/{key}"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "onnxcompress recipe",
        "description": "Everything that can be asked for; a key is the command line's option without its two hyphens.",
        "type": "object",
        "properties": properties,
        "patternProperties": spellings,
        "additionalProperties": False,
    }


def schema_text() -> str:
    """Return the schema as the text of its file."""
    return json.dumps(recipe_schema(), indent=2) + "\n"


def schema_of(kind: Kind) -> Schema:
    """Return what values an option of this kind takes in TOML."""
    if isinstance(kind, Flag):
        return {"type": "boolean"}
    if isinstance(kind, Number):
        share: Schema = {"type": "number", **_bounds(kind)}
        return {"anyOf": [share, {"enum": list(kind.words)}]} if kind.words else share
    if isinstance(kind, Whole):
        number: Schema = {"type": "integer", "minimum": kind.minimum}
        return {"anyOf": [number, {"enum": list(kind.words)}]} if kind.words else number
    if isinstance(kind, Choice):
        return {"enum": list(kind.names)}
    if isinstance(kind, SplitSpec):
        forms = "energy|ratio|ranks" if kind.file else "energy|ratio"
        return {"anyOf": [{"enum": list(kind.words)}, {"type": "string", "pattern": f"^({forms})=."}]}
    if isinstance(kind, Steps):
        step = f"({'|'.join(kind.names)})"
        return {"type": "string", "pattern": rf"^\s*(off|auto(\s*,\s*-{step})*|{step}(\s*,\s*{step})*)\s*$"}
    if isinstance(kind, Provider):
        return {"type": "string", "examples": list(kind.NAMES)}
    if isinstance(kind, ManyOf):
        return {"type": "array", "items": schema_of(kind.kind), **({"minItems": kind.minimum} if kind.minimum else {})}
    if isinstance(kind, InputShapes):
        sizes = {"type": "array", "items": {"type": "integer", "minimum": 1}}
        return {"type": "object", "additionalProperties": sizes}
    if isinstance(kind, Targets):
        part = {"type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0}
        return {"type": "object", "properties": dict.fromkeys(kind.names, part), "additionalProperties": False}
    if isinstance(kind, ProviderOptions):
        setting = {"type": ["string", "number", "boolean"]}
        return {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": setting}}
    return {"type": "string", **({"format": "regex"} if isinstance(kind, Regex) else {"minLength": 1})}


def _description(known: Option, default: Any) -> str:
    """The help of a flag is that of its option, which is there to turn the default round."""
    return f"{'false' if default else 'true'}: {known.help}" if isinstance(known.kind, Flag) else known.help


def _bounds(kind: Number) -> Mapping[str, float]:
    named = {
        "minimum": kind.minimum,
        "maximum": kind.maximum,
        "exclusiveMaximum": kind.below,
        "exclusiveMinimum": kind.above,
    }
    return {name: bound for name, bound in named.items() if math.isfinite(bound)}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
