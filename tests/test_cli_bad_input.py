"""Bad input: one clear line on standard error, the documented exit code, nothing written, no traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxcompress.cli import main
from tests.tiny_models import SIZE, conv_net, dense_net, samples, save_data

USAGE, MODEL, DATA, PROVIDER = 2, 4, 5, 6


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a sound model, `in.onnx`."""
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Names and contents of everything below a folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the program, hold that it refuses properly, and return its line."""

    def run(code: int, *arguments: str) -> str:
        before = snapshot(folder)
        capsys.readouterr()
        assert main([*arguments, "--no-latency", "--no-progress"]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        (line,) = captured.err.splitlines()
        assert line.startswith("onnxcompress: error: ")
        assert snapshot(folder) == before
        return line.removeprefix("onnxcompress: error: ")

    return run


COMPRESS = ("in.onnx", "out.onnx", "--prune", "0.5", "--report", "r.json")


# The model.


def test_in_is_missing(refused: Callable[..., str]) -> None:
    assert refused(MODEL, "no.onnx", "out.onnx").startswith("no.onnx: ")


def test_in_is_a_directory(refused: Callable[..., str]) -> None:
    Path("folder").mkdir()
    assert "is a directory" in refused(MODEL, "folder", "out.onnx")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"This is a text file, and by no means a network.\n", "is not an ONNX model"),
        (b"\x00" * 1000, "is not an ONNX model"),
        (np.random.default_rng(0).bytes(1000), "is not an ONNX model"),
    ],
    ids=["empty", "text", "zeros", "noise"],
)
def test_in_is_something_else(content: bytes, expected: str, refused: Callable[..., str]) -> None:
    Path("bad.onnx").write_bytes(content)
    assert expected in refused(MODEL, "bad.onnx", "out.onnx", "--prune", "0.5")


def test_in_is_truncated_anywhere(refused: Callable[..., str]) -> None:
    content = Path("in.onnx").read_bytes()
    for length in (1, 10, 100, 1000, len(content) // 2, len(content) - 1):
        Path("bad.onnx").write_bytes(content[:length])
        assert refused(MODEL, "bad.onnx", "out.onnx", "--prune", "0.5").startswith("bad.onnx: ")


def test_in_fails_the_checker(refused: Callable[..., str]) -> None:
    model = conv_net()
    model.graph.node[0].op_type = "Convolve"
    Path("bad.onnx").write_bytes(model.SerializeToString())
    assert refused(MODEL, "bad.onnx", "out.onnx", "--prune", "0.5").startswith("bad.onnx: ")


def test_in_reads_a_tensor_that_nothing_makes(refused: Callable[..., str]) -> None:
    model = conv_net()
    model.graph.node[1].input[0] = "nowhere"
    Path("bad.onnx").write_bytes(model.SerializeToString())
    assert refused(MODEL, "bad.onnx", "out.onnx", "--prune", "0.5").startswith("bad.onnx: ")


def _cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[3].output[0]


def _two_outputs_of_one_name(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def _made_twice(model: onnx.ModelProto) -> None:
    model.graph.node[3].output[0] = model.graph.node[1].output[0]


def _size_disagrees(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] += 1


def _absurd_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**62


def _absurd_empty_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 0, 3, 3]
    model.graph.initializer[0].ClearField("raw_data")


def _end_in_a_pool(model: onnx.ModelProto) -> None:
    """Put a global pool in the place of the classifier: any size of image fits."""
    model.graph.node[4].op_type, model.graph.node[4].output[0] = "GlobalAveragePool", "y"
    del model.graph.node[5]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 16, 1, 1]))


def _absurd_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**31
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 2**31
    _end_in_a_pool(model)


def _negative_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -2


def _absurd_map(model: onnx.ModelProto) -> None:
    """A map of 2^20 by 2^20 positions in the middle."""
    model.graph.node[1].op_type = "Resize"
    model.graph.node[1].input[:] = ["c1", "", "scales"]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 1, 2**17, 2**17], np.float32), "scales"))
    _end_in_a_pool(model)


@pytest.mark.parametrize(
    ("damage", "code", "expected"),
    [
        (_cyclic, MODEL, "reads what is computed from its own output: the nodes form a cycle"),
        (_two_outputs_of_one_name, MODEL, "two graph outputs are named 'y'"),
        (_made_twice, MODEL, ""),
        (_size_disagrees, MODEL, "but holds"),
        (_absurd_weight, MODEL, "but holds"),
        (_absurd_empty_weight, MODEL, ""),
        (_absurd_input, DATA, "too many to verify with"),
        (_negative_input, MODEL, "declares a negative length (-2)"),
        (_absurd_map, DATA, "too many to verify with"),
    ],
)
def test_in_contradicts_itself(
    damage: Callable[[onnx.ModelProto], None], code: int, expected: str, refused: Callable[..., str]
) -> None:
    model = conv_net()
    damage(model)
    Path("bad.onnx").write_bytes(model.SerializeToString())
    assert expected in refused(code, "bad.onnx", "out.onnx", "--prune", "0.5", "--tucker", "auto")


def test_in_holds_nothing_that_can_be_compressed(refused: Callable[..., str]) -> None:
    onnx.save(dense_net(), "dense.onnx")
    line = refused(MODEL, "dense.onnx", "out.onnx", "--prune", "0.5", "--tucker", "auto")
    assert "nothing that can be compressed: no Conv" in line
    assert "Gemm" in line


def test_in_is_quantised_already(refused: Callable[..., str]) -> None:
    model = conv_net()
    del model.graph.initializer[:], model.graph.node[:], model.graph.output[:]
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.uint8), "w")
    model.graph.initializer.append(weight)
    model.graph.node.append(onnx.helper.make_node("ConvInteger", ["x", "w"], ["y"], "first"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, ["batch", 4, 6, 6]))
    onnx.save(model, "quantised.onnx")
    assert "quantised already: give the float one" in refused(MODEL, "quantised.onnx", "out.onnx", "--prune", "0.5")


def test_a_dense_model_is_taken_where_svd_is_asked_for(folder: Path) -> None:
    onnx.save(dense_net(), "dense.onnx")
    assert main(["dense.onnx", "out.onnx", "--svd", "ratio=0.5", "--no-latency", "-q"]) == 0


def test_external_data_that_are_missing_or_outside(folder: Path, refused: Callable[..., str]) -> None:
    Path("models").mkdir()
    options = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(conv_net(), "models/big.onnx", location="big.data", **options)
    (folder / "models/big.data").rename(folder / "big.data")
    assert "'big.data' is missing" in refused(MODEL, "models/big.onnx", "out.onnx", "--prune", "0.5")
    for location in ("../big.data", str(folder / "big.data")):
        model = onnx.load("models/big.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        Path("models/bad.onnx").write_bytes(model.SerializeToString())
        assert "model's folder" in refused(MODEL, "models/bad.onnx", "out.onnx", "--prune", "0.5")


def test_names_that_steer_a_terminal_are_escaped(refused: Callable[..., str]) -> None:
    line = refused(MODEL, "\x1b[31m\u202ered.onnx", "out.onnx")
    assert line.startswith("\\x1b[31m\\u202ered.onnx: ")


def test_a_name_that_is_too_long(refused: Callable[..., str]) -> None:
    assert "cannot be read" in refused(MODEL, "x" * 5000, "out.onnx")
    assert "cannot be written" in refused(USAGE, "in.onnx", "x" * 5000)


# What is written.


def test_out_is_in(folder: Path, refused: Callable[..., str]) -> None:
    Path("link.onnx").symlink_to("in.onnx")
    os.link("in.onnx", "hard.onnx")
    for name in ("in.onnx", "./in.onnx", "link.onnx", "hard.onnx"):
        assert "is the input" in refused(USAGE, "in.onnx", name, "--prune", "0.5", "--overwrite")
    assert "is the input" in refused(USAGE, *COMPRESS[:-1], "in.onnx")


def test_out_exists(refused: Callable[..., str]) -> None:
    Path("out.onnx").write_bytes(b"old")
    assert "--overwrite" in refused(USAGE, *COMPRESS)


def test_out_has_no_folder_or_is_one(refused: Callable[..., str]) -> None:
    assert "does not exist" in refused(USAGE, "in.onnx", "no/out.onnx", "--prune", "0.5")
    Path("folder").mkdir()
    assert "is a directory" in refused(USAGE, "in.onnx", "folder", "--prune", "0.5", "--overwrite")
    assert "does not exist" in refused(USAGE, *COMPRESS[:-1], "no/r.json")
    assert "does not exist" in refused(USAGE, *COMPRESS, "--save-plan", "no/plan.json")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
def test_out_in_a_folder_that_takes_no_files(refused: Callable[..., str]) -> None:
    assert "not writable" in refused(USAGE, "in.onnx", "/proc/self/out.onnx", "--prune", "0.5")


def test_paths_are_checked_before_the_model_is_read(refused: Callable[..., str]) -> None:
    assert refused(USAGE, "no.onnx", "no/out.onnx").startswith("no/out.onnx: ")


# Options.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--prune", "1"], "--prune: 1.0 is out of range"),
        (["--prune", "-0.1"], "--prune: -0.1 is out of range"),
        (["--prune", "nan"], "--prune: nan is out of range"),
        (["--prune", "most"], "--prune: 'most' is not a number"),
        (["--prune"], "--prune"),
        (["--importance", "l3"], "--importance: 'l3' is not known"),
        (["--importance", "activation", "--prune", "0.5"], "--importance activation needs data"),
        (["--provider", "abacus"], "--provider: 'abacus' is not known"),
        (["--provider", "AbacusExecutionProvider"], "AbacusExecutionProvider"),
        (["--tucker", "some"], "--tucker: 'some' is not known"),
        (["--tucker", "energy=1.5"], "--tucker: 1.5 is out of range"),
        (["--tucker", "ranks=no.json"], "no.json"),
        (["--svd", "evbmf"], "--svd: 'evbmf' is not known"),
        (["--exclude", "("], "--exclude: "),
        (["--round-to", "0"], "--round-to: 0 is out of range"),
        (["--max-drop", "1"], "--max-drop needs accuracy"),
        (["--min-speedup", "1"], "--min-speedup needs latency"),
        (["--input-shape", "x"], "--input-shape: 'x' is not a named shape"),
        (["--recipe", "no.toml"], "no.toml: cannot be read"),
        (["--plan", "no.json"], "no.json: cannot be read"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--pru", "0.5"], "unrecognized arguments"),
        (["extra"], "unrecognized arguments: extra"),
    ],
)
def test_options(options: list[str], expected: str, refused: Callable[..., str]) -> None:
    assert expected in refused(USAGE, "in.onnx", "out.onnx", *options)


def test_out_is_left_out(refused: Callable[..., str]) -> None:
    assert "OUT" in refused(USAGE, "in.onnx", "--prune", "0.5")
    assert "IN" in refused(USAGE)


def test_a_recipe_names_its_file_and_key(refused: Callable[..., str]) -> None:
    Path("recipe.toml").write_text("prune = 2\n")
    assert refused(USAGE, "in.onnx", "out.onnx", "--recipe", "recipe.toml").startswith("recipe.toml: prune: 2 is out")


def test_an_input_shape_that_does_not_fit(refused: Callable[..., str]) -> None:
    assert "no input 'z'" in refused(USAGE, *COMPRESS, "--input-shape", "z:1x3x8x8")
    assert "does not fit" in refused(USAGE, *COMPRESS, "--input-shape", "x:1x4x8x8")


def test_a_provider_that_is_not_there_is_never_replaced(refused: Callable[..., str]) -> None:
    assert "not available" in refused(PROVIDER, *COMPRESS, "--provider", "coreml")


# Data.


def write_npz(**arrays: np.ndarray) -> None:
    np.savez("data.npz", **arrays)


def test_data_are_missing_or_nothing_known(refused: Callable[..., str]) -> None:
    assert "no.npz" in refused(DATA, *COMPRESS, "--data", "no.npz")
    Path("empty").mkdir()
    assert "empty" in refused(DATA, *COMPRESS, "--data", "empty", "--preprocess", "unit")
    Path("data.txt").write_text("1, 2, 3")
    assert "data.txt" in refused(DATA, *COMPRESS, "--data", "data.txt")


def test_npz_that_do_not_fit(refused: Callable[..., str]) -> None:
    inputs, labels = samples(4), np.zeros(4, np.int64)
    for expected, arrays in [
        ("'x'", {"wrong": inputs, "labels": labels}),
        ("shape", {"x": inputs[:, :2], "labels": labels}),
        ("labels", {"x": inputs, "labels": labels[:3]}),
        ("label", {"x": inputs, "labels": labels + 4}),
        ("label", {"x": inputs, "labels": labels - 1}),
    ]:
        write_npz(**arrays)
        assert expected in refused(DATA, *COMPRESS, "--data", "data.npz")
    Path("data.npz").write_bytes(b"PK\x03\x04 not really")
    assert "data.npz" in refused(DATA, *COMPRESS, "--data", "data.npz")


class Exploding:
    """An object whose unpickling leaves a trace."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled",)


def test_pickled_objects_are_never_unpickled(refused: Callable[..., str]) -> None:
    np.savez("data.npz", x=np.array([Exploding()] * 4, dtype=object), labels=np.zeros(4, np.int64))
    assert "data.npz" in refused(DATA, *COMPRESS, "--data", "data.npz")
    assert not Path("unpickled").exists()


def write_images(labels: str | None = "a.png,0\nb.png,1\n") -> None:
    Path("images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(Path("images") / name)
    if labels is not None:
        Path("images/labels.csv").write_text(f"file,label\n{labels}")


def test_images_and_their_labels(refused: Callable[..., str]) -> None:
    data = ("--data", "images", "--preprocess", "unit")
    write_images()
    assert main([*COMPRESS, *data, "--no-latency", "-q"]) == 0
    Path("out.onnx").unlink()
    assert "--preprocess" in refused(USAGE, *COMPRESS, "--data", "images")
    assert "sepia" in refused(USAGE, *COMPRESS, "--data", "images", "--preprocess", "sepia")
    for labels, expected in [
        ("a.png,0\nmissing.png,1\n", "missing.png"),
        ("a.png,0\nb.png,4\n", "4"),
        ("a.png,0\nb.png,-1\n", "-1"),
        ("a.png,0\nb.png,cat\n", "cat"),
    ]:
        write_images(labels)
        assert expected in refused(DATA, *COMPRESS, *data)
    write_images()
    content = Path("images/b.png").read_bytes()
    for damaged in (b"", b"no image", content[: len(content) // 2]):
        Path("images/b.png").write_bytes(damaged)
        assert "b.png" in refused(DATA, *COMPRESS, *data)


def test_calibration_data_are_checked_too(refused: Callable[..., str]) -> None:
    assert "no.npz" in refused(DATA, *COMPRESS, "--calib", "no.npz", "--importance", "activation")


def test_inspect_and_compare_refuse_alike(refused: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "no.onnx" in refused(MODEL, "compare", "no.onnx", "in.onnx", "--data", "in.onnx")
    save_data(Path("data.npz"), conv_net())
    onnx.save(dense_net(), "dense.onnx")
    assert "second model" in refused(DATA, "compare", "in.onnx", "dense.onnx", "--data", "data.npz")
    assert main(["inspect", "no.onnx"]) == MODEL
    assert capsys.readouterr().err.startswith("onnxcompress: error: no.onnx: ")
