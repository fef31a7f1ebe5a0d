"""Two models side by side, with the gates of compression."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from onnxcompress.analysis.cost import model_cost
from onnxcompress.errors import RecipeError
from onnxcompress.evaluation.profile import ProfileComparison
from onnxcompress.graph import Model
from onnxcompress.pipeline.gates import check_gates_can_be_measured, gate_results
from onnxcompress.pipeline.inputs import check_not_read, files_read, side_files_read
from onnxcompress.pipeline.layer_times import Profiled, with_times
from onnxcompress.pipeline.measure import measure, open_data, resolve_providers
from onnxcompress.pipeline.open_sizes import with_sizes_of_data
from onnxcompress.pipeline.outputs import check_outputs, write_together
from onnxcompress.pipeline.report_files import report_files, report_paths
from onnxcompress.pipeline.request import RecipeLike, resolve_recipe
from onnxcompress.pipeline.source import ModelLike, read_source
from onnxcompress.pipeline.task import number_outputs, output_traits
from onnxcompress.report import environment
from onnxcompress.report.advice import comparison_warnings
from onnxcompress.report.figures import Report, compression_between
from onnxcompress.report.layers import layer_changes
from onnxcompress.report.progress import Progress, no_progress
from onnxcompress.runtime.dataset import DEFAULT_BATCH


def compare(
    original: ModelLike,
    compressed: ModelLike,
    recipe: RecipeLike = None,
    *,
    data: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Compare accuracy, latency, size and cost of two models.

    Args:
        original, compressed: paths, serialized bytes, `onnx.ModelProto`s or `Model`s.
        recipe, options: as in `compress`; those for data, latency, gates and reports count.
        data: as in `compress`.
        progress: as in `compress`.

    Returns:
        The report, without stages. Look at `passed`: a failed gate raises nothing.

    Raises:
        RecipeError, ModelError, DataError, ProviderUnavailableError: as in `compress`.
    """
    started = time.perf_counter()
    asked = resolve_recipe(recipe, options)
    data = asked.data if data is None else data
    if data is None and not asked.latency and asked.min_compression is None and not asked.target:
        raise RecipeError(
            "nothing to compare: give --data for accuracy, --min-compression F for size, or leave --no-latency out"
        )
    check_gates_can_be_measured(asked, has_data=data is not None)
    check_outputs(None, overwrite=False, reports=report_paths(asked), inputs=[original, compressed])
    check_not_read(report_paths(asked), files_read(asked, recipe, data=data))
    providers = resolve_providers(asked)
    first, second = (read_source(each, asked.input_shape) for each in (original, compressed))
    for source in (first, second):
        check_not_read(report_paths(asked), side_files_read(source))
    data_sets = open_data(first.content, asked, data)
    (first, second), asked = with_sizes_of_data([first, second], asked, data_sets)
    costs = [model_cost(each.model) for each in (first, second)]
    figures = [each.figures(cost) for each, cost in zip((first, second), costs, strict=True)]
    numbers = number_outputs(first.model, first.content, asked, data_sets.in_use)
    tell = progress or no_progress
    evaluation = data_sets.evaluation
    given, models = output_traits(first.model), (first.content, second.content)
    batch = _fixed_batch(second.model) or DEFAULT_BATCH
    measured = measure(*models, evaluation, providers, asked, tell, numbers=numbers, traits=given, batch=batch)
    profile: ProfileComparison | None = None
    layers, untimed = layer_changes(*costs), tuple[str, ...]()
    if asked.latency and (asked.html is not None or asked.profile):
        profiled = Profiled(first.model, first.content), Profiled(second.model, second.content)
        layers, profile, untimed = with_times(layers, *profiled, providers[0], asked)
    ratios = compression_between(*figures)
    report = Report(
        input=figures[0],
        output=figures[1],
        command="compare",
        layers=layers,
        profile=profile if asked.profile else None,
        accuracy=measured.accuracy,
        latency=measured.latency,
        compression=ratios,
        gates=gate_results(asked, measured.accuracy, measured.latency, ratios),
        recipe=asked.to_json(),
        seed=asked.seed,
        versions=environment.versions(),
        platform=environment.machine(),
    )
    report = replace(
        report,
        warnings=(*comparison_warnings(report), *untimed),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=environment.peak_rss_bytes(),
    )
    for source in (first, second):
        source.check_unchanged()
    write_together(report_files(report, asked))
    return report


def _fixed_batch(model: Model) -> int | None:
    shapes = [shape for shape in map(model.shape_of, model.graph.inputs) if shape]
    return next((shape[0] for shape in shapes if isinstance(shape[0], int)), None)
