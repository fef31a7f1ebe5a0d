"""What all tests share: one thread a worker, repeatable random examples, models and images outside the repository."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Before numpy and torch start their pools: the suite runs in as many processes as there are cores.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Times that the suite measures are no user's, and a user's are not the suite's.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="onnxcompress-tests-")

# A shell has its jobs in the background ignore interrupts, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, and no deadline: a busy machine is not a bug.
settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")


_LEFT_OUT: dict[str, list[str]] = {}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the modules whose libraries are not installed, as in the environment of the oldest versions."""
    from tests.optional import missing_module

    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    if (missing := missing_module(collection_path)) is None:
        return None
    _LEFT_OUT.setdefault(missing, []).append(collection_path.name)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out."""
    for library, files in sorted(_LEFT_OUT.items()):
        terminalreporter.write_line(f"left out, {library} is not installed: {', '.join(sorted(set(files)))}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the installed onnx and onnxruntime are too old for."""
    from tests.versions import reason_to_skip

    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if reason := reason_to_skip(item.name, parameters.get("opset")):
        pytest.skip(reason)


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and photographs beside a developer's checkout; the test is skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent: real models and images are not part of the repository")
    return SHARED_DATA
