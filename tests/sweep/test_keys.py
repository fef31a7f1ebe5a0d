"""What decides a point of a sweep, so that a result on disk is taken only while it still is that point's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxcompress.cli import main
from onnxcompress.pipeline.sweep_grid import contents, fingerprint
from onnxcompress.recipe import Recipe
from tests.tiny_models import conv_net

MODULE = "import numpy as np\nfrom mine.helper import scale\ndef make(): return []\n"


def test_the_code_behind_a_callable_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    files = {"loader.py": MODULE, "mine/__init__.py": "", "mine/helper.py": "scale = 1\n", "other.py": "x = 1\n"}
    for name, text in files.items():
        Path(name).write_text(text)
    first = fingerprint("loader:make")
    Path("other.py").write_text("x = 2\n")
    assert fingerprint("loader:make") == first
    seen = {first, fingerprint("loader:other"), fingerprint("mine.helper:scale")}
    for name in ("loader.py", "mine/helper.py"):
        Path(name).write_text(f"{files[name]}# changed\n")
        seen.add(fingerprint("loader:make"))
    assert len(seen) == 5
    Path("loader.py").write_text("this is no Python\n")
    assert fingerprint("loader:make") not in seen


def test_what_cannot_be_found_is_told_by_its_name() -> None:
    assert fingerprint("n" * 300) == "n" * 300
    assert fingerprint("no_such_module:make") != fingerprint("no_such_module:other")


def test_what_stands_in_a_file_counts_and_presets_are_none(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("scale = 1.0")
    first = contents(Recipe(preprocess=str(file), time_table=file))
    assert first.keys() == {"preprocess", "time_table"}
    file.write_text("scale = 2.0")
    assert contents(Recipe(preprocess=str(file)))["preprocess"] != first["preprocess"]
    assert contents(Recipe(preprocess="unit")) == {}


def test_an_edited_preprocessing_is_a_new_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    Path("imgs").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"imgs/{number}.png")
    command = ["sweep", "in.onnx", "--method", "prune", "--prune-range", "0.5", "--no-latency", "-q", "--out", "s"]
    for text, points in (("scale = 0.1", 1), ("scale = 0.1", 1), ("scale = 0.2", 2)):
        Path("p.toml").write_text(text)
        assert main([*command, "--data", "imgs", "--preprocess", "p.toml"]) == 0
        assert len(list(Path("s/points").iterdir())) == points
