"""The pass for Microsoft Olive, with Olive itself: `make test-olive` runs it in an environment that has it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress
from tests.docs.test_docs import ROOT, blocks_of
from tests.tiny_models import conv_net, samples

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("olive") is None, reason="Microsoft Olive is not installed (make test-olive installs it)"
)

PAGE = ROOT / "docs" / "olive.md"
READER = """
import numpy as np
from olive.data.registry import Registry

@Registry.register_dataloader()
def npz_loader(dataset, **kwargs):
    inputs = np.load("inputs.npz")["x"]
    return [({"x": inputs[n : n + 4]}, None) for n in range(0, len(inputs), 4)]
"""


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OLIVE_DISABLE_TELEMETRY": "1", "CI": "1"}
    shell = ["bash", "-euo", "pipefail", "-c", command]
    return subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def workflow(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Compress `in.onnx` to `out/` with the pass alone."""
    onnx.save(conv_net(), folder / "in.onnx")
    config = {
        "input_model": {"type": "ONNXModel", "model_path": "in.onnx"},
        "passes": {"compress": {"type": "OnnxCompress", **options}},
        "output_dir": "out",
    }
    (folder / "workflow.json").write_text(json.dumps(config))
    return run(
        "python -m onnxcompress.olive package.json; olive run --config workflow.json --package-config package.json",
        folder,
    )


def attributes(folder: Path) -> Mapping[str, Any]:
    config: dict[str, Any] = json.loads((folder / "out" / "model_config.json").read_text())
    found: dict[str, Any] = config["config"]["model_attributes"]
    return found


def test_the_documented_workflow_runs(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models", target_is_directory=True)
    for block in blocks_of(PAGE):
        if block.mark.startswith("file="):
            (tmp_path / block.mark.removeprefix("file=")).write_text(block.content)
        elif block.mark == "olive":
            done = run(block.content, tmp_path)
            assert done.returncode == 0, f"line {block.line}:\n{done.stdout}\n{done.stderr}"
    report = json.loads((tmp_path / "report.json").read_text())
    assert [stage["pass"] for stage in report["stages"]] == ["cleanup", "prune"]
    assert [gate["passed"] for gate in report["gates"]] == [True]
    # Olive's own pass has worked on what this one made.
    ops = {node.op_type for node in onnx.load(tmp_path / "optimised" / "model.onnx").graph.node}
    assert "DynamicQuantizeLinear" in ops


def test_the_model_is_what_the_program_makes(tmp_path: Path) -> None:
    done = workflow(tmp_path, prune=0.25, recipe={"tucker": "ratio=0.5", "round_to": 1})
    assert done.returncode == 0, done.stdout + done.stderr
    made = onnxcompress.compress(conv_net(), prune=0.25, tucker="ratio=0.5", round_to=1, latency=False)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == made.model.to_bytes()
    assert made.report.compression is not None
    assert attributes(tmp_path)["onnxcompress"]["compression"]["params"] == made.report.compression.params


def test_olives_own_data_calibrate(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=samples(40))
    (tmp_path / "reader.py").write_text(READER)
    calib = {
        "name": "calib",
        "user_script": "reader.py",
        "load_dataset_config": {"type": "dummy_dataset", "params": {"input_shapes": [[1]], "max_samples": 1}},
        "dataloader_config": {"type": "npz_loader"},
    }
    done = workflow(tmp_path, prune=0.25, round_to=1, recover="refit", calib_data_config=calib)
    assert done.returncode == 0, done.stdout + done.stderr
    feeds = [{"x": samples(40)[n : n + 4]} for n in range(0, 40, 4)]
    made = onnxcompress.compress(conv_net(), prune=0.25, round_to=1, recover="refit", calib=feeds, latency=False)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == made.model.to_bytes()


def test_a_failed_gate_ends_the_workflow(tmp_path: Path) -> None:
    done = workflow(tmp_path, prune=0.25, min_compression=100)
    assert done.returncode != 0
    assert "gate failed: min_compression is" in done.stdout + done.stderr
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_a_failed_gate_is_a_failed_candidate_where_a_search_goes_on(tmp_path: Path) -> None:
    done = workflow(tmp_path, prune=0.25, min_compression=100, stop_at_failed_gate=False)
    assert done.returncode == 0
    assert "No output model produced" in done.stdout + done.stderr
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_a_wrong_option_ends_the_workflow_with_its_message(tmp_path: Path) -> None:
    done = workflow(tmp_path, tucker="sometimes")
    assert done.returncode != 0
    assert "'sometimes' is not known" in done.stdout + done.stderr
