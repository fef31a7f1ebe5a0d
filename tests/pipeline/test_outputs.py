"""Output paths are refused before any work, and nothing is ever written in the place of an input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import onnxcompress
from onnxcompress.errors import RecipeError
from onnxcompress.pipeline.outputs import check_outputs, is_same_file
from tests.tiny_models import conv_net


def check(output: Path, source: Path, *, overwrite: bool = False, report: Path | None = None) -> None:
    check_outputs(output, overwrite=overwrite, reports={"--report": report}, inputs=[source, None])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    path.write_bytes(b"model")
    return path


def test_out_may_not_be_in(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(source)
    os.link(source, tmp_path / "hard.onnx")
    (tmp_path / "folder").symlink_to(tmp_path)
    for path in (source, tmp_path / "link.onnx", tmp_path / "hard.onnx", tmp_path / "folder" / "in.onnx"):
        with pytest.raises(RecipeError, match="is the input"):
            check(path, source, overwrite=True)
        with pytest.raises(RecipeError, match=r"--report .* is the input"):
            check(tmp_path / "out.onnx", source, report=path)


def test_an_existing_out_needs_overwrite(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")
    with pytest.raises(RecipeError, match="exists; give --overwrite"):
        check(tmp_path / "out.onnx", source)
    check(tmp_path / "out.onnx", source, overwrite=True)


def test_an_old_report_is_replaced_without_asking(source: Path, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    check(tmp_path / "out.onnx", source, report=tmp_path / "r.json")


def test_out_and_report_may_not_be_one_file(source: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="are the same file"):
        check(tmp_path / "out.onnx", source, report=tmp_path / "x" / ".." / "out.onnx")


def test_places_that_take_no_file(source: Path, tmp_path: Path) -> None:
    for path, expected in [
        (tmp_path, "is a directory"),
        (tmp_path / "missing" / "out.onnx", "does not exist"),
        (source / "out.onnx", "does not exist"),
        (tmp_path / ("x" * 300), "cannot be written"),
    ]:
        with pytest.raises(RecipeError, match=expected):
            check(path, source)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no /dev/null on this system")
def test_a_device_is_never_replaced(source: Path) -> None:
    with pytest.raises(RecipeError, match="not a regular file"):
        check(Path("/dev/null"), source, overwrite=True)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc on this system")
def test_nor_is_the_name_of_an_output_that_goes_to_a_file(source: Path, tmp_path: Path) -> None:
    """As `/dev/stdout` is one, of a command behind which stands `> FILE`."""
    name = tmp_path / "stdout"
    with (tmp_path / "log").open("w") as log:
        name.symlink_to(f"/proc/self/fd/{log.fileno()}")
        assert name.is_file()
        with pytest.raises(RecipeError, match="stdout: is not a regular file"):
            check(name, source, overwrite=True)
        with pytest.raises(RecipeError, match="stdout: is not a regular file"):
            check(tmp_path / "out.onnx", source, report=name)
        assert name.is_symlink()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
def test_a_folder_that_takes_no_files_even_from_root(source: Path) -> None:
    with pytest.raises(RecipeError, match="not writable"):
        check(Path("/proc/self/out.onnx"), source)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(RecipeError, match="not writable"):
        check(folder / "out.onnx", source)


def test_checking_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    check(tmp_path / "out.onnx", source, report=tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def test_files_that_do_not_exist_are_compared_by_path(tmp_path: Path) -> None:
    assert is_same_file(tmp_path / "a" / ".." / "b", tmp_path / "b")
    assert not is_same_file(tmp_path / "a", tmp_path / "b")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert is_same_file(tmp_path / "loop", tmp_path / "loop")


def test_a_file_with_weights_beside_it_has_the_size_that_is_told(tmp_path: Path) -> None:
    """Each of them begins at a page of its own, which weighs in a small model."""
    options = {"prune": 0.5, "latency": False, "external_data": True, "output": str(tmp_path / "a longer name.onnx")}
    report = onnxcompress.compress(conv_net(), min_compression=0.01, **options).report
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2
    assert report.output is not None
    assert report.output.bytes == written
    assert [gate.value for gate in report.gates] == [pytest.approx(report.input.bytes / written)]
