"""The Tucker pass: a convolution becomes 1x1, core, 1x1 (Kim et al., ICLR 2016).

The core is the original convolution between fewer channels; the two 1x1 convolutions map to and from them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.split import WHOLE, Split
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg import KernelSpectra, kernel_spectra
from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.linalg.spanning import spannable, spanned_positions
from onnxcompress.linalg.tucker import load_tensor_algebra
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.tucker.cache import WeightCache, remeasured
from onnxcompress.passes.tucker.cost import ParamsLedger, SplitCost, tucker_cost
from onnxcompress.passes.tucker.factors import SplitShape, SplitWeights, decompose, split_weights
from onnxcompress.passes.tucker.faster import fastest_split
from onnxcompress.passes.tucker.raced import Saving, raced_splits
from onnxcompress.passes.tucker.ranks import DEFAULT_FLOOR, DEFAULT_MIN_RANK, kernel_ranks
from onnxcompress.passes.tucker.rewrite import replace_conv, require_distinct, split_constants
from onnxcompress.passes.tucker.sites import ConvSite, find_conv_sites
from onnxcompress.passes.tucker.spec import RankSpec, parse_tucker_spec
from onnxcompress.tensor_bytes import release_mapped

_Times = Mapping[str, Mapping[Split, float]]
"""{node: {split, or the whole: milliseconds}}."""

_SPECTRA_KEPT_BYTES = 2**24
"""Spectra of a convolution whose weight is larger are not kept while others are timed."""


@dataclass(frozen=True)
class TuckerConfig:
    """What to split, and at which ranks.

    Attributes:
        spec: the rule that chooses ranks.
        floor: EVBMF ranks are at least this share of the channels.
        min_rank: and at least this number.

    Raises:
        RecipeError: a value out of range.
    """

    spec: RankSpec = field(default_factory=lambda: RankSpec("auto"))
    floor: float = DEFAULT_FLOOR
    min_rank: int = DEFAULT_MIN_RANK

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0:
            raise RecipeError(f"tucker: the floor is {self.floor}, expected a share from 0 to 1")
        if self.min_rank < 1:
            raise RecipeError(f"tucker: the smallest rank is {self.min_rank}, expected 1 or more")

    @classmethod
    def from_spec(cls, text: str) -> TuckerConfig:
        """Return the configuration of a `--tucker` text; see `parse_tucker_spec`."""
        return cls(parse_tucker_spec(text))


@dataclass(frozen=True)
class _Options:
    """What planning may make of one convolution: splits to choose from, or why there are none."""

    splits: tuple[SplitShape, ...] = ()
    spectra: Sequence[KernelSpectra] | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Choice:
    """What planning found for one convolution: a split and its error, or why there is none."""

    split: SplitShape | None = None
    error: float = 0.0
    reason: str = ""


class TuckerDecomposition(Pass):
    """Splits convolutions with a kernel larger than 1 by Tucker-2 of their weights."""

    name: ClassVar[str] = "tucker"

    def __init__(self, config: TuckerConfig) -> None:
        self.config = config
        self._cache: WeightCache[SplitWeights] = WeightCache()
        if config.spec.rule != "off":
            load_tensor_algebra()

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Choose ranks from the weights; every convolution that is not split says why.

        Where the context knows how long splits take, `auto` makes the fastest, and none that is not faster; where it
        can only race whole networks, those with which the network is fastest.

        Raises:
            RecipeError: a ranks file names a node that is not there or cannot be split, or a rank out of range.
        """
        self._cache.clear()
        if self.config.spec.rule == "off":
            return Plan(self.name)
        sites, skipped = find_conv_sites(model, context)
        reasons = {each.node: each.reason for each in skipped}
        self._check_ranks_file(model, sites, reasons)
        splittable = {site.node for site in sites if why_not_split(site) is None}
        choices, times = self._choices(model, sites, splittable, context)
        if self.config.spec.rule == "auto" and times is None:
            choices = _raced(model, sites, choices, context)
        decisions: list[Decision] = []
        ledger = ParamsLedger({s.node for s, choice in zip(sites, choices, strict=True) if choice.split})
        for site, choice in zip(sites, choices, strict=True):
            if choice.split is None:
                reasons[site.node] = choice.reason
            else:
                decision = _decision(site, choice.split, choice.error, ledger)
                decisions.append({**decision, **_timed(times, site.node, ranks_of(choice.split))})
        ordered = tuple(Skipped(node.name, reasons[node.name]) for node in model.nodes if node.name in reasons)
        return Plan(self.name, tuple(decisions), ordered)

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Split the planned convolutions of `model`.

        Raises:
            RecipeError: the plan names convolutions or ranks that the model does not have.
        """
        sites = {site.node: site for site in find_conv_sites(model, PassContext())[0]}
        work = [_planned(sites, decision) for decision in plan.decisions]
        require_distinct(site.node for site, _ in work)
        unique = {(id(site.weight), *_how(site, split)): (site, split) for site, split in work}
        found = parallel_map(lambda pair: self._weights(*pair), unique.values(), lambda pair: pair[0].weight.nbytes)
        weights = dict(zip(unique, found, strict=True))
        self._cache.clear()
        nodes = {node.name: node for node in model.nodes}
        constants: dict[tuple[object, ...], list[gs.Constant]] = {}
        for site, split in work:
            key = (id(site.weight), *_how(site, split))
            # Convolutions that shared their weight share its factors.
            if key not in constants:
                constants[key] = split_constants(model, site, weights.pop(key))
            replace_conv(model, nodes[site.node], site.groups, split, constants[key])
        return {}

    def remeasured(self, model: Model, plan: Plan) -> Plan:
        """Return the plan with the errors of this model's weights."""
        sites = {site.node: site for site in find_conv_sites(model, PassContext())[0]}
        work = [_planned(sites, decision) for decision in plan.decisions]
        return remeasured(plan, work, self._weights, self._cache, _how)

    def _weights(self, site: ConvSite, split: SplitShape) -> SplitWeights:
        known = self._cache.take(site.weight, _how(site, split))
        try:
            return known or split_weights(site, split, decompose(site, split))
        except (ValueError, np.linalg.LinAlgError) as error:
            raise RecipeError(f"plan: node '{site.node}': its weight cannot be decomposed: {error}") from error
        finally:
            release_mapped(site.weight)

    def _options(self, site: ConvSite, splittable: set[str], context: PassContext) -> _Options:
        reason = why_not_split(site) or self._why_not_asked(site)
        if reason:
            return _Options(reason=reason)
        if self.config.spec.rule == "auto" and (others := [s for s in site.sharers if s not in splittable]):
            return _Options(reason=f"shares its weight with {others[0]}, which keeps it")
        try:
            spectra = [kernel_spectra(kernel) for kernel in site.kernels()]
            splits, reason = self._split_shapes(site, spectra, context.round_to)
        except (ValueError, np.linalg.LinAlgError) as error:
            return _Options(reason=f"its weight cannot be decomposed: {error}")
        finally:
            release_mapped(site.weight)
        return _Options(splits, spectra, reason)

    def _choices(
        self, model: Model, sites: Sequence[ConvSite], splittable: set[str], context: PassContext
    ) -> tuple[list[_Choice], _Times | None]:
        """Return what becomes of each convolution, and the times that it was chosen by.

        A spectrum has half the size of a wide kernel's weights. Untimed, none outlives its own convolution's choice;
        timed, those of convolutions too large to be kept until all have been timed are computed again.
        """

        def nbytes(site: ConvSite) -> int:
            return site.weight.nbytes

        if self.config.spec.rule != "auto" or context.split_times is None:

            def choice(site: ConvSite) -> _Choice:
                return self._choose(site, self._options(site, splittable, context))

            return parallel_map(choice, sites, nbytes), None

        def options(site: ConvSite) -> _Options:
            found = self._options(site, splittable, context)
            return replace(found, spectra=None) if site.weight.nbytes > _SPECTRA_KEPT_BYTES else found

        found = parallel_map(options, sites, nbytes)
        wanted = {s.node: [ranks_of(split) for split in o.splits] for s, o in zip(sites, found, strict=True)}
        times = context.split_times(model, {node: splits for node, splits in wanted.items() if splits})
        pairs = list(zip(sites, found, strict=True))
        return parallel_map(lambda pair: self._choose(*pair, times), pairs, lambda pair: nbytes(pair[0])), times

    def _choose(self, site: ConvSite, options: _Options, times: _Times | None = None) -> _Choice:
        if not options.splits:
            return _Choice(reason=options.reason)
        split = options.splits[0]
        if times is not None:
            by_ranks = {ranks_of(each): each for each in options.splits}
            fastest, reason = fastest_split(times.get(site.node), by_ranks)
            if fastest is None:
                return _Choice(reason=reason)
            split = by_ranks[fastest]
        try:
            weights = split_weights(site, split, decompose(site, split, options.spectra))
        except (ValueError, np.linalg.LinAlgError) as error:
            return _Choice(reason=f"its weight cannot be decomposed: {error}")
        finally:
            release_mapped(site.weight)
        self._cache.put(site.weight, _how(site, split), weights)
        return _Choice(split, weights.relative_error)

    def _split_shapes(
        self, site: ConvSite, spectra: Sequence[KernelSpectra], round_to: int
    ) -> tuple[tuple[SplitShape, ...], str]:
        """Return the splits that the rule allows, the one with the fewest MACs first, or why there is none."""
        spec = self.config.spec
        if spec.ranks is not None:
            return (SplitShape(*spec.ranks[site.node]),), ""
        rank_in, rank_out = kernel_ranks(
            spectra, spec, floor=self.config.floor, min_rank=self.config.min_rank, round_to=round_to
        )
        full = (rank_in, rank_out) == group_channels(site)
        if spec.rule == "auto":
            return _paying_splits(site, rank_in, rank_out)
        if full and spec.rule != "ratio":
            return (), f"full rank [{rank_in}, {rank_out}]: nothing to leave out"
        return (SplitShape(rank_in, rank_out),), ""

    def _why_not_asked(self, site: ConvSite) -> str | None:
        spec = self.config.spec
        return f"not in {spec.source}" if spec.ranks is not None and site.node not in spec.ranks else None

    def _check_ranks_file(self, model: Model, sites: Sequence[ConvSite], reasons: dict[str, str]) -> None:
        spec = self.config.spec
        by_name = {site.node: site for site in sites}
        present = {node.name for node in model.nodes}
        for node, ranks in (spec.ranks or {}).items():
            where = f"tucker: ranks file {spec.source}: '{node}'"
            if node not in present:
                raise RecipeError(f"{where}: the model has no node of this name")
            if node not in by_name:
                if node in reasons:
                    continue  # excluded, or not constant: the plan says so
                raise RecipeError(f"{where}: is not a convolution")
            if reason := why_not_split(by_name[node]):
                raise RecipeError(f"{where}: cannot be split: {reason}")
            _check_ranks(by_name[node], ranks, where)


def why_not_split(site: ConvSite) -> str | None:
    """Return why a convolution has nothing to split, None if it has."""
    if site.kernel_size == 1:
        return "its kernel is 1x1: nothing to split (--svd splits such weights into two)"
    if site.is_depthwise:
        return "depthwise: a group has a single channel, there is nothing to split"
    return None


def group_channels(site: ConvSite) -> tuple[int, int]:
    """Return the input and output channels of one group: the largest ranks."""
    return site.in_channels // site.groups, site.out_channels // site.groups


def ranks_of(split: SplitShape) -> Split:
    """Return a split's ranks, None where it has no such factor."""
    return Split(split.rank_in if split.with_in else None, split.rank_out if split.with_out else None, split.spans)


def _paying_splits(site: ConvSite, rank_in: int, rank_out: int) -> tuple[tuple[SplitShape, ...], str]:
    """Return those of splitting both modes, the output only, or the input only, that pay, the cheapest first."""
    full_in, full_out = group_channels(site)
    variants = [
        SplitShape(rank_in, rank_out),
        SplitShape(full_in, rank_out, with_in=False),
        SplitShape(rank_in, full_out, with_out=False),
    ]
    paying = [split for split in variants if split_cost(site, split).pays]
    if not paying:
        return (), f"no split at ranks [{rank_in}, {rank_out}] lowers both MACs and parameters"
    return tuple(sorted(paying, key=lambda split: (split_cost(site, split).macs_after, len(split.factors)))), ""


def _raced(model: Model, sites: Sequence[ConvSite], choices: Sequence[_Choice], context: PassContext) -> list[_Choice]:
    """Return the choices without the splits that do not make the network faster."""
    savings = {
        site.node: Saving(ranks_of(choice.split), split_cost(site, choice.split).saved_macs)
        for site, choice in zip(sites, choices, strict=True)
        if choice.split is not None
    }
    whole = raced_splits(model, savings, context)
    return [
        _Choice(reason=whole[site.node]) if site.node in whole else choice
        for site, choice in zip(sites, choices, strict=True)
    ]


def _timed(times: _Times | None, node: str, ranks: Split) -> dict[str, list[float]]:
    """Return the milliseconds of a layer whole and split, where they were measured."""
    return {} if times is None else {"ms": [times[node][WHOLE], times[node][ranks]]}


def _how(site: ConvSite, split: SplitShape) -> tuple[object, ...]:
    """What determines the weights of a split besides the weight itself."""
    return site.op, site.groups, split


def split_cost(site: ConvSite, split: SplitShape) -> SplitCost:
    """Return what a split costs."""
    return tucker_cost(
        site, split.rank_in, split.rank_out, with_in=split.with_in, with_out=split.with_out, spans=split.spans
    )


def _decision(site: ConvSite, split: SplitShape, error: float, ledger: ParamsLedger) -> Decision:
    cost = split_cost(site, split)
    factors = (id(site.weight), *_how(site, split))
    return {
        "node": site.node,
        "kind": "tucker",
        "ranks": [split.rank_in, split.rank_out],
        "channels": list(group_channels(site)),
        "groups": site.groups,
        "factors": split.factors,
        "error": error,
        "macs": list(cost.macs) if cost.macs else None,
        "params": ledger.enter(cost, weight=site.weight_name, sharers=site.sharers, factors=factors),
    }


def _planned(sites: dict[str, ConvSite], decision: Decision) -> tuple[ConvSite, SplitShape]:
    try:
        node = str(decision["node"])
        rank_in, rank_out = (operator.index(rank) for rank in decision["ranks"])
        factors = list(decision.get("factors", ["in", "core", "out"]))
        spans = int(decision.get("spans", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"plan: a decision of pass 'tucker' lacks a node or two ranks: {dict(decision)}") from error
    where = f"plan: node '{node}'"
    if node not in sites:
        raise RecipeError(f"{where} is no convolution with constant weights in this model; it is another model's plan")
    site = sites[node]
    if spans and not ("in" in factors and site.op == "Conv" and spans in spannable(site.kernel_shape)):
        raise RecipeError(f"{where}: an input factor cannot span {spans} axes of its kernel")
    _check_ranks(site, (rank_in, rank_out), where, spans)
    return site, SplitShape(rank_in, rank_out, with_in="in" in factors, with_out="out" in factors, spans=spans)


def _check_ranks(site: ConvSite, ranks: tuple[int, int], where: str, spans: int = 0) -> None:
    most_in, most_out = group_channels(site)
    most_in *= spanned_positions(site.kernel_shape, spans)
    for name, rank, size in zip(("rank_in", "rank_out"), ranks, (most_in, most_out), strict=True):
        if not 1 <= rank <= size:
            of = " of a group" if site.groups > 1 else ""
            raise RecipeError(f"{where}: {name} is {rank}, expected 1 to {size} (the channels{of})")
