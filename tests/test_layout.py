"""Where things live: imports go one way, `passes` is a link, the version stands once, files stay short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxcompress

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "onnxcompress"
MOST_LINES = 420  # about 400, says the design

# A module imports from the tiers before its own, and from its own subpackage.
TIERS = (
    {"errors", "standard_streams"},
    {"operators", "remote", "side_files", "subgraphs", "tensor_bytes", "termination"},
    {"element_types", "recipe", "serialization", "lengths", "links"},
    {"declarations", "functions", "fused", "sparse_tensors"},
    {"importing", "inference"},
    {"graph"},
    {"analysis", "linalg", "runtime"},
    {"evaluation", "passes", "report"},
    {"pipeline"},
    {"cli", "cli_commands", "cli_completion", "cli_options", "__main__", "olive"},
)
# Neighbours of one tier that may know each other: a report is made of measurements, the command line is several files.
NEIGHBOURS = {("report", "evaluation"), ("cli", "cli_commands"), ("cli", "cli_options"), ("__main__", "cli")}
NEIGHBOURS |= {("cli_commands", "cli_options"), ("cli_options", "cli_completion")}
# Arrays in, arrays out: no ONNX, no model.
NUMERICAL = "linalg"
HEAVY = ("PIL", "matplotlib", "onnxruntime", "rich", "scipy", "tensorly", "torch")


def tier_of(component: str) -> int:
    tiers = [number for number, names in enumerate(TIERS) if component in names]
    assert tiers, f"onnxcompress.{component} has no tier: give it one in {Path(__file__).name}"
    return tiers[0]


def component_of(path: Path) -> str:
    """The subpackage or module directly below onnxcompress that holds `path`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(source: str) -> Iterator[str]:
    """Absolute names of everything imported anywhere in `source`, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; import onnxcompress… by its full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(importer: str, source: str) -> list[str]:
    """Imports in `source`, part of component `importer`, that go up or sideways."""
    wrong = []
    for name in imported_modules(source):
        top, _, rest = name.partition(".")
        if importer == NUMERICAL and top in {"onnx", "onnx_graphsurgeon", "onnxruntime"}:
            wrong.append(name)
        if top != "onnxcompress" or rest == "__version__":
            continue
        imported = rest.split(".")[0]
        if imported == importer or (importer, imported) in NEIGHBOURS:
            continue
        if tier_of(imported) >= tier_of(importer):
            wrong.append(name)
    return wrong


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    assert wrong_imports(component_of(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("passes", "from onnxcompress.evaluation import accuracy"),
        ("passes", "def f():\n    import onnxcompress.report.json"),
        ("graph", "from onnxcompress import analysis"),
        ("runtime", "from onnxcompress.analysis.cost import macs"),
        ("linalg", "import onnx"),
    ],
)
def test_an_import_the_wrong_way_is_found(importer: str, source: str) -> None:
    assert len(wrong_imports(importer, source)) == 1


def test_passes_is_a_relative_link_into_the_package() -> None:
    link = ROOT / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("onnxcompress/passes")
    assert link.resolve() == PACKAGE / "passes"


def test_nothing_imports_passes_by_the_link() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "models").rglob("*.py")]:
        tops = {name.partition(".")[0] for name in imported_modules(path.read_text(encoding="utf-8"))}
        assert "passes" not in tops, f"{path}: import onnxcompress.passes…, the link gives a second copy"


def test_version_has_a_single_source() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in pyproject
    assert re.search(r'\[tool\.hatch\.version\]\npath = "onnxcompress/__init__.py"', pyproject)
    assert re.fullmatch(r"\d+\.\d+\.\d+", onnxcompress.__version__)
    stated = [path for path in PACKAGE.rglob("*.py") if re.search(r"^__version__\s*=", path.read_text("utf-8"), re.M)]
    assert stated == [PACKAGE / "__init__.py"]


# By the name of the import: the package that brings it, where the names differ or another one brings it along.
BROUGHT_BY = {"olive": "olive-ai", "PIL": "pillow", "google": "onnx", "onnx_graphsurgeon": "onnx-graphsurgeon"}


def test_what_is_imported_is_declared() -> None:
    """Something that only the development tools happen to bring would be missing at a user's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    optional = [
        line for name in ("completion", "train", "distributed", "remote", "sweep", "olive") for line in extras[name]
    ]
    declared = {re.split(r"[^\w-]", line)[0] for line in (*project["dependencies"], *optional)}
    tops = {name.partition(".")[0] for path in MODULES for name in imported_modules(path.read_text("utf-8"))}
    third_party = tops - set(sys.stdlib_module_names) - {"onnxcompress", "tomllib"}
    assert {BROUGHT_BY.get(name, name) for name in third_party} - declared == set()


@pytest.mark.parametrize("folder", ["onnxcompress", "models", "tests"])
def test_files_are_short_and_named_by_what_they_hold(folder: str) -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {path.name: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}
    assert [path for path in lengths if path.stem in {"utils", "util", "helpers", "common", "misc"}] == []


def test_importing_the_package_is_light() -> None:
    code = f"import sys, onnxcompress; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_the_oldest_versions_that_are_tested_are_those_that_are_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    tested = dict(
        re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8"), re.M)
    )
    for name, least in (re.match(r"([\w-]+)>=([\d.]+)", each).groups() for each in declared):
        assert (tested[name] + ".0").startswith(least + "."), name
