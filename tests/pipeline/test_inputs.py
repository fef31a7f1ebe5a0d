"""What a run reads is never what it writes: weights beside a model, data, recipes and the other files of options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxcompress.cli import main
from tests.tiny_models import conv_net, samples

QUICK = ("--no-latency", "--overwrite", "--no-progress", "-q")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model of each kind and a file of each kind that a run reads."""
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    onnx.save(conv_net(), "beside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.savez("d.npz", x=samples(8))
    for file in ("imgs/1.png", "classes/a/1.png"):
        Path(file).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(file)
    Path("imgs/labels.csv").write_text("1.png,0\n")
    Path("recipe.toml").write_text("prune = 0.5\n")
    Path("p.toml").write_text("scale = 0.1\n")
    Path("ranks.json").write_text(json.dumps({"c1": [2, 2]}))
    return tmp_path


RUN = ["in.onnx", "out.onnx", "--prune", "0.5"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["beside.onnx", "weights.bin", "--prune", "0.5"], ["OUT 'weights.bin'", "beside.onnx"]),
        (["beside.onnx", "out.onnx", "--prune", "0.5", "--html", "weights.bin"], ["--html", "beside.onnx"]),
        (["in.onnx", "d.npz", "--prune", "0.5", "--data", "d.npz"], ["OUT 'd.npz'", "--data"]),
        ([*RUN, "--data", "d.npz", "--report", "./d.npz"], ["--report 'd.npz'", "--data"]),
        ([*RUN, "--calib", "d.npz", "--markdown", "d.npz"], ["--markdown", "--calib"]),
        ([*RUN, "--train", "d.npz", "--recover", "none", "--junit", "d.npz"], ["--junit", "--train"]),
        ([*RUN, "--data", "imgs", "--preprocess", "unit", "--report", "imgs/labels.csv"], ["--report", "'imgs'"]),
        ([*RUN, "--data", "classes", "--preprocess", "unit", "--html", "classes/a/2.png"], ["--html", "'classes'"]),
        ([*RUN, "--data", "imgs", "--preprocess", "p.toml", "--report", "p.toml"], ["--report", "--preprocess"]),
        (["in.onnx", "out.onnx", "--tucker", "ranks=ranks.json", "--report", "ranks.json"], ["--report", "--tucker"]),
        (["in.onnx", "out.onnx", "--recipe", "recipe.toml", "--save-plan", "recipe.toml"], ["--save-plan", "--recipe"]),
        (["in.onnx", "recipe.toml", "--recipe", "recipe.toml"], ["OUT", "--recipe"]),
    ],
)
def test_an_input_is_not_replaced(
    arguments: Sequence[str], names: Sequence[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([*arguments, *QUICK]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(name in line for name in names), line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "beside.onnx", "in.onnx", "--data", "d.npz", "--no-latency", "--report", "weights.bin"],
        ["compare", "in.onnx", "beside.onnx", "--data", "d.npz", "--no-latency", "--html", "weights.bin"],
        ["compare", "in.onnx", "in.onnx", "--data", "d.npz", "--no-latency", "--html", "d.npz"],
        ["compare", "in.onnx", "in.onnx", "--data", "d.npz", "--recipe", "recipe.toml", "--html", "recipe.toml"],
        ["inspect", "beside.onnx", "--json", "weights.bin"],
    ],
)
def test_nor_do_other_commands_replace_one(
    arguments: Sequence[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([*arguments, "-q"]) == 2
    assert "would replace what" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_model_and_a_report_may_lie_beside_data(folder: Path) -> None:
    data = ["--data", "imgs", "--preprocess", "unit"]
    for _ in range(2):
        assert main(["in.onnx", "imgs/out.onnx", "--prune", "0.5", *data, "--report", "imgs/r.json", *QUICK]) == 0
