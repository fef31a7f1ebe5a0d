"""What a run writes: paths checked before any work, files written whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from onnxcompress.errors import OnnxCompressError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.remote import Location, RemoteFile, check_writable, fetch_file, location, remove, siblings, upload
from onnxcompress.serialization import (
    IN_MEMORY_BYTES,
    PROTOBUF_LIMIT_BYTES,
    atomic_file,
    check_output_path,
)
from onnxcompress.side_files import is_side_file, names_file


def check_outputs(
    output: Location | None,
    *,
    overwrite: bool,
    reports: Mapping[str, Location | None],
    inputs: Iterable[object],
    only_reports: bool = False,
) -> None:
    """Refuse paths that cannot be written, or that would destroy what the run reads or writes elsewhere.

    Args:
        output: OUT. `reports` are further files to write, by the option they belong to; they replace old ones.
        inputs: what the run reads; only paths among them count.
        only_reports: OUT will not be written: it only has to be another file than what is.

    Raises:
        RecipeError: the path is a directory or an input, exists without `overwrite`, or its folder is missing or not
            writable; or an address cannot be reached.
    """
    read = [location(given) for given in inputs if isinstance(given, (str, Path, RemoteFile))]
    written: dict[str, Location] = {} if output is None else {"OUT": output}
    written |= {name: path for name, path in reports.items() if path is not None}
    for name, path in written.items():
        for source in read:
            if is_same_file(path, source):
                raise RecipeError(f"{name} '{path}' is the input '{source}' itself; choose another path")
        for other, taken in written.items():
            if other != name and is_same_file(path, taken):
                raise RecipeError(f"{name} and {other} are the same file '{path}'; choose another path")
        if only_reports and path is output:
            continue
        if isinstance(path, RemoteFile):
            check_writable(path, overwrite=overwrite or path is not output)
            continue
        try:
            if _is_no_file(path):
                raise RecipeError(f"{path}: is not a regular file; choose another path")
            check_output_path(path, overwrite=overwrite or path is not output)
        except OSError as error:
            raise RecipeError(f"{path}: cannot be written ({error.strerror or error})") from error
        _check_folder_takes_files(path)


def write_together(files: Mapping[Location, bytes], then: Callable[[], None] | None = None) -> None:
    """Write all files and do what comes `then`, or leave every file as it was where one of them fails.

    A file that lies elsewhere is whole or as it was, but one that was written before another failed stays.

    Raises:
        RecipeError: a file cannot be written.
    """
    with contextlib.ExitStack() as opened:
        for path, content in files.items():
            if isinstance(path, RemoteFile):
                continue
            stream = opened.enter_context(atomic_file(path))
            stream.write(content)
            stream.flush()  # a full disk shows here, before anything takes its place
        for path, content in files.items():
            if isinstance(path, RemoteFile):
                upload(content, path)
        if then is not None:
            then()


def is_same_file(path: Location, other: Location) -> bool:
    """Whether two paths lead to one file, through links too; also for files that do not exist yet."""
    if isinstance(path, RemoteFile) or isinstance(other, RemoteFile):
        return path == other
    with contextlib.suppress(OSError):
        if path.samefile(other):
            return True
    with contextlib.suppress(OSError, RuntimeError):
        return path.resolve() == other.resolve()
    return path.absolute() == other.absolute()


def _is_no_file(path: Path) -> bool:
    """Whether a path is a device or a pipe, or a name of standard output: a rename would put a file in its place."""
    # `/dev/stdout` leads to a regular file where the shell sends the output to one.
    leads_to_open_file = path.is_symlink() and os.readlink(path).startswith("/proc/")
    return leads_to_open_file or (path.exists() and not path.is_file() and not path.is_dir())


def _check_folder_takes_files(path: Path) -> None:
    """The system's permission bits do not tell all (root, quotas, read-only and virtual file systems): try it."""
    folder = path.absolute().parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RecipeError(f"{path}: the folder {folder} is not writable ({error.strerror or error})") from error


class CompressedModel:
    """A compressed model on its way to a file: its size, its hash and what onnxruntime loads.

    Up to 256 MB it is serialized once and kept; above, onnxruntime is given a temporary file with the weights beside
    it, which it maps, and no second copy of them is made.
    """

    def __init__(self, model: Model, *, external: bool, name: str = "model.onnx") -> None:
        """Take a model, to be written with a side file or without; the side file's name follows the file's."""
        self.model = model
        self._name = name
        self.is_external = external or model.weight_bytes > PROTOBUF_LIMIT_BYTES
        self._content = None if model.weight_bytes > IN_MEMORY_BYTES else model.to_bytes()

    @property
    def sha256(self) -> str | None:
        """The hash of the file that `save` writes, None where only writing it would tell (side files)."""
        if self.is_external:
            return None
        digest = hashlib.sha256()
        for piece in self._pieces():
            digest.update(piece)
        return digest.hexdigest()

    @property
    def size_bytes(self) -> int:
        """The size of the file, and of its side file, in bytes (of a large one without its alignment)."""
        if not self.is_external:
            return self.model.size_bytes if self._content is None else len(self._content)
        if self._content is not None:
            return self._written_bytes
        return self.model.weight_bytes + len(self.model.skeleton().SerializeToString())

    @functools.cached_property
    def _written_bytes(self) -> int:
        """What a small model takes with its side file, in which each weight begins at a page of its own."""
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            self.model.save(Path(folder) / self._name, external=True)
            return sum(file.stat().st_size for file in Path(folder).iterdir())

    def _pieces(self) -> Iterable[bytes | memoryview]:
        return self.model.serialized() if self._content is None else (self._content,)

    @contextlib.contextmanager
    def loadable(self) -> Iterator[bytes | Path]:
        """Give what an onnxruntime session loads: the serialized model, or a temporary file of it."""
        if self._content is not None:
            yield self._content
            return
        with tempfile.TemporaryDirectory(prefix="onnxcompress-") as folder:
            path = Path(folder) / "model.onnx"
            self.model.save(path, external=True)
            yield path

    def save(self, path: Location, *, overwrite: bool, spared: Sequence[Location] = ()) -> None:
        """Write the model, whole or not at all; errors as in `Model.save`.

        A model that cannot be sent to where it belongs is kept on this machine, and the error tells where. Side files
        of a model that it replaces go, but those `spared` and those that another model may need.
        """
        if not isinstance(path, RemoteFile):
            self._write(path, overwrite=overwrite, spared=[file for file in spared if isinstance(file, Path)])
            return
        previous = _remote_side_files(path)
        folder = Path(tempfile.mkdtemp(prefix="onnxcompress-"))
        kept = folder / path.name
        try:
            self._write(kept, overwrite=False)
            side_files = sorted(file for file in folder.iterdir() if file != kept)
            check_writable(path, overwrite=overwrite)
            for file in side_files:
                upload(file, path.beside(file.name))
            upload(kept, path)
        except RecipeError as error:
            if not kept.exists():
                raise
            raise RecipeError(f"{error}; the compressed model is kept as {kept}") from error
        kept_there = {path.beside(file.name) for file in side_files} | set(spared)
        _remove_remote(path, [file for file in previous if file not in kept_there], spared)
        shutil.rmtree(folder, ignore_errors=True)

    def _write(self, path: Path, *, overwrite: bool, spared: Sequence[Path] = ()) -> None:
        if self.is_external:
            self.model.save(path, overwrite=overwrite, external=True, spared=spared)
            return
        check_output_path(path, overwrite=overwrite)
        with atomic_file(path) as stream:
            stream.writelines(self._pieces())


def _remote_side_files(path: RemoteFile) -> list[RemoteFile]:
    """Return the side files of the model that stands at an address, as far as it names them itself."""
    named = [file for file in siblings(path) if is_side_file(file.name, path.name)]
    if not named:
        return []
    with contextlib.suppress(OnnxCompressError), contextlib.closing(fetch_file(path, RecipeError)) as copy:
        return [file for file in named if names_file(copy.path, file.name) is True]
    return []


def _remove_remote(path: RemoteFile, stale: list[RemoteFile], spared: Sequence[Location]) -> None:
    """Remove side files of a model that was replaced, unless another one in its folder may name them.

    Unlike on this machine such models are not searched: that would mean to fetch them all.
    """
    others = [file for file in siblings(path) if file.name.lower().endswith(".onnx") and file != path] if stale else []
    if all(file in spared for file in others):
        remove(stale)
