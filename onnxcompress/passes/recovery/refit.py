"""The refit pass: every layer is fitted anew, by least squares, to what the original's layer answers.

Layer after layer in topological order, each sees its inputs as the layers compressed and refitted before it make them,
and is fitted to the original's outputs at the same positions: it makes good, as far as a linear layer can, what was
lost before it. No labels. A layer keeps its old weights where the fit is no better on images held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcompress.analysis.lrn import with_banded_lrn
from onnxcompress.errors import DataError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.linalg.regression import Metric
from onnxcompress.linalg.spanning import spanned_last
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Samples, Skipped
from onnxcompress.passes.recovery.error_metric import output_metrics, weighable
from onnxcompress.passes.recovery.families import Family, find_families
from onnxcompress.passes.recovery.original_run import answers_of_original, counted
from onnxcompress.passes.recovery.refit_layers import (
    RefitLayer,
    chain_slope,
    find_refit_layers,
    layer_bias,
    weight_of,
    write_layer_bias,
)
from onnxcompress.passes.recovery.refit_patches import LayerSampler
from onnxcompress.passes.recovery.refit_samples import LayerRows, shares_rows
from onnxcompress.passes.recovery.refit_solve import ChainShape, fit_chain, joined
from onnxcompress.passes.recovery.refit_solve import Samples as LayerSamples
from onnxcompress.passes.recovery.refit_targets import Targets
from onnxcompress.passes.recovery.refit_waves import BatchFiles, Part, Waves
from onnxcompress.passes.recovery.refit_wide import MOST_INPUTS, MOST_ROWS, fit_wide
from onnxcompress.runtime.ahead import one_ahead

Array = npt.NDArray[Any]

_LEAST_ROWS = 50_000
"""Samples that a layer of few inputs gets as well."""

_LAYER_BYTES = 2**30
"""Samples of one layer, at most: one of 4,608 inputs gets 58,254 of them."""

_ANSWER_BYTES = 2**29
"""The original's answers of one layer, at most: of 18,385 classes 7,300 rows."""

_SAMPLE_BYTES = 2**29
"""Samples of layers that are fitted side by side, at most, unless those of one alone are more."""


@dataclass(frozen=True)
class RefitConfig:
    """How samples are taken and fitted.

    Attributes:
        positions: of a layer's output, at most so many from each image.
        rows: at most so many samples of a layer, whatever the number of images: bounds memory.
        rows_per_input: as many samples for each input of a layer are enough.
        rounds: of the fit behind a Relu.

    Raises:
        RecipeError: a value out of range.
    """

    positions: int = 128
    rows: int = 100_000
    rows_per_input: int = 60
    rounds: int = 2

    def positions_of(self, layers: Iterable[RefitLayer], images: int) -> dict[str, int]:
        """Return {layer: how many positions of its output are taken from each of so many images}."""
        return {layer.node: self._positions_of(layer, images) for layer in layers}

    def _positions_of(self, layer: RefitLayer, images: int) -> int:
        enough = max(_LEAST_ROWS, self.rows_per_input * layer.features)
        fitting = min(_LAYER_BYTES // (4 * layer.features * layer.groups), _ANSWER_BYTES // (4 * layer.outputs))
        rows = MOST_ROWS if layer.features > MOST_INPUTS else min(self.rows, enough, fitting)
        return max(1, min(self.positions, rows // images))

    def __post_init__(self) -> None:
        for name, value, least in (
            ("positions", self.positions, 1),
            ("rows", self.rows, 1),
            ("rows_per_input", self.rows_per_input, 1),
            ("rounds", self.rounds, 0),
        ):
            if value < least:
                raise RecipeError(f"refit: {name} is {value}, expected {least} or more")


class Refit(Pass):
    """Fits every layer of a compressed model to the responses of the model that it was made from."""

    name: ClassVar[str] = "refit"

    def __init__(self, config: RefitConfig) -> None:
        self.config = config

    def plan(self, model: Model, context: PassContext) -> Plan:
        """List the layers that will be fitted; the others say why not.

        Raises:
            DataError: there are no calibration data.
        """
        if context.calibration is None:
            raise DataError("refit needs calibration data; give --calib PATH or --data PATH")
        images, distinct = counted(model, context.calibration, context)
        repeats = {"distinct": distinct} if distinct < images else {}
        original = context.original or model
        layers, skipped = find_refit_layers(original, model, context)
        weighed = weighable(original, [layer for layer in layers if len(layer.chain) > 1], context.calibration)
        reasons = {
            layer.node: reason
            for layer in layers
            if (reason := _why_too_wide(layer) or _why_not_aligned(model, layer, context.provenance))
        }
        skipped += [Skipped(name, reason) for name, reason in reasons.items()]
        families, others = find_families(
            model, [layer for layer in layers if layer.node not in reasons], with_bias=True
        )
        skipped += others
        fitted = {layer.node for family in families for layer in family}
        decisions: list[Decision] = []
        for layer in layers:
            if layer.node in fitted:
                decision: Decision = {"node": layer.node, "kind": "refit", "chain": list(layer.chain), "images": images}
                weighs = {"weighed": True} if layer.node in weighed else {}
                decisions.append({**decision, **repeats, **weighs})
        return Plan(self.name, tuple(decisions), tuple(skipped))

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Refit the planned layers of `model`.

        Raises:
            RecipeError: the plan names layers that the model does not have.
            DataError: there are no calibration data, or a tensor holds NaN or infinity; it is named.
        """
        if context.calibration is None:
            raise DataError("refit needs calibration data; give --calib PATH or --data PATH")
        known = {layer.node: layer for layer in find_refit_layers(context.original or model, model, PassContext())[0]}
        unknown = [str(d["node"]) for d in plan.decisions if d["node"] not in known]
        if unknown:
            raise RecipeError(f"plan: node '{unknown[0]}' cannot be refitted in this model; it is another model's plan")
        layers = [known[str(decision["node"])] for decision in plan.decisions]
        images = max(1, int(plan.decisions[0].get("images", 1)))
        per_image = self.config.positions_of(layers, images)
        weighed = [known[str(decision["node"])] for decision in plan.decisions if decision.get("weighed")]
        metrics = output_metrics(model, weighed, context)
        targets = answers_of_original(model, layers, context.calibration, per_image, context)
        families, strange = find_families(model, layers, with_bias=True)
        if strange:
            raise RecipeError(f"plan: node '{strange[0].node}' cannot be refitted: {strange[0].reason}")
        _Refitting(self.config, model, families, targets, metrics, per_image, context).run(context.calibration)
        return {}


@dataclass(frozen=True)
class _Fitted:
    """New weights of a layer: {place in its chain: slope (G, K, I, O)}, and the last node's bias, (O,)."""

    slopes: Mapping[int, Matrix]
    constant: Matrix


class _Refitting:
    """One run of the pass over a model that may be written to."""

    def __init__(
        self,
        config: RefitConfig,
        model: Model,
        families: list[Family],
        targets: Targets,
        metrics: Mapping[str, Metric],
        per_image: Mapping[str, int],
        context: PassContext,
    ) -> None:
        self._config = config
        self._model = model
        self._working = with_banded_lrn(model)
        self._families = families
        self._targets = targets
        self._metrics = metrics
        self._per_image = per_image
        self._context = context

    def run(self, calibration: Samples) -> None:
        """Refit depth after depth."""
        layers = {layer.node: layer for family in self._families for layer in family}
        together = [[layer.node for layer in family] for family in self._families]
        waves = Waves(self._working, {name: layer.chain for name, layer in layers.items()}, together)
        files = BatchFiles()
        before: Iterable[Mapping[str, Array]] = calibration()
        given: list[str] = [t.name for t in self._working.graph.inputs]
        try:
            for depth in range(waves.count):
                live = waves.live(depth)
                fresh = [name for name in live if name not in files.names]
                part = Part(self._working, waves.nodes_before(depth), given, fresh)
                inputs = {layers[name].input for name in waves.at(depth)}
                if depth > 0:
                    before = files.read(files.names.intersection({*part.fed, *inputs}))
                made = one_ahead({**batch, **part.run(batch)} for batch in before)
                batches = files.passed_on(made, fresh)
                for families in self._portions(waves.at(depth)):
                    self._refit(families, batches)
                    batches = files.read(inputs)
                files.keep(live)
                given = live
        finally:
            files.keep(())

    def _portions(self, names: Sequence[str]) -> Iterator[list[Family]]:
        """Divide layers into portions whose samples are in memory together."""
        portion: list[Family] = []
        sizes: dict[tuple[object, ...], int] = {}
        for family in (family for family in self._families if family[0].node in names):
            own = {self._rows_of(layer): self._bytes_of(layer) for layer in family}
            if portion and sum((sizes | own).values()) > _SAMPLE_BYTES:
                yield portion
                portion, sizes = [], {}
            portion.append(family)
            sizes |= own
        yield portion

    def _rows_of(self, layer: RefitLayer) -> tuple[object, ...]:
        """Return what layers have in common whose samples are the same."""
        return self._per_image[layer.node], *shares_rows(layer)

    def _bytes_of(self, layer: RefitLayer) -> int:
        return 4 * layer.features * layer.groups * self._per_image[layer.node] * self._targets.images

    def _refit(self, families: Sequence[Family], batches: Iterable[Mapping[str, Array]]) -> None:
        """Refit layers of one depth, none of which sees another."""
        alike: dict[tuple[object, ...], list[RefitLayer]] = {}
        for layer in (layer for family in families for layer in family):
            alike.setdefault(self._rows_of(layer), []).append(layer)
        groups = list(alike.values())
        samplers = [LayerSampler(own[0], self._per_image[own[0].node], self._context.seed) for own in groups]
        gathered = [LayerRows(own[0], self._targets.images, self._targets.count(own[0]), len(own)) for own in groups]
        places = range(len(groups))
        for batch, images in zip(batches, self._targets.sizes, strict=True):

            def gather(at: int, batch: Mapping[str, Array] = batch, images: int = images) -> None:
                gathered[at].add(images, samplers[at].patches(batch[groups[at][0].input], images))

            parallel_map(gather, places)

        rows = {layer.node: together for own, together in zip(groups, gathered, strict=True) for layer in own}

        def size(family: Family) -> int:
            """A fit takes no copy of the rows, and less than them beside; those of a family are put together."""
            whole = sum(rows[layer.node].nbytes for layer in family)
            return whole // 4 if len(family) == 1 else whole

        found = parallel_map(lambda family: self._fit(family, rows), families, size)
        for family, weights in zip(families, found, strict=True):
            if weights is not None:
                self._assign(family, weights)

    def _fit(self, family: Family, rows: Mapping[str, LayerRows]) -> _Fitted | None:
        """Return better weights of the layers of a family, if there are any."""
        first = family[0]
        training, judging = joined([self._samples(layer, rows[layer.node]) for layer in family])
        nodes = [_named(self._working, name) for name in first.chain]
        fit = self._fit_group if first.groups == 1 else self._fit_groups
        try:
            return fit(first, nodes, training, judging)
        except OverflowError as error:
            raise DataError(f"'{first.node}' reads or gives {error}; look at the layer before it") from error

    def _samples(self, layer: RefitLayer, rows: LayerRows) -> tuple[LayerSamples, LayerSamples | None]:
        targets = self._targets.rows(layer)
        provenance = self._context.provenance
        if layer.output in provenance:
            targets = np.ascontiguousarray(targets[:, provenance[layer.output]])
        return rows.samples(layer, targets)

    def _fit_group(
        self, layer: RefitLayer, nodes: list[gs.Node], training: LayerSamples, judging: LayerSamples | None
    ) -> _Fitted | None:
        current = chain_slope(self._working, nodes, layer.core)
        constant = layer_bias(self._working, layer, current.shape[-1])

        def ordered(slope: Matrix) -> Matrix:
            flat = slope.reshape(-1, slope.shape[-1])
            return np.ascontiguousarray(spanned_last(flat.T, layer.kernel_shape, layer.spans).T)

        flat, prior = ordered(current[0]), ordered(prior_slope(layer, current, self._context.provenance)[0])
        shape = self._shape(layer, nodes)
        if len(prior) > MOST_INPUTS:
            fitted = fit_wide(training, judging, shape, prior)
        else:
            fitted = fit_chain(training, judging, shape, prior, self._config.rounds)
        judge, lack = judging or training, training.lack()
        seen = judge.error_of(fitted, shape) + lack * _distance(fitted.slope(), prior)
        if not seen < judge.error(flat, constant, shape.metric) + lack * _distance(flat, prior):
            return None
        slopes = {layer.core: fitted.core[None]}
        if fitted.first is not None:
            slopes[0] = fitted.first.reshape(1, layer.spanned, -1, fitted.first.shape[1])
        if fitted.last is not None:
            slopes[len(nodes) - 1] = fitted.last[None, None]
        return _Fitted(slopes, fitted.constant)

    def _fit_groups(
        self, layer: RefitLayer, nodes: list[gs.Node], training: LayerSamples, judging: LayerSamples | None
    ) -> _Fitted:
        """Fit a grouped convolution group by group; of its groups some may have left."""
        current = chain_slope(self._working, nodes, layer.core)
        groups, positions = len(current), layer.positions
        constant = layer_bias(self._working, layer, groups * current.shape[-1]).reshape(groups, -1)
        priors = prior_slope(layer, current, self._context.provenance)
        slopes, constants = [], []
        for group in range(groups):
            flat = current[group].reshape(-1, current.shape[-1])
            prior = priors[group].reshape(flat.shape)
            own = training.group(group, groups, positions)
            own_judging = judging and judging.group(group, groups, positions)
            fitted = fit_chain(own, own_judging, ChainShape(positions), prior, self._config.rounds)
            judge = own_judging or own
            better = judge.error(fitted.slope(), fitted.constant) < judge.error(flat, constant[group])
            slopes.append((fitted.slope() if better else flat).reshape(current[group].shape))
            constants.append(fitted.constant if better else constant[group])
        return _Fitted({0: np.stack(slopes)}, np.concatenate(constants))

    def _shape(self, layer: RefitLayer, nodes: list[gs.Node]) -> ChainShape:
        into = chain_slope(self._working, nodes[:1], 0).shape[3] if layer.has_input_factor else None
        out = chain_slope(self._working, nodes[-1:], 0).shape[2] if layer.has_output_factor else None
        metric = self._metrics.get(layer.node)
        return ChainShape(layer.positions // layer.spanned, into, out, metric, layer.has_constant)

    def _assign(self, family: Family, weights: _Fitted) -> None:
        for model in (self._working, self._model):
            nodes, *others = [[_named(model, name) for name in layer.chain] for layer in family]
            for at, slope in weights.slopes.items():
                weight = model.set_input(nodes[at], 1, weight_of(slope, nodes[at], model.values(nodes[at].inputs[1])))
                for chain in others:
                    chain[at].inputs[1] = weight
            write_layer_bias(model, family, weights.constant)


def prior_slope(layer: RefitLayer, current: Matrix, provenance: Provenance) -> Matrix:
    """Return what a fit is drawn towards: the original's weights between the channels that remain, else the present."""
    slope = layer.original
    if layer.groups == 1:
        if layer.input in provenance:
            slope = slope[:, :, provenance[layer.input]]
        if layer.output in provenance:
            slope = slope[..., provenance[layer.output]]
    return slope if slope.shape == current.shape else current


def _distance(slope: Matrix, prior: Matrix) -> float:
    """Return the squared distance of two slopes, as a share of the second: what samples that say nothing leave open."""
    size = float(np.square(prior).sum())
    return float(np.square(slope - prior).sum()) / size if size > 0.0 else 0.0


def _named(model: Model, name: str) -> gs.Node:
    return next(node for node in model.nodes if node.name == name)


def _why_too_wide(layer: RefitLayer) -> str | None:
    if layer.features <= MOST_INPUTS or not layer.has_input_factor:
        return None
    inputs = f"each output has {layer.features:,} inputs"
    return f"{inputs}: with more than {MOST_INPUTS:,} a layer with an input factor is not fitted"


def _why_not_aligned(model: Model, layer: RefitLayer, provenance: Provenance) -> str | None:
    nodes = {node.name: node for node in model.nodes}
    weight = nodes[layer.chain[-1]]
    outputs = chain_slope(model, [weight], 0).shape
    present = outputs[0] * outputs[3]
    expected = len(provenance[layer.output]) if layer.output in provenance else layer.outputs
    return (
        None if present == expected else f"it has {present} outputs, {expected} of the original's are known to remain"
    )
