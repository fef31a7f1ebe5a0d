"""The reports of a run that ended because no compression reaches what was asked: every file but the model."""

from __future__ import annotations

from onnxcompress.errors import BudgetInfeasibleError
from onnxcompress.pipeline.gates import DROP, ERROR
from onnxcompress.pipeline.job import Job
from onnxcompress.pipeline.outputs import write_together
from onnxcompress.pipeline.report_files import report_files
from onnxcompress.pipeline.request import Request
from onnxcompress.report import environment
from onnxcompress.report.figures import GateResult, Report


def write_infeasible(request: Request, job: Job, error: BudgetInfeasibleError, seconds: float) -> None:
    """Write the reports that a recipe asks for; its gates have failed, and what can be reached is their value.

    Raises:
        RecipeError: a file cannot be written.
    """
    asked = request.recipe
    gates = [
        GateResult(f"target_{kind}", share, error.reached.get(kind), passed=False)
        for kind, share in asked.target.items()
    ]
    if not gates:
        limits = {DROP: asked.max_drop, ERROR: asked.max_error}
        gates = [
            GateResult(name, limit, error.reached.get(name), passed=False, strict=asked.strict)
            for name, limit in limits.items()
            if limit is not None
        ]
    report = Report(
        input=job.source.figures(job.original_cost),
        output=None,
        gates=tuple(gates),
        warnings=(str(error),),
        recipe=asked.to_json(),
        seed=asked.seed,
        versions=environment.versions(),
        platform=environment.machine(),
        seconds=seconds,
        peak_rss_bytes=environment.peak_rss_bytes(),
    )
    write_together(report_files(report, asked))
