"""Side files: the weights beside a model that is written with external data, `MODEL.<12 hex digits>.data`.

What a model names is looked for as bytes: any file can be searched so, large, broken or of a later format, and a name
that stands there by chance only keeps a file that nobody needs.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path


def side_file_name(model: str, digest: str) -> str:
    """Return the name of a model's side file, by the hash of its content (hexadecimal)."""
    return f"{model}.{digest[:12]}.data"


def is_side_file(name: str, model: str) -> bool:
    """Whether a file is called as this package calls the side files of a model: `MODEL.<12 hex digits>.data`."""
    digits = name.removeprefix(f"{model}.").removesuffix(".data")
    return name == side_file_name(model, digits) and len(digits) == 12 and all(c in "0123456789abcdef" for c in digits)


def own_side_files(path: Path) -> set[Path]:
    """Return the side files that this package wrote for the model that stands at `path`, and that it names.

    A file of such a name alone is not enough: a model that was renamed still reads the one of its old name.
    """
    if path.is_symlink():  # only the link is replaced: the model behind it stays
        return set()
    named = [file for file in path.absolute().parent.glob("*.data") if is_side_file(file.name, path.name)]
    return {file for file in named if names_file(path, file.name) is True}


def remove_unneeded(stale: Iterable[Path], *, spared: Iterable[Path]) -> None:
    """Remove side files of a model that was replaced, but those `spared` and those that another model beside names."""
    needed = {file.resolve() for file in spared}
    for file in stale:
        if file.resolve() not in needed and not _is_named_beside(file):
            file.unlink(missing_ok=True)


def _is_named_beside(file: Path) -> bool:
    """Whether a model in the file's folder names it, or may: one that cannot be read does not tell."""
    try:
        models = [each for each in os.scandir(file.parent) if each.name.lower().endswith(".onnx")]
        return any(names_file(Path(model), file.name) is not False for model in models if model.is_file())
    except OSError:
        return True


def names_file(model: Path, name: str) -> bool | None:
    """Return whether a model's file holds the name of another file, None where it cannot be read."""
    with contextlib.suppress(OSError), model.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return False
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(os.fsencode(name)) >= 0
    return None
