"""Damaged files and what the program may make of them: an error of the table, or a sound result, and nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from onnxcompress.cli import main
from onnxcompress.errors import OnnxCompressError
from onnxcompress.graph import Model
from tests.fuzz.choices import Choices
from tests.fuzz.graphs import make_example
from tests.fuzz.mutations import damage_bytes, damage_model
from tests.tiny_models import SIZE, conv_net, save_data

CODES = {0, 2, 3, 4, 5}
SECONDS = 10.0
"""Of processor time, which a busy or paused machine does not stretch; a file that waits for ever hangs the test."""

RECIPE = """\
prune = 0.5
tucker = "ratio=0.5"
exclude = ["first", "^second$"]
round_to = 4
input_shape = ["x:1x3x8x8"]
seed = 3
"""


def base_models(count: int) -> list[onnx.ModelProto]:
    return [conv_net(), *(make_example(Choices.seeded(seed)).proto for seed in range(count - 1))]


def damaged_model(c: Choices, bases: Sequence[onnx.ModelProto]) -> bytes:
    proto = c.pick(bases)
    if c.chance(70):
        return damage_model(proto, c).SerializeToString()
    return damage_bytes(proto.SerializeToString(), c)


def prepare(folder: Path) -> None:
    """Write a sound model, one with a side file, data of every form, and a link that leads outside."""
    onnx.save(conv_net(), folder / "sound.onnx")
    options = {"save_as_external_data": True, "size_threshold": 0, "location": "outside.data"}
    onnx.save(conv_net(), folder / "outside.onnx", **options)
    (folder / "weights.data").write_bytes(b"\0" * 256)
    (folder / "link.data").symlink_to("/etc/hostname")
    save_data(folder / "data.npz", conv_net(), 6)
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(noise.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(folder / "images" / name)
    (folder / "images/labels.csv").write_text("file,label\na.png,0\nb.jpg,3\n")
    (folder / "recipe.toml").write_text(RECIPE)


def load_or_refuse(path: Path) -> bool:
    """Load a model and touch all of it; the only exceptions are those made for users. Return whether it loaded."""
    started, refusal = time.process_time(), None
    try:
        Model.load(path).copy().to_bytes()
    except OnnxCompressError as error:
        refusal = error
    assert time.process_time() - started < SECONDS
    assert refusal is None or refusal.exit_code in CODES, refusal
    return refusal is None


def run_program(folder: Path, *arguments: str) -> int:
    """Run the command line in `folder`; assert what holds whatever the files are, and return the exit code."""
    before = listing(folder)
    errors, started = io.StringIO(), time.process_time()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main([*arguments, "--no-latency", "--no-progress", "-q"])
    finally:
        os.chdir(here)
    seconds, said = time.process_time() - started, errors.getvalue()
    assert code in CODES, said
    assert "Traceback" not in said, said
    assert seconds < SECONDS, f"{seconds:.1f} s"
    made = {name for name in listing(folder) - before if not name.startswith("out.onnx.")}
    if code == 0:
        assert made == {"out.onnx"}
        Model.load(folder / "out.onnx")
    else:
        assert listing(folder) == before
        errors_told = [line for line in said.splitlines() if line.startswith("onnxcompress: error:")]
        assert len(errors_told) == (code != 3)
    for name in listing(folder) - before:
        (folder / name).unlink()
    return code


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
