"""Files and protobufs: reading a model with its weights apart, external data in and out, atomic writes.

Weights never travel through a second copy of the protobuf: they are numpy arrays (memory-mapped where they lie in
external files), so that a model above 2 GB can be rewritten within about its own size.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError

from onnxcompress.errors import ModelError, RecipeError
from onnxcompress.side_files import own_side_files, remove_unneeded, side_file_name
from onnxcompress.subgraphs import of_attribute, with_sub_graphs
from onnxcompress.tensor_bytes import (
    PACKED_TYPES,
    bytes_of,
    described,
    notes_of,
    release_mapped,
    serialized,
)
from onnxcompress.tensor_bytes import array_to_tensor as array_to_tensor
from onnxcompress.tensor_bytes import is_packed as is_packed

Array = npt.NDArray[Any]

PROTOBUF_LIMIT_BYTES = 2**31 - 2**20
"""Above this many bytes of weights a model is written with a side file (protobuf ends at 2 GiB)."""

IN_MEMORY_BYTES = 2**28
"""Above this many bytes of weights onnxruntime is given a file, and no second copy of them is made."""

_EXTERNAL_ALIGNMENT = 4096
_LONGEST_OF_NOTHING = 2**24  # a length beside a length of 0: no data vouch for it
_NAME_START_BYTES = 100


def read_proto(path: Path) -> onnx.ModelProto:
    """Parse a model file, leaving external data in its files.

    Raises:
        ModelError: the file is missing, empty, not readable, or no ONNX model.
    """
    if path.is_dir():
        raise ModelError(f"{path}: is a directory, expected an ONNX file")
    if not path.exists():
        raise ModelError(f"{path}: no such file; give the path of an ONNX model")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not content:
        raise ModelError(f"{path}: is empty, expected an ONNX model; export or copy it again")
    return parse_proto(content, str(path))


def parse_proto(content: bytes, source: str) -> onnx.ModelProto:
    """Parse serialized bytes; `source` names them in errors.

    Raises:
        ModelError: the bytes are no ONNX model.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{source}: is not an ONNX model (protobuf parsing failed); it may be truncated or another format"
        ) from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"{source}: is not an ONNX model (no graph or no IR version)")
    return proto


def tensor_dtype(data_type: int) -> np.dtype[Any]:
    """Return the numpy type (ml_dtypes for bfloat16 and below) of an onnx element type."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))


def load_array(tensor: onnx.TensorProto, model: Path | None) -> Array:
    """Return a tensor's values; external data, which lie beside the file `model`, are memory-mapped.

    Raises:
        ModelError: declared shape and data disagree, or the external data is missing or outside the model's folder.
    """
    name = tensor.name or "(unnamed)"
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor '{name}': has a negative dimension in {list(tensor.dims)}")
    try:
        dtype = tensor_dtype(tensor.data_type)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"tensor '{name}': has the unknown element type {tensor.data_type}") from error
    if tensor.data_type == onnx.TensorProto.BFLOAT16 and dtype.itemsize != 2:
        raise ModelError(f"tensor '{name}': bfloat16 needs a later onnx package than {onnx.__version__}; upgrade it")
    count = math.prod(tensor.dims)
    if count == 0 and max(tensor.dims) > _LONGEST_OF_NOTHING:
        raise ModelError(f"tensor '{name}': declares shape {list(tensor.dims)} and holds nothing; the file is damaged")
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if external:
        return _map_external(tensor, count * dtype.itemsize, dtype, model)
    if tensor.data_type not in PACKED_TYPES:
        seen = len(tensor.raw_data) if tensor.HasField("raw_data") else _typed_length(tensor) * dtype.itemsize
        if seen != count * dtype.itemsize:
            raise ModelError(
                f"tensor '{name}': declares shape {list(tensor.dims)} ({count * dtype.itemsize} bytes) "
                f"but holds {seen} bytes; the file is damaged"
            )
    try:
        array: Array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise ModelError(f"tensor '{name}': its data cannot be read ({error}); the file is damaged") from error
    return array


def _typed_length(tensor: onnx.TensorProto) -> int:
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    length = len(getattr(tensor, field))
    is_complex = tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
    return length // 2 if is_complex else length


def _map_external(tensor: onnx.TensorProto, size: int, dtype: np.dtype[Any], model: Path | None) -> Array:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = os.fsdecode(entries.get("location", "").encode())  # UTF-8, whatever the locale makes of names
    where = f"tensor '{tensor.name}': external data '{location}'"
    if model is None:
        raise ModelError(f"{where} cannot be found for a model given in memory; give the model's path instead")
    if not location or os.path.isabs(location) or ".." in Path(location).parts:
        raise ModelError(f"{where} must be a relative path inside the model's folder")
    path = model.absolute().parent / location
    # A cache of downloads links both to files beside each other: what the link of the model leads to counts, too.
    if {model.absolute().parent.resolve(), model.resolve().parent}.isdisjoint(path.resolve().parents):
        raise ModelError(f"{where} leads outside the model's folder")
    if not path.is_file():
        raise ModelError(f"{where} is missing; it must lie beside the model, in {model.absolute().parent}")
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
    except ValueError as error:
        raise ModelError(f"{where} has an offset or length that is not a number") from error
    if offset < 0 or length != size or offset + length > path.stat().st_size:
        raise ModelError(
            f"{where}: needs {size} bytes at offset {offset}, declared {length}, "
            f"the file has {path.stat().st_size}; it is truncated or belongs to another model"
        )
    if size == 0:
        return np.zeros(tuple(tensor.dims), dtype)
    mapped = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(size,))
    return mapped.view(dtype).reshape(tuple(tensor.dims))


def take_in(attribute: onnx.AttributeProto, model: Path | None) -> None:
    """Put the external data of an attribute's tensors, those of its graphs included, into it; see `load_array`."""
    inner = (tensor for graph in of_attribute(attribute) for tensor in _all_tensors(graph))
    for tensor in (attribute.t, *attribute.tensors, *inner):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            values = load_array(tensor, model)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = bytes(bytes_of(values))


def external_files(proto: onnx.ModelProto) -> list[str]:
    """Return the relative paths of the files that a model's external data lie in.

    Paths that would lead outside the model's folder are left out: reading the tensors refuses them.
    """
    named = {
        os.fsdecode(entry.value.encode())
        for tensor in _all_tensors(proto.graph)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(name for name in named if name and not os.path.isabs(name) and ".." not in Path(name).parts)


def _all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for each in with_sub_graphs(graph):
        yield from each.initializer
        for attribute in (attribute for node in each.node for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)


def check_output_path(path: Path, *, overwrite: bool) -> None:
    """Refuse an output path before any work is done.

    Raises:
        RecipeError: the path is a directory, exists without `overwrite`, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise RecipeError(f"{path}: is a directory, expected a file to write")
    if path.exists() and not overwrite:
        raise RecipeError(f"{path}: exists; give --overwrite to replace it")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise RecipeError(f"{path}: the folder {parent} does not exist; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RecipeError(f"{path}: the folder {parent} is not writable")


def check_side_file_name(path: Path) -> None:
    """Refuse a path of a model that no side file can be named after.

    Raises:
        RecipeError: the model's name is no UTF-8, which ONNX stores it as, or too long.
    """
    name = os.fsencode(side_file_name(path.name, "0" * 12))
    try:
        name.decode()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is no UTF-8, as the name of a file with weights beside it must be") from error
    try:
        longest = os.pathconf(path.absolute().parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        longest = 255
    if len(name) > longest:
        raise RecipeError(f"{path}: is too long a name for weights beside it: theirs takes 18 bytes more")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; it takes `path`'s place only when the block ends without an error.

    Raises:
        RecipeError: the file cannot be written (folder gone, disk full, …); `path` is untouched.
    """
    try:
        # The system counts bytes; a character that is cut through goes.
        start = os.fsdecode(os.fsencode(path.name)[:_NAME_START_BYTES].decode(errors="ignore").encode())
        descriptor, temporary = tempfile.mkstemp(prefix=f".{start}.", suffix=".tmp", dir=path.absolute().parent)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except OSError as error:
            raise RecipeError(f"{path}: cannot be written ({error.strerror or error})") from error
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_proto(
    proto: onnx.ModelProto, weights: dict[str, Array], path: Path, *, external: bool, spared: Iterable[Path] = ()
) -> None:
    """Write `proto` (without weights, but with what `notes_of` finds) and `weights` to `path`, atomically.

    With `external` the weights (but strings and four-bit numbers) go to a side file whose name carries their hash: an
    earlier model of the same name keeps its own side file until the new model stands in its place; then it is removed,
    unless it is `spared` or another model in the folder names it.

    Raises:
        RecipeError: the files cannot be written.
    """
    if not external:
        with atomic_file(path) as stream:
            stream.writelines(serialized(proto, weights))
        return
    check_side_file_name(path)
    offsets, digest = _layout({name: array for name, array in weights.items() if not is_packed(array)})
    side_file = path.absolute().parent / side_file_name(path.name, digest)
    location = os.fsencode(side_file.name).decode()
    previous = own_side_files(path)
    existed = side_file.exists()
    with atomic_file(side_file) as stream:
        for name, offset in offsets.items():
            stream.seek(offset)
            stream.write(bytes_of(weights[name]))
            release_mapped(weights[name])
        stream.truncate(max(stream.tell(), 1))
    notes = notes_of(proto)
    del proto.graph.initializer[:]
    try:
        for name, array in weights.items():
            is_beside = name in offsets
            tensor = (
                _external_tensor(name, array, location, offsets[name]) if is_beside else array_to_tensor(name, array)
            )
            if name in notes:
                tensor.MergeFrom(notes[name])
            proto.graph.initializer.append(tensor)
        with atomic_file(path) as stream:
            stream.write(proto.SerializeToString(deterministic=True))
    except BaseException:
        if not existed:
            side_file.unlink(missing_ok=True)
        raise
    remove_unneeded(previous - {side_file}, spared=spared)


def _layout(weights: dict[str, Array]) -> tuple[dict[str, int], str]:
    offsets, position, digest = {}, 0, hashlib.sha256()
    for name, array in weights.items():
        position = -(-position // _EXTERNAL_ALIGNMENT) * _EXTERNAL_ALIGNMENT
        offsets[name] = position
        position += array.nbytes
        digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
        digest.update(bytes_of(array))
        release_mapped(array)
    return offsets, digest.hexdigest()


def _external_tensor(name: str, array: Array, location: str, offset: int) -> onnx.TensorProto:
    tensor = described(name, array)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor
