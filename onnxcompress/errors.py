"""The error tree. Every error a user can cause carries one line (what, where, what to do) and an exit code."""

from __future__ import annotations

from collections.abc import Mapping
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
    """The process was told to end (SIGTERM): nothing is written any more, not even what an interrupt would keep."""


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
