"""What a run has to tell, as frozen values; a figure that was not measured is None, never invented.

Units: bytes, MACs (multiply-accumulates for batch 1), ms, seconds, percent and percentage points. The names are the
keys of the JSON report (`onnxcompress.report.json_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcompress.evaluation.accuracy import Accuracy
    from onnxcompress.evaluation.latency import Latency
    from onnxcompress.evaluation.profile import ProfileComparison
    from onnxcompress.report.layers import LayerChange
    from onnxcompress.report.search_figures import Found

SCHEMA = 1


@dataclass(frozen=True)
class ModelFigures:
    """A model as a file and as work; `path` and `sha256` are None where there is no file.

    Attributes:
        lrn_macs: MACs of the windows of LRNs that were written as convolutions; they are not in `macs`, in which the
            arithmetic of LRN itself is not either.
    """

    path: str | None
    sha256: str | None
    bytes: int
    params: int
    macs: int | None
    opset: int
    ops: Mapping[str, int]
    lrn_macs: int | None = 0


@dataclass(frozen=True)
class SkippedNode:
    """A node that a pass left alone, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class StepFigures:
    """One step of a pass that takes several.

    Attributes:
        what: it does, in plain words.
        changes, skipped: how many nodes it changed and left alone.
        why: what decided, where that was measured; None elsewhere.
    """

    step: str
    what: str
    seconds: float
    changes: int
    skipped: int
    why: str | None = None


@dataclass(frozen=True)
class StageFigures:
    """One pass: what it decided, and the model after it.

    Attributes:
        outcome: what the pass measured while it ran: of a training its samples, epochs and score; `notes` are
            sentences that become warnings; None where nothing.
        bytes: of the model after it, as a file.
        steps: of the clean-up, in their order; empty for passes of one step.
        accuracy, latency: of the model after it against the original, where the recipe measures stages and the stage
            changed something.
    """

    pass_name: str
    seconds: float
    params: int
    macs: int | None
    decisions: tuple[Mapping[str, Any], ...] = ()
    skipped: tuple[SkippedNode, ...] = ()
    outcome: Mapping[str, Any] | None = None
    bytes: int | None = None
    steps: tuple[StepFigures, ...] = ()
    accuracy: Accuracy | None = None
    latency: tuple[Latency, ...] = ()


@dataclass(frozen=True)
class CompressionFigures:
    """original / compressed; None where one of them is unknown or nothing is left."""

    params: float | None
    macs: float | None
    bytes: float | None


@dataclass(frozen=True)
class GateResult:
    """A condition on the result; a gate whose value was not measured has failed.

    Attributes:
        interval: 95 % confidence interval of the value, None where there is none (a size has none).
        strict: whether the whole interval had to keep the limit.
        noisy: whether the measurement is too noisy to judge the value by; such a gate has failed.
    """

    name: str
    limit: float
    value: float | None
    passed: bool
    interval: tuple[float, float] | None = None
    strict: bool = False
    noisy: bool = False


@dataclass(frozen=True)
class SelfCheck:
    """The proof of one pass: the largest difference between the rewritten model and what it should compute.

    Attributes:
        difference, tolerance: relative to the range of the compared tensor.
    """

    pass_name: str
    difference: float
    tolerance: float


@dataclass(frozen=True)
class Report:
    """Everything one run has to tell.

    Attributes:
        command: `compress` or `compare`.
        self_checks: of the passes that changed something; empty with `--no-verify` and in a comparison.
        output: the compressed model; its `path` is None where no file was written.
        search: how much to compress was found by trials: what was measured, and each of them; None without a search.
        layers: what each layer of the original costs before and after; empty where no model was made.
        profile: both models' nodes as the runtime ran them; None where it was not asked for, or could not be made.
        warnings: what the user must hear, one sentence or two each.
        seconds: of the whole run; `peak_rss_bytes`: of the whole process so far.
    """

    input: ModelFigures
    output: ModelFigures | None
    command: str = "compress"
    stages: tuple[StageFigures, ...] = ()
    accuracy: Accuracy | None = None
    latency: tuple[Latency, ...] = ()
    compression: CompressionFigures | None = None
    gates: tuple[GateResult, ...] = ()
    self_checks: tuple[SelfCheck, ...] = ()
    search: Found | None = None
    layers: tuple[LayerChange, ...] = ()
    profile: ProfileComparison | None = None
    warnings: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    peak_rss_bytes: int | None = None

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)


def compression_between(original: ModelFigures, compressed: ModelFigures) -> CompressionFigures:
    """Return how many times smaller `compressed` is."""
    return CompressionFigures(
        params=_ratio(original.params, compressed.params),
        macs=_ratio(original.macs, compressed.macs),
        bytes=_ratio(original.bytes, compressed.bytes),
    )


def _ratio(original: float | None, compressed: float | None) -> float | None:
    return original / compressed if original is not None and compressed else None
