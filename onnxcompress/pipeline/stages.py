"""The passes of a run, in their order, and one run of each with what it did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_graphsurgeon as gs

from onnxcompress.analysis.cost import ModelCost, model_cost, open_inputs
from onnxcompress.analysis.earlier_form import earlier_form_hint
from onnxcompress.errors import ModelError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.operators import CONVOLUTIONS, LAYERS
from onnxcompress.passes.base import Pass, PassContext, PassResult, Plan
from onnxcompress.passes.cleanup import RULES, Cleanup, CleanupConfig, LinearMerging, Lowering
from onnxcompress.passes.pruning import FilterPruning, PruningConfig
from onnxcompress.passes.quantization import Float16Conversion, Int8Config, Int8Quantization
from onnxcompress.passes.recovery.allocation import Allocation, AllocationConfig
from onnxcompress.passes.recovery.refit import RefitConfig
from onnxcompress.passes.recovery.stored_size import FLOAT16, FLOAT32, INT8
from onnxcompress.passes.tucker import (
    SvdConfig,
    SvdDecomposition,
    TuckerConfig,
    TuckerDecomposition,
    parse_svd_spec,
    parse_tucker_spec,
)
from onnxcompress.passes.verification import Verification
from onnxcompress.pipeline.recovery import STEP_SHARE, recovery_passes, require_torch
from onnxcompress.recipe import CLEANUP, Recipe
from onnxcompress.report.figures import SkippedNode, StageFigures, StepFigures
from onnxcompress.report.json_file import plain_json

Work = tuple[tuple[Pass, Plan | None], ...]
"""The passes of a run, each with its plan where one is replayed."""


@dataclass(frozen=True)
class Stage:
    """One pass after it ran: its plan, what the model costs after it, its line in the report, and its proof.

    Not the model: the weights of a model that the next pass has replaced would stay in memory to the end of the run.
    """

    plan: Plan
    modified: bool
    cost: ModelCost
    figures: StageFigures
    self_check: Verification | None = None


_LEFT_OUT = {"fp16": "softmax", "int8": "share"}
"""In half precision the sums would be coarser than what they replace; what is turned in the graph has no eight bits."""


def passes_of(recipe: Recipe, *, recovery: str) -> tuple[Pass, ...]:
    """Return the passes that a recipe asks for, in the order in which they run, recovery and quantisation at the end.

    Raises:
        ProviderUnavailableError: the recovery needs what is not installed or not there.
        RecipeError: a file that an option names cannot be used.
    """
    cleanup = () if recipe.cleanup == "off" else CLEANUP.chosen(recipe.cleanup)
    passes: list[Pass] = [] if recipe.cleanup == "off" else [Cleanup(CleanupConfig(cleanup))]
    if recipe.prune_share > 0:
        for step in range(1, recipe.steps):
            passes.append(_pruning(recipe, recipe.prune_share * step / recipe.steps))
            passes += recovery_passes(recipe, recovery, share=STEP_SHARE)
        passes.append(_pruning(recipe, recipe.prune_share))
    if recipe.target:
        merges = LinearMerging.name in cleanup
        refit = None if recovery == "none" else RefitConfig()
        passes.append(Allocation(replace(_allocation_of(recipe), refit=refit, merges=merges)))
    else:
        if recipe.tucker != "off":
            passes.append(TuckerDecomposition(TuckerConfig(parse_tucker_spec(recipe.tucker))))
        if recipe.svd != "off":
            passes.append(SvdDecomposition(SvdConfig(parse_svd_spec(recipe.svd))))
    splits = bool(recipe.target) or (recipe.tucker, recipe.svd) != ("off", "off")
    tidying: list[Pass] = [LinearMerging()] if splits and LinearMerging.name in cleanup else []
    lowering = Lowering(CleanupConfig(tuple(step for step in cleanup if step != _LEFT_OUT.get(recipe.quantize))))
    if lowering.config.steps:
        tidying.append(lowering)
    return (*passes, *recovery_passes(recipe, recovery), *tidying, *_quantization_of(recipe))


def _quantization_of(recipe: Recipe) -> tuple[Pass, ...]:
    if recipe.quantize == "int8":
        # TensorRT takes no zero points.
        symmetric = any("tensorrt" in name.lower() for name in recipe.provider)
        return (Int8Quantization(Int8Config(symmetric=symmetric)),)
    return (Float16Conversion(),) if recipe.quantize == "fp16" else ()


def _pruning(recipe: Recipe, ratio: float) -> FilterPruning:
    if recipe.importance == "taylor":
        require_torch("--importance taylor", "another importance")
    return FilterPruning(PruningConfig(ratio, recipe.prune_scope or "uniform", recipe.importance or "l1"))


def _allocation_of(recipe: Recipe) -> AllocationConfig:
    for option, spec in (("tucker", recipe.tucker), ("svd", recipe.svd)):
        if spec not in ("off", "auto"):
            raise RecipeError(f"--target chooses the ranks itself: give --{option} auto or off, not '{spec}'")
    both = recipe.tucker == recipe.svd
    stored = {"int8": INT8, "fp16": FLOAT16}.get(recipe.quantize, FLOAT32)
    return AllocationConfig(recipe.target, both or recipe.tucker == "auto", both or recipe.svd == "auto", stored=stored)


def planned_work(passes: Sequence[Pass], plans: Sequence[Plan] | None, where: str) -> Work:
    """Return the passes with the saved plans they replay, or without plans where `plans` is None.

    Raises:
        RecipeError: a plan is of a pass that the plan's own recipe does not ask for, at that place.
    """
    if plans is None:
        return tuple((each, None) for each in passes)
    work: list[tuple[Pass, Plan]] = []
    left = list(passes)
    for plan in plans:
        while left and left[0].name != plan.pass_name:
            left.pop(0)
        if not left:
            raise RecipeError(f"{where}: holds a plan of pass '{plan.pass_name}', which its recipe does not ask for")
        work.append((left.pop(0), plan))
    return tuple(work)


def run_pass(
    each: Pass,
    model: Model,
    context: PassContext,
    plan: Plan | None,
    *,
    planned_only: bool = False,
) -> tuple[PassResult, Stage, PassContext]:
    """Plan (unless a plan is given) and apply one pass; return its result, what it did, and the next one's context.

    With `planned_only` the model stays as it is.
    """
    started = time.perf_counter()
    outcomes: list[Mapping[str, Any]] = []
    noting = replace(context, note=outcomes.append)
    settled = each.plan(model, noting) if plan is None else plan
    if planned_only:
        result = PassResult(model, False, settled, context.provenance)
    else:
        result = each.apply(model, settled, noting)
    seconds = time.perf_counter() - started
    cost = model_cost(result.model)
    decisions: list[dict[str, Any]] = plain_json([dict(d) for d in result.plan.decisions])
    skipped = tuple(SkippedNode(s.node, s.reason) for s in result.plan.skipped)
    steps = _steps(each, result.plan, [outcome["step_seconds"] for outcome in outcomes if "step_seconds" in outcome])
    outcomes = [outcome for outcome in outcomes if "step_seconds" not in outcome]
    figures = StageFigures(
        each.name,
        seconds,
        cost.params,
        cost.macs,
        tuple(decisions),
        skipped,
        plain_json(outcomes[-1]) if outcomes else None,
        bytes=result.model.size_bytes,
        steps=steps,
    )
    stage = Stage(result.plan, result.modified, cost, figures)
    return result, stage, replace(context, provenance=result.provenance)


def _steps(each: Pass, plan: Plan, seconds: Sequence[Mapping[str, float]]) -> tuple[StepFigures, ...]:
    """Return what each step of a clean-up did; nothing for other passes."""
    if not isinstance(each, Cleanup):
        return ()
    figures = []
    for step in each.config.steps:
        own = [decision for decision in plan.decisions if decision["step"] == step]
        left = [skipped for skipped in plan.skipped if skipped.reason.startswith(f"{step}: ")]
        why = next((str(decision["why"]) for decision in own if "why" in decision), None)
        spent = sum(part.get(step, 0.0) for part in seconds)
        figures.append(StepFigures(step, RULES[step].does, spent, len(own), len(left), why))
    return tuple(figures)


def check_something_can_be_compressed(model: Model, recipe: Recipe, where: str) -> None:
    """Refuse a model that has nothing of what is compressed.

    Raises:
        ModelError: there is no convolution (and, where matrices are split or quantised, no Gemm or MatMul either; where
            filters are removed, no two of them, one to make and one to read), or a layer has a weight without numbers.
    """
    for node in model.nodes:
        for tensor in node.inputs[1:2] if node.op in LAYERS else ():
            if isinstance(tensor, gs.Constant) and 0 in tensor.shape:
                shape = list(tensor.shape)
                raise ModelError(f"{where}: weight '{tensor.name}' of node '{node.name}' is {shape} and holds nothing")
    ops = {node.op for node in model.nodes}
    matrices = recipe.svd != "off" or recipe.quantize != "off" or bool(recipe.target)
    matrices |= bool(recipe.prune) and sum(node.op in LAYERS for node in model.nodes) > 1
    wanted = LAYERS if matrices else CONVOLUTIONS
    if not ops & wanted:
        names = ", ".join(sorted(wanted))
        seen = ", ".join(sorted(ops)[:8]) or "nothing"
        told = f"no {names} (it has {seen}){earlier_form_hint(ops)}"
        raise ModelError(f"{where}: holds nothing that can be compressed: {told}")


def check_target_can_be_counted(model: Model, cost: ModelCost, recipe: Recipe) -> None:
    """Refuse a target of a model whose layers' sizes are not known, before anything is measured.

    Args:
        model: the original.
        cost: what it costs.
        recipe: what is asked for.

    Raises:
        RecipeError: they are not known.
    """
    searched = bool(recipe.target) or recipe.is_searched
    if cost.macs is not None or not searched or recipe.plan is not None:
        return
    if "macs" in recipe.target or not recipe.target:
        counting = "target" if recipe.target else "a search counts MACs"
        raise RecipeError(f"{counting}: the model's {_unknown_macs(model, cost)}; a target of params needs no MACs")


def unknown_macs_lines(model: Model, cost: ModelCost) -> list[str]:
    """Return a sentence on MACs that are not known, and on what tells them; none where they are.

    Args:
        model: the original.
        cost: what it costs.
    """
    return [] if cost.macs is not None else [f"The model's {_unknown_macs(model, cost)}"]


def _unknown_macs(model: Model, cost: ModelCost) -> str:
    layer = next(layer for layer in cost.layers if layer.macs is None)
    unknown = [name for name in open_inputs(model) if name not in model.input_shapes]
    sizes = "".join(f"; give --input-shape {name}:..., or data" for name in unknown[:1])
    return f"MACs are not known: the sizes at '{layer.node}' ({layer.op}) are not known before the run{sizes}"
