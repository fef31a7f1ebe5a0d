"""Damaged models, data and recipes: an error of the table or a sound result; no traceback, no hang, nothing half."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
import pytest

from tests.fuzz.choices import Choices
from tests.fuzz.damaged import base_models, damaged_model, load_or_refuse, prepare, run_program
from tests.fuzz.mutations import damage_bytes

BASES = base_models(12)
COMPRESS = ("--prune", "0.5", "--tucker", "ratio=0.5")
CHUNK = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged")
    prepare(path)
    return path


def check_loading(folder: Path, seeds: range) -> int:
    loaded = 0
    for seed in seeds:
        (folder / "m.onnx").write_bytes(damaged_model(Choices.seeded(seed), BASES))
        try:
            loaded += load_or_refuse(folder / "m.onnx")
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
    return loaded


def check_program(folder: Path, seeds: Iterable[int], bases: Sequence[onnx.ModelProto] = BASES) -> set[int]:
    codes = set()
    for seed in seeds:
        (folder / "m.onnx").write_bytes(damaged_model(Choices.seeded(seed), bases))
        try:
            codes.add(run_program(folder, "m.onnx", "out.onnx", *COMPRESS))
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
    return codes


def check_files(folder: Path, seeds: range) -> set[int]:
    """One of the other files is damaged, and put back afterwards."""
    requests = {
        "outside.data": ("outside.onnx", "out.onnx", *COMPRESS),
        "data.npz": ("sound.onnx", "out.onnx", *COMPRESS, "--data", "data.npz"),
        "images/a.png": ("sound.onnx", "out.onnx", *COMPRESS, "--data", "images", "--preprocess", "unit"),
        "images/b.jpg": ("sound.onnx", "out.onnx", *COMPRESS, "--data", "images", "--preprocess", "unit"),
        "images/labels.csv": ("sound.onnx", "out.onnx", *COMPRESS, "--data", "images", "--preprocess", "unit"),
        "recipe.toml": ("sound.onnx", "out.onnx", "--recipe", "recipe.toml"),
    }
    codes = set()
    for seed in seeds:
        c = Choices.seeded(seed)
        name = c.pick(list(requests))
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(damage_bytes(content, c))
        try:
            codes.add(run_program(folder, *requests[name]))
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {name}") from error
        finally:
            (folder / name).write_bytes(content)
    return codes


def test_damaged_models_load_or_say_why(folder: Path) -> None:
    assert 20 < check_loading(folder, range(300)) < 280


def test_damaged_models_on_the_command_line(folder: Path) -> None:
    assert check_program(folder, range(40)) >= {0, 4}


def test_damaged_data_and_recipes_on_the_command_line(folder: Path) -> None:
    assert check_files(folder, range(40)) >= {0, 2, 5}


def test_models_that_failed_once(folder: Path) -> None:
    """Contradictions that only constant folding or computed lengths bring to light; an attribute that refers to a
    function's; an input's length of -1, which is an open one."""
    assert check_program(folder, (106938, 108860, 109621, 211945), base_models(40)) == {4}
    assert check_program(folder, (104041,), base_models(40)) == {0}
    assert check_program(folder, (200224,)) == {4}


def test_files_that_failed_once(folder: Path) -> None:
    """Weights near the end of float32, where the layer stays whole; an archive of a future version."""
    assert check_files(folder, range(301004, 301005)) == {0}
    assert check_files(folder, range(302476, 302477)) == {5}


def test_nesting_of_ten_thousand_levels(folder: Path) -> None:
    """A parser that recurses without end would crash the process."""
    content = b""
    for _ in range(10_000):  # GraphProto.node(1).attribute(5).g(6), from the inside out
        for field in (6, 5, 1):
            content = bytes([field << 3 | 2]) + _varint(len(content)) + content
    (folder / "m.onnx").write_bytes(b"\x08\x08" + bytes([7 << 3 | 2]) + _varint(len(content)) + content)
    assert not load_or_refuse(folder / "m.onnx")
    assert run_program(folder, "m.onnx", "out.onnx", *COMPRESS) == 4


def test_nesting_that_still_parses(folder: Path) -> None:
    """A hundred levels are the parser's limit, three of them for each sub-graph; what it lets through is handled."""
    for levels in (5, 20, 30):
        graph = onnx.GraphProto(name="inner")
        for level in range(levels):
            outer = onnx.GraphProto(name=f"level {level}")
            node = outer.node.add(op_type="If", name=f"if {level}")
            node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(graph)
            graph = outer
        proto = onnx.ModelProto(ir_version=8, opset_import=[onnx.helper.make_opsetid("", 17)], graph=graph)
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        assert not load_or_refuse(folder / "m.onnx")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# 20,000: `pytest -m fuzz tests/fuzz`. Every one goes through the command line; the models come from more bases.


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(200_000, 214_000, CHUNK))
def test_thousands_of_damaged_models_on_the_command_line(folder: Path, first: int) -> None:
    check_program(folder, range(first, first + CHUNK), base_models(40))


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(300_000, 306_000, CHUNK))
def test_thousands_of_damaged_files_on_the_command_line(folder: Path, first: int) -> None:
    check_files(folder, range(first, first + CHUNK))
