"""JUnit XML: one test case for each gate and one for the self-check, as CI systems show them."""

from __future__ import annotations

from xml.etree import ElementTree

from onnxcompress.report.dry_run import unjudged_gates
from onnxcompress.report.figures import GateResult, Report
from onnxcompress.report.gate_text import gate_about, gate_advice, gate_limit, gate_sentence, gate_value
from onnxcompress.report.text import printable

_SUITE = "onnxcompress"
_SELF_CHECK = "self-check"


def junit_xml(report: Report) -> str:
    """Return a JUnit file; a failure carries value, limit and advice."""
    suite = ElementTree.Element("testsuite")
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(report).items():
        ElementTree.SubElement(properties, "property", name=printable(name), value=printable(value))
    _add_self_check(suite, report)
    for gate in report.gates:
        _add_gate(suite, gate, report)
    for name in unjudged_gates(report):
        ElementTree.SubElement(_case(suite, "gates", name), "skipped", message="not judged in a dry run")
    cases = suite.findall("testcase")
    counts = {
        "tests": len(cases),
        "failures": len(suite.findall("testcase/failure")),
        "errors": 0,
        "skipped": len(suite.findall("testcase/skipped")),
    }
    attributes = {
        "name": f"{_SUITE} {report.command}",
        **{name: str(number) for name, number in counts.items()},
        "time": f"{report.seconds or 0.0:.3f}",
    }
    suite.attrib.update(attributes)
    suites = ElementTree.Element("testsuites", {**attributes, "name": _SUITE})
    suites.append(suite)
    ElementTree.indent(suites)
    body = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _add_gate(suite: ElementTree.Element, gate: GateResult, report: Report) -> None:
    case = _case(suite, "gates", gate.name)
    if not gate.passed:
        failure = ElementTree.SubElement(case, "failure", message=printable(gate_sentence(gate)), type="gate")
        lines = (
            f"{gate_about(gate)}",
            f"value: {gate_value(gate)}",
            f"limit: {gate_limit(gate)}",
            f"advice: {gate_advice(gate, report)}",
        )
        failure.text = "\n".join(map(printable, lines))
    else:
        ElementTree.SubElement(case, "system-out").text = printable(gate_sentence(gate))


def _add_self_check(suite: ElementTree.Element, report: Report) -> None:
    """A self-check that fails stops the run with a bug's exit code: in a report it has passed, or was left out."""
    case = _case(suite, "verification", _SELF_CHECK)
    if report.self_checks:
        lines = [
            f"{check.pass_name}: differs by {check.difference:.2g} of the range, {check.tolerance:.2g} is allowed"
            for check in report.self_checks
        ]
        ElementTree.SubElement(case, "system-out").text = "\n".join(map(printable, lines))
        return
    ElementTree.SubElement(case, "skipped", message=why_no_self_check(report))


def why_no_self_check(report: Report) -> str:
    """Return why a report holds no self-check."""
    if report.command == "compare":
        return "a comparison rewrites nothing"
    return "--no-verify was given" if report.recipe.get("verify") is False else "no pass changed the model"


def _case(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=f"{_SUITE}.{group}", name=printable(name), time="0")


def _properties(report: Report) -> dict[str, str]:
    """What identifies the run: the files, and with what they were made."""
    models = {"input": report.input, "output": report.output}
    named = {
        f"{role}.{key}": value
        for role, figures in models.items()
        if figures is not None
        for key, value in (("path", figures.path), ("sha256", figures.sha256))
        if value is not None
    }
    return {**named, **{f"version.{name}": version for name, version in report.versions.items()}}
