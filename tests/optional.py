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


@functools.cache
def missing_module(path: Path) -> str | None:
    """Return the optional library that a file, or what it imports of this project's tests and scripts, lacks."""
    for name in _imported(ast.parse(path.read_bytes())):
        top = name.partition(".")[0]
        if top in OPTIONAL:
            if importlib.util.find_spec(top) is None:
                return top
            continue
        for file in _files(name):
            if file != path and (missing := missing_module(file)):
                return missing
    return None


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the names of the modules that are imported as the file is loaded, not by its functions."""
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def _files(name: str) -> Iterator[Path]:
    """Yield the file of a module of tests/, or of a script in models/, and of the packages that it lies in."""
    parts = name.split(".")
    if parts[0] == "tests":
        for length in range(2, len(parts) + 1):
            place = ROOT.joinpath(*parts[:length])
            yield from (file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file())
    elif len(parts) == 1 and (ROOT / "models" / f"{name}.py").is_file():
        yield ROOT / "models" / f"{name}.py"
