"""What a model takes and gives: names, element types and shapes of its inputs and outputs, and data that fit them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.errors import DataError, ModelError

Array = npt.NDArray[Any]

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a model; in `shape` an unknown size is None or its symbolic name."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def fixed_batch(self) -> int | None:
        """The size of the first dimension where the model fixes it, else None."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else None

    def described(self) -> str:
        """Return `data float32 [batch,3,224,224]`, for messages."""
        return f"'{self.name}' {self.dtype} {shown_shape(self.shape)}"


def fixed_batch(inputs: Sequence[TensorInfo]) -> int | None:
    """Return the batch that the model fixes, else None."""
    return next((info.fixed_batch for info in inputs if info.fixed_batch is not None), None)


def classifies(shape: Sequence[object]) -> bool:
    """Whether an output of this shape may hold class scores: (N, C) or (N, C, 1, ...) with C > 1, or not known."""
    return len(shape) > 1 and shape[1] not in (0, 1) and all(length == 1 for length in shape[2:])


def shown_shape(shape: Sequence[int | str | None]) -> str:
    """Return a shape as `[batch,3,?,224]`."""
    return "[" + ",".join("?" if size is None else str(size) for size in shape) + "]"


def is_readable(onnxruntime_type: str) -> bool:
    """Whether a value of a type, as onnxruntime calls it, is a dense tensor of numbers."""
    return onnxruntime_type in _DTYPES


def tensor_info(name: str, onnxruntime_type: str, shape: Sequence[int | str | None] | None) -> TensorInfo:
    """Return the description of one of onnxruntime's `NodeArg`s.

    Raises:
        ModelError: it is no dense tensor of numbers.
    """
    if not is_readable(onnxruntime_type):
        raise ModelError(f"'{name}' is a {onnxruntime_type}; only dense tensors of numbers can be fed and read")
    sizes = tuple(size if isinstance(size, str) or (size is not None and size >= 0) else None for size in shape or ())
    return TensorInfo(name, np.dtype(_DTYPES[onnxruntime_type]), sizes)


def conform(feeds: Mapping[str, Array], inputs: Sequence[TensorInfo], where: str) -> dict[str, Array]:
    """Return `feeds` as the model takes them: the same names, fitting shapes, cast to the model's element types.

    Raises:
        DataError: a name is missing or unknown, or a shape or element type does not fit; begins with `where`.
    """
    wanted = {info.name: info for info in inputs}
    if feeds.keys() != wanted.keys():
        raise DataError(f"{where}: holds {_quoted(feeds)}, but the model's inputs are {_quoted(wanted)}")
    return {name: _conform_one(np.asarray(feeds[name]), info, where) for name, info in wanted.items()}


def _check_shape(shape: Sequence[int], info: TensorInfo, where: str) -> None:
    # onnxruntime describes an unknown rank like a scalar's.
    fits = not info.shape or (
        len(shape) == len(info.shape)
        and all(not isinstance(size, int) or size == seen for size, seen in zip(info.shape, shape, strict=True))
    )
    if not fits:
        raise DataError(f"{where}: '{info.name}' has shape {shown_shape(shape)}, the model takes {info.described()}")


def _conform_one(array: Array, info: TensorInfo, where: str) -> Array:
    _check_shape(array.shape, info, where)
    if array.dtype == info.dtype:
        return array
    if not np.can_cast(array.dtype, info.dtype, "same_kind"):
        raise DataError(f"{where}: '{info.name}' is {array.dtype}, the model takes {info.described()}")
    return array.astype(info.dtype)


def _quoted(names: Mapping[str, object]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def concrete_shapes(
    inputs: Sequence[TensorInfo], given: Mapping[str, Sequence[int]] | None = None, batch: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Return a full shape for each input: `given` where named, the model's sizes elsewhere, an open batch `batch` or 1.

    `batch` also replaces the first size of a given shape, so that one `--input-shape` serves several batch sizes.

    Raises:
        DataError: a shape names no input or does not fit, the model fixes another batch, or a size stays unknown.
    """
    given = given or {}
    unknown = sorted(given.keys() - {info.name for info in inputs})
    if unknown:
        raise DataError(
            f"--input-shape names '{unknown[0]}', but the model's inputs are {_quoted({i.name: i for i in inputs})}"
        )
    return {info.name: _concrete(info, given.get(info.name), batch) for info in inputs}


def _concrete(info: TensorInfo, given: Sequence[int] | None, batch: int | None) -> tuple[int, ...]:
    sizes: list[int | str | None] = list(info.shape)
    if given is not None:
        _check_shape(given, info, "--input-shape")
        sizes = list(given)
    if sizes and info.fixed_batch is None and (batch is not None or not isinstance(sizes[0], int)):
        sizes[0] = batch or 1
    if batch is not None and len(sizes) > 1 and info.fixed_batch not in (None, batch):
        raise DataError(f"batch {batch} does not fit input {info.described()}: the model fixes its batch")
    known = tuple(size for size in sizes if isinstance(size, int))
    if len(known) != len(sizes):
        example = "x".join(str(size) if isinstance(size, int) else "N" for size in sizes)
        raise DataError(
            f"input {info.described()} leaves sizes open: give --input-shape {info.name}:{example}, a number for each N"
        )
    return known


def random_inputs(inputs: Sequence[TensorInfo], shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Array]:
    """Return one batch of random inputs of the given full shapes.

    Floats are standard normal, uint8 covers 0 to 255 (images), other integers and booleans are 0 or 1, which is valid
    as an index, a mask or a count.

    Raises:
        DataError: a shape takes more than this machine's memory.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for info in inputs:
        shape = tuple(shapes[info.name])
        if math.prod(shape) * info.dtype.itemsize > _memory_bytes():
            raise DataError(
                f"input '{info.name}' of shape {shown_shape(shape)} takes more than this machine's memory; "
                "give a smaller --batch or --input-shape"
            )
        if info.dtype.kind == "f":
            feeds[info.name] = generator.standard_normal(shape, dtype=np.float32).astype(info.dtype)
        else:
            high = 256 if info.dtype == np.uint8 else 2
            feeds[info.name] = generator.integers(0, high, shape).astype(info.dtype)
    return feeds


def _memory_bytes() -> int:
    """Return the size of the machine's memory, or what no machine has where the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 2**46
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
