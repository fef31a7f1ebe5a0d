"""What a search for how much to compress has to tell: its trials, and what it chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxcompress.report.text import counted

_DROP_TITLES = {"expected_top1": "top-1 lost, at most", "disagreement": "other classes, at most"}
"""What a trial's drop is, of networks that classify."""


@dataclass(frozen=True)
class Trial:
    """One compression that was tried.

    Attributes:
        prune: fraction of filters removed; share: of MACs asked for, None where ranks were not chosen.
        macs, params: left, as shares of the original; None where the budget could not be kept.
        drop: what is held against `max_drop`, in points, as all trials together tell it, one standard error on top;
            `disagreement`: percent of samples; `divergence`: mean KL(original || compressed), in nats. All three None
            of a network that classifies nothing.
        error: of the outputs, relative, in percent, one standard error on top: held against `max_error`.
    """

    prune: float
    share: float | None
    macs: float | None = None
    params: float | None = None
    drop: float | None = None
    disagreement: float | None = None
    divergence: float | None = None
    error: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Judged:
    """A model that the gates on what is lost judged on the evaluation data.

    Attributes:
        chosen: the options it was compressed with.
        passed: whether it kept `max_drop` and `max_error`, where they are given.
        drop: in points; `error`: of the outputs, in percent; None where there is no such gate, or it was not measured.
    """

    chosen: Mapping[str, Any]
    passed: bool
    drop: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Found:
    """What a search chose, and how.

    Attributes:
        measure: of a trial's drop: `expected_top1` (`evaluation.expectation`) or `disagreement`, as the evaluation data
            have labels or not, `relative_error` of a network that classifies nothing; `cost` where nothing had to be
            evaluated.
        samples: on which trials were evaluated.
        chosen: the options that settle the recipe.
        judged: the models that were made with what was chosen; more than one where the first lost more than it may.
        limit: the drop that a trial may have, in points; `error_limit`: the error, in percent. None: no limit.
    """

    measure: str
    samples: int
    chosen: Mapping[str, Any]
    trials: tuple[Trial, ...]
    judged: tuple[Judged, ...] = ()
    limit: float | None = None
    error_limit: float | None = None

    @property
    def classifies(self) -> bool:
        """Whether a trial's classes were looked at."""
        return self.measure in _DROP_TITLES

    @property
    def shows_errors(self) -> bool:
        """Whether the outputs' errors had a say, or are all there is."""
        return self.error_limit is not None or not self.classifies


def search_title(found: Found) -> str:
    """Return how many trials there were, and on what."""
    if not found.trials:
        return "Search by cost alone"
    samples = counted(found.samples, "calibration sample")
    return f"Search: {counted(len(found.trials), 'trial')}, each on {samples} set aside"


def trial_titles(found: Found) -> tuple[str, ...]:
    """Return the titles of a trial's cells."""
    drop = (_DROP_TITLES[found.measure], "KL") if found.classifies else ()
    error = ("relative error, at most",) if found.shows_errors else ()
    return ("filters removed", "MACs", "parameters", *drop, *error, "seconds")


def trial_row(trial: Trial, found: Found) -> list[str]:
    """Return a trial's cells, as titled."""
    left = ["-" if share is None else f"{share:.3f} x" for share in (trial.macs, trial.params)]
    lost = []
    if found.classifies:
        lost = ["-" if trial.drop is None else f"{trial.drop:.2f}"]
        lost += ["-" if trial.divergence is None else f"{trial.divergence:.3g}"]
    if found.shows_errors:
        lost += ["-" if trial.error is None else f"{trial.error:.2f} %"]
    if trial.error is None:
        lost[0] = "not reached"
    return [f"{100 * trial.prune:g} %", *left, *lost, f"{trial.seconds:.1f}"]


def limits_text(found: Found) -> str:
    """Return what a trial may lose at most; nothing where no limit is given."""
    drop = [] if found.limit is None else [counted(found.limit, "point")]
    error = [] if found.error_limit is None else [f"{found.error_limit:g} % of its outputs"]
    return " and ".join([*drop, *error])


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
        f"{chosen_text(each.chosen)}: {_lost_text(each)}, {'kept' if each.passed else 'too much'}"
        for each in found.judged
    ]


def _lost_text(judged: Judged) -> str:
    drop = [] if judged.drop is None else [f"{judged.drop:.2f} points lost"]
    error = [] if judged.error is None else [f"{judged.error:.2f} % relative error"]
    return ", ".join([*drop, *error]) or "not measured"
