"""The error tree. Every error a user can cause carries one line (what, where, what to do) and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import ClassVar

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_GATE = 3
EXIT_MODEL = 4
EXIT_DATA = 5
EXIT_PROVIDER = 6
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class Terminated(BaseException):
    """The process was told to end: nothing is written any more, not even what an interrupt would keep.

    Args:
        by: the signal's name.
        left: what the run leaves for the next one.
    """

    def __init__(self, by: str, left: str = "") -> None:
        super().__init__(by, left)
        self.by = by
        self._left = left

    def __str__(self) -> str:
        return f"interrupted by {self.by}{': ' if self._left else ''}{self._left}"


def interruption(error: BaseException) -> KeyboardInterrupt | Terminated | None:
    """Return the interrupt that an error came of: compiled modules raise errors of their own in its place."""
    return next((each for each in _origins(error) if isinstance(each, (KeyboardInterrupt, Terminated))), None)


def _origins(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came of, the last first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


class OnnxCompressError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the process status the command line returns."""

    exit_code: ClassVar[int] = EXIT_BUG


class RecipeError(OnnxCompressError):
    """An option, recipe key or output path that cannot be used."""

    exit_code = EXIT_USAGE


class ModelError(OnnxCompressError):
    """The model cannot be read, is invalid, or holds nothing that can be compressed."""

    exit_code = EXIT_MODEL


class UnsupportedOpError(ModelError):
    """An operator or an attribute of it that a transformation cannot handle."""


class DataError(OnnxCompressError):
    """Data that is missing, malformed, or does not fit the model."""

    exit_code = EXIT_DATA


class ProviderUnavailableError(OnnxCompressError):
    """An execution provider or device that was asked for is not available, or a package that an option needs."""

    exit_code = EXIT_PROVIDER


class BudgetInfeasibleError(OnnxCompressError):
    """A target that no allowed compression reaches; the message says what was reached.

    Attributes:
        reached: {target: the share of the original's that can be reached}, of those for which it is known.
    """

    exit_code = EXIT_GATE

    def __init__(self, message: str, reached: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.reached = dict(reached or {})


class PassError(OnnxCompressError):
    """A pass broke its contract: a bug of onnxcompress, not of the user."""

    exit_code = EXIT_BUG


class Notice(UserWarning):
    """A warning about a run, given while it goes on: what to do where it seems to stand still."""


_FULL_DISK = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_NO_FOLDER = "No usable temporary directory"
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "can't start new thread",
    "std::bad_alloc",
    "Arena alloc failed",  # protobuf, reading
    "Failed to serialize proto",
    "Failed to allocate memory for requested buffer",
    "failed to map segment from shared object",
)


def explained(error: BaseException) -> OnnxCompressError | None:
    """Return the error that the user is told; None of a bug.

    Where memory ran out this is said, whatever was made of it on the way, such as a file that is no model.
    """
    lacks = (lacking(each) for each in _origins(error) if _is_of_memory(each))
    return next(lacks, error if isinstance(error, OnnxCompressError) else lacking(error))


def _is_of_memory(error: BaseException) -> bool:
    is_foreign = isinstance(error, Exception) and not isinstance(error, OnnxCompressError)
    return isinstance(error, MemoryError) or (is_foreign and any(text in str(error) for text in _NO_MEMORY))


def lacking(error: BaseException) -> DataError | None:
    """Return what to say where the machine ran out of something that nobody foresaw; None of any other error."""
    seen = " ".join(str(error).split())
    shown = f" ({seen})" if seen else ""
    if _is_of_memory(error):
        return DataError(
            f"this machine's memory does not suffice{shown}; give --samples N with fewer, a smaller --batch, or more "
            "memory (see its limits: ulimit -v)"
        )
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOMEM:
        return DataError(f"this machine's memory does not suffice{shown}; give --samples N with fewer, or more memory")
    if error.errno in _FILES:
        return DataError(f"too many files are open{shown}; raise the limit (ulimit -n)")
    if error.errno in _FULL_DISK:
        return DataError(f"a file finds no room{shown}; make room, or give another folder for temporary ones by TMPDIR")
    if _NO_FOLDER in seen:
        return DataError(f"temporary files need a folder that can be written{shown}; give one by TMPDIR")
    return None
