"""JUnit XML: what CI systems read, whatever the names hold."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from onnxcompress.recipe import Recipe
from onnxcompress.report.figures import GateResult
from onnxcompress.report.junit import junit_xml
from tests.report.sample_reports import DOUBTFUL, EVIL, SPEED, evil_report, sample_report


def parsed(text: str) -> ElementTree.Element:
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    return ElementTree.fromstring(text.encode())


def test_one_case_for_each_gate_and_one_for_the_self_check() -> None:
    suites = parsed(junit_xml(sample_report()))
    (suite,) = suites
    names = [case.get("name") for case in suite.findall("testcase")]
    assert names == ["self-check", "max_drop", "min_speedup", "min_compression"]
    assert all(case.get("classname", "").startswith("onnxcompress.") for case in suite.findall("testcase"))
    for element in (suites, suite):
        counts = [element.get(key) for key in ("tests", "failures", "errors", "skipped")]
        assert counts == ["4", "2", "0", "0"]
        assert element.get("time") == "1.500"


def test_a_failure_carries_value_limit_and_advice() -> None:
    suite = parsed(junit_xml(sample_report()))
    failure = suite.find(".//testcase[@name='max_drop']/failure")
    assert failure is not None
    assert failure.get("message") == "max_drop is 1.5 (95 %: -0.5 to 3.5), the limit is 1"
    assert failure.text is not None
    assert "value: 1.50 (95 %: -0.50 to 3.50)" in failure.text
    assert "limit: at most 1 points" in failure.text
    assert "advice: To keep more: lower --prune (now 0.4" in failure.text
    smaller = suite.findtext(".//testcase[@name='min_compression']/failure")
    assert smaller is not None
    assert "at least 3 x" in smaller
    assert "advice: To make it smaller" in smaller
    assert suite.find(".//testcase[@name='min_speedup']/failure") is None


def test_a_gate_that_fails_by_its_interval_says_so() -> None:
    text = junit_xml(sample_report(gates=(DOUBTFUL,)))
    failure = parsed(text).find(".//failure")
    assert failure is not None
    assert "with --strict the whole interval must keep it" in str(failure.get("message"))
    assert "With 200 samples the limit cannot be told from chance" in str(failure.text)


def test_what_was_not_measured_is_a_failure() -> None:
    text = junit_xml(sample_report(gates=(GateResult("min_speedup", 1.2, None, False),)))
    failure = parsed(text).find(".//failure")
    assert failure is not None
    assert failure.get("message") == "min_speedup was not measured, the limit is 1.2"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"recipe": Recipe(verify=False).to_json()}, "--no-verify was given"),
        ({}, "no pass changed the model"),
        ({"command": "compare"}, "a comparison rewrites nothing"),
    ],
)
def test_without_a_self_check_its_case_is_skipped(changes: dict[str, object], why: str) -> None:
    suite = parsed(junit_xml(sample_report(self_checks=(), gates=(SPEED,), **changes)))
    skipped = suite.find(".//testcase[@name='self-check']/skipped")
    assert skipped is not None
    assert skipped.get("message") == why
    assert suite.get("skipped") == "1"


def test_names_stay_text() -> None:
    text = junit_xml(evil_report())
    suite = parsed(text)
    assert suite.find(".//script") is None
    assert not any(character in text for character in "\x1b\u202e\ud800")
    assert {case.get("name") for case in suite.iter("testcase")} >= {"max_drop"}
    assert any("</script>" in str(case.get("name")) for case in suite.iter("testcase"))
    assert EVIL not in text
