"""Messages of libraries that are for their developers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


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
