"""An inspection as tables for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, JustifyMethod
from rich.table import Table

from onnxcompress.report.inspection import GroupFigures, Inspection, LayerFigures
from onnxcompress.report.terminal import cell, new_table, print_profile
from onnxcompress.report.text import count, size

_MOST_LAYERS = 20
_LEAST_SHARE = 0.001
"""Of the parameters; what has less, multiplies nothing and cannot be split is no layer to people: scales, bounds."""
_MOST_NODES = 3
_READ_BY: tuple[tuple[str, JustifyMethod], ...] = (("read by", "left"),)


def print_inspection(inspection: Inspection, console: Console, *, verbose: bool = False) -> None:
    """Show the model's cost, its layers (the dearest ones unless `verbose`) and its channel groups."""
    model = inspection.input
    ops = ", ".join(f"{number} {op}" for op, number in sorted(model.ops.items(), key=lambda item: (-item[1], item[0])))
    console.print(cell(f"{model.path or 'model'}: {size(model.bytes)}, opset {model.opset}", "bold"))
    console.print(cell(f"{count(model.params)} parameters, {count(model.macs)} MACs per sample"))
    if model.lrn_macs != 0:
        console.print(cell(f"{count(model.lrn_macs)} more MACs are of LRN written as convolutions, no layer's"))
    console.print(cell(f"nodes: {ops}"), "", sep="\n")
    layers = inspection.layers
    shown = layers if verbose else _dearest(layers, _LEAST_SHARE * model.params)
    console.print(_layers_table(shown, model.macs, everything=len(shown) == len(layers)))
    if len(shown) < len(layers):
        console.print(cell(f"{len(layers) - len(shown)} cheaper layers are not shown (-v shows all)"))
    console.print("", _groups_table(inspection.groups, verbose=verbose), sep="\n")
    free = sum(group.prunable for group in inspection.groups)
    total = sum(group.channels for group in inspection.groups)
    console.print(cell(f"{free} of {total} filters can be removed"))
    if inspection.profile is not None:
        print_profile(inspection.profile, console)


def _dearest(layers: Iterable[LayerFigures], least: float) -> list[LayerFigures]:
    """Return the layers with most MACs, of equal ones those with most parameters."""
    real = [layer for layer in layers if layer.macs != 0 or layer.split or layer.not_split or layer.params >= least]
    return sorted(real, key=lambda layer: (-(layer.macs or 0), -layer.params))[:_MOST_LAYERS]


def _layers_table(layers: Iterable[LayerFigures], all_macs: int | None, *, everything: bool) -> Table:
    table = new_table(
        "Layers" if everything else "Layers with most MACs",
        ("node", "left"),
        ("op", "left"),
        ("weight", "left"),
        ("parameters", "right"),
        ("MACs", "right"),
        ("share", "right"),
        ("split", "left"),
    )
    for layer in layers:
        share = f"{100 * layer.macs / all_macs:.1f} %" if layer.macs and all_macs else ""
        table.add_row(
            cell(layer.node),
            cell(layer.op),
            "x".join(map(str, layer.weight)),
            count(layer.params),
            count(layer.macs),
            share,
            cell(layer.split or f"no: {layer.not_split or 'its operator is never split'}"),
        )
    return table


def _groups_table(groups: Iterable[GroupFigures], *, verbose: bool) -> Table:
    table = new_table(
        "Groups of channels",
        ("filters of", "left"),
        ("channels", "right"),
        ("prunable", "right"),
        *_READ_BY[not verbose :],
        ("the rest stays, because it", "left"),
    )
    for group in groups:
        reasons = "; ".join(f"{reason} ({number})" for reason, number in group.kept.items())
        table.add_row(
            cell(_names(group.producers, verbose=verbose)),
            str(group.channels),
            str(group.prunable),
            *([cell(_names(group.consumers, verbose=verbose))] if verbose else []),
            cell(reasons),
        )
    return table


def _names(nodes: tuple[str, ...], *, verbose: bool) -> str:
    shown = nodes if verbose else nodes[:_MOST_NODES]
    more = f" and {len(nodes) - len(shown)} more" if len(nodes) > len(shown) else ""
    return ", ".join(shown) + more
