"""The JSON schema of a recipe, from its declarations: editors complete keys, explain them and mark wrong values.

The schema is shipped as `recipe.schema.json` beside this module; `python -m onnxcompress.recipe.schema` writes it anew.
It never refuses what a recipe accepts, spellings of a fraction apart that nobody writes (`energy=0.9_8`). What only the
code can judge (whether a regular expression compiles, whether a provider is installed) it lets through; NaN and a whole
number written as 3.0 as well, which this version of JSON schema does not tell apart.
"""

from __future__ import annotations

import json
import math
import sys
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

_FRACTION = r"\s*\+?(0*\.0*[1-9][0-9]*|0*1\.?0*|[0-9]*\.?[0-9]*[eE][+-]?[0-9]+)\s*$"
"""A number above 0 and at most 1; with an exponent any number."""


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
        forms = [_text(f"^(energy|ratio)={_FRACTION}"), *([_text("^ranks=.")] if kind.file else [])]
        return {"anyOf": [{"enum": list(kind.words)}, *forms]}
    if isinstance(kind, Steps):
        step = f"({'|'.join(kind.names)})"
        return {"type": "string", "pattern": rf"^\s*(off|auto(\s*,\s*-{step})*|{step}(\s*,\s*{step})*)\s*$"}
    if isinstance(kind, Provider):
        return {"anyOf": [{"enum": list(kind.NAMES)}, _text(f"^{_PROVIDER}$")]}
    if isinstance(kind, ManyOf):
        one = schema_of(kind.kind)
        return {"anyOf": [one, {"type": "array", "items": one, **({"minItems": kind.minimum} if kind.minimum else {})}]}
    if isinstance(kind, InputShapes):
        sizes = {"type": "array", "items": {"type": "integer", "minimum": 1}}
        size = "0*[1-9][0-9]*"
        return _table_or_words({"additionalProperties": sizes}, rf"^[\s\S]+:{size}(x{size})*$")
    if isinstance(kind, Targets):
        part = {"type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0}
        table = {"properties": dict.fromkeys(kind.names, part), "additionalProperties": False}
        return _table_or_words(table, f"^({'|'.join(kind.names)})={_FRACTION}")
    if isinstance(kind, ProviderOptions):
        setting = {"type": ["string", "number", "boolean"]}
        options = {"type": "object", "additionalProperties": setting}
        table = {"propertyNames": {"pattern": f"^{_PROVIDER}$"}, "additionalProperties": options}
        return _table_or_words(table, rf"^{_PROVIDER}\.[^=]+=")
    return {"type": "string", **({"format": "regex"} if isinstance(kind, Regex) else {"minLength": 1})}


def _text(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def _table_or_words(table: Schema, pattern: str) -> Schema:
    """Return the schema of a table, or of its entries in the words of the command line: one text or a list."""
    words = _text(pattern)
    return {"anyOf": [{"type": "object", **table}, words, {"type": "array", "items": words}]}


def _any_case(name: str) -> str:
    """Return a pattern of a name in capitals or not: JSON schema knows no flags."""
    return "".join(f"[{letter.lower()}{letter.upper()}]" for letter in name)


_PROVIDER = f"({'|'.join(map(_any_case, Provider.NAMES))}|[a-zA-Z0-9]+{_any_case('ExecutionProvider')})"


def _description(known: Option, default: Any) -> str:
    """The help of a flag is that of its option, which is there to turn the default round."""
    return f"{'false' if default else 'true'}: {known.help}" if isinstance(known.kind, Flag) else known.help


def _bounds(kind: Number) -> Mapping[str, float]:
    is_open = math.inf == kind.maximum == kind.below
    named = {
        "minimum": kind.minimum,
        "maximum": sys.float_info.max if is_open else kind.maximum,  # TOML has an infinity
        "exclusiveMaximum": kind.below,
        "exclusiveMinimum": kind.above,
    }
    return {name: bound for name, bound in named.items() if math.isfinite(bound)}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
