"""Fine-tuning in several processes, as torchrun starts them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from onnxcompress.cli import main
from onnxcompress.errors import ProviderUnavailableError, RecipeError
from onnxcompress.passes.base import LABELS
from onnxcompress.passes.recovery.finetuning import FineTuning
from onnxcompress.passes.recovery.processes import Processes, SharedProcesses
from tests.recovery import together
from tests.recovery.small_classifier import original, pruned, samples

ROOT = Path(__file__).parents[2]


Started = list[subprocess.Popen[str]]


def run_together(
    arguments: list[str], count: int = 2, meanwhile: Callable[[Started], None] = lambda started: None
) -> list[subprocess.CompletedProcess[str]]:
    """Start the same command `count` times, as one rank each of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "models")])}
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    meanwhile(started)
    ended = []
    for process in started:
        out, err = process.communicate()
        ended.append(subprocess.CompletedProcess(arguments, process.returncode, out, err))
    return ended


def weights(content: bytes) -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(content).graph
    return {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    ended = run_together(["-m", "tests.recovery.together", str(out)])
    assert [each.returncode for each in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    # With a group that outlives the interpreter a process sometimes ends by SIGABRT.
    assert [each.stdout for each in ended] == 2 * ["groups: [None] False\n"]
    model, done = pruned()[0], FineTuning(together.CONFIG)
    context = together.context()
    alone = weights(done.apply(model, done.plan(model, context), context).model.to_bytes())
    shared, before = weights(out.read_bytes()), weights(pruned()[0].to_bytes())
    assert sum(np.abs(alone[name] - before[name]).max() for name in alone) > 0.1
    for name in alone:
        # Together, not number by number: of a gradient that is next to nothing rounding decides Adam's first steps.
        moved = float(np.linalg.norm(alone[name] - before[name]))
        assert np.linalg.norm(shared[name] - alone[name]) <= 0.01 * moved + 1e-7, name


def whole_command(folder: Path, epochs: int) -> list[str]:
    """A command that fine-tunes a network on images, both of which it writes."""
    (folder / "in.onnx").write_bytes(original().to_bytes())
    batches = list(samples(300, 5, labels=True)())
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.savez(folder / "train.npz", input=arrays["input"], labels=arrays[LABELS])
    command = ["-m", "onnxcompress", str(folder / "in.onnx"), str(folder / "out.onnx"), "--prune", "0.5"]
    return [*command, "--train", str(folder / "train.npz"), "--epochs", str(epochs), "--no-latency", "--device", "cpu"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
def test_an_interrupt_ends_the_training_of_all(tmp_path: Path) -> None:
    """A terminal sends it to all processes, whichever gets it first, and a launcher once more."""

    def interrupt(started: Started) -> None:
        while not (tmp_path / "out.onnx.training").exists() and started[0].poll() is None:
            time.sleep(0.05)
        for process in (started[1], started[0], started[1], started[0]):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)

    first, second = run_together(whole_command(tmp_path, 5000), meanwhile=interrupt)
    assert first.returncode == 0, first.stderr
    assert re.search(r"fine-tuning ended early: interrupted in epoch \d+ of 5000", first.stderr)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.onnx", "out.onnx", "out.onnx.training", "train.npz"]


def test_the_whole_command_in_two_processes(tmp_path: Path) -> None:
    first, second = run_together(whole_command(tmp_path, 2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "finetune: 2 epochs" in first.stdout
    assert second.stdout == ""
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.onnx", "out.onnx", "train.npz"]


def test_where_the_first_process_fails_the_others_leave_the_word_to_it(tmp_path: Path) -> None:
    command = ["-m", "onnxcompress", str(tmp_path / "none.onnx"), str(tmp_path / "out.onnx"), "--prune", "0.5"]
    first, second = run_together([*command, "--train", str(tmp_path), "--device", "cpu"])
    assert first.returncode == 4
    assert "none.onnx: no such file" in first.stderr
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_where_nothing_is_trained_a_process_knows_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters set these variables for every job; joining would wait for processes that never come."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main([str(ROOT / "models" / "googlenet-digits.onnx"), "--prune", "0.5", "--dry-run", "-q"]) == 0


def test_a_batch_is_shared_without_loss() -> None:
    parts = []
    for rank in range(3):
        process = Processes()
        process.rank, process.size = rank, 3
        parts.append(process.share(np.arange(10)))
    assert sorted(np.concatenate(parts).tolist()) == list(range(10))
    with pytest.raises(RecipeError, match=r"3 processes cannot share a batch of 2; give a larger --train-batch"):
        process.share(np.arange(2))


def test_without_accelerate_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit code 6, as of every package that an option needs."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    network = str(ROOT / "models" / "googlenet-digits.onnx")
    assert main([network, str(tmp_path / "out.onnx"), "--train", str(ROOT / "models" / "digits-train.npz")]) == 6
    assert "accelerate, which is not installed: pip install 'onnxcompress[distributed]'" in capsys.readouterr().err


def test_a_process_that_is_gone_is_said_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 6: it was killed, or its machine is not there; a bug it is not."""

    def broken(*given: object, **named: object) -> None:
        raise RuntimeError("[pair.cc:537] Read error: Connection reset by peer")

    together = SharedProcesses.__new__(SharedProcesses)
    together._left = False
    together._accelerator = SimpleNamespace(reduce=broken)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", broken)
    message = r"trains along is not there any more .*reset by peer.*--resume"
    with pytest.raises(ProviderUnavailableError, match=message):
        together.sum_gradients([], torch.tensor(1.0))
    with pytest.raises(ProviderUnavailableError, match=message):
        together.of_first(None)
    assert together.next_job() is None  # the first one says why
    together.end()


def test_alone_nothing_is_exchanged() -> None:
    alone = Processes()
    loss = torch.tensor(2.0)
    assert alone.sum_gradients([], loss) is loss
    assert alone.of_first("x") == "x"
    assert alone.device("auto") == "auto"
