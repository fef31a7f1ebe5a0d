"""What a search for how much to compress has to tell: its trials, and what it chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxcompress.report.text import counted


@dataclass(frozen=True)
class Trial:
    """One compression that was tried.

    Attributes:
        prune: fraction of filters removed; share: of MACs asked for, None where ranks were not chosen.
        macs, params: left, as shares of the original; None where the budget could not be kept.
        drop: what is held against `max_drop`, in points, as all trials together tell it, one standard error on top;
            `disagreement`: percent of samples; `divergence`: mean KL(original || compressed), in nats.
    """

    prune: float
    share: float | None
    macs: float | None = None
    params: float | None = None
    drop: float | None = None
    disagreement: float | None = None
    divergence: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Judged:
    """A model that the gate judged on the evaluation data.

    Attributes:
        chosen: the options it was compressed with.
        drop: in points, None where it was not measured; `passed`: whether it kept `max_drop`.
    """

    chosen: Mapping[str, Any]
    drop: float | None
    passed: bool


@dataclass(frozen=True)
class Found:
    """What a search chose, and how.

    Attributes:
        measure: of a trial's drop: `expected_top1` (`evaluation.expectation`) or `disagreement`, as the evaluation data
            have labels or not; `cost` where nothing had to be evaluated.
        limit: the drop that a trial may have; None where a target is given.
        samples: on which trials were evaluated.
        chosen: the options that settle the recipe.
        judged: the models that were made with what was chosen; more than one where the first lost more than it may.
    """

    measure: str
    limit: float | None
    samples: int
    chosen: Mapping[str, Any]
    trials: tuple[Trial, ...]
    judged: tuple[Judged, ...] = ()


def search_title(found: Found) -> str:
    """Return how many trials there were, and on what."""
    if not found.trials:
        return "Search by cost alone"
    samples = counted(found.samples, "calibration sample")
    return f"Search: {counted(len(found.trials), 'trial')}, each on {samples} set aside"


def drop_title(found: Found) -> str:
    """Return what a trial's drop is."""
    return "top-1 lost, at most" if found.measure == "expected_top1" else "other classes, at most"


def trial_titles(found: Found) -> tuple[str, ...]:
    """Return the titles of a trial's cells."""
    return ("filters removed", "MACs", "parameters", drop_title(found), "KL", "seconds")


def trial_row(trial: Trial) -> list[str]:
    """Return a trial's cells, as titled."""
    left = ["-" if share is None else f"{share:.3f} x" for share in (trial.macs, trial.params)]
    lost = "not reached" if trial.drop is None else f"{trial.drop:.2f}"
    apart = "-" if trial.divergence is None else f"{trial.divergence:.3g}"
    return [f"{100 * trial.prune:g} %", *left, lost, apart, f"{trial.seconds:.1f}"]


def chosen_text(chosen: Mapping[str, Any]) -> str:
    """Return what was chosen, as options."""
    words = []
    for name, value in chosen.items():
        pairs = [f"{kind}={share:g}" for kind, share in value.items()] if isinstance(value, Mapping) else [f"{value:g}"]
        words += [f"--{name} {pair}" for pair in pairs]
    return " ".join(words)


JUDGED = "Judged on the evaluation data:"


def judged_texts(found: Found) -> list[str]:
    """Return a line on each model that was judged; none where one was enough."""
    if len(found.judged) < 2:
        return []
    return [
        f"{chosen_text(each.chosen)}: {'not measured' if each.drop is None else f'{each.drop:.2f} points lost'}, "
        f"{'kept' if each.passed else 'too many'}"
        for each in found.judged
    ]
