"""Messages of libraries that are for their developers."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

_STANDARD_OUTPUT = 1
_redirecting = threading.Lock()


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Hold back what libraries log to the root logger below an error, and give everything back as it was.

    onnxruntime's quantizer logs there by `logging.warning`, which also installs a handler for good.
    """
    root = logging.getLogger()
    handlers, null = list(root.handlers), logging.NullHandler()
    previous = root.manager.disable
    root.addHandler(null)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
        root.removeHandler(null)
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)


@contextlib.contextmanager
def without_lines(starting: str) -> Iterator[None]:
    """Take the lines with this beginning out of what compiled code prints to standard output meanwhile.

    It prints to the file descriptor, and keeps in its own buffer what is not for a terminal. Everything else comes out
    when this ends.
    """
    with _redirecting, tempfile.TemporaryFile() as file:
        _flush()
        try:
            saved = os.dup(_STANDARD_OUTPUT)
        except OSError:  # it is closed
            yield
            return
        os.dup2(file.fileno(), _STANDARD_OUTPUT)
        try:
            yield
        finally:
            _flush()
            os.dup2(saved, _STANDARD_OUTPUT)
            file.seek(0)
            for line in file:
                if not line.startswith(starting.encode()):
                    os.write(saved, line)
            os.close(saved)


def _flush() -> None:
    """Write out what Python and C hold back of standard output."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
