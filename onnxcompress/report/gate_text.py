"""Gates in words: what was asked, what was measured, and what to do where one failed."""

from __future__ import annotations

from collections.abc import Mapping

from onnxcompress.recipe import Recipe
from onnxcompress.report.advice import how_to_keep_more
from onnxcompress.report.faster import how_to_be_faster
from onnxcompress.report.figures import GateResult, Report

_MOST_DIGITS = 9

_ABOUT: Mapping[str, tuple[str, str, str]] = {
    "max_drop": ("fall of accuracy", "at most", " points"),
    "max_error": ("difference of the outputs, relative", "at most", " %"),
    "min_speedup": ("latency, original / compressed", "at least", " x"),
    "min_compression": ("file size, original / compressed", "at least", " x"),
    "target_macs": ("MACs, compressed / original", "at most", " x"),
    "target_params": ("parameters, compressed / original", "at most", " x"),
    "target_size": ("file size, compressed / original", "at most", " x"),
    "target_latency": ("latency, compressed / original", "at most", " x"),
}


def gate_about(gate: GateResult) -> str:
    """Return what a gate judges."""
    return _ABOUT.get(gate.name, (gate.name, "", ""))[0]


def gate_limit(gate: GateResult) -> str:
    """Return the limit: `at most 1 points`."""
    _, relation, unit = _ABOUT.get(gate.name, ("", "", ""))
    return f"{relation} {gate.limit:g}{unit}".strip()


def gate_value(gate: GateResult) -> str:
    """Return the value with its interval: `0.50 (95 %: -1.20 to 2.20)`."""
    if gate.value is None:
        return "not measured"
    return f"{_written(gate.value, gate, 2)}{_interval(gate, 2)}"


def gate_verdict(gate: GateResult) -> str:
    """Return `passed` or `FAILED`, and whether it was only the interval that crossed the limit."""
    if gate.passed:
        return "passed"
    if gate.noisy:
        return "FAILED (too noisy to judge)"
    return "FAILED (--strict: the interval crosses the limit)" if failed_by_interval(gate) else "FAILED"


def gate_sentence(gate: GateResult) -> str:
    """Return value and limit on one line."""
    if gate.value is None:
        return f"{gate.name} was not measured, the limit is {gate.limit:g}"
    why = ", and with --strict the whole interval must keep it" if failed_by_interval(gate) else ""
    why = ", but the measurement is too noisy to judge by" if gate.noisy else why
    value = _written(gate.value, gate, 4, "g")
    return f"{gate.name} is {value}{_interval(gate, 4, 'g')}, the limit is {gate.limit:g}{why}"


def failed_by_interval(gate: GateResult) -> bool:
    """Whether the value itself keeps the limit, and only what `strict` asks for failed."""
    if gate.passed or not gate.strict or gate.value is None:
        return False
    is_upper_limit = gate.name.startswith(("max_", "target_"))
    return gate.value <= gate.limit if is_upper_limit else gate.value >= gate.limit


def gate_advice(gate: GateResult, report: Report) -> str:
    """Return what to do about a failed gate; nothing for one that passed."""
    if gate.passed:
        return ""
    if gate.name == "max_drop" and report.accuracy is not None and report.accuracy.output is None:
        mistaken = "; --task classification, if they are class scores" if report.accuracy.numbers else ""
        return (
            f"The model does not classify, so it has no accuracy to lose: judge its outputs by --max-error P{mistaken}"
        )
    if gate.noisy or failed_by_interval(gate):
        return _measure_more(gate, report)
    if report.command == "compare":
        return "Compress more gently, train the second model further, or relax the limit"
    if report.output is None:
        return "Nothing that is compressed so far reaches it: ask for less; the warning says how far it goes"
    recipe = Recipe.from_mapping(report.recipe)
    if gate.name in ("max_drop", "max_error"):
        return how_to_keep_more(recipe)
    if gate.name == "min_speedup":
        return how_to_be_faster(recipe, [each.provider for each in report.latency if each.speedup < gate.limit])
    if gate.name == "min_compression":
        stronger = "lower --target" if recipe.target else "split more (--tucker ratio=0.5, --svd auto)"
        return f"To make it smaller: raise --prune, or {stronger}"
    if gate.name == "target_latency" and not report.latency:
        return "Ask for a little less than what is predicted"
    if gate.name == "target_latency":
        return "Latency scatters from one measurement to the next: ask for a little less, or measure on an idle machine"
    if gate.name.startswith("target_"):
        return "What comes behind the splits is not known where they are chosen: ask for a little less"
    return ""


def _measure_more(gate: GateResult, report: Report) -> str:
    if gate.name in ("max_drop", "max_error"):
        samples = f"{report.accuracy.samples} samples" if report.accuracy is not None else "the samples"
        return f"With {samples} the limit cannot be told from chance: give more --data, or leave more room to the limit"
    return "The measurement is too short or the machine too busy to be sure: raise --repeat, or use an idle machine"


def _interval(gate: GateResult, digits: int, kind: str = "f") -> str:
    if gate.interval is None:
        return ""
    low, high = (_written(end, gate, digits, kind) for end in gate.interval)
    return f" (95 %: {low} to {high})"


def _written(value: float, gate: GateResult, digits: int, kind: str = "f") -> str:
    """Return a number, with as many digits as leave it on its side of the limit; what is zero has no sign.

    Of a failed gate it is not the limit itself, unless the value is.
    """
    number = f"{value:.{digits}{kind}}"
    limit = float(f"{gate.limit:g}")
    side = _side(value, limit)
    while side != (shown := _side(float(number), limit)) and (shown or not gate.passed) and digits < _MOST_DIGITS:
        digits += 1
        number = f"{value:.{digits}{kind}}"
    return number if number.strip("-0.") else number.removeprefix("-")


def _side(value: float, limit: float) -> int:
    """Return -1 below the limit, 0 at it and 1 above."""
    return (value > limit) - (value < limit)
