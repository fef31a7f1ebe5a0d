"""onnxruntime sessions: the provider that was asked for or an error, one thread pool's settings, clear failures."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxcompress.errors import DataError, ModelError, ProviderUnavailableError, RecipeError
from onnxcompress.runtime.providers import (
    CPU_PROVIDER,
    Provider,
    complaints,
    one_line,
    plain_message,
    preload_libraries,
)
from onnxcompress.runtime.tensors import Array, classifies, fixed_batch, is_readable, tensor_info

ModelSource = bytes | str | os.PathLike[str]
"""A serialised model, or the path of one (needed above 2 GB, and where weights lie in side files)."""

_ERRORS = 3  # severity of messages that onnxruntime writes to standard error

_REFUSED_OPTION = re.compile(r"(?i)\b(unknown|invalid|unsupported|unrecognized)\b[^.:]* option")
"""What the providers say of an option they do not know, each in its words."""


@dataclass(frozen=True)
class SessionSettings:
    """How a session runs.

    Attributes:
        threads: threads of one operator; 0 leaves the choice to onnxruntime (one for each physical core).
        spinning: when idle threads of the pool wait busily: `always` (onnxruntime's default) takes cores away from
            whatever else runs, another session above all; `within_run` sleeps between runs; `never` also slows the run.
        worker_cpus: the logical CPU that each thread of the pool but the caller's is bound to; empty leaves them free.
        deterministic: ask for kernels that give the same bits on every run.
        profile: prefix of the file that onnxruntime's profiler writes; None does not profile.
        optimize: apply onnxruntime's graph optimisations.
        prepacking: keep weights as its kernels read them best, too.
        integers: use its 8-bit kernels where a model says so, some of which saturate; otherwise numbers are rounded as
            the model says, and computed with in float.
        optimized: where onnxruntime writes the graph that it really runs, weights in a file beside it; None: nowhere.
    """

    threads: int = 0
    spinning: Literal["always", "within_run", "never"] = "within_run"
    worker_cpus: tuple[int, ...] = ()
    deterministic: bool = True
    profile: str | None = None
    optimize: bool = True
    prepacking: bool = True
    integers: bool = True
    optimized: str | None = None
    log_severity: int = _ERRORS


class Session:
    """A model ready to run on one provider.

    Raises (constructor):
        ProviderUnavailableError: the provider does not start, with onnxruntime's own message.
        RecipeError: the provider does not know one of its options.
        ModelError: onnxruntime cannot load the model.
    """

    def __init__(
        self,
        model: ModelSource,
        provider: Provider = CPU_PROVIDER,
        settings: SessionSettings | None = None,
    ) -> None:
        self.provider = provider
        self.settings = settings or SessionSettings()
        preload_libraries(provider)
        self.raw = _start(model, provider, self.settings)
        self.inputs = tuple(tensor_info(i.name, i.type, i.shape) for i in self.raw.get_inputs())
        # Words, sequences and maps are no numbers to compare: what is made of them beside is.
        given = [output for output in self.raw.get_outputs() if is_readable(output.type)]
        self.outputs = tuple(tensor_info(o.name, o.type, o.shape) for o in given)

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that really serve this session, first the one asked for."""
        return tuple(self.raw.get_providers())

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the model fixes, else None."""
        return fixed_batch(self.inputs)

    @property
    def classes(self) -> int | None:
        """The number of classes where an output has shape [N, C] or [N, C, 1, ...] with a known C > 1, else None.

        The most of several: which of them labels are of is told by what they meet. None where one's are not known.
        """
        sizes = [info.shape[1] for info in self.outputs if classifies(info.shape)]
        known = [size for size in sizes if isinstance(size, int)]
        return max(known, default=None) if len(known) == len(sizes) else None

    @property
    def may_classify(self) -> bool:
        """Whether an output may hold class scores, or what was chosen by them: whole numbers."""
        # onnxruntime describes an unknown rank like a scalar's.
        return any(i.dtype.kind != "f" or not i.shape or classifies(i.shape) for i in self.outputs)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch; return {output name: array}.

        Raises:
            DataError: onnxruntime refuses the inputs.
            ModelError: the model fails while it runs, or gives nothing that can be read.
        """
        names = list(outputs) if outputs is not None else [info.name for info in self.outputs]
        if not names:
            first = self.raw.get_outputs()[0]
            tensor_info(first.name, first.type, first.shape)
        with self.failures():
            return dict(zip(names, self.raw.run(names, dict(feeds)), strict=True))

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn onnxruntime's exceptions of the runs inside into ours: a context for those that bypass `run`."""
        from onnxruntime.capi import onnxruntime_pybind11_state as native

        try:
            yield
        except Exception as error:
            refused = isinstance(error, (native.InvalidArgument, ValueError))
            if refused and "while running" not in str(error):
                raise DataError(f"the model does not take this input: {one_line(error)}") from error
            raise ModelError(f"the model failed while running on {self.provider.name}: {one_line(error)}") from error

    def end_profiling(self) -> Path:
        """Stop the profiler and return the file it wrote."""
        return Path(self.raw.end_profiling())


def _start(model: ModelSource, provider: Provider, settings: SessionSettings) -> Any:
    import onnxruntime

    source = model if isinstance(model, bytes) else _utf8_path(model)

    def create() -> Any:
        # enable_fallback=0: otherwise a failing provider is replaced by CPU with a line on standard output.
        return onnxruntime.InferenceSession(
            source,
            _onnxruntime_options(settings, settings.log_severity),
            providers=provider.as_onnxruntime(),
            enable_fallback=0,
        )

    name = "the model" if isinstance(model, bytes) else str(source)
    if provider.is_cpu:
        try:
            return create()
        except Exception as error:
            if "std::bad_alloc" in str(error):
                raise MemoryError(f"{name}: {one_line(error)}") from error
            raise ModelError(f"{name}: onnxruntime cannot load it: {one_line(error)}") from error
    try:
        with complaints() as caught:
            raw = create()
    except Exception as error:
        if not _loads_on_cpu(source, settings):
            raise ModelError(f"{name}: onnxruntime cannot load it: {one_line(error)}") from error
        if _REFUSED_OPTION.search(str(error)):
            raise RecipeError(f"provider '{provider.requested}' refuses its options: {plain_message(error)}") from error
        raise ProviderUnavailableError(
            f"provider '{provider.requested}' ({provider.name}) does not start: {plain_message(error)}"
        ) from error
    if raw.get_providers()[0] != provider.name:
        reason = caught.in_one_line() or "it gave no reason"
        raise ProviderUnavailableError(
            f"provider '{provider.requested}' ({provider.name}) is installed but does not start: {reason}"
        )
    if caught.text:
        sys.stderr.write(caught.text)
    return raw


def _utf8_path(path: str | os.PathLike[str]) -> str:
    """Return a path as onnxruntime takes it: its bytes read as UTF-8, whatever the locale makes of them.

    Raises:
        ModelError: they are none.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{os.fspath(path)}: onnxruntime takes only names in UTF-8; rename the file") from error


def _loads_on_cpu(source: bytes | str, settings: SessionSettings) -> bool:
    """Whether the model is sound: tells a provider's failure from the model's."""
    import onnxruntime

    try:
        onnxruntime.InferenceSession(
            source, _onnxruntime_options(settings, _ERRORS), providers=["CPUExecutionProvider"]
        )
    except Exception:
        return False
    return True


def _threads_where_confined() -> int:
    """Return one thread for each CPU where this process may use a part of them only: onnxruntime counts all of them.
    0 leaves the choice to onnxruntime."""
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _onnxruntime_options(settings: SessionSettings, severity: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads or _threads_where_confined()
    options.inter_op_num_threads = 1
    options.log_severity_level = severity
    options.use_deterministic_compute = settings.deterministic
    if settings.spinning == "within_run":
        options.add_session_config_entry("session.force_spinning_stop", "1")
    elif settings.spinning == "never":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if settings.worker_cpus:
        # onnxruntime counts CPUs from 1.
        bound = ";".join(str(number + 1) for number in settings.worker_cpus)
        options.add_session_config_entry("session.intra_op_thread_affinities", bound)
    if not settings.optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not settings.prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not settings.integers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if settings.optimized is not None:
        options.optimized_model_filepath = settings.optimized
        weights = f"{Path(settings.optimized).name}.data"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
    if settings.profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = settings.profile
    return options
