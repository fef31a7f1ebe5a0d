"""Models, data, reports and plans at `s3://`, on a real server of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.errors import RecipeError
from tests.remote.servers import free_port, put_inputs, s3_server, use_s3_at
from tests.tiny_models import SIZE, conv_net

QUICK = ["--no-latency", "--no-progress"]


@pytest.fixture
def bucket(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of a server with `in.onnx` and `data.npz` in a bucket; the working directory has both, too."""
    with s3_server(monkeypatch):
        import s3fs

        files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        files.mkdir("models")
        put_inputs(files)
        yield files


def test_everything_may_lie_elsewhere(bucket: Any, tmp_path: Path) -> None:
    options = ["--prune", "0.25", "--samples", "20", *QUICK]
    assert main(["in.onnx", "out.onnx", "--data", "data.npz", *options]) == 0
    reports = [f"--{kind}=s3://models/run/{kind}" for kind in ("report", "html", "markdown", "junit", "save-plan")]
    remote = ["s3://models/in.onnx", "s3://models/run/out.onnx", "--data", "s3://models/data.npz"]
    assert main([*remote, *options, *reports]) == 0
    assert bucket.cat_file("models/run/out.onnx") == Path("out.onnx").read_bytes()
    report = json.loads(bucket.cat_file("models/run/report"))
    assert report["input"]["path"] == "s3://models/in.onnx"
    assert report["output"]["path"] == "s3://models/run/out.onnx"
    assert report["recipe"]["data"] == "s3://models/data.npz"
    assert report["accuracy"]["samples"] == 20
    found = {name.rpartition("/")[2] for name in bucket.ls("models/run", refresh=True)}
    assert found == {"out.onnx", "report", "html", "markdown", "junit", "save-plan"}
    assert main([remote[0], "again.onnx", "--plan", "s3://models/run/save-plan", *QUICK]) == 0
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()
    assert main(["compare", *remote[:2], "--no-latency", "--data", "s3://models/data.npz"]) == 0
    assert main(["inspect", remote[0], "--json", "s3://models/run/inspect", "-q"]) == 0
    assert json.loads(bucket.cat_file("models/run/inspect"))["input"]["path"] == remote[0]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_recipe_and_calibration_images_elsewhere(bucket: Any) -> None:
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
        folder = Path("photos", str(number % 4))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    bucket.put("photos", "models/photos", recursive=True)
    bucket.pipe_file("models/recipe.toml", b'prune = 0.25\nrecover = "refit"\nlatency = false\npreprocess = "unit"\n')
    results = [
        onnxcompress.compress(f"{where}in.onnx", f"{where}recipe.toml", calib=f"{where}photos")
        for where in ("s3://models/",)
    ]
    bucket.get_file("models/recipe.toml", "recipe.toml")
    here = onnxcompress.compress("in.onnx", "recipe.toml", calib="photos")
    assert results[0].model.to_bytes() == here.model.to_bytes()
    with pytest.raises(RecipeError, match=r"s3://models/none\.toml: no such file"):
        onnxcompress.compress("in.onnx", "s3://models/none.toml")


def test_external_data_come_along_and_go_along(bucket: Any) -> None:
    Path("there").mkdir()
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(conv_net(), "there/big.onnx", **options)
    bucket.put("there", "models/there", recursive=True)
    assert main(["there/big.onnx", "big.onnx", "--prune", "0.25", "--external-data", *QUICK]) == 0
    command = ["s3://models/there/big.onnx", "s3://models/out/big.onnx", "--external-data", *QUICK]
    assert main([*command, "--prune", "0.25"]) == 0
    for file in Path().glob("big.onnx*"):
        assert bucket.cat_file(f"models/out/{file.name}") == file.read_bytes()
    assert main([*command, "--prune", "0.5", "--overwrite"]) == 0
    # The side file of the model that was replaced has gone.
    assert len(bucket.ls("models/out", refresh=True)) == 2
    # One that another model may read has not: it is not fetched to find out.
    bucket.cp_file("models/out/big.onnx", "models/out/copy.onnx")
    assert main([*command, "--prune", "0.25", "--overwrite"]) == 0
    assert len(bucket.ls("models/out", refresh=True)) == 4
    assert main(["inspect", "s3://models/out/copy.onnx", "-q"]) == 0
    bucket.rm_file("models/there/weights.bin")
    assert main([*command, "--overwrite"]) == 4


def test_an_existing_object_needs_overwrite(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.pipe_file("models/out.onnx", b"what was there")
    command = ["in.onnx", "s3://models/out.onnx", "--prune", "0.25", *QUICK]
    assert main(command) == 2
    assert "s3://models/out.onnx: exists; give --overwrite" in capsys.readouterr().err
    assert main([*command, "--min-compression", "100", "--overwrite"]) == 3
    assert bucket.cat_file("models/out.onnx") == b"what was there"
    assert main([*command, "--overwrite"]) == 0
    onnx.load_model_from_string(bucket.cat_file("models/out.onnx"))
    assert main(["s3://models/in.onnx", "s3://models/in.onnx", "--prune", "0.25", "--overwrite", *QUICK]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["s3://models/none.onnx", "out.onnx"], 4, "s3://models/none.onnx: no such file"),
        (["s3://nowhere/in.onnx", "out.onnx"], 4, "s3://nowhere/in.onnx: "),
        (["s3://models/", "out.onnx"], 4, "s3://models/: is a folder"),
        (["s3://models/data.npz", "out.onnx"], 4, "s3://models/data.npz: is not an ONNX model"),
        (["in.onnx", "out.onnx", "--data", "s3://models/none.npz"], 5, "s3://models/none.npz: no such file"),
        (["in.onnx", "out.onnx", "--data", "s3://models/in.onnx"], 5, "s3://models/in.onnx: not data"),
        (["in.onnx", "out.onnx", "--plan", "s3://models/none.json"], 2, "s3://models/none.json: no such file"),
        (["in.onnx", "s3://nowhere/out.onnx"], 2, "the bucket 'nowhere' does not exist"),
        (["in.onnx", "s3://models/folder/"], 2, "s3://models/folder/: is a folder"),
        (["in.onnx", "nonsense://models/out.onnx"], 2, "nonsense://models/out.onnx: Protocol not known"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: list[str], code: int, expected: str, bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [] if "--plan" in arguments else ["--prune", "0.25"]
    assert main([*arguments, *settings, *QUICK]) == code
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not Path("out.onnx").exists()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_network_that_is_gone(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3_at(f"http://127.0.0.1:{free_port()}", monkeypatch)
    settings = ["--prune", "0.25", *QUICK]
    assert main(["s3://models/in.onnx", "out.onnx", *settings]) == 4
    assert main(["in.onnx", "out.onnx", "--data", "s3://models/data.npz", *settings]) == 5
    assert main(["in.onnx", "s3://models/out.onnx", *settings]) == 2
    assert not Path("out.onnx").exists()


def test_a_network_that_goes_during_the_work_loses_nothing(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(doing: str, done: int, total: int | None) -> None:
        if doing == "writing":
            use_s3_at(f"http://127.0.0.1:{free_port()}", monkeypatch)

    bucket.pipe_file("models/out.onnx", b"what was there")
    expected = onnxcompress.compress("in.onnx", prune=0.25, latency=False).model.to_bytes()
    with pytest.raises(RecipeError, match=r"s3://models/out\.onnx: cannot be written.*kept as ") as caught:
        onnxcompress.compress(
            "in.onnx", prune=0.25, latency=False, output="s3://models/out.onnx", overwrite=True, progress=gone
        )
    assert bucket.cat_file("models/out.onnx") == b"what was there"
    kept = Path(str(caught.value).rpartition("kept as ")[2])
    assert kept.read_bytes() == expected


def test_without_the_extra_the_message_says_what_to_install(bucket: Any) -> None:
    """`s3fs` or fsspec itself missing: exit code 6 whatever the address is for."""
    program = (
        "import sys; sys.modules[{!r}] = None\n"
        "from onnxcompress.cli import main\n"
        "sys.exit(main(['s3://models/in.onnx', 'out.onnx', '--prune', '0.25', '--no-latency', '-q']))"
    )
    for module in ("fsspec", "s3fs"):
        done = subprocess.run(
            [sys.executable, "-c", program.format(module)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 6, done.stderr
        assert "pip install 'onnxcompress[remote]'" in done.stderr
        assert done.stderr.count("\n") == 1
