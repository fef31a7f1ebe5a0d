"""The command line: what it writes, what it prints, what it returns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcompress import __version__
from onnxcompress.cli import main
from tests.tiny_models import conv_net, save_data

FAST = ["--no-latency", "--no-progress"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model and data for it."""
    monkeypatch.chdir(tmp_path)
    model = conv_net()
    onnx.save(model, "in.onnx")
    save_data(Path("data.npz"), model)
    return tmp_path


def run(*arguments: str) -> int:
    return main([*arguments, *FAST])


def test_compress_writes_a_smaller_valid_model_and_its_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(
        "in.onnx", "out.onnx", "--prune", "0.5", "--tucker", "energy=0.9", "--data", "data.npz", "--report", "r.json"
    )
    assert code == 0
    onnx.checker.check_model("out.onnx", full_check=True)
    report = json.loads(Path("r.json").read_text())
    assert report["output"]["path"] == "out.onnx"
    assert report["output"]["bytes"] == Path("out.onnx").stat().st_size
    assert report["output"]["params"] < 0.6 * report["input"]["params"]
    assert [stage["pass"] for stage in report["stages"]] == ["cleanup", "prune", "tucker"]
    assert report["accuracy"]["original"]["top1"] == 100.0
    assert report["accuracy"]["samples"] == 40
    assert report["latency"] == []
    assert report["seconds"] > 0
    captured = capsys.readouterr()
    assert "Top-1" in captured.out
    assert "Parameters" in captured.out
    assert captured.err.startswith("onnxcompress: warning: Top-1 fell from 100.0 %")
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "in.onnx", "out.onnx", "r.json"]


def test_the_report_names_the_file_by_its_hash(folder: Path) -> None:
    import hashlib

    assert run("in.onnx", "out.onnx", "--prune", "0.5", "--report", "r.json", "-q") == 0
    report = json.loads(Path("r.json").read_text())
    for name in ("input", "output"):
        assert report[name]["sha256"] == hashlib.sha256(Path(report[name]["path"]).read_bytes()).hexdigest()


def test_the_same_command_twice_gives_the_same_bytes(folder: Path) -> None:
    options = ["--prune", "0.4", "--importance", "random", "--tucker", "auto", "--seed", "3", "-q"]
    assert run("in.onnx", "a.onnx", *options) == 0
    assert run("in.onnx", "b.onnx", *options) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert run("in.onnx", "c.onnx", *options[:-2], "4", "-q") == 0
    assert Path("a.onnx").read_bytes() != Path("c.onnx").read_bytes()


def test_latency_is_measured_unless_turned_off(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--repeat",
        "20",
        "--warmup",
        "1",
        "--threads",
        "1",
        "--batch",
        "2",
        "--report",
        "r.json",
        "--no-progress",
    ]
    assert main(["in.onnx", "out.onnx", "--prune", "0.5", *options]) == 0
    (latency,) = json.loads(Path("r.json").read_text())["latency"]
    assert (latency["requested"], latency["provider"], latency["batch"]) == ("cpu", "CPUExecutionProvider", 2)
    assert latency["threads"] == 1
    assert latency["original_ms"]["p50"] > 0
    assert "Latency p50 (cpu, batch 2, 1 thread)" in capsys.readouterr().out


def test_widths_are_rounded_to_the_providers_block_once_latency_is_measured(folder: Path) -> None:
    options = ["--prune", "0.4", "--repeat", "20", "--warmup", "1", "--report", "r.json", "-q"]
    assert main(["in.onnx", "out.onnx", *options, "--overwrite"]) == 0
    assert json.loads(Path("r.json").read_text())["recipe"]["round_to"] in (8, 16)
    assert main(["in.onnx", "out.onnx", *options, "--overwrite", "--no-latency"]) == 0
    assert json.loads(Path("r.json").read_text())["recipe"]["round_to"] == 1


def test_quiet_prints_warnings_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("in.onnx", "out.onnx", "--prune", "0.5", "-q") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        line for line in captured.err.splitlines() if "Accuracy was not measured" in line
    ]


def test_verbose_names_every_decision_and_every_node_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("in.onnx", "out.onnx", "--prune", "0.5", "-v") == 0
    out = capsys.readouterr().out
    assert "Decisions of prune" in out
    assert "first" in out
    assert "classifier" in out


def test_a_dry_run_shows_everything_and_writes_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in folder.iterdir()}
    for output in ([], ["out.onnx"], ["missing/out.onnx"]):
        assert run("in.onnx", *output, "--prune", "0.5", "--dry-run") == 0
        captured = capsys.readouterr()
        assert "Decisions of prune" in captured.out
        assert "Dry run: the result was not measured, and OUT was not written." in captured.out
        assert {path.name for path in folder.iterdir()} == before


def test_a_dry_run_says_which_gates_it_did_not_judge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gates = ("--max-drop", "0", "--min-compression", "99")
    assert run("in.onnx", "--prune", "0.5", "--dry-run", "--data", "data.npz", *gates) == 0
    out = capsys.readouterr().out
    assert "no gate was judged (max_drop, min_compression), and OUT was not written." in out
    assert "give --data" not in out


def test_a_recipe_file_gives_options_and_the_command_line_wins(folder: Path) -> None:
    Path("recipe.toml").write_text('prune = 0.5\ntucker = "auto"\nreport = "r.json"\nlatency = false\n')
    assert main(["in.onnx", "out.onnx", "--recipe", "recipe.toml", "--tucker", "off", "--no-progress", "-q"]) == 0
    report = json.loads(Path("r.json").read_text())
    assert [stage["pass"] for stage in report["stages"]] == ["cleanup", "prune"]
    assert report["recipe"]["prune"] == 0.5


def test_weights_go_to_a_side_file_on_request(folder: Path) -> None:
    assert run("in.onnx", "out.onnx", "--prune", "0.5", "--external-data", "-q") == 0
    side_files = [path for path in folder.iterdir() if path.suffix == ".data"]
    assert len(side_files) == 1
    onnx.checker.check_model("out.onnx", full_check=True)
    assert run("out.onnx", "again.onnx", "--prune", "0.5", "--report", "r.json", "-q") == 0
    total = Path("out.onnx").stat().st_size + side_files[0].stat().st_size
    assert json.loads(Path("r.json").read_text())["input"]["bytes"] == total


class TestGates:
    """Exit code 3, the report written, OUT untouched."""

    def test_a_failed_gate_leaves_out_alone_and_writes_the_report(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("out.onnx").write_bytes(b"old")
        arguments = ["in.onnx", "out.onnx", "--prune", "0.5", "--min-compression", "100", "--report", "r.json"]
        assert run(*arguments, "--overwrite") == 3
        assert Path("out.onnx").read_bytes() == b"old"
        report = json.loads(Path("r.json").read_text())
        assert report["gates"][0]["passed"] is False
        assert report["output"]["path"] is None
        assert "gate failed: min_compression" in capsys.readouterr().err

    def test_keep_failed_writes_out_and_still_says_so(self, folder: Path) -> None:
        assert run("in.onnx", "out.onnx", "--prune", "0.5", "--min-compression", "100", "--keep-failed", "-q") == 3
        onnx.checker.check_model("out.onnx", full_check=True)

    def test_gates_on_accuracy(self, folder: Path) -> None:
        arguments = ["in.onnx", "out.onnx", "--prune", "0.5", "--data", "data.npz", "-q", "--overwrite"]
        assert run(*arguments, "--max-drop", "0") == 3
        assert not Path("out.onnx").exists()
        assert run(*arguments, "--max-drop", "100", "--min-compression", "1.1") == 0
        assert Path("out.onnx").exists()


class TestPlans:
    """Saved, replayed to the same bytes, refused for another model."""

    def test_a_plan_replays_to_the_same_bytes(self, folder: Path) -> None:
        Path("ranks.json").write_text('{"second": [4, 4]}')
        options = ["--prune", "0.4", "--importance", "random", "--seed", "5", "--tucker", "ranks=ranks.json"]
        assert run("in.onnx", "a.onnx", *options, "--save-plan", "plan.json", "-q") == 0
        Path("ranks.json").unlink()
        assert run("in.onnx", "b.onnx", "--plan", "plan.json", "-q") == 0
        assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()

    def test_a_plan_is_refused_for_another_model(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("in.onnx", "a.onnx", "--prune", "0.4", "--save-plan", "plan.json", "-q") == 0
        onnx.save(conv_net(seed=1), "other.onnx")
        capsys.readouterr()
        assert run("other.onnx", "b.onnx", "--plan", "plan.json") == 2
        assert "the plan was made for in.onnx" in capsys.readouterr().err
        assert not Path("b.onnx").exists()

    def test_a_plan_and_deciding_options_exclude_each_other(self, folder: Path) -> None:
        assert run("in.onnx", "a.onnx", "--prune", "0.4", "--save-plan", "plan.json", "-q") == 0
        assert run("in.onnx", "b.onnx", "--plan", "plan.json", "--prune", "0.1") == 2


class TestInspect:
    """`onnxcompress inspect`."""

    def test_tables_and_json(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", "in.onnx", "--json", "i.json"]) == 0
        out = capsys.readouterr().out
        assert "Groups of channels" in out
        value = json.loads(Path("i.json").read_text())
        assert value["schema"] == 1
        groups = {group["name"]: group for group in value["groups"]}
        assert groups["first"]["prunable"] == 16
        assert groups["first"]["consumers"] == ["second"]
        assert groups["classifier"]["prunable"] == 0
        assert list(groups["classifier"]["kept"].values()) == [4]
        layers = {layer["node"]: layer for layer in value["layers"]}
        assert layers["second"]["macs"] == 16 * 16 * 9 * 16
        assert layers["second"]["weight"] == [16, 16, 3, 3]
        assert layers["second"]["group"] == "second"
        assert all((layer["split"] is None) != (layer["not_split"] is None) for layer in value["layers"])

    def test_scales_are_no_layers_to_people(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = onnx.load("in.onnx")
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2), "two"))
        model.graph.node.insert(1, onnx.helper.make_node("Mul", ["c1", "two"], ["doubled"], "scaled"))
        model.graph.node[2].input[0] = "doubled"
        onnx.save(model, "scaled.onnx")
        for arguments, shown in (([], False), (["-v"], True)):
            assert main(["inspect", "scaled.onnx", *arguments]) == 0
            out = capsys.readouterr().out
            assert ("scaled  " in out) is shown
            assert ("1 cheaper layers are not shown" in out) is not shown
            assert "first" in out

    def test_it_never_writes_over_the_model(self, folder: Path) -> None:
        before = Path("in.onnx").read_bytes()
        assert main(["inspect", "in.onnx", "--json", "in.onnx"]) == 2
        assert Path("in.onnx").read_bytes() == before

    def test_quiet(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", "in.onnx", "-q"]) == 0
        assert capsys.readouterr() == ("", "")


class TestCompare:
    """`onnxcompress compare`: the gates and exit codes of compression."""

    def test_a_model_against_itself_agrees(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--data", "data.npz", "--max-drop", "0", "--report", "r.json"]
        assert main(["compare", "in.onnx", "in.onnx", *options, *FAST]) == 0
        report = json.loads(Path("r.json").read_text())
        assert report["accuracy"]["agreement"] == 100.0
        assert report["compression"]["bytes"] == 1.0
        assert report["stages"] == []
        assert capsys.readouterr().err == ""

    def test_gates_fail_as_in_compression(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("in.onnx", "out.onnx", "--prune", "0.7", "-q") == 0
        capsys.readouterr()
        assert main(["compare", "in.onnx", "out.onnx", "--data", "data.npz", "--max-drop", "0", *FAST]) == 3
        assert "gate failed: max_drop" in capsys.readouterr().err
        assert main(["compare", "in.onnx", "out.onnx", "--min-compression", "50", "--repeat", "20", "-q"]) == 3

    def test_nothing_to_compare_is_wrong_usage(self, folder: Path) -> None:
        assert main(["compare", "in.onnx", "in.onnx", "--no-latency"]) == 2

    def test_sizes_need_neither_data_nor_latency(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["compare", "in.onnx", "in.onnx", "--no-latency", "-q", "--min-compression"]
        assert main([*arguments, "1"]) == 0
        assert capsys.readouterr().err == ""
        assert main([*arguments, "3"]) == 3
        assert "gate failed: min_compression is 1, the limit is 3" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["inspect", "--help"], ["compare", "-h"]):
        assert main(arguments) == 0
        assert "examples:" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"onnxcompress {__version__}\n"


def test_help_names_every_recipe_option(capsys: pytest.CaptureFixture[str]) -> None:
    from onnxcompress.recipe import Recipe
    from onnxcompress.recipe.options import options_of

    main(["--help"])
    text = capsys.readouterr().out
    for name in options_of(Recipe):
        flag = name.replace("_", "-")
        assert f"--{flag}" in text or f"--no-{flag}" in text


def test_help_loads_nothing_heavy() -> None:
    heavy = ("numpy", "onnx", "onnxruntime", "rich", "tensorly", "torch")
    code = (
        "import sys; from onnxcompress.cli import main; main(['--help']);"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"


def test_a_reader_that_leaves_changes_nothing(folder: Path) -> None:
    command = [sys.executable, "-m", "onnxcompress", "in.onnx", "out.onnx", "--prune", "0.5", "--no-latency"]
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writer)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr
    assert Path("out.onnx").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(
    number: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    from onnxcompress.pipeline import compress

    def interrupt(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(compress.CompressedModel, "save", interrupt)
    # A shell starts what it puts into the background with Ctrl-C ignored, and so is the whole test run then.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    assert run("in.onnx", "out.onnx", "--prune", "0.5", "--report", "r.json", "-q") == 130
    assert "interrupted" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "in.onnx"]


def broken(*arguments: object, **options: object) -> None:
    raise ZeroDivisionError("planted")


def test_a_bug_shows_its_traceback_and_asks_for_a_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxcompress.pipeline import job

    monkeypatch.setattr(job, "compression_warnings", broken)
    assert run("in.onnx", "out.onnx", "--prune", "0.5", "--report", "r.json") == 70
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "ZeroDivisionError: planted" in error
    assert "please report it" in error
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "in.onnx"]


def test_a_failed_self_check_is_a_bug_and_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxcompress.passes.pruning import FilterPruning

    rewrite: Callable[..., object] = FilterPruning.rewrite

    def tampered(self: FilterPruning, model: object, plan: object, context: object) -> object:
        result = rewrite(self, model, plan, context)
        bias = next(tensor for name, tensor in model.constants().items() if name.startswith("b1"))  # type: ignore[attr-defined]
        bias.values = bias.values + 1
        return result

    monkeypatch.setattr(FilterPruning, "rewrite", tampered)
    assert run("in.onnx", "out.onnx", "--prune", "0.5") == 70
    assert "self-check of pass 'prune'" in capsys.readouterr().err
    assert not Path("out.onnx").exists()
    assert run("in.onnx", "out.onnx", "--prune", "0.5", "--no-verify") == 0
