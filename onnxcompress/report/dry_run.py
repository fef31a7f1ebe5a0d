"""What a dry run left out, in words: nothing of the result is measured, no gate is judged, nothing is trained."""

from __future__ import annotations

from onnxcompress.report.figures import Report

_GATES = ("max_drop", "max_error", "min_speedup", "min_compression")
_TRAINED = frozenset({"reconstruct", "finetune"})
_BY_WEIGHTS = frozenset({"prune", "tucker", "svd", "allocate", "int8", "fp16"})
"""Passes whose decisions are others where the weights are others."""


def is_dry_run(report: Report) -> bool:
    """Whether the report is of a run that only showed what it would do."""
    return report.recipe.get("dry_run") is True


def unjudged_gates(report: Report) -> tuple[str, ...]:
    """Return the names of the gates that a dry run was asked for and did not judge; none of another run."""
    if not is_dry_run(report):
        return ()
    given = [name for name in _GATES if report.recipe.get(name) is not None]
    given += [f"target_{kind}" for kind in report.recipe.get("target") or {}]
    # A target out of reach is known without a measurement.
    return tuple(name for name in given if name not in {gate.name for gate in report.gates})


def dry_run_line(report: Report) -> str:
    """Return what the dry run left out, in one sentence."""
    gates, trainings = unjudged_gates(report), sorted({stage.pass_name for stage in report.stages} & _TRAINED)
    judged = f"no gate was judged ({', '.join(gates)}), " if gates else ""
    trained = f"nothing was trained ({', '.join(trainings)}), " if trainings else ""
    return f"Dry run: the result was not measured, {judged}{trained}and OUT was not written."


def untrained_lines(report: Report) -> list[str]:
    """Return a sentence on decisions that come after a training which the dry run left out."""
    names = [stage.pass_name for stage in report.stages]
    first = next((number for number, name in enumerate(names) if name in _TRAINED), None)
    if first is None or not is_dry_run(report):
        return []
    behind = [stage.pass_name for stage in report.stages[first:] if stage.decisions and stage.pass_name in _BY_WEIGHTS]
    if not behind:
        return []
    return [
        f"What {', '.join(dict.fromkeys(behind))} would do after {names[first]} was decided without that training: a "
        "run may decide otherwise, and --plan would carry it out as it is. Save the plan of a run that trains"
    ]
