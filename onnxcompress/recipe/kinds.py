"""Kinds of option values: how a value is read from the command line and checked wherever it came from.

A kind first turns command-line text into the value a TOML recipe would hold (`from_texts`), then `checked` validates
that value and returns its canonical form. Lists and tables may stand in a recipe as the text of the command line, too.
Every complaint starts with the place the value stands at.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from onnxcompress.errors import RecipeError
from onnxcompress.remote import Location, RemoteFile, file_location


def shown(value: object) -> str:
    """Return a value as it stands in a message: quoted text, at most 60 characters, control characters escaped."""
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_words(value: Any) -> list[str] | None:
    """Return what follows an option on the command line, where a value is that: a text, or a list of texts."""
    words = [value] if isinstance(value, str) else value
    is_text = isinstance(words, (list, tuple)) and all(isinstance(word, str) for word in words)
    return list(words) if is_text else None


class Kind(ABC):
    """What values an option takes."""

    repeatable: bool = False

    def from_texts(self, texts: Sequence[str], where: str) -> Any:
        """Return the recipe value of the option's occurrences on the command line; the last occurrence wins."""
        return self.from_text(texts[-1])

    def from_text(self, text: str) -> Any:
        """Return the recipe value of one word of the command line; text that does not convert stays text."""
        return text

    @abstractmethod
    def checked(self, value: Any, where: str) -> Any:
        """Return the canonical value.

        Raises:
            RecipeError: the value cannot be used; the message starts with `where`.
        """

    def plain(self, value: Any) -> Any:
        """Return a canonical value as TOML and JSON hold it."""
        return value


class Flag(Kind):
    """true or false; `--name` and `--no-name` on the command line."""

    def checked(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise RecipeError(f"{where}: {shown(value)} is not true or false")
        return value


class Number(Kind):
    """A finite number within bounds, or one of the words in `words`; `below` excludes its bound, `above` likewise."""

    def __init__(
        self,
        expected: str,
        *,
        minimum: float = -math.inf,
        maximum: float = math.inf,
        below: float = math.inf,
        above: float = -math.inf,
        words: tuple[str, ...] = (),
    ) -> None:
        self.expected, self.words = expected, words
        self.minimum, self.maximum, self.below, self.above = minimum, maximum, below, above

    def from_text(self, text: str) -> float | str:
        try:
            return float(text)
        except ValueError:
            return text

    def checked(self, value: Any, where: str) -> Any:
        if isinstance(value, str) and value in self.words:
            return value
        if isinstance(value, bool) or not isinstance(value, Real):
            raise RecipeError(f"{where}: {shown(value)} is not a number; give {self.expected}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        inside = self.minimum <= number <= self.maximum and self.above < number < self.below
        if not math.isfinite(number) or not inside:
            raise RecipeError(f"{where}: {_shortened(str(value))} is out of range; give {self.expected}")
        return number


class Whole(Kind):
    """A whole number of at least `minimum`, or one of the words in `words`."""

    def __init__(self, *, minimum: int, words: tuple[str, ...] = ()) -> None:
        self.minimum, self.words = minimum, words

    def from_text(self, text: str) -> int | str:
        try:
            return int(text)
        except ValueError:
            return text

    def checked(self, value: Any, where: str) -> int | str:
        if isinstance(value, str) and value in self.words:
            return value
        expected = " or ".join([f"a whole number of at least {self.minimum}", *self.words])
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise RecipeError(f"{where}: {shown(value)} is not a whole number; give {expected}")
        number = int(value)
        if not self.minimum <= number < 2**63:
            raise RecipeError(f"{where}: {shown(value)} is out of range; give {expected}")
        return number


class Choice(Kind):
    """One of a few names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def checked(self, value: Any, where: str) -> str:
        if value not in self.names:
            raise RecipeError(f"{where}: {shown(value)} is not known; give one of {', '.join(self.names)}")
        return str(value)


class Text(Kind):
    """Any non-empty text; a path is taken as text."""

    def __init__(self, what: str) -> None:
        self.what = what

    def checked(self, value: Any, where: str) -> str:
        text = str(value) if isinstance(value, Path) else value
        if not isinstance(text, str) or not text or "\0" in text:
            raise RecipeError(f"{where}: {shown(value)} is not {self.what}")
        return text


class FilePath(Kind):
    """The path of a file, relative to the current directory, or an address such as s3://bucket/file."""

    def checked(self, value: Any, where: str) -> Location:
        if not isinstance(value, (str, Path, RemoteFile)) or not str(value) or "\0" in str(value):
            raise RecipeError(f"{where}: {shown(value)} is not a file path")
        try:
            return file_location(value)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from None

    def plain(self, value: Any) -> str:
        return str(value)


class SplitSpec(Kind):
    """How ranks are chosen: a word, or `energy=F`, `ratio=F`, `ranks=FILE.json` as far as the option allows them.

    The form is checked here, so that a typing error costs no work; the passes give the words their meaning.
    """

    def __init__(self, *words: str, file: bool = False) -> None:
        self.words, self.file = words, file

    def checked(self, value: Any, where: str) -> str:
        forms = [*self.words, "energy=F", "ratio=F", *(["ranks=FILE.json"] if self.file else [])]
        expected = f"give one of {', '.join(forms)}"
        if not isinstance(value, str):
            raise RecipeError(f"{where}: {shown(value)} is not text; {expected}")
        if value in self.words:
            return value
        name, separator, argument = value.partition("=")
        if separator and name in ("energy", "ratio"):
            fraction = Number(f"a number above 0 and at most 1 after '{name}='", above=0.0, maximum=1.0)
            fraction.checked(fraction.from_text(argument), where)
        elif not (separator and name == "ranks" and self.file and argument):
            raise RecipeError(f"{where}: {shown(value)} is not known; {expected}")
        return value


class Steps(Kind):
    """Which of several steps are taken: all (`auto`), none (`off`), some (`fold,lrn`), all but some (`auto,-lrn`)."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def checked(self, value: Any, where: str) -> str:
        expected = f"give auto, off, auto,-STEP or STEP,STEP; the steps are {', '.join(self.names)}"
        if not isinstance(value, str):
            raise RecipeError(f"{where}: {shown(value)} is not text; {expected}")
        words = [word.strip() for word in value.split(",")]
        if words in (["auto"], ["off"]):
            return words[0]
        first, rest = words[0], words[1:]
        names = [word.removeprefix("-") for word in rest] if first == "auto" else words
        whole = first != "auto" or all(word.startswith("-") for word in rest)
        unknown = [name for name in names if name not in self.names]
        if not whole or unknown or len(set(names)) < len(names):
            raise RecipeError(f"{where}: {shown(value)} is not known; {expected}")
        return ",".join(words)

    def chosen(self, value: str) -> tuple[str, ...]:
        """Return the names of the steps that a checked value stands for, in the order of the steps."""
        first, *rest = value.split(",")
        if first == "auto":
            return tuple(name for name in self.names if f"-{name}" not in rest)
        return tuple(name for name in self.names if name in (first, *rest))


class Regex(Kind):
    """A regular expression of Python's `re`."""

    def checked(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise RecipeError(f"{where}: {shown(value)} is not a regular expression")
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise RecipeError(f"{where}: {shown(value)} is not a regular expression: {error}") from None
        return value


class Provider(Kind):
    """A short name of an execution provider, or onnxruntime's own name of it."""

    NAMES = ("cpu", "cuda", "tensorrt", "openvino", "directml", "coreml")

    def checked(self, value: Any, where: str) -> str:
        is_full_name = isinstance(value, str) and re.fullmatch(r"(?i)[a-z0-9]+ExecutionProvider", value)
        if str(value).lower() not in self.NAMES and not is_full_name:
            known = ", ".join([*self.NAMES, "or an onnxruntime name such as CPUExecutionProvider"])
            raise RecipeError(f"{where}: {shown(value)} is not known; give {known}")
        return str(value)


class ManyOf(Kind):
    """A list; the option is repeated on the command line."""

    repeatable = True

    def __init__(self, kind: Kind, *, minimum: int = 0) -> None:
        self.kind, self.minimum = kind, minimum

    def from_texts(self, texts: Sequence[str], where: str) -> list[Any]:
        return [self.kind.from_text(text) for text in texts]

    def checked(self, value: Any, where: str) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = self.from_texts([value], where)
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{where}: {shown(value)} is neither text nor a list; write [{shown(value)}]")
        if len(value) < self.minimum:
            raise RecipeError(f"{where}: the list is empty; give at least {self.minimum}")
        numbered = len(value) > 1
        return tuple(self.kind.checked(v, f"{where}[{n}]" if numbered else where) for n, v in enumerate(value))

    def plain(self, value: Any) -> list[Any]:
        return [self.kind.plain(v) for v in value]


class InputShapes(Kind):
    """{input name: shape}; `NAME:1x3x224x224` on the command line."""

    repeatable = True
    expected = "give NAME:1x3x224x224"

    def from_texts(self, texts: Sequence[str], where: str) -> dict[str, Any]:
        shapes: dict[str, Any] = {}
        for text in texts:
            # A tensor name may hold colons itself ("input:0"): the shape is what follows the last one.
            name, separator, shape = text.rpartition(":")
            if not separator or not name or not re.fullmatch(r"[0-9]+(x[0-9]+)*", shape):
                raise RecipeError(f"{where}: {shown(text)} is not a named shape; {self.expected}")
            shapes[name] = [int(size) for size in shape.split("x")]
        return shapes

    def checked(self, value: Any, where: str) -> dict[str, tuple[int, ...]]:
        words = _as_words(value)
        value = value if words is None else self.from_texts(words, where)
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: {shown(value)} is not a table of input names and shapes; {self.expected}")
        size = Whole(minimum=1)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in value.items():
            if not isinstance(name, str) or not isinstance(shape, (list, tuple)):
                raise RecipeError(f"{where}.{name}: {shown(shape)} is not a list of sizes such as [1, 3, 224, 224]")
            shapes[name] = tuple(int(size.checked(s, f"{where}.{name}")) for s in shape)
        return shapes

    def plain(self, value: Any) -> dict[str, list[int]]:
        return {name: list(shape) for name, shape in value.items()}


class Targets(Kind):
    """{kind: share of the original}; `macs=0.55` on the command line."""

    repeatable = True
    names = ("macs", "params", "size", "latency")

    def from_texts(self, texts: Sequence[str], where: str) -> dict[str, Any]:
        shares: dict[str, Any] = {}
        for text in texts:
            kind, separator, share = text.partition("=")
            if not separator:
                raise RecipeError(f"{where}: {shown(text)} is not KIND=F, such as macs=0.55")
            shares[kind] = Number("").from_text(share)
        return shares

    def checked(self, value: Any, where: str) -> dict[str, float]:
        words = _as_words(value)
        value = value if words is None else self.from_texts(words, where)
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: {shown(value)} is not a table of kinds and shares; give text as macs=0.55")
        share = Number("a share above 0 and at most 1 of the original, such as 0.55", above=0.0, maximum=1.0)
        for kind in value:
            if kind not in self.names:
                raise RecipeError(f"{where}: {shown(kind)} is not known; give one of {', '.join(self.names)}")
        return {str(kind): float(share.checked(own, f"{where}.{kind}")) for kind, own in value.items()}

    def plain(self, value: Any) -> dict[str, float]:
        return dict(value)


class ProviderOptions(Kind):
    """{provider: {option: value}}; `cuda.cudnn_conv_algo_search=HEURISTIC` on the command line."""

    repeatable = True

    def from_texts(self, texts: Sequence[str], where: str) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for text in texts:
            key, separator, setting = text.partition("=")
            provider, dot, name = key.partition(".")
            if not (separator and dot and provider and name):
                example = "cuda.cudnn_conv_algo_search=HEURISTIC"
                raise RecipeError(f"{where}: {shown(text)} is not PROVIDER.OPTION=VALUE, such as {example}")
            options.setdefault(provider, {})[name] = setting
        return options

    def checked(self, value: Any, where: str) -> dict[str, dict[str, str]]:
        words = _as_words(value)
        value = value if words is None else self.from_texts(words, where)
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: {shown(value)} is not a table of providers; give PROVIDER.OPTION=VALUE")
        options: dict[str, dict[str, str]] = {}
        for provider, settings in value.items():
            name = Provider().checked(provider, where)
            if not isinstance(settings, Mapping):
                raise RecipeError(f"{where}.{name}: {shown(settings)} is not a table of options")
            for option, setting in settings.items():
                if not isinstance(setting, (str, Real)):
                    raise RecipeError(f"{where}.{name}.{option}: {shown(setting)} is not text or a number")
            # onnxruntime takes every option as text, booleans as 0 and 1.
            options[name] = {str(o): str(int(s) if isinstance(s, bool) else s) for o, s in settings.items()}
        return options
