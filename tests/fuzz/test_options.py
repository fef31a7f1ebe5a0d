"""Random command lines: they end as documented, never as a bug, and what a saved plan replays are the same bytes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcompress.cli import main
from onnxcompress.graph import Model
from tests.fuzz.choices import Choices
from tests.tiny_models import conv_net, samples, save_data

DOCUMENTED = (0, 2, 3, 4, 5)
COUNT, CHUNK = 60, 20

# {option: (in how many of a hundred command lines, its values)}; an empty value stands for a flag.
OPTIONS: dict[str, tuple[int, tuple[str, ...]]] = {
    "--data": (85, ("data.npz",)),
    "--calib": (70, ("calib.npz",)),
    "--prune": (60, ("auto", "auto", "0.1", "0.3", "0.6", "0.9", "0")),
    "--prune-scope": (30, ("uniform", "global")),
    "--importance": (30, ("l1", "l2", "fpgm", "random", "activation", "response")),
    "--steps": (20, ("1", "2", "3")),
    "--tucker": (60, ("auto", "off", "evbmf", "energy=0.9", "ratio=0.5")),
    "--svd": (40, ("auto", "off", "energy=0.9", "ratio=0.5")),
    "--target": (35, ("macs=0.5", "params=0.4", "size=0.5", "macs=0.05", "macs=0.9")),
    "--max-drop": (40, ("1", "5", "20", "0")),
    "--max-error": (20, ("2", "10", "50", "0")),
    "--min-compression": (10, ("1.0", "2")),
    "--recover": (40, ("none", "refit", "auto")),
    "--quantize": (25, ("int8", "fp16")),
    "--round-to": (60, ("1", "4", "auto")),
    "--cleanup": (15, ("off", "auto", "auto,-lrn", "fold,merge")),
    "--exclude": (10, ("first", "^/", "classifier", "Conv")),
    "--samples": (15, ("1", "2", "5", "30")),
    "--seed": (20, ("1", "7")),
    "--strict": (10, ("",)),
    "--dry-run": (10, ("",)),
    "--measure-stages": (15, ("",)),
    "--html": (15, ("r.html",)),
    "--junit": (15, ("j.xml",)),
    "--markdown": (15, ("m.md",)),
}


@pytest.mark.parametrize("first", range(0, COUNT, CHUNK))
def test_random_command_lines_end_as_documented(first: int) -> None:
    check_command_lines(range(first, first + CHUNK))


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(COUNT, 2000, CHUNK))
def test_thousands_of_command_lines(first: int) -> None:
    check_command_lines(range(first, first + CHUNK))


def check_command_lines(seeds: range) -> None:
    words = {seed: drawn_words(Choices.seeded(seed)) for seed in seeds}
    codes = {}
    for own in words.values():
        with prepared_folder():
            codes[" ".join(own)] = ended(own)
    assert [line for line, code in codes.items() if code not in DOCUMENTED] == []
    assert 0 in codes.values()


def drawn_words(c: Choices) -> list[str]:
    """Return a command line without its first word; some contradict themselves."""
    words = [c.pick(["in.onnx", "fixed.onnx"]), "out.onnx", "--no-latency", "-q"]
    for option, (percent, values) in OPTIONS.items():
        if c.chance(percent):
            words += [option, *filter(None, [c.pick(values)])]
    return words


def ended(words: list[str]) -> int:
    """Run a command line in the present folder; return its exit code once what it promises was checked."""
    code = main([*words, "--save-plan", "p.json"])
    written = Path("out.onnx")
    assert written.exists() == (code == 0 and "--dry-run" not in words), words
    if written.exists():
        before, after = (Model.load(name).signature() for name in (words[0], "out.onnx"))
        assert before == after, words
        given = [word for option in ("--calib", "--data", "--samples") for word in valued(words, option)]
        assert main([words[0], "again.onnx", "--plan", "p.json", "--no-latency", "-q", *given]) == 0, words
        assert Path("again.onnx").read_bytes() == written.read_bytes(), words
    return code


def valued(words: list[str], option: str) -> list[str]:
    return words[words.index(option) :][:2] if option in words else []


@cache
def contents() -> dict[str, bytes]:
    """Return the files that every command line finds: two models and data."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        onnx.save(conv_net(), root / "in.onnx")
        onnx.save(conv_net(batch=4), root / "fixed.onnx")
        save_data(root / "data.npz", conv_net(), count=60)
        np.savez(root / "calib.npz", x=samples(150, seed=5))
        return {path.name: path.read_bytes() for path in root.iterdir()}


@contextmanager
def prepared_folder() -> Iterator[None]:
    """Stand in a folder of those files."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents().items():
            (Path(folder) / name).write_bytes(content)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
