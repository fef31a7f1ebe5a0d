"""The contract of a pass: plan (read only), apply (on a copy), checked result."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxcompress.analysis.cost import ModelCost
from onnxcompress.analysis.split import Split
from onnxcompress.errors import ModelError, PassError
from onnxcompress.graph import Model, Signature
from onnxcompress.lengths import may_agree
from onnxcompress.passes.race import Race
from onnxcompress.passes.verification import output_shapes, refusal

Decision = Mapping[str, Any]
"""One decision of a plan: JSON values only, keyed by node and tensor names."""

Samples = Callable[[], Iterable[Mapping[str, npt.NDArray[Any]]]]
"""Starts a fresh stream of calibration batches, each {graph input name: array (B, ...)}."""


@dataclass(frozen=True)
class Skipped:
    """A node that a pass left alone, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What a pass will do: JSON-serialisable, replayable to the same bytes."""

    pass_name: str
    decisions: tuple[Decision, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "pass": self.pass_name,
            "decisions": [dict(d) for d in self.decisions],
            "skipped": [{"node": s.node, "reason": s.reason} for s in self.skipped],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from `to_json`'s value."""
        return cls(
            pass_name=str(value["pass"]),
            decisions=tuple(dict(d) for d in value["decisions"]),
            skipped=tuple(Skipped(str(s["node"]), str(s["reason"])) for s in value["skipped"]),
        )


LABELS = ""
"""The key of class numbers (B,) among a batch's inputs: no tensor has an empty name."""

Tell = Callable[[str, int, int | None], None]
"""Told what is being done, how many steps of it are done, and how many there are (None: not known)."""

Note = Callable[[Mapping[str, Any]], None]
"""Told what a pass measured while it ran: JSON values."""

SplitTimes = Callable[[Model, Mapping[str, Sequence[Split]]], Mapping[str, Mapping[Split, float]]]
"""Told which splits of which layers are thought of, returns the milliseconds of each, `WHOLE` among them, on the
provider that the model shall run on. A layer, or a split, whose time is not known is left out."""


@dataclass(frozen=True)
class ModelTime:
    """A model's latency: its share of the given model's, and that model's in milliseconds."""

    share: float
    given_ms: float


MeasureModel = Callable[[Model], ModelTime]
"""Measures the latency of a model against that of the model that was given."""

Provenance = Mapping[str, npt.NDArray[np.int64]]
"""{tensor name: original channel number of each remaining channel, shape (C',)}; a tensor not named is unchanged."""


def _nobody(*told: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class PassContext:
    """What a pass may use besides the model.

    Attributes:
        round_to: widths and ranks are multiples of it.
        original: the model before the first pass that loses something: what recovery compares with.
        measured: what passes measured on `original` and these data, for the passes behind them; see `with_original`.
        original_cost: of the model as it was given: shares of a budget are of this; `original_bytes` of its file.
        labelled: samples for what learns from labels without training; class numbers as in `training`.
        numbers: tensors of the shape of class scores (N, C) that hold numbers of another kind.
        training: training data; its batches hold class numbers under `LABELS` where there are any.
        checkpoint: where a training keeps its progress; `resume`: whether it goes on from what is there.
        tell: for passes that take minutes.
        note: takes what a pass measured, for the report.
        race: times two models against each other; None where nothing is to be timed.
        providers: on which the result will run, as onnxruntime calls them.
        split_times: where latency counts: how long splits take.
        measure_model: where latency counts: how long a whole model takes.
        round_up: filters are kept up to the next multiple of `round_to`, not to the nearest.
        align_to: what a convolution reads and makes stays a multiple of it, where it was one.
        latency_factor: what a target of latency is multiplied by, where earlier rounds ended beside it.
        spared_bytes: what a target of size is lowered by, where an earlier round's file came out above it.
        aimed: told the share of the latency that a choice under such a target was measured at.
        known_time: of the model before any split, where a time table stands for the target: nothing is measured.
        memory: what passes measured on this very model and these data, for the next plan of the same pass: a search
            for a budget asks for many. None where nothing is to be kept.
    """

    seed: int = 0
    round_to: int = 1
    exclude: tuple[str, ...] = ()
    calibration: Samples | None = None
    provenance: Provenance = field(default_factory=dict)
    original: Model | None = None
    original_cost: ModelCost | None = None
    original_bytes: int | None = None
    labelled: Samples | None = None
    numbers: frozenset[str] = frozenset()
    training: Samples | None = None
    checkpoint: Path | None = None
    resume: bool = False
    tell: Tell = _nobody
    note: Note = _nobody
    race: Race | None = None
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    split_times: SplitTimes | None = None
    measure_model: MeasureModel | None = None
    known_time: ModelTime | None = None
    round_up: bool = False
    align_to: int = 1
    latency_factor: float = 1.0
    spared_bytes: float = 0.0
    aimed: Callable[[float], None] = _nobody
    memory: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    measured: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    def with_original(self, model: Model) -> PassContext:
        """Return this for passes from `model` on, which nothing was lost of yet.

        What was measured before is kept: several runs that come to the same model here can be given one dictionary.
        """
        return replace(self, original=model, measured={} if self.measured is None else self.measured)

    def is_excluded(self, node_name: str) -> bool:
        """Whether a `--exclude` expression matches (searched) the node's name."""
        return any(re.search(expression, node_name) for expression in self.exclude)


@dataclass(frozen=True)
class PassResult:
    """A pass's outcome; `provenance` is cumulative over the passes so far."""

    model: Model
    modified: bool
    plan: Plan
    provenance: Provenance


class Pass(ABC):
    """A transformation, configured by its constructor's frozen dataclass and holding nothing else."""

    name: ClassVar[str]
    tidies: ClassVar[bool] = False
    """Whether it cleans up behind others: where it finds nothing, it has no place in the report."""
    trains: ClassVar[bool] = False
    """Whether its work is a training, which a dry run leaves out."""
    transfers: ClassVar[bool] = True
    """Whether its decisions hold for other weights of the same architecture; where not, it decides anew for them."""

    @abstractmethod
    def plan(self, model: Model, context: PassContext) -> Plan:
        """Decide what to do and what not, with reasons; never writes to `model`."""

    @abstractmethod
    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Carry out `plan` on `model`, which is a private copy; return what provenance the rewrite adds."""

    def remeasured(self, model: Model, plan: Plan) -> Plan:
        """Return the same decisions, made for other weights, with the figures that depend on weights measured anew.

        Raises:
            RecipeError: the plan names what the model does not have.
        """
        return plan

    def apply(self, model: Model, plan: Plan, context: PassContext) -> PassResult:
        """Carry out `plan` on a copy of `model` and check the result.

        Raises:
            PassError: the rewritten model is invalid, or its inputs or outputs changed.
            ModelError: the rewritten model is invalid because `model` is, which shape inference did not see in it.
        """
        if plan.pass_name != self.name:
            raise PassError(f"a plan of pass '{plan.pass_name}' was given to pass '{self.name}'")
        if not plan.decisions:
            return PassResult(model, False, plan, context.provenance)
        rewritten = model.copy()
        added = self.rewrite(rewritten, plan, context)
        with judged(self.name, model):
            rewritten.refresh_shapes()
            rewritten.check()
        before, after = model.signature(), rewritten.signature()
        if not (_same_signature(before, after) or _same_signature(_seen_signature(model), after)):
            raise PassError(f"pass '{self.name}' changed the graph's inputs or outputs: {before} became {after}")
        return PassResult(rewritten, True, plan, {**context.provenance, **added})


@contextmanager
def judged(name: str, model: Model) -> Iterator[None]:
    """Say whose fault it is that a rewrite of `model` by the pass of this name is invalid.

    Raises:
        PassError: the pass's.
        ModelError: the model's, in which shape inference did not see it.
    """
    try:
        yield
    except Exception as error:
        fault = refusal(model)
        if fault is not None:
            raise ModelError(f"the model contradicts itself, and onnxruntime does not run it: {fault}") from error
        raise PassError(f"pass '{name}' produced an invalid model: {error}") from error


def _seen_signature(model: Model) -> Signature:
    """Return the signature with the outputs' shapes as onnxruntime makes them: what a file declares may be wrong."""
    seen = output_shapes(model)
    return tuple((name, dtype, seen.get(name, shape)) for name, dtype, shape in model.signature())


def _same_signature(before: Signature, after: Signature) -> bool:
    """Whether names, types, ranks and known lengths agree (a rewrite may make shape inference know more)."""
    if [entry[:2] for entry in before] != [entry[:2] for entry in after]:
        return False
    return all(may_agree(first, second) for (_, _, first), (_, _, second) in zip(before, after, strict=True))
