"""A model as it was given: a path, bytes, a protobuf or a Model, with the figures that tell it from others."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from onnxcompress.analysis.cost import ModelCost
from onnxcompress.errors import ModelError
from onnxcompress.graph import Model
from onnxcompress.remote import Copy, Location, RemoteFile, fetch_beside, fetch_file, location
from onnxcompress.report.figures import ModelFigures
from onnxcompress.serialization import external_files, parse_proto, read_proto

ModelLike = Model | onnx.ModelProto | bytes | str | Path | RemoteFile
"""What the Python functions take as a model."""

InputShapes = Mapping[str, Sequence[int]]
"""{graph input name: shape} of inputs whose sizes the model leaves open."""

_HASHED_AT_ONCE_BYTES = 2**20

_Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A model and where it came from.

    Attributes:
        path: the model's file, here or elsewhere; None for a model given in memory.
        sha256: of the file, or of the serialized model.
        size_bytes: of the file and its side files together.
        side_files: {file name: sha256} of the files that hold external data.
        content: what onnxruntime loads: the path, or the serialized model.
        copy: of a file that lies elsewhere, kept as long as it is needed.
        stamps: {file: what tells one state of it from another} of the files on this machine, as they were read.
    """

    model: Model
    path: Location | None
    sha256: str
    size_bytes: int
    content: bytes | Path = field(repr=False)
    side_files: Mapping[str, str] = field(default_factory=dict)
    copy: Copy | None = field(default=None, repr=False)
    stamps: Mapping[Path, _Stamp] = field(default_factory=dict, repr=False)

    @property
    def files(self) -> tuple[Location, ...]:
        """The files that the model is read from: its own, and those that its weights lie in."""
        if isinstance(self.path, RemoteFile):
            return (self.path, *(self.path.beside(name) for name in self.side_files))
        return (*([] if self.path is None else [self.path]), *side_files_of(self.model))

    def check_unchanged(self) -> None:
        """Refuse a result of two models: the file is read again for each measurement.

        Raises:
            ModelError: another one has taken its place since.
        """
        for file, stamp in self.stamps.items():
            with contextlib.suppress(OSError):
                if _stamp(file) == stamp:
                    continue
                known = self.sha256 if file == self.content else self.side_files.get(file.name)
                if file_sha256(file) != known:
                    raise ModelError(f"{file}: was replaced or written to while the run went on; run again")

    def figures(self, cost: ModelCost) -> ModelFigures:
        """Return the model's line in the report."""
        path = str(self.path) if self.path else None
        ops, opset = dict(cost.ops), self.model.opset
        return ModelFigures(
            path, self.sha256, self.size_bytes, cost.params, cost.macs, opset, ops, lrn_macs=cost.lrn_macs
        )


def read_source(given: ModelLike, input_shapes: InputShapes | None = None) -> Source:
    """Load a model from whatever it was given as.

    Args:
        given: what it was given as; it is not changed.
        input_shapes: full shapes of inputs whose sizes the model leaves open.

    Raises:
        ModelError: the model cannot be read or is invalid.
    """
    source = _read(given)
    return replace(source, model=source.model.at(input_shapes)) if input_shapes else source


def _read(given: ModelLike) -> Source:
    if isinstance(given, (str, Path, RemoteFile)):
        file = location(given)
        return _read_remote(file) if isinstance(file, RemoteFile) else _read_file(file)
    if isinstance(given, bytes):
        return Source(Model.from_bytes(given), None, hashlib.sha256(given).hexdigest(), len(given), given)
    if not isinstance(given, (Model, onnx.ModelProto)):
        raise ModelError(f"a {type(given).__name__} is no model; give a path, bytes, an onnx.ModelProto or a Model")
    model = given if isinstance(given, Model) else Model.from_proto(given)
    content = model.to_bytes()
    return Source(model, None, hashlib.sha256(content).hexdigest(), len(content), content)


def _read_file(path: Path) -> Source:
    try:
        if is_read_once(path):
            return _read_pipe(path)
        before = _stamp(path)
        model = Model.load(path)
        files = side_files_of(model)
        stamps = {file: _stamp(file) for file in files}
        hashes = {file.name: file_sha256(file) for file in files}
        total = path.stat().st_size + sum(file.stat().st_size for file in files)
        source = Source(model, path, file_sha256(path), total, path, hashes, stamps={path: before, **stamps})
        if any(_stamp(file) != stamp for file, stamp in source.stamps.items()):
            raise ModelError(f"{path}: was replaced or written to while it was read; run again")
        return source
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error


def is_read_once(path: Path) -> bool:
    """Whether a path is that of a pipe, or of something else that is no file."""
    return path.exists() and not (path.is_file() or path.is_dir())


def _read_pipe(path: Path) -> Source:
    """Read what can be read only once, as the output of another command is."""
    content = path.read_bytes()
    model = Model.from_proto(parse_proto(content, str(path)))
    return Source(model, path, hashlib.sha256(content).hexdigest(), len(content), content)


def _read_remote(file: RemoteFile) -> Source:
    """Copy a model here, with the files that hold its external data, and read the copy."""
    copy = fetch_file(file, ModelError)
    with copy.named():
        for name in external_files(read_proto(copy.path)):
            try:
                fetch_beside(copy, name, ModelError)
            except ModelError as error:
                raise ModelError(f"{file}: its external data '{name}' cannot be read: {error}") from error
        return replace(_read_file(copy.path), path=file, copy=copy)


def side_files_of(model: Model) -> list[Path]:
    """Return the files that the model's weights are mapped from."""
    mapped = (Model.values(tensor) for tensor in model.constants().values())
    names = {Path(array.filename) for array in mapped if isinstance(array, np.memmap) and array.filename}
    return sorted(names)


def _stamp(path: Path) -> _Stamp:
    """Return nothing of a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASHED_AT_ONCE_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
