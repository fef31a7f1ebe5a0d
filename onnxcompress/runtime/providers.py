"""Execution providers: short names, availability, options; never a silent fall-back to another provider."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from onnxcompress.errors import ProviderUnavailableError, RecipeError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "cpu": CPU,
        "cuda": CUDA,
        "tensorrt": TENSORRT,
        "openvino": OPENVINO,
        "directml": "DmlExecutionProvider",
        "coreml": "CoreMLExecutionProvider",
    }
)

_PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        CUDA: "onnxruntime-gpu",
        TENSORRT: "onnxruntime-gpu and TensorRT",
        OPENVINO: "onnxruntime-openvino",
        "DmlExecutionProvider": "onnxruntime-directml (Windows)",
        "CoreMLExecutionProvider": "onnxruntime on macOS",
        "QNNExecutionProvider": "onnxruntime-qnn",
        "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    }
)

# The providers that take over the nodes the first one cannot run, in this order; CPU always comes last.
_SECOND: Mapping[str, tuple[str, ...]] = MappingProxyType({TENSORRT: (CUDA,)})

# Written out although they are onnxruntime's defaults: they decide what runs, so a report must show them.
_PINNED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {CUDA: {"cudnn_conv_algo_search": "EXHAUSTIVE"}, OPENVINO: {"device_type": "CPU"}}
)

# What says how many threads a provider with threads of its own uses; either of OpenVINO's two may.
_THREADS: Mapping[str, tuple[str, ...]] = MappingProxyType({OPENVINO: ("num_of_threads", "load_config")})

_SOURCE = re.compile(r"^/?\S+\.(?:cc|cpp|h):\d+ [^()]*\((?:[^()]|\([^()]*\))*\)(?: const)? ")
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


@dataclass(frozen=True)
class Provider:
    """An execution provider that this installation of onnxruntime has.

    Attributes:
        requested: the name as the user gave it.
        name: onnxruntime's name.
        options: the provider's options, pinned defaults included.
        behind: providers for the nodes that `name` cannot run, with their options.
    """

    requested: str
    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    behind: tuple[tuple[str, Mapping[str, str]], ...] = ()

    @property
    def is_cpu(self) -> bool:
        """Whether this is onnxruntime's own CPU provider."""
        return self.name == CPU

    @property
    def has_cuda_memory(self) -> bool:
        """Whether inputs and outputs can stay in CUDA memory between runs."""
        return self.name in (CUDA, TENSORRT)

    @property
    def device_id(self) -> int:
        """The number of the accelerator (option `device_id`, 0 where not given)."""
        text = self.options.get("device_id", "0")
        if not text.isdigit():
            raise RecipeError(f"provider option {self.requested}.device_id: '{text}' is not a device number")
        return int(text)

    def with_threads(self, threads: int) -> Provider:
        """Return this provider told to use so many threads, where it has its own and no option says otherwise."""
        names = _THREADS.get(self.name, ())
        if not names or not threads or any(name in self.options for name in names):
            return self
        return replace(self, options={**self.options, names[0]: str(threads)})

    def all_options(self) -> dict[str, str]:
        """Return the options with those of the providers behind, whose names begin with their provider's."""
        behind = {f"{name}.{option}": value for name, options in self.behind for option, value in options.items()}
        return {**self.options, **behind}

    def as_onnxruntime(self) -> list[tuple[str, dict[str, str]]]:
        """Return the value of `InferenceSession(providers=...)`."""
        chain = [(self.name, self.options), *self.behind]
        if not self.is_cpu:
            chain.append((CPU, {}))
        return [(name, dict(options)) for name, options in chain]


CPU_PROVIDER = Provider("cpu", CPU)

_RECORDED_GRAPHS = {CUDA: "enable_cuda_graph", TENSORRT: "trt_cuda_graph_enable"}


def provider_name(name: str) -> str:
    """Return onnxruntime's name of a provider, given that or a short one.

    Raises:
        RecipeError: no provider has this name.
    """
    import onnxruntime

    if name.lower() in SHORT_NAMES:
        return SHORT_NAMES[name.lower()]
    known = onnxruntime.get_all_providers()
    for candidate in (*known, *onnxruntime.get_available_providers()):
        if name.lower() == candidate.lower():
            return str(candidate)
    listed = ", ".join([*SHORT_NAMES, *known])
    raise RecipeError(f"provider '{name}' is not known; the known ones are {listed}")


def resolve_provider(name: str, options: Mapping[str, Mapping[str, str]] | None = None) -> Provider:
    """Return the provider `name` (short, or onnxruntime's own name) with its share of `options`.

    `options` is {provider: {option: value}}, such as {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}}.

    Raises:
        RecipeError: the name, or one in `options`, is not known.
        ProviderUnavailableError: this installation of onnxruntime does not have the provider.
    """
    import onnxruntime

    full = provider_name(name)
    given = {provider_name(of): dict(settings) for of, settings in (options or {}).items()}
    if given.get(CPU):
        # onnxruntime takes any without a word.
        raise RecipeError(f"provider 'cpu' has no options, but was given {', '.join(sorted(given[CPU]))}")
    available = onnxruntime.get_available_providers()
    if full not in available:
        advice = f"install {_PACKAGES[full]}" if full in _PACKAGES else "install a build of onnxruntime that has it"
        raise ProviderUnavailableError(
            f"provider '{name}' ({full}) is not available: onnxruntime {onnxruntime.__version__} here has "
            f"{', '.join(available)}; {advice}"
        )

    def settings_of(provider: str) -> dict[str, str]:
        return {**_PINNED.get(provider, {}), **given.get(provider, {})}

    for provider, option in _RECORDED_GRAPHS.items():
        if given.get(provider, {}).get(option, "0").lower() not in ("0", "false"):
            raise RecipeError(
                f"provider option {option} is not supported: a recorded graph reads the addresses of its first run, "
                "and each batch of data lies elsewhere; leave it out"
            )
    behind = tuple((second, settings_of(second)) for second in _SECOND.get(full, ()) if second in available)
    return Provider(name, full, settings_of(full), behind)


def preload_libraries(provider: Provider) -> None:
    """Let onnxruntime find the CUDA libraries that pip packages (or torch) brought, where it can do that."""
    import onnxruntime

    if provider.has_cuda_memory and hasattr(onnxruntime, "preload_dlls"):
        # What it cannot find it says on standard output; what that means is known only once the provider starts.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


class Complaints:
    """What onnxruntime wrote to standard error."""

    text = ""

    def in_one_line(self) -> str:
        """Return its messages, each once and without where in its source they come from; empty if there are none."""
        # "\x1b[1;31m2025-01-01 00:00:00.0 [E:onnxruntime:Default, file.cc:1 function] message\x1b[m"
        lines = [line for line in self.text.splitlines() if ":onnxruntime:" in line]
        messages = [plain_message(line.partition("] ")[2].replace("\x1b[m", "")) for line in lines]
        return one_line(" | ".join(dict.fromkeys(message for message in messages if message)))


@contextlib.contextmanager
def complaints() -> Iterator[Complaints]:
    """Catch what is written to standard error meanwhile.

    A provider that fails to load its libraries raises nothing: onnxruntime writes to the process's standard error and
    carries on without it. So the file descriptor itself is redirected.
    """
    caught = Complaints()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield caught
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            caught.text = file.read().decode(errors="replace")


def plain_message(message: object) -> str:
    """Return a message of onnxruntime in one line, without file, function and error code before it."""
    text = " ".join(str(message).split())
    text = _SOURCE.sub("", text)
    return one_line(_CODE.sub("", text).strip())


def one_line(message: object, limit: int = 400) -> str:
    """Return a message's text in one line of at most `limit` characters."""
    text = " ".join(str(message).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
