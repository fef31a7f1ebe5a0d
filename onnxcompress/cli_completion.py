"""Completion of the command line in a shell, by shtab, from the same parsers that read it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from onnxcompress.errors import ProviderUnavailableError, RecipeError
from onnxcompress.recipe import Recipe
from onnxcompress.recipe.kinds import Choice, FilePath, Kind, ManyOf, Provider, SplitSpec, Text
from onnxcompress.recipe.options import options_of

SHELLS = ("bash", "zsh", "fish")

# shtab completes commands or files, not both: in bash it takes this for the first word.
_BASH_FIRST_WORD = "_shtab_onnxcompress_pos_0_COMPGEN=_shtab_compgen_files"

Parsers = Mapping[str, Callable[[], argparse.ArgumentParser]]
"""{command: makes its parser}; `compress` is the command without a name."""


def completion_script(shell: str, parsers: Parsers) -> str:
    """Return a script that a shell reads to complete the program's options, their values, files and commands.

    Raises:
        RecipeError: the shell is not known.
        ProviderUnavailableError: shtab is not installed.
    """
    if shell not in SHELLS:
        raise RecipeError(f"--print-completion: '{shell}' is not known; give one of {', '.join(SHELLS)}")
    try:
        import shtab
    except ImportError as error:
        raise ProviderUnavailableError(
            "--print-completion needs shtab, which is not installed: pip install 'onnxcompress[completion]'"
        ) from error
    parser = parsers["compress"]()
    _add_completions(parser, shtab.FILE)
    section = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command, make in parsers.items():
        if command == "compress":
            continue
        own = make()
        _add_completions(own, shtab.FILE)
        section.add_parser(
            command, parents=[own], add_help=False, help=(own.description or command).partition(".")[0], usage=own.usage
        )
    # A command stands in the place of IN: it is the first word that is completed.
    actions = parser._actions
    actions.sort(key=lambda action: not isinstance(action, argparse._SubParsersAction))
    return str(shtab.complete(parser, shell=shell, preamble=_BASH_FIRST_WORD if shell == "bash" else ""))


def _add_completions(parser: argparse.ArgumentParser, files: Any) -> None:
    known = options_of(Recipe)
    for action in parser._actions:
        option = known.get(action.dest)
        words = _words(option.kind) if option is not None else ()
        if words:
            action.choices = words
        elif (option is None and action.type is not None) or (option is not None and _is_path(option.kind)):
            action.complete = files  # type: ignore[attr-defined]


def _words(kind: Kind) -> tuple[str, ...]:
    if isinstance(kind, ManyOf):
        return _words(kind.kind)
    if isinstance(kind, Choice):
        return kind.names
    if isinstance(kind, SplitSpec):
        return (*kind.words, "energy=", "ratio=")
    return kind.NAMES if isinstance(kind, Provider) else ()


def _is_path(kind: Kind) -> bool:
    # Data are text, because they may be `module:callable`; most often they are a path.
    return isinstance(kind, (FilePath, Text))
