"""Latency of two or more models on an execution provider, measured in one process and never in each other's way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onnxcompress.errors import DataError, ProviderUnavailableError
from onnxcompress.evaluation.intervals import Interval
from onnxcompress.evaluation.profile import ElsewhereNode, NodeTime, nodes_elsewhere, profile_model
from onnxcompress.evaluation.timing import Milliseconds, Rounds, Run, alternate, is_useless, summarise
from onnxcompress.runtime.device import bound_run, core_cpus, cpu_affinity, physical_cores, single_run
from onnxcompress.runtime.providers import CPU_PROVIDER, Provider
from onnxcompress.runtime.scheduling import WaitingTime, bound_to
from onnxcompress.runtime.session import ModelSource, Session, SessionSettings
from onnxcompress.runtime.tensors import Array, concrete_shapes, random_inputs


@dataclass(frozen=True)
class LatencySettings:
    """How to measure.

    Attributes:
        batch: None takes the batch the model fixes, or 1.
        threads: None takes one for each core this process may use.
        warmup, repeat: untimed and timed runs of each model; None decides by the clock (`timing.alternate`).
        shapes: full shapes of inputs whose sizes the model leaves open.
        copies: on CUDA, include the copies of inputs and outputs to and from the device.
        seed: of the random inputs and of the interval.
    """

    batch: int | None = None
    threads: int | None = None
    warmup: int | None = None
    repeat: int | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    copies: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Credit:
    """What of a speed-up exact clean-up earned and what compression, from the same rounds.

    Attributes:
        cleaned_ms: the model that was cleaned only.
        cleanup_speedup, cleanup_interval: original / cleaned and its 95 % confidence interval.
        compression_speedup, compression_interval: cleaned / compressed.
    """

    cleaned_ms: Milliseconds
    cleanup_speedup: float
    cleanup_interval: Interval | None
    compression_speedup: float
    compression_interval: Interval | None


@dataclass(frozen=True)
class Latency:
    """Two models on one provider.

    Attributes:
        provider: the one that ran, as onnxruntime calls it; `requested`: as the user called it.
        options: the provider's options.
        threads: of one operator; affinity: the logical CPUs the process may use, None where unknown.
        bound: whether each thread was bound to a core of its own, as onnxruntime does by itself where it chooses the
            number of threads.
        copies: whether copies to and from the device are in the times.
        runs: timed runs of each model; warmup: untimed ones.
        speedup, interval: original / compressed and its 95 % confidence interval (see `timing.Comparison`).
        noisy: whether there is no interval, or one so wide that nothing follows from it.
        original_interrupted, compressed_interrupted: share of the runs that waited for a CPU that something else had;
            `interrupted_left_out`: whether all other figures are made of the remaining runs.
        original_nodes, compressed_nodes: how many nodes, fused as onnxruntime runs them, each provider ran by its
            profile; empty on the CPU provider, which runs all.
        original_elsewhere, compressed_elsewhere: nodes that another provider had to run.
        credit: what clean-up earned, None where it changed nothing or was not timed apart.
    """

    provider: str
    requested: str
    options: Mapping[str, str]
    batch: int
    threads: int
    affinity: tuple[int, ...] | None
    copies: bool
    warmup: int
    runs: int
    original_ms: Milliseconds
    compressed_ms: Milliseconds
    speedup: float
    interval: Interval | None
    noisy: bool = False
    bound: bool = False
    original_interrupted: float = 0.0
    compressed_interrupted: float = 0.0
    interrupted_left_out: bool = False
    original_nodes: Mapping[str, int] = field(default_factory=dict)
    compressed_nodes: Mapping[str, int] = field(default_factory=dict)
    original_elsewhere: tuple[ElsewhereNode, ...] = ()
    compressed_elsewhere: tuple[ElsewhereNode, ...] = ()
    credit: Credit | None = None

    def to_json(self) -> dict[str, Any]:
        """Return an entry of the report's `latency`."""
        return asdict(self)


@dataclass(frozen=True)
class TimedTogether:
    """Two or more models timed in the same alternating rounds on one provider; attributes as in `Latency`.

    Attributes:
        rounds: the milliseconds of every run.
        profiles: for each model its nodes as they ran; empty on the CPU provider.
    """

    provider: Provider
    ran_on: str
    batch: int
    threads: int
    affinity: tuple[int, ...] | None
    bound: bool
    copies: bool
    rounds: Rounds
    profiles: tuple[tuple[NodeTime, ...], ...]
    seed: int = 0

    def between(self, first: int, second: int) -> Latency:
        """Return the comparison of two of the models, by their place in the list that was timed."""
        compared = summarise(self.rounds, self.seed, first=first, second=second)
        return Latency(
            provider=self.ran_on,
            requested=self.provider.requested,
            options=self.provider.all_options(),
            batch=self.batch,
            threads=self.threads,
            affinity=self.affinity,
            copies=self.copies,
            warmup=self.rounds.warmup,
            runs=compared.runs,
            original_ms=compared.original_ms,
            compressed_ms=compared.compressed_ms,
            speedup=compared.speedup,
            interval=compared.interval,
            noisy=is_useless(compared.interval),
            bound=self.bound,
            original_interrupted=compared.interrupted[0],
            compressed_interrupted=compared.interrupted[1],
            interrupted_left_out=compared.left_out,
            original_nodes=dict(Counter(node.provider for node in self.profiles[first])),
            compressed_nodes=dict(Counter(node.provider for node in self.profiles[second])),
            original_elsewhere=nodes_elsewhere(self.profiles[first], self.provider),
            compressed_elsewhere=nodes_elsewhere(self.profiles[second], self.provider),
        )


def measure_with_credit(
    original: ModelSource,
    cleaned: ModelSource,
    compressed: ModelSource,
    provider: Provider = CPU_PROVIDER,
    settings: LatencySettings | None = None,
) -> Latency:
    """Time the original, the cleaned and the compressed model in the same rounds; see `measure_together`."""
    together = measure_together([original, cleaned, compressed], provider, settings)
    by_cleanup, by_compression = together.between(0, 1), together.between(1, 2)
    credit = Credit(
        by_cleanup.compressed_ms,
        by_cleanup.speedup,
        by_cleanup.interval,
        by_compression.speedup,
        by_compression.interval,
    )
    return replace(together.between(0, 2), credit=credit)


def measure_latency(
    original: ModelSource,
    compressed: ModelSource,
    provider: Provider = CPU_PROVIDER,
    settings: LatencySettings | None = None,
) -> Latency:
    """Time two models on the same random inputs; see `measure_together`."""
    return measure_together([original, compressed], provider, settings).between(0, 1)


def measure_together(
    models: Sequence[ModelSource],
    provider: Provider = CPU_PROVIDER,
    settings: LatencySettings | None = None,
) -> TimedTogether:
    """Time models on the same random inputs, in alternating rounds; the first is what the others are compared with.

    All sessions live side by side, but their threads spin only within a run: idle pools that spin made the other model
    twice as slow, without spinning at all a run on two threads took a quarter longer than users will see. With as many
    threads as cores each is bound to its own: left free, the scheduler puts two on one core as soon as anything else
    runs, however lowly.

    Raises:
        DataError: a size of an input is unknown, the batch does not fit, or is another in another model.
        ModelError, ProviderUnavailableError: a model or the provider does not run, or the provider runs no node of a
            model.
    """
    settings = settings or LatencySettings()
    threads = settings.threads or physical_cores()
    provider = provider.with_threads(threads)
    cores = _cores_to_bind(provider, threads)
    running = SessionSettings(threads=threads, spinning="within_run", worker_cpus=cores[1:], deterministic=False)
    keeps_copies = settings.copies or not provider.has_cuda_memory
    with WaitingTime() as waited:
        sessions = [Session(model, provider, running) for model in models]
        feeds = [_inputs(session, settings) for session in sessions]
        _check_batches(feeds)
        runs = [_run(session, feed, keeps_copies) for session, feed in zip(sessions, feeds, strict=True)]
        with bound_to(cores[:1]):
            for session, feed in zip(sessions, feeds, strict=True):
                session.run(feed)
            with sessions[-1].failures():
                rounds = alternate(
                    runs, warmup=settings.warmup, repeat=settings.repeat, waited=waited, seed=settings.seed
                )
    ran_on = sessions[0].providers[0]
    del runs, sessions
    profiles: list[tuple[NodeTime, ...]] = [()] * len(models)
    if not provider.is_cpu:
        for number, (model, feed) in enumerate(zip(models, feeds, strict=True)):
            profiles[number] = profile_model(model, feed, provider, threads=threads, runs=1)
            _check_something_ran(profiles[number], provider)
    return TimedTogether(
        provider=provider,
        ran_on=ran_on,
        batch=_batch(next(iter(feeds[0].values()), None)),
        threads=threads,
        affinity=cpu_affinity(),
        bound=bool(cores),
        copies=keeps_copies,
        rounds=rounds,
        profiles=tuple(profiles),
        seed=settings.seed,
    )


def _check_batches(feeds: Sequence[Mapping[str, Array]]) -> None:
    """Refuse models that take different numbers of samples at a time: their runs say nothing of each other."""
    first = feeds[0]
    for other in feeds[1:]:
        # By name where the names are the same, in whatever order; else the first inputs are the same.
        pairs = [(feed, other[name]) for name, feed in first.items()] if first.keys() == other.keys() else []
        for own, seen in pairs or zip(list(first.values())[:1], other.values(), strict=False):
            if _batch(own) != _batch(seen):
                raise DataError(
                    f"latency: a run of the one model takes {_batch(own)} samples, of the other {_batch(seen)}: runs "
                    "of different batches cannot be compared; give models of one batch, or --no-latency"
                )


def _check_something_ran(nodes: Sequence[NodeTime], provider: Provider) -> None:
    """Refuse a provider that started and left all of a model to others: OpenVINO does so with a device it lacks."""
    if len(nodes_elsewhere(nodes, provider)) == len(nodes):
        options = ", ".join(f"{name}={value}" for name, value in provider.all_options().items())
        raise ProviderUnavailableError(
            f"provider '{provider.requested}' ({provider.name}) runs none of the model's {len(nodes)} nodes; all ran "
            f"on {', '.join(sorted({node.provider for node in nodes}))} (options: {options or 'none'})"
        )


def _cores_to_bind(provider: Provider, threads: int) -> tuple[int, ...]:
    """Return a CPU for each thread, the caller's first; empty where threads are few enough to be moved with profit.

    Other providers start threads of their own, which would inherit the caller's binding.
    """
    cores = core_cpus() or ()
    return cores if provider.is_cpu and threads == len(cores) > 1 else ()


def _inputs(session: Session, settings: LatencySettings) -> dict[str, Array]:
    shapes = concrete_shapes(session.inputs, settings.shapes, settings.batch)
    return random_inputs(session.inputs, shapes, settings.seed)


def _run(session: Session, feed: Mapping[str, Array], copies: bool) -> Run:
    return single_run(session, feed) if copies else bound_run(session, feed, "cuda", session.provider.device_id)


def _batch(array: Array | None) -> int:
    return int(array.shape[0]) if array is not None and array.shape else 1
