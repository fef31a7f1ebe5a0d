"""Values that no model, file or machine can hold: one line, the documented exit code, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from onnxcompress.cli import main
from tests.tiny_models import SIZE, conv_net, samples

USAGE, MODEL, DATA = 2, 4, 5
HUGE = f"1{400 * '0'}"
RUN = ["in.onnx", "out.onnx", "--prune", "0.5"]
IMAGES = [*RUN, "--no-latency", "--data", "imgs", "--preprocess"]
NOT_UTF8 = os.fsdecode(b"o\xff.onnx")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    Path("imgs").mkdir()
    for number in range(2):
        Image.new("RGB", (SIZE, SIZE)).save(f"imgs/{number}.png")
    return tmp_path


def refused(code: int, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Hold that a run ends with a code and one line, and writes nothing; return the line."""
    before = sorted(Path().rglob("*"))
    assert main([*arguments, "--no-progress"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert sorted(Path().rglob("*")) == before
    return line.removeprefix("onnxcompress: error: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"scale = {HUGE}", "p.toml: scale = 1000"),
        ("scale = inf", "p.toml: scale = inf is not finite"),
        ("mean = [nan]", "p.toml: mean = [nan] is not finite"),
        ("std = 1e-60", "p.toml: std = 1e-60 is not free of zeros"),
        (f"a = {5000 * '['}", "p.toml: not a readable TOML file"),
        ("resize = [100000, 100000]", "p.toml: resize = [100000, 100000] is not a size of at most"),
        ("crop = 100000", "p.toml: crop = 100000 is not a size of at most"),
    ],
)
def test_preprocessing_by_no_numbers(text: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.toml").write_text(text)
    assert refused(USAGE, [*IMAGES, "p.toml"], capsys).startswith(expected)


def test_an_image_far_too_narrow(capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (1, 60000)).save("imgs/0.png")
    Path("p.toml").write_text("resize = 256\ncrop = 8")
    line = refused(DATA, [*IMAGES, "p.toml"], capsys)
    assert line.startswith("imgs/0.png: 1x60000 pixels would be resized to 256x15360000")


@pytest.mark.parametrize(
    "sizes",
    [["--batch", "100000000"], ["--batch", str(2**62)], ["--input-shape", f"x:{2**63 - 1}x3x{SIZE}x{SIZE}"]],
)
def test_a_batch_beyond_the_machine(sizes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("d.npz", x=samples(8))
    line = refused(DATA, [*RUN, *sizes, "--no-verify", "--threads", "1", "--data", "d.npz"], capsys)
    assert "--input-shape" in line


def test_a_recipe_with_a_number_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.toml").write_text(f"max-drop = {HUGE}")
    line = refused(USAGE, ["in.onnx", "out.onnx", "--recipe", "r.toml"], capsys)
    assert "max-drop: 1000" in line
    assert "is out of range; give percentage points" in line


def test_data_of_too_long_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "in.onnx", "--data", "n" * 300, "--out", "s", "--no-latency"]) == DATA
    assert "no such file or folder" in capsys.readouterr().err


def test_a_layer_without_filters(capsys: pytest.CaptureFixture[str]) -> None:
    model = conv_net()
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.zeros((0, *weight.dims[1:]), np.float32), weight.name))
    onnx.save(model, "empty.onnx")
    line = refused(MODEL, ["empty.onnx", "out.onnx", "--prune", "0.5", "--no-latency"], capsys)
    assert "holds nothing" in line


def test_a_layer_of_the_smallest_numbers_is_split() -> None:
    model = conv_net()
    weight = model.graph.initializer[2]
    assert len(weight.dims) == 4
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e-42), weight.name))
    onnx.save(model, "in.onnx")
    assert main(["in.onnx", "out.onnx", "--tucker", "energy=0.9", "--no-latency", "-q"]) == 0


# Names.


@pytest.mark.parametrize(
    ("output", "expected"),
    [(NOT_UTF8, "is no UTF-8"), ("m" * 255, "too long a name"), ("漢" * 80, "too long a name")],
)
def test_a_name_that_no_side_file_can_have(output: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["in.onnx", output, "--prune", "0.5", "--no-latency", "--external-data"]
    assert expected in refused(USAGE, arguments, capsys)


@pytest.mark.parametrize("output", [NOT_UTF8, "m" * 255, "漢" * 84])
def test_names_that_a_file_can_have(output: str) -> None:
    assert main(["in.onnx", output, "--prune", "0.5", "--no-latency", "-q"]) == 0
    assert Path(output).is_file()


def test_in_of_a_name_that_onnxruntime_does_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.onnx").rename(NOT_UTF8)
    np.savez("d.npz", x=samples(8))
    arguments = [NOT_UTF8, "out.onnx", "--prune", "0.5", "--no-latency", "--data", "d.npz"]
    assert "onnxruntime takes only names in UTF-8; rename the file" in refused(MODEL, arguments, capsys)


def test_names_in_utf8_where_the_locale_knows_none() -> None:
    Path("in.onnx").rename("modèle.onnx")
    np.savez("d.npz", x=samples(8))
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONUTF8": "0", "LC_ALL": "POSIX"}
    options = ["--prune", "0.5", "--external-data", "--no-latency", "--data", "d.npz"]
    for arguments in (["modèle.onnx", "é.onnx", *options], ["é.onnx", "è.onnx", *options]):
        command = [sys.executable, "-m", "onnxcompress", *arguments, "-q"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert main(["inspect", "è.onnx", "-q"]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["in.onnx", "new/", "--prune", "0.5"], "new/: is a folder"),
        ([*RUN, "--report", "new/"], "--report: new/: is a folder"),
        (["inspect", "in.onnx", "--json", "new/"], "new/: is a folder"),
        (["in.onnx", "-", "--prune", "0.5"], "'-': standard input and output are not used"),
        ([*RUN, "--save-plan", "-"], "--save-plan: '-': standard input"),
    ],
)
def test_what_is_no_file_to_write(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(USAGE, arguments, capsys).startswith(expected)


def test_a_folder_that_is_gone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gone = Path("gone").absolute()
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main([str(gone.parent / "in.onnx"), "out.onnx", "--prune", "0.5"]) == USAGE
    assert "the current folder does not exist any more" in capsys.readouterr().err
