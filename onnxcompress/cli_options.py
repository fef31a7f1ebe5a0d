"""The command line's grammar, built from the recipe's options: one declaration for both."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from onnxcompress import __version__
from onnxcompress.errors import RecipeError
from onnxcompress.recipe import Recipe
from onnxcompress.recipe.kinds import Flag
from onnxcompress.recipe.options import DATA, GATES, GROUPS, LATENCY, Option, options_of
from onnxcompress.recipe.sweep_options import SweepOptions, recipe_names
from onnxcompress.remote import file_location, location

COMMANDS = ("inspect", "compare", "sweep")

_COMPRESS_ABOUT = """\
Compress a convolutional network in ONNX: remove filters, split convolutions (Tucker), or both,
and report what that cost in accuracy and gained in size and measured latency.

other commands: onnxcompress inspect IN, onnxcompress compare A B, onnxcompress sweep IN (each has its own --help)
"""
_COMPRESS_EXAMPLES = """\
examples:
  onnxcompress model.onnx small.onnx --prune 0.4 --tucker auto
  onnxcompress model.onnx small.onnx --prune 0.1 --tucker energy=0.98 \\
      --data val/ --preprocess imagenet --max-drop 1.0 --report report.json
  onnxcompress model.onnx small.onnx --target macs=0.6 --calib photos/ --preprocess imagenet --quantize int8
  onnxcompress model.onnx small.onnx --recipe recipe.toml --overwrite
  onnxcompress model.onnx --prune 0.4 --dry-run

exit codes:
  0 done, every gate passed    2 wrong usage or recipe    3 a gate failed
  4 unusable model             5 unusable data            6 provider, device or package not available
  70 a bug                     130 interrupted
"""
_INSPECT_EXAMPLES = """\
examples:
  onnxcompress inspect model.onnx
  onnxcompress inspect model.onnx --json model.json -q
  onnxcompress inspect model.onnx --profile --threads 2
  onnxcompress inspect model.onnx --time-table times.json --threads 2
"""
_COMPARE_EXAMPLES = """\
examples:
  onnxcompress compare model.onnx small.onnx --data val/ --preprocess imagenet --max-drop 1.0
  onnxcompress compare model.onnx small.onnx --provider cuda --batch 8 --min-speedup 1.2
"""
_SWEEP_ABOUT = """\
Prune only, split by Tucker only, and both, over a range: every point is compressed, evaluated and kept in DIR, with a
table of what both gain over the better one alone and Pareto plots (sweep.html, sweep.csv, sweep.json).
The same command again goes on where it was interrupted.
"""
_SWEEP_EXAMPLES = """\
examples:
  onnxcompress sweep model.onnx --data val/ --calib photos/ --preprocess imagenet --recover refit --out sweep/
  onnxcompress sweep model.onnx --data test.npz --train train.npz --epochs 10 --out sweep/ \\
      --prune-range 0.2:0.6:3 --tucker-range energy=0.8,0.9 --jobs 2
"""
_COMPARE_LEFT_OUT = ("calib", "keep_failed", "time_table", "force_time_table")
_INSPECT_OPTIONS = ("profile", "provider", "provider_option", "batch", "threads", "input_shape", "seed")
_COMPARE_WRITES = ("report", "markdown", "junit", "html")
_NOT_RECIPE = ("command", "input", "output", "recipe", "json", "out", "quiet", "verbose", "progress")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are RecipeErrors: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message} (see {self.prog} --help)")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command line; recipe options stand in it as words, and only those that were given.

    Raises:
        RecipeError: the arguments do not fit the grammar.
        SystemExit: `--help` or `--version` was asked for, and printed.
    """
    if arguments and arguments[0] in COMMANDS:
        command, rest = arguments[0], arguments[1:]
    else:
        command, rest = "compress", arguments
    namespace = _parsers()[command]().parse_args(rest)
    namespace.command = command
    return namespace


def _parsers() -> dict[str, Callable[[], argparse.ArgumentParser]]:
    return {
        "compress": _compress_parser,
        "inspect": _inspect_parser,
        "compare": _compare_parser,
        "sweep": _sweep_parser,
    }


class _PrintCompletion(argparse.Action):
    """Prints a shell's completion script and ends the program, as `--version` prints the version."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from onnxcompress.cli_completion import completion_script

        sys.stdout.write(completion_script(str(rest[1]), _parsers()))
        parser.exit()


def measurement_of(namespace: argparse.Namespace) -> Recipe:
    """Return the recipe of what `inspect` measures.

    Raises:
        RecipeError: a value cannot be used.
    """
    words = {name: value for name, value in vars(namespace).items() if name in _INSPECT_OPTIONS}
    return Recipe().updated_from_words(words)


def recipe_of(namespace: argparse.Namespace) -> Recipe:
    """Return the recipe of a parsed command line: its `--recipe` file with the options given in place of its keys.

    Raises:
        RecipeError: a value cannot be used; the message names the option, or the file and the key.
    """
    base = Recipe.from_toml(namespace.recipe) if namespace.recipe else Recipe()
    left_out = {*_NOT_RECIPE, *options_of(SweepOptions)}
    words: Mapping[str, Sequence[str] | bool] = {k: v for k, v in vars(namespace).items() if k not in left_out}
    return base.updated_from_words(words)


def sweep_options_of(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a sweep beside the recipe's: those that were given.

    Raises:
        RecipeError: a value cannot be used; the message names the option.
    """
    found: dict[str, Any] = {}
    for name, known in options_of(SweepOptions).items():
        if name in vars(namespace):
            words, where = vars(namespace)[name], f"--{name.replace('_', '-')}"
            value = words if isinstance(words, bool) else known.kind.from_texts(words, where)
            found[name] = known.kind.checked(value, where)
    return found


def _compress_parser() -> argparse.ArgumentParser:
    parser = _new_parser("onnxcompress", "%(prog)s IN OUT [options]", _COMPRESS_ABOUT, _COMPRESS_EXAMPLES)
    parser.add_argument("input", metavar="IN", type=location, help="the model to compress")
    parser.add_argument(
        "output",
        metavar="OUT",
        type=file_location,
        nargs="?",
        help="the model to write (may be left out with --dry-run)",
    )
    _add_recipe_options(parser, options_of(Recipe))
    _add_common(parser, progress=True)
    parser.add_argument(
        "--print-completion",
        metavar="SHELL",
        action=_PrintCompletion,
        default=argparse.SUPPRESS,
        help="print what completes this command line in bash, zsh or fish",
    )
    parser.add_argument("--version", action="version", version=f"onnxcompress {__version__}")
    return parser


def _inspect_parser() -> argparse.ArgumentParser:
    about = "Show what a model costs layer by layer, and what of it can be pruned or split and what cannot, and why."
    parser = _new_parser("onnxcompress inspect", "%(prog)s IN [options]", about, _INSPECT_EXAMPLES)
    parser.add_argument("input", metavar="IN", type=location, help="the model to look at")
    parser.add_argument("--json", metavar="FILE", type=file_location, help="write everything as JSON")
    section = parser.add_argument_group("what is measured")
    section.add_argument(
        "--time-table",
        metavar="F.json",
        type=file_location,
        help="time every layer whole and split on this machine (minutes), for --time-table of compression",
    )
    known = options_of(Recipe)
    _add_recipe_options(parser, {name: known[name] for name in _INSPECT_OPTIONS})
    _add_common(parser, progress=True, recipe=False)
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    about = "Compare accuracy and latency of two models, with the gates and exit codes of compression."
    parser = _new_parser("onnxcompress compare", "%(prog)s A B [options]", about, _COMPARE_EXAMPLES)
    parser.add_argument("input", metavar="A", type=location, help="the original model")
    parser.add_argument("output", metavar="B", type=location, help="the model that shall replace it")
    known = options_of(Recipe)
    chosen = {
        name: known[name]
        for name in known
        if (known[name].group in (DATA, LATENCY, GATES) or name in _COMPARE_WRITES) and name not in _COMPARE_LEFT_OUT
    }
    _add_recipe_options(parser, chosen)
    _add_common(parser, progress=True)
    return parser


def _sweep_parser() -> argparse.ArgumentParser:
    parser = _new_parser(
        "onnxcompress sweep", "%(prog)s IN --data D --out DIR [options]", _SWEEP_ABOUT, _SWEEP_EXAMPLES
    )
    parser.add_argument("input", metavar="IN", type=location, help="the model to compress")
    section = parser.add_argument_group("the sweep")
    section.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the points and the report")
    for name, known in options_of(SweepOptions).items():
        _add_option(section, name, known, SweepOptions())
    recipe = options_of(Recipe)
    _add_recipe_options(parser, {name: recipe[name] for name in recipe_names()})
    _add_common(parser, progress=True)
    return parser


def _new_parser(program: str, usage: str, about: str, examples: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=program,
        usage=usage,
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_recipe_options(parser: argparse.ArgumentParser, chosen: Mapping[str, Option]) -> None:
    for group, title in GROUPS.items():
        members = {name: known for name, known in chosen.items() if known.group == group}
        if members:
            section = parser.add_argument_group(title)
            for name, known in members.items():
                _add_option(section, name, known)


def _add_option(
    section: argparse._ArgumentGroup, name: str, known: Option, defaults: Recipe | SweepOptions | None = None
) -> None:
    flag, text, default = f"--{name.replace('_', '-')}", known.help, getattr(defaults or Recipe(), name)
    if isinstance(known.kind, Flag):
        yes, no = (text, argparse.SUPPRESS) if not default else (argparse.SUPPRESS, text)
        yes, no = yes.replace("%", "%%"), no.replace("%", "%%")
        section.add_argument(flag, dest=name, action="store_true", default=argparse.SUPPRESS, help=yes)
        section.add_argument(f"--no-{flag[2:]}", dest=name, action="store_false", default=argparse.SUPPRESS, help=no)
        return
    if default not in (None, (), {}) and "default" not in text:
        text += f" (default: {default[0] if isinstance(default, tuple) else default})"
    # `append`, so that kinds which take several occurrences see all of them, and others the last.
    section.add_argument(
        flag, dest=name, action="append", default=argparse.SUPPRESS, metavar=known.metavar, help=text.replace("%", "%%")
    )


def _add_common(parser: argparse.ArgumentParser, *, progress: bool, recipe: bool = True) -> None:
    section = parser.add_argument_group("recipe and terminal" if recipe else "terminal")
    if recipe:
        section.add_argument(
            "--recipe", metavar="F.toml", type=location, help="take options from a TOML file; the command line wins"
        )
    section.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")
    section.add_argument("-v", "--verbose", action="store_true", help="print every decision and every node left alone")
    if progress:
        section.add_argument(
            "--no-progress", dest="progress", action="store_false", help="no progress bar on standard error"
        )
