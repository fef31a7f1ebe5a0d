"""A model whose names are markup and terminal commands: they reach every report, and stay text there."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree
from pathlib import Path

import onnx
import pytest

from onnxcompress.cli import main
from tests.tiny_models import conv_net

EVIL = "</script><script>alert(1)</script>|`\"'&\x1b[31m\u202e"
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202e]")


def hostile_net() -> onnx.ModelProto:
    """Return `conv_net` with every name of a node, a tensor and the graph itself made hostile."""
    model = conv_net()
    graph = model.graph
    graph.name = EVIL
    for node in graph.node:
        node.name = EVIL + node.name
        node.input[:] = [EVIL + name for name in node.input]
        node.output[:] = [EVIL + name for name in node.output]
    for named in (*graph.initializer, *graph.input, *graph.output):
        named.name = EVIL + named.name
    return model


def test_hostile_names_are_text_in_every_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(hostile_net(), "in.onnx")
    reports = [
        "--report",
        "r.json",
        "--html",
        "r.html",
        "--markdown",
        "r.md",
        "--junit",
        "r.xml",
        "--save-plan",
        "p.json",
    ]
    options = ["--prune", "0.5", "--tucker", "ratio=0.5", "--no-latency", "--no-progress", "-v"]
    assert main(["in.onnx", "out.onnx", *options, *reports]) == 0
    said = capsys.readouterr()
    for text in (said.out, said.err, Path("r.html").read_text(), Path("r.md").read_text(), Path("r.xml").read_text()):
        assert not INVISIBLE.search(text)
    page = Path("r.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "<script>" not in Path("r.md").read_text()
    xml.etree.ElementTree.parse("r.xml")
    decided = [d["node"] for stage in json.loads(Path("r.json").read_text())["stages"] for d in stage["decisions"]]
    assert EVIL + "second" in decided

    assert main(["in.onnx", "again.onnx", "--plan", "p.json", "--no-latency", "-q"]) == 0
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()
    capsys.readouterr()
    assert main(["inspect", "in.onnx", "--json", "i.json"]) == 0
    assert not INVISIBLE.search(capsys.readouterr().out)


def test_hostile_names_are_text_in_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = hostile_net()
    model.graph.node[1].input[0] = EVIL + "nowhere"
    onnx.save(model, "in.onnx")
    assert main(["in.onnx", "out.onnx", "--prune", "0.5", "--no-progress"]) == 4
    said = capsys.readouterr().err
    assert not INVISIBLE.search(said)
    assert len(said.splitlines()) == 1
