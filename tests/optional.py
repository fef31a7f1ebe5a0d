"""Test modules that need a library which is not installed: they are left out, and the session says which."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = ("ml_dtypes", "sklearn", "torch")
"""What the program runs without, and some of its tests do not."""


def missing_module(path: Path) -> str | None:
    """Return the optional library that a file, or what it imports of this project's tests and scripts, lacks."""
    absent = {name for name in OPTIONAL if importlib.util.find_spec(name) is None}
    if not absent:
        return None
    seen: set[Path] = set()
    ahead = [path]
    while ahead:
        file = ahead.pop()
        seen.add(file)
        names = _imported(file)
        if needed := absent & {name.partition(".")[0] for name in names}:
            return min(needed)
        ahead += [each for name in names for each in _files(name) if each not in seen]
    return None


@functools.cache
def _imported(path: Path) -> tuple[str, ...]:
    """Return the names of the modules that are imported as a file is loaded, not by its functions."""
    found: list[str] = []
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Import):
            found += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            found += [statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)]
    return tuple(found)


def _files(name: str) -> Iterator[Path]:
    """Yield the file of a module of tests/, or of a script in models/, and of the packages that it lies in."""
    parts = name.split(".")
    if parts[0] == "tests":
        for length in range(2, len(parts) + 1):
            place = ROOT.joinpath(*parts[:length])
            yield from (file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file())
    elif len(parts) == 1 and (ROOT / "models" / f"{name}.py").is_file():
        yield ROOT / "models" / f"{name}.py"
