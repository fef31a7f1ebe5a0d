"""Execution providers: short names, availability, options; never a silent fall-back to another provider."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from onnxcompress.errors import ProviderUnavailableError, RecipeError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "cpu": CPU,
        "cuda": CUDA,
        "tensorrt": TENSORRT,
        "openvino": "OpenVINOExecutionProvider",
        "directml": "DmlExecutionProvider",
        "coreml": "CoreMLExecutionProvider",
    }
)

_PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        CUDA: "onnxruntime-gpu",
        TENSORRT: "onnxruntime-gpu and TensorRT",
        "OpenVINOExecutionProvider": "onnxruntime-openvino",
        "DmlExecutionProvider": "onnxruntime-directml (Windows)",
        "CoreMLExecutionProvider": "onnxruntime on macOS",
        "QNNExecutionProvider": "onnxruntime-qnn",
        "MIGraphXExecutionProvider": "onnxruntime-migraphx",
    }
)

# The providers that take over the nodes the first one cannot run, in this order; CPU always comes last.
_SECOND: Mapping[str, tuple[str, ...]] = MappingProxyType({TENSORRT: (CUDA,)})

# Written out although it is onnxruntime's default: the search decides the kernels, so a report must show it.
_PINNED: Mapping[str, Mapping[str, str]] = MappingProxyType({CUDA: {"cudnn_conv_algo_search": "EXHAUSTIVE"}})


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

    def as_onnxruntime(self) -> list[tuple[str, dict[str, str]]]:
        """Return the value of `InferenceSession(providers=...)`."""
        chain = [(self.name, self.options), *self.behind]
        if not self.is_cpu:
            chain.append((CPU, {}))
        return [(name, dict(options)) for name, options in chain]


CPU_PROVIDER = Provider("cpu", CPU)


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
    available = onnxruntime.get_available_providers()
    if full not in available:
        advice = f"install {_PACKAGES[full]}" if full in _PACKAGES else "install a build of onnxruntime that has it"
        raise ProviderUnavailableError(
            f"provider '{name}' ({full}) is not available: onnxruntime {onnxruntime.__version__} here has "
            f"{', '.join(available)}; {advice}"
        )

    def settings_of(provider: str) -> dict[str, str]:
        return {**_PINNED.get(provider, {}), **given.get(provider, {})}

    behind = tuple((second, settings_of(second)) for second in _SECOND.get(full, ()) if second in available)
    return Provider(name, full, settings_of(full), behind)


def preload_libraries(provider: Provider) -> None:
    """Let onnxruntime find the CUDA libraries that pip packages (or torch) brought, where it can do that."""
    import onnxruntime

    if provider.has_cuda_memory and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


def complaint_of(start: Callable[[], object]) -> str:
    """Run `start` once more and return onnxruntime's own words of why it does not work, in one line.

    A provider that fails to load its libraries raises nothing: onnxruntime writes to the process's standard error and
    carries on without it. So the file descriptor itself is redirected, for this call only.
    """
    text = ""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught:
        saved = os.dup(2)
        try:
            os.dup2(caught.fileno(), 2)
            start()
        except Exception as error:
            text = str(error)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        caught.seek(0)
        written = caught.read().decode(errors="replace")
    # "\x1b[1;31m2025-01-01 00:00:00.0 [E:onnxruntime:Default, file.cc:1 function] message\x1b[m"
    messages = [line.partition("] ")[2].replace("\x1b[m", "") for line in written.splitlines() if "onnxruntime" in line]
    return one_line(" | ".join([m for m in messages if m] or [text])) or "it gave no reason"


def one_line(message: object, limit: int = 400) -> str:
    """Return a message's text in one line of at most `limit` characters."""
    text = " ".join(str(message).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
