"""The command line: arguments in, tables and exit codes out. Everything heavy is imported where it is used."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from onnxcompress.cli_options import parse_arguments
from onnxcompress.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Notice,
    RecipeError,
    Terminated,
    explained,
    interruption,
)
from onnxcompress.standard_streams import open_closed_streams, tell, tolerated
from onnxcompress.termination import ENDING, signals_handled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code (see `onnxcompress.errors`)."""
    open_closed_streams()
    _make_streams_forgiving()
    try:
        with signals_handled(*ENDING), _library_warnings_hidden():
            return _run(list(sys.argv[1:] if arguments is None else arguments))
    except BaseException as error:
        return _told(error)


def _told(error: BaseException) -> int:
    """Say why the run ended, and return its exit code."""
    interrupt = interruption(error)
    if interrupt is not None:
        _say(str(interrupt) if isinstance(interrupt, Terminated) else "interrupted")
        return EXIT_INTERRUPTED
    told = explained(error)
    if told is None or told.exit_code == EXIT_BUG:
        return _bug(error)
    _say(f"error: {told}")
    return told.exit_code


def _run(arguments: list[str]) -> int:
    try:
        namespace = parse_arguments(arguments)
    except SystemExit as stop:  # --help and --version
        with tolerated(sys.stdout):
            return int(stop.code or EXIT_OK)
    try:
        os.getcwd()
    except OSError as error:
        raise RecipeError("the current folder does not exist any more; change into another one") from error
    _check_epoch()
    from onnxcompress import cli_commands

    commands = {
        "compress": cli_commands.run_compress,
        "inspect": cli_commands.run_inspect,
        "compare": cli_commands.run_compare,
        "sweep": cli_commands.run_sweep,
    }
    return commands[namespace.command](namespace)


def _check_epoch() -> None:
    """NumPy reads this variable when it is loaded, and fails without a word on where the number came from."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        if given is not None:
            time.gmtime(int(given))
    except (ValueError, OverflowError, OSError):
        raise RecipeError(f"SOURCE_DATE_EPOCH is '{given}', no number of seconds; correct it or unset it") from None


def _say(message: str) -> None:
    """Write one line to standard error, whatever the message holds."""
    from onnxcompress.report.text import printable

    tell(f"onnxcompress: {printable(' '.join(message.split()))}\n")


def _bug(error: BaseException) -> int:
    import traceback

    from onnxcompress.report.environment import versions

    tell("".join(traceback.format_exception(error)))
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    _say(f"this is a bug of onnxcompress; please report it with the lines above ({found})")
    return EXIT_BUG


def _make_streams_forgiving() -> None:
    """A name that the terminal's encoding cannot show is escaped instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _library_warnings_hidden() -> Iterator[None]:
    """Warnings of libraries are for developers; `python -W` brings them back. Our own are lines like others."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, Notice):
            _say(f"warning: {message}")
        else:
            shown(message, category, *where, **more)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", Notice)
        warnings.showwarning = show
        yield
