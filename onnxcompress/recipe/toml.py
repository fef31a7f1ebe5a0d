"""TOML in (`tomllib`, or its backport before Python 3.11) and out (what a recipe needs of it)."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxcompress.errors import RecipeError

_LARGEST_RECIPE_BYTES = 1_000_000


def parse_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        RecipeError: the file cannot be read or is no TOML.
    """
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_RECIPE_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _LARGEST_RECIPE_BYTES:
        raise RecipeError(f"{path}: is larger than {_LARGEST_RECIPE_BYTES} bytes; a recipe is a short TOML file")
    try:
        values: dict[str, Any] = toml.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: is not TOML ({' '.join(str(error).split())})") from error
    return values


def emit_toml(values: Mapping[str, Any]) -> str:
    """Return `values` (text, numbers, booleans, lists, and tables of those) as TOML."""
    lines = [f"{_key(k)} = {_value(v)}" for k, v in values.items() if not isinstance(v, Mapping)]
    for name, table in values.items():
        if isinstance(table, Mapping):
            lines += _table([name], table)
    return "".join(f"{line}\n" for line in lines)


def _table(path: list[str], table: Mapping[str, Any]) -> list[str]:
    own = {k: v for k, v in table.items() if not isinstance(v, Mapping)}
    lines = ["", f"[{'.'.join(map(_key, path))}]", *(f"{_key(k)} = {_value(v)}" for k, v in own.items())] if own else []
    for name, inner in table.items():
        if isinstance(inner, Mapping):
            lines += _table([*path, name], inner)
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    # JSON's escapes are TOML's, except that JSON leaves DEL bare.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    return f"[{', '.join(_value(v) for v in value)}]"
