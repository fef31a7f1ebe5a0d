"""What the training script refuses before it trains: options that cannot work, and checkpoints that are not its own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import train

NETWORK = ["--stem", "tiny", "--width", "0.125", "--batch", "16", "--padding", "1"]


def write_data(folder: Path, labels: int = 10) -> Path:
    """Write 32 random images of as many classes as there are labels; return the file."""
    random = np.random.default_rng(0)
    path = folder / f"of-{labels}.npz"
    np.savez(path, images=random.integers(0, 256, (32, 16, 16, 1), np.uint8), labels=np.arange(32) % labels)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "{folder}/none/x.onnx"], "x.onnx: is a folder, or lies in none that can be written to"),
        (["--weights", "{folder}"], "is a folder, or lies in none"),
        (["--out", "{folder}/x.onnx", "--checkpoint", "{folder}/none/x"], "--checkpoint .*x: is a folder, or lies in"),
        (["--out", "{folder}/x.onnx", "--epochs", "0"], "--epochs 0: expected a number above 0"),
        (["--out", "{folder}/x.onnx", "--rate", "nan"], "--rate nan: expected a number above 0"),
        (["--out", "{folder}/x.onnx", "--padding", "-1"], "--padding -1: expected 0 or more"),
        (["--out", "{folder}/x.onnx", "--early-size", "41"], "--early-size 41: expected at most 40, the size with"),
    ],
)
def test_options_that_cannot_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        train.parse([option.format(folder=tmp_path) for option in options])
    assert ended.value.code == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "error: " in each]
    assert re.search(message, line)


def test_classes_of_the_test_images_that_training_does_not_have(tmp_path: Path) -> None:
    few, many = write_data(tmp_path, 5), write_data(tmp_path)
    with pytest.raises(SystemExit, match=r"of-10\.npz: label 9 is not a class of .*of-5\.npz, which has 5$"):
        train.main(["--train", str(few), "--test", str(many), "--out", str(tmp_path / "x.onnx"), *NETWORK])


def test_only_a_checkpoint_of_the_same_training_is_resumed(tmp_path: Path) -> None:
    data, checkpoint, weights = write_data(tmp_path), tmp_path / "progress", tmp_path / "x.pth"
    command = ["--train", str(data), "--test", str(data), "--checkpoint", str(checkpoint), "--weights", str(weights)]
    command += [*NETWORK, "--epochs", "1"]
    train.main(command)
    for option, value, was in (("--epochs", "2", "1"), ("--width", "0.25", "0.125"), ("--rate", "0.1", "0.004")):
        with pytest.raises(SystemExit, match=rf"progress: belongs to a training with {option} {was}; give that, or"):
            train.main([*command, "--resume", option, value])
    for content in (b"hello", b"", torch.save({"done": 1}, weights) or weights.read_bytes()):
        checkpoint.write_bytes(content)
        with pytest.raises(SystemExit, match=r"progress: is no checkpoint of --checkpoint"):
            train.main([*command, "--resume"])
