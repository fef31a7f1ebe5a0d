"""The GitHub Action and the example workflow: well-formed, and the action's script run here step by step."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from onnxcompress.recipe import Recipe
from onnxcompress.recipe.options import options_of

yaml = pytest.importorskip("yaml", reason="a development dependency")

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "googlenet-digits.onnx"
DATA = ROOT / "models" / "digits-test.npz"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="the action runs in bash")


def loaded(name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return value


ACTION = loaded("action.yml")
COMPRESS = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "compress")
WORKFLOW = loaded(".github/workflows/compress.yml")
EXAMPLE = next(step for step in WORKFLOW["jobs"]["compress"]["steps"] if step.get("uses") == "./")


def inputs_named_in(text: str) -> set[str]:
    return set(re.findall(r"inputs\.([\w-]+)", text))


def test_the_action_declares_and_uses_its_inputs_and_outputs() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert all(step.get("shell") == "bash" for step in ACTION["runs"]["steps"] if "run" in step)
    used = inputs_named_in(yaml.safe_dump(ACTION["runs"]))
    assert used == set(ACTION["inputs"])
    assert all(about["description"] for about in (*ACTION["inputs"].values(), *ACTION["outputs"].values()))
    written = set(re.findall(r'echo "([\w-]+)=', COMPRESS["run"]))
    assert written == set(ACTION["outputs"])
    for name, output in ACTION["outputs"].items():
        assert output["value"] == f"${{{{ steps.compress.outputs.{name} }}}}"


def test_no_input_is_part_of_a_script() -> None:
    assert all("${{" not in step["run"] for step in ACTION["runs"]["steps"] if "run" in step)


def test_its_options_exist() -> None:
    named = {name for name in COMPRESS["env"] if name.startswith("OPTION_")}
    listed = re.search(r"for option in (.*); do", COMPRESS["run"])
    assert listed is not None
    options = set(listed[1].split())
    assert {f"OPTION_{option.replace('-', '_').upper()}" for option in options} == named
    assert options - {"recipe"} <= {name.replace("_", "-") for name in options_of(Recipe)}


def test_the_workflow_gives_inputs_that_the_action_has() -> None:
    assert set(EXAMPLE["with"]) <= set(ACTION["inputs"])
    assert {"model"} <= set(EXAMPLE["with"])
    assert (ROOT / EXAMPLE["with"]["model"]).is_file()
    assert all((ROOT / EXAMPLE["with"][name]).is_file() for name in ("data", "calib"))
    assert all(isinstance(value, str) for value in EXAMPLE["with"].values())
    assert WORKFLOW["permissions"] == {"contents": "read"}
    outputs = set(re.findall(r"steps\.compress\.outputs\.([\w-]+)", yaml.safe_dump(WORKFLOW)))
    assert outputs <= set(ACTION["outputs"])


def run_action(folder: Path, **given: str) -> tuple[int, dict[str, str], str]:
    """Run the action's script as GitHub would; return its exit code, its outputs and its step summary."""
    values = {name: str(about.get("default", "")) for name, about in ACTION["inputs"].items()}
    values |= {name.replace("_", "-"): value for name, value in given.items()}
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], template)
        for name, template in COMPRESS["env"].items()
    }
    files = {name: str(folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin" / "python"
    if not python.exists():
        python.symlink_to(sys.executable)
    environment = {
        **os.environ,
        **variables,
        **files,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *[path for path in sys.path if "site-packages" in path]]),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", COMPRESS["run"]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    lines = Path(files["GITHUB_OUTPUT"]).read_text().splitlines()
    summary = Path(files["GITHUB_STEP_SUMMARY"])
    return done.returncode, dict(line.split("=", 1) for line in lines), summary.read_text() if summary.exists() else ""


def example(**changes: str) -> dict[str, str]:
    """The inputs of the example workflow, for a folder elsewhere; a part of the data calibrates, which is faster."""
    given = {name.replace("-", "_"): value for name, value in EXAMPLE["with"].items()}
    return {**given, "model": str(MODEL), "data": str(DATA), "calib": "", **changes}


@needs_bash
def test_the_example_passes_its_gates(tmp_path: Path) -> None:
    code, outputs, summary = run_action(tmp_path, **example())
    assert (code, outputs["passed"], outputs["exit-code"]) == (0, "true", "0")
    assert (tmp_path / outputs["model"]).stat().st_size < MODEL.stat().st_size
    assert "2 of 2 gates passed" in summary
    written = {path.name for path in (tmp_path / outputs["reports"]).iterdir()}
    assert written == {"report.json", "report.html", "junit.xml", "summary.md"}
    assert ElementTree.parse(tmp_path / outputs["junit"]).find(".//failure") is None


@needs_bash
def test_a_loss_of_accuracy_fails_the_step_and_writes_no_model(tmp_path: Path) -> None:
    (tmp_path / "googlenet-digits-small.onnx").write_text("what was there")
    code, outputs, summary = run_action(tmp_path, **example(prune="0.3", recover="", args="--no-latency --overwrite"))
    assert (code, outputs["passed"], outputs["exit-code"], outputs["model"]) == (3, "false", "3", "")
    assert (tmp_path / "googlenet-digits-small.onnx").read_text() == "what was there"
    failures = ElementTree.parse(tmp_path / outputs["junit"]).findall(".//testcase[failure]")
    assert [case.get("name") for case in failures] == ["max_drop"]
    assert "1 of 2 gates failed" in summary


@needs_bash
def test_slowness_fails_the_step(tmp_path: Path) -> None:
    measured = {"min_speedup": "20", "min_compression": "", "args": "--repeat 20 --threads 1"}
    slow = example(data="", preprocess="", max_drop="", recover="", **measured)
    code, outputs, summary = run_action(tmp_path, **slow)
    assert (code, outputs["exit-code"]) == (3, "3")
    failures = ElementTree.parse(tmp_path / outputs["junit"]).findall(".//testcase[failure]")
    assert [case.get("name") for case in failures] == ["min_speedup"]
    assert "min_speedup" in summary


@needs_bash
def test_wrong_usage_fails_the_step_without_a_report(tmp_path: Path) -> None:
    code, outputs, summary = run_action(tmp_path, model="$(touch evil).onnx", prune="0.1")
    assert (code, outputs["exit-code"], summary) == (4, "4", "")
    assert not (tmp_path / "evil").exists()
    code, outputs, _ = run_action(tmp_path, model=str(MODEL), prune="two")
    assert (code, outputs["exit-code"]) == (2, "2")


def test_the_container_copies_only_what_exists_and_leaves_root() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert sum(line.startswith("FROM ") for line in lines) == 2
    users = [number for number, line in enumerate(lines) if line.startswith("USER ")]
    entry = next(number for number, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    assert users
    assert users[-1] < entry
    assert "root" not in lines[users[-1]]
