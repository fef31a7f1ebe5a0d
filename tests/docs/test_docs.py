"""The pages in docs/: their marked examples run, their links lead somewhere, their options exist.

A fenced block ```bash run``` or ```python run``` is run (`run=3`: and has to end with that exit code); ```toml
file=NAME``` is written to that file. The blocks of a page share a folder with a link to `models/`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxcompress.cli import main
from onnxcompress.recipe import Recipe
from onnxcompress.recipe.options import options_of
from tests.docs.option_table import PAGE, with_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is what stands behind its language."""

    language: str
    mark: str
    content: str
    line: int


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield Block(match[1], match[2].strip(), match[3], text.count("\n", 0, match.start()) + 1)


def marked(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if re.match(r"run|file=", block.mark)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with the models and the program."""
    (tmp_path / "models").symlink_to(ROOT / "models", target_is_directory=True)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "onnxcompress"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxcompress "$@"\n')
    program.chmod(0o755)
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="the examples are for bash")
@pytest.mark.parametrize("page", [page for page in PAGES if marked(page)], ids=lambda page: page.name)
def test_the_examples_run(page: Path, folder: Path) -> None:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    python = ""
    for block in marked(page):
        if block.mark.startswith("file="):
            (folder / block.mark.removeprefix("file=")).write_text(block.content)
            continue
        expected = int(block.mark.partition("=")[2] or 0)
        command = ["bash", "-euo", "pipefail", "-c", block.content]
        if block.language == "python":
            command = [sys.executable, "-c", block.content]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        where = f"{page.name}, line {block.line}:\n{done.stdout}\n{done.stderr}"
        assert done.returncode == expected, where
        python += done.stdout
    if page.name == "extending.md":
        shown = re.search(r"^    (\{.*\})$", page.read_text(), re.M)
        assert shown is not None
        assert shown[1] in python


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_the_source_distribution_holds_what_its_pages_link_to(page: Path) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    held = [ROOT / entry for entry in pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]]
    assert any(page.is_relative_to(entry) for entry in held)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        linked = (page.parent / target).resolve()
        assert any(linked.is_relative_to(entry) for entry in held), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_and_path_that_is_named_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = re.sub(r"^olive run .*$", "", page.read_text(encoding="utf-8"), flags=re.M)  # its own options
    for command in ([], ["inspect"], ["sweep"]):
        main([*command, "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    # pip's options are its own.
    ours = re.sub(r"(?m)^.*\bpip (?:un)?install .*$", "", text)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours))
    assert named - known == set()
    for path in re.findall(r"`((?:onnxcompress|models|tests|docs)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_table_of_options_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text, "an option has changed: python -m tests.docs.option_table"
    assert all(f"| `{name.replace('_', '-')}` |" in text for name in options_of(Recipe))


def test_the_documented_recipe_is_a_recipe() -> None:
    (recipe,) = [block for block in blocks_of(PAGE) if block.mark == "file=recipe.toml"]
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    read = Recipe.from_mapping(tomllib.loads(recipe.content))
    assert read.max_drop == 3.0


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in PAGES if page.name != "README.md")
