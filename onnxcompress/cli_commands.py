"""The commands: run the pipeline, show the result, return the exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec

from onnxcompress.cli_options import measurement_of, recipe_of, sweep_options_of
from onnxcompress.errors import EXIT_BUG, EXIT_GATE, EXIT_OK, RecipeError
from onnxcompress.evaluation.profile import compare_profiles
from onnxcompress.pipeline.compare import compare
from onnxcompress.pipeline.compress import compress
from onnxcompress.pipeline.inputs import check_not_read
from onnxcompress.pipeline.inspect import inspection_of
from onnxcompress.pipeline.layer_times import Profiled, profile
from onnxcompress.pipeline.measure import resolve_providers
from onnxcompress.pipeline.outputs import check_outputs, write_together
from onnxcompress.pipeline.report_files import report_paths
from onnxcompress.pipeline.source import read_source
from onnxcompress.pipeline.sweep import sweep
from onnxcompress.pipeline.time_table_file import make_time_table
from onnxcompress.recipe import Recipe
from onnxcompress.remote import Location
from onnxcompress.report.dry_run import dry_run_line
from onnxcompress.report.figures import Report
from onnxcompress.report.gate_text import gate_advice, gate_sentence
from onnxcompress.report.inspection_tables import print_inspection
from onnxcompress.report.json_file import json_text
from onnxcompress.report.progress import progress_bar
from onnxcompress.report.sweep_terminal import print_sweep
from onnxcompress.report.terminal import cell, console_for, print_report
from onnxcompress.report.text import printable
from onnxcompress.standard_streams import tell, tolerated


def run_compress(arguments: argparse.Namespace) -> int:
    """`onnxcompress IN OUT`; see `onnxcompress.pipeline.compress`."""
    recipe = recipe_of(arguments)
    if arguments.output is None and not recipe.dry_run:
        raise RecipeError("the model to write (OUT) is missing; give it after IN, or --dry-run to write nothing")
    if recipe.train is not None and _is_one_of_several():
        with _started_together(arguments, recipe) as is_first:
            return _compress(arguments, recipe) if is_first else EXIT_OK
    return _compress(arguments, recipe)


def _is_one_of_several() -> bool:
    """Whether torchrun or `accelerate launch` started this process among others, where those can train."""
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return launched and os.environ["WORLD_SIZE"] != "1" and find_spec("torch") is not None


@contextlib.contextmanager
def _started_together(arguments: argparse.Namespace, recipe: Recipe) -> Iterator[bool]:
    """Among processes that torchrun started, one compresses, and the others take part in its training."""
    from onnxcompress.passes.recovery.processes import joined
    from onnxcompress.pipeline.helper import take_part

    with joined(recipe.device) as together:
        if not together.is_first:
            take_part(arguments.input, recipe, together)
        yield together.is_first


def _compress(arguments: argparse.Namespace, recipe: Recipe) -> int:
    if not recipe.dry_run:
        _check_recipe_stays(arguments, {"OUT": arguments.output, "--save-plan": recipe.save_plan}, recipe)
    with progress_bar(wanted=arguments.progress and not arguments.quiet) as progress:
        result = compress(arguments.input, recipe, output=arguments.output, progress=progress)
    if not arguments.quiet:
        with tolerated(sys.stdout):
            console = console_for(sys.stdout)
            print_report(result.report, console, verbose=arguments.verbose, decisions=recipe.dry_run)
            if recipe.dry_run:
                console.print(cell(dry_run_line(result.report)))
    return _verdict(result.report, arguments.output if not recipe.dry_run else None)


def _check_recipe_stays(arguments: argparse.Namespace, written: Mapping[str, Location | None], recipe: Recipe) -> None:
    """Refuse to write over the file that the recipe was read from, which the pipeline does not know."""
    if arguments.recipe:
        check_not_read({**written, **report_paths(recipe)}, [("--recipe", arguments.recipe)])


def run_compare(arguments: argparse.Namespace) -> int:
    """`onnxcompress compare A B`; see `onnxcompress.pipeline.compare`."""
    recipe = recipe_of(arguments)
    _check_recipe_stays(arguments, {}, recipe)
    with progress_bar(wanted=arguments.progress and not arguments.quiet) as progress:
        report = compare(arguments.input, arguments.output, recipe, progress=progress)
    if not arguments.quiet:
        with tolerated(sys.stdout):
            print_report(report, console_for(sys.stdout), verbose=arguments.verbose)
    return _verdict(report, None)


def run_inspect(arguments: argparse.Namespace) -> int:
    """`onnxcompress inspect IN`; see `onnxcompress.pipeline.inspect`."""
    recipe = measurement_of(arguments)
    reports = {"--json": arguments.json, "--time-table": arguments.time_table}
    check_outputs(None, overwrite=False, reports=reports, inputs=[arguments.input])
    source = read_source(arguments.input, recipe.input_shape)  # once: it may come through a pipe
    check_not_read(reports, [(str(arguments.input), file) for file in source.files])
    inspection = inspection_of(source)
    if recipe.profile:
        nodes = profile(Profiled(source.model, source.content), resolve_providers(recipe)[0], recipe)
        inspection = replace(inspection, profile=compare_profiles(nodes, ()))
    if arguments.time_table is not None:
        with progress_bar(wanted=arguments.progress and not arguments.quiet) as progress:
            table = make_time_table(source, recipe, progress)
        write_together({arguments.time_table: json_text(table.to_json()).encode()})
    if arguments.json is not None:
        write_together({arguments.json: json_text(inspection.to_json()).encode()})
    if not arguments.quiet:
        with tolerated(sys.stdout):
            print_inspection(inspection, console_for(sys.stdout), verbose=arguments.verbose)
    return EXIT_OK


def run_sweep(arguments: argparse.Namespace) -> int:
    """`onnxcompress sweep IN`; see `onnxcompress.pipeline.sweep`."""
    recipe, options = recipe_of(arguments), sweep_options_of(arguments)
    with progress_bar(wanted=arguments.progress and not arguments.quiet) as progress:
        report = sweep(arguments.input, recipe, out=arguments.out, progress=progress, **options)
    if not arguments.quiet:
        with tolerated(sys.stdout):
            print_sweep(report, console_for(sys.stdout))
    for point in report.failed:
        tell(f"onnxcompress: warning: {printable(f'{point.name}: {point.reason}')}\n")
    if any(point.exit_code == EXIT_BUG for point in report.failed):
        return EXIT_BUG
    return EXIT_OK if len(report.failed) < len(report.points) else report.failed[0].exit_code


def _verdict(report: Report, output: Location | None) -> int:
    """Tell on standard error what must not be missed, and return the exit code."""
    for line in report.warnings:
        tell(f"onnxcompress: warning: {printable(line)}\n")
    for gate in report.gates:
        if not gate.passed:
            advice = gate_advice(gate, report) if gate.value is None else ""
            tell(f"onnxcompress: gate failed: {gate_sentence(gate)}{'. ' if advice else ''}{advice}\n")
    if not report.passed and output is not None and report.output is not None and report.output.path is None:
        tell(f"onnxcompress: {printable(str(output))} was not written (--keep-failed would write it)\n")
    return EXIT_OK if report.passed else EXIT_GATE
