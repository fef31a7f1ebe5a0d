"""What a terminal shows: a bar where there is one, no colours where none are wanted, completion in a real shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcompress.cli import main
from onnxcompress.cli_options import COMMANDS
from onnxcompress.report.progress import told_stream
from tests.tiny_models import conv_net, save_data

ROOT = Path(__file__).resolve().parent.parent

_COMPLETE = """
source ./script
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMPREPLY=()
function=$(complete -p onnxcompress | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" onnxcompress "${COMP_WORDS[COMP_CWORD]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_a_stream_tells_how_far_it_is() -> None:
    told: list[tuple[str, int, int | None]] = []
    batches = [{"x": np.zeros((4, 1))}, {"x": np.zeros((3, 1))}]
    assert len(list(told_stream("refit", batches, 7, lambda *now: told.append(now)))) == 2
    assert told == [("refit", 0, 7), ("refit", 4, 7)]


def in_terminal(tmp_path: Path, *more: str, **environment: str) -> str:
    """Run with standard error in a terminal; return what that shows."""
    import pty

    model = conv_net()
    onnx.save(model, tmp_path / "in.onnx")
    save_data(tmp_path / "data.npz", model)
    command = [sys.executable, "-m", "onnxcompress", "in.onnx", "out.onnx", "--overwrite", "--no-latency"]
    command += ["--prune", "0.5", "--quantize", "int8", "--data", "data.npz", *more]
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "120", **environment}
    master, terminal = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, cwd=tmp_path, env=variables)
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # what the end of a terminal is on Linux
            break
        if not part:
            break
        shown += part
    process.communicate()
    os.close(master)
    assert process.returncode == 0
    return shown.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX systems")
def test_a_bar_in_a_terminal_and_none_where_it_is_not_wanted(tmp_path: Path) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*(3[0-9]|38;[0-9;]*)m")
    shown = in_terminal(tmp_path)
    assert "accuracy of the" in shown
    assert colour.search(shown)
    plain = in_terminal(tmp_path, NO_COLOR="1")
    assert "accuracy of the" in plain
    assert not colour.search(plain)
    assert "accuracy of the" not in in_terminal(tmp_path, "-q")


@pytest.fixture
def complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    pytest.importorskip("shtab", reason="the extra 'completion' is not installed")
    monkeypatch.chdir(tmp_path)
    assert main(["--print-completion", "bash"]) == 0
    Path("script").write_text(capsys.readouterr().out)
    for name in ("model.onnx", "inner.onnx"):
        Path(name).touch()
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_files_options_and_values(complete: Path) -> None:
    def completed(*words: str) -> list[str]:
        command = ["bash", "--norc", "-c", _COMPLETE, "bash", "onnxcompress", *words]
        return sorted(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    assert completed("in") == ["inner.onnx", "inspect"]
    assert set(COMMANDS) <= set(completed(""))
    assert completed("mo") == ["model.onnx"]
    assert completed("model.onnx", "o.onnx", "--quant") == ["--quantize"]
    assert completed("model.onnx", "o.onnx", "--quantize", "") == ["fp16", "int8", "off"]
    assert completed("model.onnx", "o.onnx", "--calib", "mo") == ["model.onnx"]
    assert "--json" in completed("inspect", "--j")
    assert completed("compare", "model.onnx", "in") == ["inner.onnx"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell: str, complete: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", shell]) == 0
    assert "quantize" in capsys.readouterr().out


def test_an_unknown_shell_or_a_missing_extra_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--print-completion", "tcl"]) == 2
    assert "'tcl' is not known; give one of bash, zsh, fish" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 6
    assert "onnxcompress[completion]" in capsys.readouterr().err
