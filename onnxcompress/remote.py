"""Files that lie elsewhere: `s3://`, `gs://`, `https://` and whatever else fsspec reaches.

Reading copies a file or folder to a temporary folder, which goes when nothing holds on to it any more. Writing puts a
whole object at the end: object stores show an object only when all of it is there. fsspec is imported where an address
is really used.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from onnxcompress.errors import OnnxCompressError, ProviderUnavailableError, RecipeError

# Two letters at least: `C://` is a drive.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.")
_ENDS_OF_FOLDERS = tuple({"/", os.sep})
_READ_ONLY = ("http", "https")
_EXTRAS = {"gs": "gcs", "gcs": "gcs"}
_IN_BUCKETS = ("s3", "s3a", "gs", "gcs")


@dataclass(frozen=True)
class RemoteFile:
    """The address of a file or folder, such as `s3://bucket/folder/model.onnx`."""

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def protocol(self) -> str:
        """What stands before `://`, in lower case."""
        return self.address.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part of the path; what an https address asks for behind `?` does not count."""
        path = urlsplit(self.address).path if self.protocol in _READ_ONLY else self.address
        return path.rstrip("/").rpartition("/")[2]

    def beside(self, name: str) -> RemoteFile:
        """Return the file of another name (a relative path with `/`) in the same folder."""
        base = self.address.partition("?")[0] if self.protocol in _READ_ONLY else self.address
        return RemoteFile(f"{base.rstrip('/').rpartition('/')[0]}/{name}")


Location = Path | RemoteFile
"""Where a file lies: on this machine or elsewhere."""


def location(given: str | Path | RemoteFile) -> Location:
    """Return a path, or an address where `given` is text with `protocol://`."""
    if isinstance(given, RemoteFile):
        return given
    return RemoteFile(given) if isinstance(given, str) and _ADDRESS.match(given) else Path(given)


def check_is_path(given: object) -> None:
    """Refuse what no file can be called.

    Raises:
        RecipeError: it is no text and no path, or holds a NUL.
    """
    if not isinstance(given, (str, Path, RemoteFile)) or "\0" in str(given):
        raise RecipeError(f"{given!r:.60} is not the path of a file or folder")


def file_location(given: str | Path | RemoteFile) -> Location:
    """Return the location of a single file.

    Raises:
        RecipeError: `given` is no path, or text that names a folder by its last character, or `-`: there are no
            standard streams.
    """
    check_is_path(given)
    if given == "-":
        raise RecipeError("'-': standard input and output are not used; give the path of a file (./- for this name)")
    if isinstance(given, str) and not _ADDRESS.match(given) and given.endswith(_ENDS_OF_FOLDERS):
        raise RecipeError(f"{given}: is a folder, expected a file")
    return location(given)


class Copy:
    """A copy of a remote file or folder in a temporary folder, which is removed with this object.

    Attributes:
        path: of the copy.
    """

    def __init__(self, source: RemoteFile) -> None:
        self.source = source
        self.folder = Path(tempfile.mkdtemp(prefix="onnxcompress-"))
        self.path = self.folder / (source.name or "file")
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder now."""
        self._remove()

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Errors raised inside name the address in place of the copy."""
        try:
            yield
        except OnnxCompressError as error:
            text = str(error).replace(str(self.path), str(self.source))
            raise type(error)(text.replace(str(self.folder), str(self.source.beside("")))) from error


def fetch_file(source: RemoteFile, failure: type[OnnxCompressError]) -> Copy:
    """Copy a remote file here.

    Raises:
        failure: there is no such file, it may not be read, or the network does not reach it.
        ProviderUnavailableError: what reaches it is not installed.
        RecipeError: nothing reaches such an address.
    """
    copy = Copy(source)
    try:
        with _reaching(source, failure, "read"):
            files, path = _file_system(source)
            if source.protocol not in _READ_ONLY and files.isdir(path):
                raise IsADirectoryError
            files.get_file(path, str(copy.path))
        return copy
    except BaseException:
        copy.close()
        raise


def read_json(path: Location, wanted: str) -> Any:
    """Return what a JSON file holds, here or at an address.

    Args:
        wanted: what the user should give instead of a file that is no JSON.

    Raises:
        RecipeError: the file cannot be read or is not JSON.
    """
    copy = fetch_file(path, RecipeError) if isinstance(path, RemoteFile) else None
    file = path if copy is None else copy.path
    try:
        text = Path(str(file)).read_text(encoding="utf-8-sig")
        return json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_number)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: is not JSON ({' '.join(str(error).split())}); give {wanted}") from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a table, of which JSON's reader would keep the last of several entries of one name."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands twice in one table")
    return table


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def fetch_beside(copy: Copy, name: str, failure: type[OnnxCompressError]) -> None:
    """Copy a further file of the folder that `copy.source` lies in, to the same place beside the copy.

    Raises:
        failure, ProviderUnavailableError, RecipeError: as `fetch_file`.
    """
    source = copy.source.beside(name)
    target = copy.folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with _reaching(source, failure, "read"):
        files, path = _file_system(source)
        files.get_file(path, str(target))


def fetch(source: RemoteFile, failure: type[OnnxCompressError]) -> Copy:
    """Copy a remote file here, or a folder with everything in it (not from http, which lists no folders).

    Raises:
        failure, ProviderUnavailableError, RecipeError: as `fetch_file`.
    """
    if source.protocol in _READ_ONLY:
        return fetch_file(source, failure)
    copy = Copy(source)
    try:
        with _reaching(source, failure, "read"):
            files, path = _file_system(source)
            if files.isdir(path):
                files.get(path.rstrip("/") + "/", f"{copy.path}/", recursive=True)
            else:
                files.get_file(path, str(copy.path))
        return copy
    except BaseException:
        copy.close()
        raise


def check_writable(target: RemoteFile, *, overwrite: bool) -> None:
    """Refuse an address that cannot be written, before any work is done.

    Raises:
        RecipeError: it exists without `overwrite`, its bucket does not exist, the protocol cannot write, or the network
            does not reach it.
    """
    if target.protocol in _READ_ONLY:
        raise RecipeError(f"{target}: {target.protocol} addresses can only be read; give a path, s3:// or gs://")
    with _reaching(target, RecipeError, "written"):
        files, path = _file_system(target)
        files.invalidate_cache()
        if target.address.endswith("/") or not target.name:
            raise RecipeError(f"{target}: is a folder, expected a file to write")
        if files.exists(path) and not overwrite:
            raise RecipeError(f"{target}: exists; give --overwrite to replace it")
        bucket = path.partition("/")[0]
        if target.protocol in _IN_BUCKETS and not files.exists(bucket):
            raise RecipeError(f"{target}: the bucket '{bucket}' does not exist or may not be used; create it first")


def upload(content: bytes | Path, target: RemoteFile) -> None:
    """Write a whole object: bytes, or the file at a path.

    Raises:
        RecipeError: it cannot be written; what stood there is untouched.
    """
    with _reaching(target, RecipeError, "written"):
        files, path = _file_system(target)
        if isinstance(content, bytes):
            files.pipe_file(path, content)
        else:
            files.put_file(str(content), path)


def remove(targets: list[RemoteFile]) -> None:
    """Remove files; what cannot be removed stays."""
    for target in targets:
        with contextlib.suppress(Exception):
            files, path = _file_system(target)
            files.rm_file(path)


def siblings(target: RemoteFile) -> list[RemoteFile]:
    """Return the files of the folder that `target` lies in; none where they cannot be listed."""
    with contextlib.suppress(Exception):
        files, path = _file_system(target)
        names = files.ls(path.rpartition("/")[0], detail=False, refresh=True)
        return [target.beside(str(name).rpartition("/")[2]) for name in names]
    return []


def _file_system(file: RemoteFile) -> tuple[Any, str]:
    """Return fsspec's file system of an address and the path in it."""
    extra = f"pip install 'onnxcompress[{_EXTRAS.get(file.protocol, 'remote')}]'"
    try:
        import fsspec
    except ImportError as error:
        raise ProviderUnavailableError(
            f"{file}: {file.protocol}:// needs fsspec, which is not installed: {extra}"
        ) from error
    try:
        files, path = fsspec.core.url_to_fs(file.address)
    except ImportError as error:
        raise ProviderUnavailableError(f"{file}: {_one_line(error)}: {extra}") from error
    except ValueError as error:
        raise RecipeError(f"{file}: {_one_line(error)}; give a path, s3://, gs:// or https://") from error
    return files, str(path)


@contextlib.contextmanager
def _reaching(file: RemoteFile, failure: type[OnnxCompressError], done: str) -> Iterator[None]:
    """Turn what a file system raises (each client has errors of its own) into one line."""
    try:
        yield
    except OnnxCompressError:
        raise
    except FileNotFoundError as error:
        missing = "no such file" if done == "read" else f"cannot be written ({_one_line(error)})"
        raise failure(f"{file}: {missing}") from error
    except IsADirectoryError as error:
        raise failure(f"{file}: is a folder, expected a file") from error
    except PermissionError as error:
        raise failure(f"{file}: may not be {done}: {_one_line(error)}; check the credentials") from error
    except Exception as error:
        raise failure(f"{file}: cannot be {done}: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
