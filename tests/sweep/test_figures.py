"""Gains, fronts, and the forms that a sweep is told in."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from onnxcompress.pipeline.sweep_files import sweep_files
from onnxcompress.report.sweep_figures import SweepPoint, fronts_of, gains_of
from onnxcompress.report.sweep_html import sweep_html
from onnxcompress.report.sweep_plots import pareto_file
from onnxcompress.report.sweep_terminal import print_sweep
from onnxcompress.report.sweep_text import gain_sentence, sweep_command, sweep_csv
from onnxcompress.report.terminal import console_for
from onnxcompress.report.text import printable
from tests.sweep.made_up import errors_example, example, point, report_of


def test_gain_is_that_of_both_over_the_better_one_within_the_loss() -> None:
    points = [
        point("prune", 0.9, 1.2),
        point("prune", 1.1, 9.0),  # beyond one point
        point("tucker", 1.0, 2.0),  # exactly one point counts
        point("both", 1.0, 3.14),
        point("both", 0.2, 1.5),
    ]
    gains = {(gain.measure, gain.loss): gain for gain in gains_of(points)}
    one = gains["params", 1.0]
    assert one.best == {"prune": (1.2, "prune-1.2"), "tucker": (2.0, "tucker-2"), "both": (3.14, "both-3.14")}
    assert one.gain == pytest.approx(0.57)
    assert gains["params", 2.0].gain == pytest.approx(3.14 / 9.0 - 1.0)
    half = gains["params", 0.5]
    assert half.best == {"both": (1.5, "both-1.5")}
    assert half.gain is None
    assert {measure for measure, _ in gains} == {"bytes", "params", "macs", "latency"}


def test_both_are_held_against_each_alone_at_their_own_distance() -> None:
    def at(method: str, drop: float, ratio: float, kl: float | None) -> SweepPoint:
        return dataclasses.replace(point(method, drop, ratio, latency=False), kl=kl)

    alone = [at("prune", 0.3, 2.0, 0.01), at("prune", 1.5, 8.0, 0.16), at("prune", 1.9, 3.0, 0.05)]
    alone += [at("tucker", 0.6, 1.5, 0.002), at("tucker", 3.0, 2.5, 0.2)]

    def gain(*both: SweepPoint, loss: float = 1.0) -> float | None:
        return next(g for g in gains_of([*alone, *both], [loss]) if g.measure == "params").gain_at_distance

    # Half of the way from 0.01 to 0.05 lies sqrt(2 * 3), on logarithmic scales; Tucker has less there.
    assert gain(at("both", 0.9, 5.0, (0.01 * 0.05) ** 0.5)) == pytest.approx(5.0 / 6.0**0.5 - 1.0)
    # Of two points of both that counts which compresses most.
    assert gain(at("both", 0.9, 5.0, 0.05), at("both", 0.1, 1.1, 0.01)) == pytest.approx(5.0 / 3.0 - 1.0)
    # Nearer than a method's nearest point the method has at most as much: it counts only where another one has more.
    assert gain(at("both", 0.9, 5.0, 0.008)) is None
    assert gain(at("both", 0.9, 5.0, 0.0095)) == pytest.approx(5.0 / 2.0 - 1.0)
    alone.append(at("tucker", 0.8, 2.2, 0.008))
    assert gain(at("both", 0.9, 5.0, 0.008)) == pytest.approx(5.0 / 2.2 - 1.0)
    alone.pop()
    # Neither alone holds a quarter of a point.
    assert gain(at("both", 0.2, 5.0, 0.05), loss=0.25) == pytest.approx(5.0 / 3.0 - 1.0)
    # Farther than the farthest of one method, or as near as can be: nothing is known.
    assert gain(at("both", 0.9, 5.0, 0.17)) is None
    assert gain(at("both", 0.9, 5.0, 0.0)) is None
    assert gain(at("both", 0.9, 5.0, None)) is None
    # A point that another one of its method beats in both says nothing.
    alone.append(at("prune", 0.4, 1.1, 0.02))
    assert gain(at("both", 0.9, 5.0, 0.05)) == pytest.approx(5.0 / 3.0 - 1.0)
    assert gain(loss=1.0) is None
    # Of two that are as far away the larger ratio counts.
    alone.append(at("prune", 0.4, 4.0, 0.05))
    assert gain(at("both", 0.9, 5.0, 0.05)) == pytest.approx(5.0 / 4.0 - 1.0)


def test_points_without_a_result_and_figures_not_measured_count_nowhere() -> None:
    failed = SweepPoint("x", "both", {}, reason="no")
    slow = point("prune", 0.1, 1.5, latency=False)
    assert {gain.measure for gain in gains_of([failed, slow])} == {"bytes", "params", "macs"}
    assert fronts_of([failed]) == {}
    assert "No point has a result." in gain_sentence(report_of(failed))


def test_the_front_has_what_no_other_beats() -> None:
    points = [point("prune", 0.0, 1.0), point("tucker", 1.0, 1.0), point("both", 1.0, 2.0), point("prune", 3.0, 1.9)]
    assert fronts_of(points)["macs"] == ("prune-1", "both-2")


def test_sentence_of_what_it_shows() -> None:
    assert "2.10 x fewer parameters; +50 % against the better alone" in gain_sentence(example())
    assert "no point that does both" in gain_sentence(report_of(point("prune", 0.1, 2.0)))
    assert gain_sentence(report_of(point("both", 5.0, 2.0))) == "No point keeps within 1 point lost."


def test_csv_has_a_line_for_each_point() -> None:
    report = example()
    rows = list(csv.DictReader(io.StringIO(sweep_csv(report))))
    assert [row["name"] for row in rows] == [printable(p.name) for p in report.points]
    assert [row["status"] for row in rows] == ["done"] * 7 + ["failed"]
    assert float(rows[3]["compression_params"]) == 1.4
    assert float(rows[0]["drop_high"]) == 1.4
    assert rows[-1]["accuracy"] == ""
    assert rows[-1]["reason"].startswith("no result because of </script>")


def test_every_file_is_whole(tmp_path: Path) -> None:
    files = sweep_files(example(), tmp_path)
    assert {path.name for path in files} == {
        "sweep.json",
        "sweep.csv",
        "sweep.html",
        "pareto-size.svg",
        "pareto-params.svg",
        "pareto-macs.svg",
        "pareto-latency.svg",
    }
    value = json.loads(files[tmp_path / "sweep.json"])
    assert value["schema"] == 1
    assert value["command"] == "sweep"
    assert value["points"][0]["compression"]["macs"] == 1.1
    assert value["gains"][0]["best"]["tucker"] == [1.4, "tucker-1.4"]


@pytest.mark.parametrize("measure", ["bytes", "params", "macs", "latency"])
def test_the_plot_has_a_mark_for_each_point_and_one_for_the_original(measure: str) -> None:
    root = ElementTree.fromstring(pareto_file(example(), measure))
    marks = [e for e in root.iter() if e.tag.endswith("path") and len(e) == 1]
    assert len(marks) == 8
    below = [e for e in marks if "below" in e.get("class", "")]
    assert [e[0].text for e in below if e[0].text and e[0].text.startswith("prune-4: 8.5 %")] != []
    assert len(below) == 1
    fronts = [e for e in root.iter() if "front" in e.get("class", "")]
    assert len(fronts) == 2 + 1 + 1


def test_what_does_not_classify_is_judged_by_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    report = errors_example()
    gains = {(gain.measure, gain.loss): gain for gain in report.gains}
    assert [loss for measure, loss in gains if measure == "macs"] == [1.0, 2.0, 5.0, 10.0]
    assert gains["macs", 5.0].gain == pytest.approx(2.1 / 1.4 - 1.0)
    # Farther away than Tucker's one point.
    assert gains["macs", 5.0].gain_at_distance is None
    assert gain_sentence(report).startswith("At 5 % relative error or less both together reach 2.10 x")
    assert report.fronts["macs"] == ("prune-1.1", "tucker-1.4", "both-2.1", "both-2.8", "prune-4")
    root = ElementTree.fromstring(pareto_file(report, "macs"))
    texts = [element.text for element in root.iter() if element.text]
    assert "Relative error of the outputs in percent against MACs of a sample (M)" in texts
    assert not any("-" in text.split(" %")[0] for text in texts if text.endswith(" %"))
    marks = {m[0].text.split(":")[0]: m for m in root.iter() if m.tag.endswith("path") and len(m) == 1 and m[0].text}
    assert set(marks) == {"original", *(p.name for p in report.points)}
    assert [name for name, mark in marks.items() if "below" in mark.get("class", "")] == ["prune-4"]
    assert marks["both-2.1"][0].text.startswith("both-2.1: 4.5 %, ")
    heights = {m[0][0].text.split(":")[0]: float(m.get("y")) for m in root.iter() if m.get("overflow") and len(m[0])}
    order = ["original", "prune-1.1", "tucker-1.4", "both-2.1", "both-2.8", "prune-1.6", "prune-4"]
    assert sorted(heights, key=lambda name: heights[name]) == order
    page = html.unescape(sweep_html(report))
    assert "the error is relative to the original's outputs, on 200 samples" in page
    assert "5 % relative error or less" in page
    assert "top-1" not in page
    print_sweep(report, console_for(sys.stdout))
    shown = capsys.readouterr().out
    assert "error" in shown
    assert "agreement" not in shown
    rows = list(csv.DictReader(io.StringIO(sweep_csv(report))))
    assert (rows[1]["accuracy"], float(rows[1]["drop"]), float(rows[1]["relative_error"])) == ("", 8.0, 0.08)


def test_latencies_are_those_beside_the_original_where_the_machine_changed_its_pace() -> None:
    steady = point("prune", 0.1, 2.0, name="steady")
    slowed = dataclasses.replace(steady, name="slowed", latency_ms=3 * (steady.latency_ms or 0.0))
    root = ElementTree.fromstring(pareto_file(report_of(steady, slowed, point("both", 1.0, 4.0)), "latency"))
    places = {
        str(mark[0][0].text).split(":")[0]: mark.get("x")
        for mark in root.iter()
        if mark.get("overflow") and len(mark[0]) == 1
    }
    assert set(places) == {"original", "steady", "slowed", "both-4"}
    assert places["original"] == places["steady"] == places["slowed"] != places["both-4"]


def test_the_page_escapes_every_name() -> None:
    page = sweep_html(example())
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert page.count('class="pareto"') == 4
    assert "+50 %" in page
    assert "without a result, and why (1)" in page


def test_the_command_repeats_what_was_asked() -> None:
    command = sweep_command(example())
    assert command == "onnxcompress sweep a.onnx --out out --points 3 --recover refit --data 'val data/'"


def test_the_terminal_shows_points_and_gains(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(example(), console_for(sys.stdout))
    shown = capsys.readouterr().out
    assert "tucker-1.4" in shown
    assert "+50 %" in shown
    assert "Points without a result" in shown
