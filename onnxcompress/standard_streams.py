"""Standard output and error where they are closed, or cannot take what is written: a run's files and exit code stay."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


def open_closed_streams() -> None:
    """Put the null device in the place of standard streams that the caller closed.

    Else the next file that is opened takes their number, and what a library writes to standard error ends up in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            os.set_inheritable(opened, True)  # as standard streams are: a sweep's processes would lack them again
    # Written to as long as the process runs.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def tell(text: str) -> None:
    """Write to standard error; what it cannot take is lost."""
    with tolerated(sys.stderr):
        sys.stderr.write(text)


@contextlib.contextmanager
def tolerated(stream: TextIO) -> Iterator[None]:
    """Flush a stream at the end; where it takes no more (a full disk, a reader that left), be silent from then on."""
    try:
        yield
        stream.flush()
    except OSError as error:
        # The end of the process flushes once more.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            tell(f"onnxcompress: warning: standard output cannot be written ({error.strerror or error})\n")
