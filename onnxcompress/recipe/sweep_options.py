"""What a sweep goes through, where its points run, and what it keeps: the options of `sweep` beside a recipe's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxcompress.recipe.kinds import Choice, Flag, ManyOf, Text, Whole
from onnxcompress.recipe.options import COMPRESSION, DATA, LATENCY, TRAINING, option, options_of
from onnxcompress.recipe.ranges import Fractions, Splits, TargetShares
from onnxcompress.recipe.recipe import Recipe

SWEEP = "sweep"
"""The group of these options."""

METHODS = ("prune", "tucker", "both")
"""What a point does: filter pruning alone, Tucker decomposition alone, or one after the other."""

SET_BY_POINTS = ("prune", "tucker", "target")
"""The recipe's options that a sweep's points set."""

LEFT_OUT = ("resume", "profile")
"""Options of the groups that a sweep takes which would do nothing in it: it resumes anyway, and times whole models."""


@dataclass(frozen=True)
class SweepOptions:
    """The grid of a sweep and how it is gone through.

    Raises:
        RecipeError: a value cannot be used; the message starts with the field's name.
    """

    method: tuple[str, ...] = option(
        METHODS, ManyOf(Choice(*METHODS), minimum=1), SWEEP, "NAME", "prune, tucker, both (repeatable; default: all)"
    )
    prune_range: str = option(
        "0.1:0.6", Fractions(), SWEEP, "RANGE", "values of --prune: LOW:HIGH, LOW:HIGH:N, or F,F,..."
    )
    tucker_range: str = option(
        "energy=0.8:0.98",
        Splits(),
        SWEEP,
        "RANGE",
        "values of --tucker: energy=LOW:HIGH, ratio=LOW:HIGH:N, energy=F,F,..., auto, evbmf",
    )
    target_range: str | None = option(
        None,
        TargetShares(),
        SWEEP,
        "KIND=RANGE",
        "instead of both: each method chooses widths and ranks itself under --target KIND=F",
    )
    points: int = option(4, Whole(minimum=1), SWEEP, "N", "values of a range LOW:HIGH")
    pairs: str = option(
        "all",
        Choice("all", "steps"),
        SWEEP,
        "HOW",
        "points that do both: all pairs of the two ranges, or steps: the gentlest with the gentlest, and so on",
    )
    jobs: int = option(1, Whole(minimum=1), SWEEP, "N", "points at a time on this machine, each with its part of it")
    scheduler: str | None = option(
        None,
        Text("an address such as tcp://host:8786"),
        SWEEP,
        "ADDRESS",
        "run the points on a Dask cluster instead (needs onnxcompress[sweep]); it reads IN and data by the same paths",
    )
    keep_models: bool = option(True, Flag(), SWEEP, "", "delete the points' models at the end")

    def __post_init__(self) -> None:
        for name, known in options_of(SweepOptions).items():
            value = getattr(self, name)
            optional = name in ("target_range", "scheduler")
            checked: Any = None if value is None and optional else known.kind.checked(value, name)
            object.__setattr__(self, name, checked)

    def to_json(self) -> dict[str, Any]:
        """Return every field as JSON holds it, null where it is not set."""
        values = {name: getattr(self, name) for name in options_of(SweepOptions)}
        return {n: None if v is None else options_of(SweepOptions)[n].kind.plain(v) for n, v in values.items()}


def recipe_names() -> tuple[str, ...]:
    """Return the recipe's options that a sweep takes: all but those that its points set, gates and outputs."""
    groups = (COMPRESSION, DATA, TRAINING, LATENCY)
    known = options_of(Recipe)
    return tuple(n for n in known if known[n].group in groups and n not in (*SET_BY_POINTS, *LEFT_OUT))
