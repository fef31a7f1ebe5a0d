"""What a run reads besides its models, so that nothing it writes takes its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnxcompress.errors import RecipeError
from onnxcompress.pipeline.outputs import is_same_file
from onnxcompress.pipeline.source import Source
from onnxcompress.recipe import Recipe
from onnxcompress.remote import Location, RemoteFile, location
from onnxcompress.runtime.folders import LABELS_FILE
from onnxcompress.runtime.images import SUFFIXES
from onnxcompress.runtime.preprocess import PRESETS

Read = tuple[str, Location]
"""An option or a model, and a file or folder that is read for it."""

_RANKS = "ranks="
_IN_DATA_FOLDERS = SUFFIXES | {".pb"}


def files_read(asked: Recipe, given: object = None, *, data: Any, calib: Any = None, train: Any = None) -> list[Read]:
    """Return the files and folders that a run reads besides its models.

    Args:
        asked, given: the recipe, and what it was made from: a file, too, where it is a path.
        data, calib, train: as given to `compress`; only paths among them count.
    """
    preprocess = asked.preprocess if asked.preprocess not in PRESETS else None
    ranks = asked.tucker.removeprefix(_RANKS) if asked.tucker.startswith(_RANKS) else None
    uses = {
        "--recipe": given,
        "--data": data,
        "--calib": calib,
        "--train": train,
        "--preprocess": preprocess,
        "--tucker": ranks,
        "--time-table": asked.time_table,
        "--plan": asked.plan,
    }
    return [(use, location(file)) for use, file in uses.items() if isinstance(file, (str, Path, RemoteFile))]


def side_files_read(source: Source) -> list[Read]:
    """Return the files that a model's weights lie in."""
    return [(str(source.path or "the model"), file) for file in source.files if file != source.path]


def check_not_read(written: Mapping[str, Location | None], read: Iterable[Read]) -> None:
    """Refuse to write over what is read.

    Args:
        written: {option, or OUT: file}.
        read: what is read. In a folder only what may be data counts: a model or a report may lie beside them.

    Raises:
        RecipeError: a file of one is a file of the other; the message names both.
    """
    taken = list(read)
    for name, path in written.items():
        for use, source in taken:
            if path is None:
                continue
            if is_same_file(path, source):
                raise RecipeError(f"{name} '{path}' would replace what {use} reads, '{source}'; choose another path")
            if _is_data_in(path, source):
                raise RecipeError(
                    f"{name} '{path}' lies among the data that {use} reads, '{source}'; choose another path"
                )


def _is_data_in(path: Location, folder: Location) -> bool:
    """Whether a path leads into a folder of data, to what would be read as such."""
    if Path(path.name).suffix.lower() not in _IN_DATA_FOLDERS and path.name != LABELS_FILE:
        return False
    if isinstance(path, RemoteFile) or isinstance(folder, RemoteFile):
        return str(path).startswith(f"{str(folder).rstrip('/')}/")
    try:
        return folder.is_dir() and folder.resolve() in path.resolve().parents
    except (OSError, RuntimeError):  # too long a name, or links in a circle: such a path is refused by name elsewhere
        return False
