"""The JSON report: the keys users' scripts hold on to, written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from onnxcompress.report.figures import SCHEMA, Report
from onnxcompress.serialization import atomic_file

_KEYS = {"pass_name": "pass"}


def report_to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain JSON values; what is not a finite number is null."""
    return {"schema": SCHEMA, **plain_json(report)}


def plain_json(value: Any) -> Any:
    """Return dataclasses, mappings, sequences, paths and numpy scalars as plain JSON values."""
    if is_dataclass(value):
        return {_KEYS.get(f.name, f.name): plain_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and hasattr(value, "dtype"):
        return plain_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_text(value: Any) -> str:
    """Return `value` as readable JSON of ASCII characters: control characters and the like stay escaped."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(value: Any, path: Path) -> None:
    """Write plain JSON values to `path`, whole or not at all.

    Raises:
        RecipeError: the file cannot be written; what stood there is untouched.
    """
    with atomic_file(path) as stream:
        stream.write(json_text(value).encode())
