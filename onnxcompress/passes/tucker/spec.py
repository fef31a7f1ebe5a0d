"""How ranks are asked for: the words of `--tucker` and `--svd`, and the ranks file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxcompress.errors import RecipeError

Rule = Literal["off", "auto", "evbmf", "energy", "ratio", "ranks"]

_TUCKER_FORMS = "off, auto, evbmf, energy=0.98, ratio=0.5 or ranks=FILE.json"
_SVD_FORMS = "off, auto, energy=0.98 or ratio=0.5"


@dataclass(frozen=True)
class RankSpec:
    """A rule that chooses ranks.

    Attributes:
        rule: `off` splits nothing; `auto` takes EVBMF's ranks where a split pays; `evbmf`, `energy`, `ratio` and
            `ranks` split what can be split, whether it pays or not.
        value: the share of `energy` or `ratio`, above 0 and at most 1.
        ranks: of `ranks`: {node name: (rank_in, rank_out)}, per group of a grouped convolution.
        source: of `ranks`: the file, for messages.
    """

    rule: Rule
    value: float | None = None
    ranks: Mapping[str, tuple[int, int]] | None = None
    source: str | None = None

    @property
    def share(self) -> float:
        """The value, of a rule that has one."""
        if self.value is None:
            raise ValueError(f"rule '{self.rule}' has no value")
        return self.value


def parse_tucker_spec(text: str) -> RankSpec:
    """Read `off`, `auto`, `evbmf`, `energy=F`, `ratio=F` or `ranks=FILE.json` (the file is read here).

    Raises:
        RecipeError: the text is none of these, F is not above 0 and at most 1, or the file cannot be used.
    """
    name, separator, argument = text.partition("=")
    if name == "ranks" and separator and argument:
        return RankSpec("ranks", ranks=read_ranks(Path(argument)), source=argument)
    if text == "evbmf":
        return RankSpec("evbmf")
    return _common(text, "tucker", _TUCKER_FORMS)


def parse_svd_spec(text: str) -> RankSpec:
    """Read `off`, `auto`, `energy=F` or `ratio=F`.

    Raises:
        RecipeError: the text is none of these, or F is not above 0 and at most 1.
    """
    return _common(text, "svd", _SVD_FORMS)


def _common(text: str, option: str, forms: str) -> RankSpec:
    name, separator, argument = text.partition("=")
    if text == "off":
        return RankSpec("off")
    if text == "auto":
        return RankSpec("auto")
    if name == "energy" and separator:
        return RankSpec("energy", _share(argument, option, name))
    if name == "ratio" and separator:
        return RankSpec("ratio", _share(argument, option, name))
    raise RecipeError(f"{option}: '{text}' is not known; give {forms}")


def _share(text: str, option: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value <= 1.0:
        raise RecipeError(f"{option}: '{name}={text}' needs a number above 0 and at most 1, such as {name}=0.5")
    return value


def read_ranks(path: Path) -> dict[str, tuple[int, int]]:
    """Read a ranks file, `{"node name": [rank_in, rank_out], ...}`.

    Raises:
        RecipeError: the file cannot be read, is not JSON of that form, or a rank is not a whole number above 0; the
            message names the key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
    except OSError as error:
        raise RecipeError(f"tucker: ranks file {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"tucker: ranks file {path}: is not JSON ({error})") from error
    if not isinstance(content, _Pairs):
        raise RecipeError(f'tucker: ranks file {path}: expected {{"node name": [rank_in, rank_out], ...}}')
    ranks: dict[str, tuple[int, int]] = {}
    for node, pair in content:
        if node in ranks:
            raise RecipeError(f"tucker: ranks file {path}: '{node}' stands there twice")
        whole = isinstance(pair, list) and not isinstance(pair, _Pairs) and all(type(rank) is int for rank in pair)
        if not whole or len(pair) != 2 or min(pair) < 1:
            raise RecipeError(
                f"tucker: ranks file {path}: '{node}': expected [rank_in, rank_out], two whole numbers above 0"
            )
        ranks[node] = (pair[0], pair[1])
    return ranks


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that a key that stands twice is seen."""
