"""What the user must hear about a result, and what to do about it. Only things that exist are recommended."""

from __future__ import annotations

from dataclasses import replace

from onnxcompress.analysis.earlier_form import earlier_form_hint
from onnxcompress.evaluation.accuracy import Accuracy
from onnxcompress.evaluation.class_errors import OneClass
from onnxcompress.evaluation.latency import Latency
from onnxcompress.recipe import Recipe
from onnxcompress.report.faster import how_to_be_faster
from onnxcompress.report.figures import Report, StageFigures
from onnxcompress.report.search_figures import Found
from onnxcompress.report.text import percent, times

WORTH_SAYING_POINTS = 1.0
"""A smaller fall of accuracy is left to the table."""

UNUSABLE_POINTS = 10.0
"""From here on a fall of accuracy is called unusable."""

WORTH_SAYING_ERROR = 0.01
"""A smaller relative error of an output that classifies nothing is left to the table."""

_ONE_SIDED, _MANY_CLASSES = 50.0, 20
"""More percent of the samples than this have the same class only where there are few classes."""

_UNSURE = 0.2
"""Where the original's class is less probable than this, on average, it may be none."""

_FEWEST_JUDGED, _OVER_CHANCE, _USEFUL = 20, 2.0, 0.05
"""Of so many labels or more an original in use meets this many times what guessing does (or half), and this share."""

WORTH_SAYING_WAITS = 0.05
"""A smaller share of the timed runs that waited for a CPU is left to the JSON report."""

PLENTY_OF_SAMPLES = 100
"""With fewer calibration samples a refit is worth a warning."""

_GENTLE = "energy=0.98"
_LEAST_PRUNED = 0.02

_EXACT = frozenset({"cleanup", "lowering"})
_CALIBRATED = frozenset({"refit", "reconstruct", "allocate", "int8", "fp16"})
_TRAINED = frozenset({"reconstruct", "finetune"})
_TRAINING_OPTIONS = ("epochs", "lr", "train_batch", "loss", "device")


def compression_warnings(report: Report, recipe: Recipe) -> tuple[str, ...]:
    """Return what the tables alone would not make plain enough after a compression, one line each."""
    if not any(stage.decisions for stage in _compressing(report)):
        return (_nothing_done(report, recipe), *_notes(report), *comparison_warnings(report))
    ways = f"{_searched_limits(report) or how_to_keep_more(_as_asked(report, recipe))}{_gate_it(report, recipe)}"
    lines = [f"{line}{ways}" for line in accuracy_lines(report.accuracy)]
    if report.accuracy is None and not recipe.dry_run:
        lines.append(
            "Accuracy was not measured, because no data were given: do not ship this model unseen. "
            "Give --data PATH, and --preprocess for images"
        )
    lines += _notes(report)
    lines += [*sample_lines(report.accuracy), *task_lines(report), *not_compared_lines(report.accuracy)]
    lines += _few_samples(report)
    lines += _unused(report, recipe)
    lines += _dearer(report, recipe)
    for figures in report.latency:
        lines += [f"{line} {how_to_be_faster(recipe, (figures.provider,))}" for line in latency_lines((figures,))]
    lines += noise_lines(report.latency)
    return tuple(lines)


def _notes(report: Report) -> list[str]:
    """Return what passes found worth saying."""
    return [str(note) for stage in report.stages for note in (stage.outcome or {}).get("notes", ())]


def judged_lines(found: Found) -> list[str]:
    """Return a sentence on evaluation data that have had a say in what was chosen."""
    looks = len(found.judged)
    if looks < 2:
        return []
    if not found.judged[-1].passed:
        options = ((found.limit, "--max-drop"), (found.error_limit, "--max-error"))
        limits = " and ".join(name for limit, name in options if limit is not None)
        return [
            f"Judged on the evaluation data, none of {looks} models kept {limits}, each milder than the one before: "
            "give a larger one, or calibration samples that are more like the evaluation data"
        ]
    return [
        f"The evaluation data judged {looks} models, each milder than the one before, and the last was taken: other "
        "samples may show a larger loss. More of them, or --strict, make that less likely"
    ]


def comparison_warnings(report: Report) -> tuple[str, ...]:
    """Return what the tables alone would not make plain enough after a comparison, one line each."""
    return (
        *accuracy_lines(report.accuracy),
        *sample_lines(report.accuracy),
        *task_lines(report),
        *not_compared_lines(report.accuracy),
        *latency_lines(report.latency),
        *noise_lines(report.latency),
    )


def accuracy_lines(accuracy: Accuracy | None) -> list[str]:
    """Return a sentence on a fall of accuracy that must not be missed."""
    if accuracy is None:
        return []
    lines = []
    drop = 0.0
    if accuracy.not_finite:
        lines.append(
            f"The compressed model gave NaN or infinity on {accuracy.not_finite} of {accuracy.samples} samples. "
        )
    if accuracy.labels and accuracy.drop_top1 is not None:
        before, after, drop = accuracy.original.top1, accuracy.compressed.top1, accuracy.drop_top1
        fell = f"Top-1 fell from {percent(before)} to {percent(after)}"
    elif accuracy.agreement is not None:
        drop = 100.0 - accuracy.agreement
        fell = f"The compressed model agrees with the original on {percent(accuracy.agreement)} of the samples"
    error, output, part = accuracy.relative_error or 0.0, accuracy.relative_error_output, accuracy.relative_error_part
    if error >= WORTH_SAYING_ERROR and isinstance(part, OneClass):
        lines.append(
            f"Of the elements of output '{output}' to which either model gives {part} {percent(100 * error)} have "
            "another one in the other model. "
        )
    elif error >= WORTH_SAYING_ERROR and part is not None:
        lines.append(
            f"The small numbers of output '{output}' ({part}) differ from the original's by {percent(100 * error)} of "
            "their size. "
        )
    elif error >= WORTH_SAYING_ERROR and accuracy.output is None:
        lines.append(
            f"The compressed model's outputs differ from the original's by {percent(100 * error)} of their size. "
        )
    elif error >= WORTH_SAYING_ERROR and output != accuracy.output:
        lines.append(
            f"Output '{output}' of the compressed model differs from the original's by {percent(100 * error)} of its "
            "size. "
        )
    if drop >= WORTH_SAYING_POINTS:
        lines.append(f"{fell}{': the model is not usable as it is' if drop >= UNUSABLE_POINTS else ''}. ")
    return lines


def sample_lines(accuracy: Accuracy | None) -> list[str]:
    """Return a sentence on samples that the original itself does not recognise: what is lost on them says nothing."""
    if accuracy is None or not accuracy.classes or accuracy.samples < _FEWEST_JUDGED:
        return []
    chance, top1, majority = 1.0 / accuracy.classes, accuracy.original.top1, accuracy.majority or 0.0
    if top1 is not None and top1 < 100.0 * max(min(_OVER_CHANCE * chance, 0.5), _USEFUL):
        return [
            f"The original gives {percent(top1)} of the labels, where guessing gives {percent(100 * chance)}: no "
            "figure of accuracy here says anything then. --preprocess is not the model's, or the labels are not its "
            "classes"
        ]
    if majority >= _ONE_SIDED and accuracy.classes >= _MANY_CLASSES:
        return [
            f"The original gives {percent(majority)} of the samples the same one of {accuracy.classes} classes: "
            "--preprocess is not the model's, or the samples are all of a kind, and tell little of what others lose"
        ]
    return []


def task_lines(report: Report) -> list[str]:
    """Return a sentence on outputs of which it is not certain whether they hold class scores."""
    accuracy = report.accuracy
    if accuracy is None or report.recipe.get("task", "auto") != "auto":
        return []
    why = f"does not meet the labels, which are of '{accuracy.output}'" if accuracy.labels else "favours no class"
    lines = [
        f"Output '{name}' {why}, and is judged as numbers, by its relative error: if it holds class scores, "
        "give --task classification"
        for name in accuracy.numbers
    ]
    if not accuracy.labels and accuracy.confidence is not None and accuracy.confidence < _UNSURE:
        lines.append(
            f"The likeliest class of output '{accuracy.output}' has a probability of "
            f"{percent(100 * accuracy.confidence)} on average: if it holds no class scores, but an embedding or other "
            "numbers, give --task regression"
        )
    return lines


def not_compared_lines(accuracy: Accuracy | None) -> list[str]:
    """Return a sentence on outputs that were left out of the comparison."""
    if accuracy is None or not accuracy.not_compared:
        return []
    names = ", ".join(f"'{name}'" for name in accuracy.not_compared)
    if accuracy.made_from:
        inside = ", ".join(f"'{name}'" for name in accuracy.made_from)
        return [
            f"Not compared: {names}. Another model gives them other shapes, as detections that were filtered are, or "
            f"the original gives NaN or infinity; what they are made from is compared: {inside}"
        ]
    return [
        f"Not compared: {names}. The second model does not have them, on some samples the two give them other shapes, "
        "as detections that were filtered are, or the original gives NaN or infinity: compare what they are made from"
    ]


def latency_lines(latency: tuple[Latency, ...]) -> list[str]:
    """Return a sentence on every provider on which the compressed model is slower beyond doubt."""
    return [
        f"Latency on {figures.provider}: the compressed model is {times(figures.speedup, 'faster', 'slower')}."
        for figures in latency
        if not figures.noisy and figures.interval is not None and figures.interval[1] < 1.0
    ]


def noise_lines(latency: tuple[Latency, ...]) -> list[str]:
    """Return a sentence on every provider on which nothing can be said of the ratio."""
    return [_noise_line(figures) for figures in latency if figures.noisy]


def _noise_line(figures: Latency) -> str:
    if figures.interval is None:
        found = f"{figures.runs} runs of each are too few for an interval"
    else:
        found = f"the ratio is somewhere from {figures.interval[0]:.2f} to {figures.interval[1]:.2f}"
    waited = max(figures.original_interrupted, figures.compressed_interrupted)
    busy = f", and {percent(100 * waited)} of them waited for a CPU" if waited >= WORTH_SAYING_WAITS else ""
    told = "which model is faster"
    if figures.interval is not None and not figures.interval[0] <= 1.0 <= figures.interval[1]:
        told = f"how much {'faster' if figures.speedup > 1.0 else 'slower'} the compressed model is"
    return (
        f"Latency on {figures.provider} is too noisy to say {told}: {found}{busy}; "
        "measure on an idle machine, or with more runs (--repeat)"
    )


def _gate_it(report: Report, recipe: Recipe) -> str:
    """Name the gate that would have refused such a loss."""
    if recipe.limits_loss:
        return ""
    if report.accuracy is not None and report.accuracy.output is None:
        return ". With --max-error P such a difference is an error (exit code 3)"
    return ". With --max-drop P such a fall is an error (exit code 3)"


def _searched_limits(report: Report) -> str:
    """Name the limits that a search kept, which say how much may be lost; nothing of another run."""
    asked = Recipe.from_mapping(report.recipe)
    given = [("--max-drop", asked.max_drop), ("--max-error", asked.max_error)]
    limits = " or ".join(f"{name} (now {limit:g})" for name, limit in given if limit is not None)
    return f"To keep more: lower {limits}" if asked.is_searched and limits else ""


def _as_asked(report: Report, recipe: Recipe) -> Recipe:
    """Return the recipe without a fraction of filters that was chosen, which is not the user's to lower."""
    return replace(recipe, prune="auto") if report.recipe.get("prune") == "auto" else recipe


def how_to_keep_more(recipe: Recipe) -> str:
    """Name what of this recipe can be made gentler, or won back."""
    ways = []
    if recipe.prune_share > 0:
        start = f"; start from {_LEAST_PRUNED:g}" if recipe.prune_share > _LEAST_PRUNED else ""
        ways.append(f"lower --prune (now {recipe.prune_share:g}{start})")
    if recipe.tucker not in ("off", _GENTLE) and not recipe.target:
        ways.append(f"keep more of each Conv (--tucker {_GENTLE}, or off)")
    if recipe.svd not in ("off", _GENTLE) and not recipe.target:
        ways.append(f"keep more of each 1x1 Conv (--svd {_GENTLE}, or off)")
    if recipe.target:
        shares = ", ".join(f"{kind}={share:g}" for kind, share in recipe.target.items())
        ways.append(f"ask for less (--target, now {shares})")
    elif (recipe.tucker, recipe.svd) != ("off", "off"):
        ways.append("choose the ranks of all layers by measured effect (--target macs=F in place of SPEC)")
    ways += _recoveries(recipe)
    if recipe.quantize == "int8":
        ways.append("keep half precision instead of eight bits (--quantize fp16)")
    ways.append("spare sensitive layers (--exclude REGEX)")
    return f"To keep more: {', '.join(ways)}"


def _recoveries(recipe: Recipe) -> list[str]:
    """Name the ways to win accuracy back that go further than the recipe's."""
    if not _loses_structure(recipe):
        return []
    mode = recipe.recover or ("auto" if recipe.target or recipe.train is not None else "none")
    ways = []
    if mode == "none":
        ways.append("refit it on unlabelled samples (--calib PATH --recover refit)")
    if mode in ("refit", "auto") and recipe.train is None:
        ways.append("train it block by block on the same samples (--recover reconstruct)")
    if recipe.train is None:
        ways.append("train it as a whole (--train PATH)")
    elif mode in ("finetune", "auto"):
        ways.append("train it longer (--epochs N)")
    return ways


def _loses_structure(recipe: Recipe) -> bool:
    """Whether filters or ranks go: what a refit or a training can make up for."""
    return recipe.prune_share > 0 or (recipe.tucker, recipe.svd) != ("off", "off") or bool(recipe.target)


def _unused(report: Report, recipe: Recipe) -> list[str]:
    """Name what was given and had no effect."""
    done = {stage.pass_name for stage in report.stages}
    lines = []
    ranked_by = recipe.importance if recipe.prune_share > 0 else ""
    if recipe.calib is not None and not done & _CALIBRATED and not recipe.ranks_by_data:
        lines.append(
            "The calibration data were not used: --recover refit, --target, --quantize int8, or "
            "--importance activation, response or taylor, needs them"
        )
    if recipe.train is not None and "finetune" not in done and ranked_by != "taylor":
        lines.append(
            f"The training data were not used to train, because of --recover {recipe.recover}: "
            "leave it out, or give --recover finetune"
        )
    if (
        recipe.time_table is not None
        and recipe.plan is None
        and not ("latency" in recipe.target or recipe.takes_faster_splits)
    ):
        why = (
            "a search asks for shares of MACs" if Recipe.from_mapping(report.recipe).is_searched else "no time counted"
        )
        lines.append(
            f"No split was chosen by the times of {recipe.time_table}, because {why}: they are for --target latency=F, "
            "or for --tucker auto or --svd auto without a target"
        )
    if not done & _TRAINED:
        default = Recipe()
        ignored = [name for name in _TRAINING_OPTIONS if getattr(recipe, name) != getattr(default, name)]
        if ignored:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
            verb = "has" if len(ignored) == 1 else "have"
            lines.append(
                f"{options} {verb} no effect, because nothing is trained: give --train PATH, or --recover reconstruct"
            )
    return lines


def _few_samples(report: Report) -> list[str]:
    """Say that a refit had few samples: it is drawn towards the original weights, and wins back less."""
    decisions = [decision for stage in report.stages if stage.pass_name == "refit" for decision in stage.decisions]
    counted = [(int(own.get("distinct", own["images"])), int(own["images"])) for own in decisions if "images" in own]
    distinct, images = min(counted, default=(PLENTY_OF_SAMPLES, PLENTY_OF_SAMPLES))
    if distinct >= PLENTY_OF_SAMPLES:
        return []
    repeated = f" ({distinct} different)" if distinct < images else ""
    return [
        f"The refit had {images} calibration samples{repeated}, and held back accordingly: "
        f"give {PLENTY_OF_SAMPLES} or more, unlabelled ones will do (--calib PATH)"
    ]


def _dearer(report: Report, recipe: Recipe) -> list[str]:
    """Say that the model got dearer: a split at a high rank costs more than it saves."""
    macs = report.compression.macs if report.compression else None
    if macs is None or macs >= 1.0:
        return []
    splits = (recipe.tucker, recipe.svd) != ("off", "off")
    why = "; --tucker auto and --svd auto split only where it pays" if splits else ""
    return [f"The compressed model has {times(macs, 'fewer', 'more')} MACs than the original{why}"]


def _nothing_done(report: Report, recipe: Recipe) -> str:
    if recipe.plan is None and not _loses_structure(recipe) and recipe.quantize == "off":
        cleaned = any(stage.pass_name in _EXACT and stage.decisions for stage in report.stages)
        only = " but clean-up, which is exact," if cleaned else ""
        return (
            f"Nothing was compressed, because nothing{only} was asked for: give --prune R, --tucker SPEC, --svd SPEC, "
            "--target KIND=F or --quantize KIND"
        )
    skipped = sum(len(stage.skipped) for stage in _compressing(report))
    reasons = f" ({skipped} nodes were left alone; -v says why)" if skipped else ""
    hint = earlier_form_hint(report.input.ops) if _loses_structure(recipe) else ""
    return f"Nothing was compressed: no pass found anything to change{reasons}{hint}"


def _compressing(report: Report) -> list[StageFigures]:
    """The stages that lose something; clean-up is exact."""
    return [stage for stage in report.stages if stage.pass_name not in _EXACT]
