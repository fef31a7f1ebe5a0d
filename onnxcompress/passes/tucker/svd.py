"""The SVD pass: a 1x1 convolution, Gemm or MatMul becomes two thin ones by truncated SVD of its matrix.

    W (O, I) ~= L (O, R) @ R (R, I):     y = W x + b  ~=  L (R x) + b

The first of the two keeps what moves data (strides and pads of a Conv, transA of a Gemm), the second has the bias.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.analysis.split import WHOLE, Split
from onnxcompress.errors import RecipeError
from onnxcompress.graph import Model
from onnxcompress.linalg import energy_rank, ratio_rank
from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.linalg.spectrum import Matrix, Spectrum
from onnxcompress.linalg.svd import short_side_spectrum, truncated_svd
from onnxcompress.links import has_input
from onnxcompress.passes.base import Decision, Pass, PassContext, Plan, Provenance, Skipped
from onnxcompress.passes.tucker.cache import WeightCache, remeasured
from onnxcompress.passes.tucker.cost import ParamsLedger
from onnxcompress.passes.tucker.faster import fastest_split
from onnxcompress.passes.tucker.matrices import MatrixSite, find_matrix_sites
from onnxcompress.passes.tucker.raced import Saving, raced_splits
from onnxcompress.passes.tucker.ranks import rounded_up
from onnxcompress.passes.tucker.rewrite import Link, replace_by_chain, require_distinct
from onnxcompress.passes.tucker.sites import (
    Array,
    as_stored,
)
from onnxcompress.passes.tucker.spec import RankSpec, parse_svd_spec
from onnxcompress.tensor_bytes import release_mapped

_FLAT = 1e-3
_FIRST_OPSET_OF_GEMM_WITHOUT_C = 11


@dataclass(frozen=True)
class SvdConfig:
    """What to split, and at which ranks.

    Attributes:
        spec: the rule that chooses ranks: off, auto, energy or ratio.
        auto_energy: the share of the energy that `auto` keeps. EVBMF, which `--tucker auto` uses, would keep 8 of the
            64 components of GoogLeNet's first 1x1 convolution and be 70 % off: one matrix holds less redundancy than
            a kernel, and what it holds is not noise.

    Raises:
        RecipeError: a value out of range.
    """

    spec: RankSpec = field(default_factory=lambda: RankSpec("off"))
    auto_energy: float = 0.95

    def __post_init__(self) -> None:
        if not 0.0 < self.auto_energy <= 1.0:
            raise RecipeError(
                f"svd: the energy kept by auto is {self.auto_energy}, expected a share above 0, at most 1"
            )

    @classmethod
    def from_spec(cls, text: str) -> SvdConfig:
        """Return the configuration of an `--svd` text; see `parse_svd_spec`."""
        return cls(parse_svd_spec(text))


@dataclass(frozen=True)
class MatrixFactors:
    """Weights of the two nodes, in ONNX layout and element type, and the relative error of their product."""

    first: Array
    second: Array
    relative_error: float


@dataclass(frozen=True)
class _Choice:
    """What planning found for one node: a rank and its error, or why there is none."""

    rank: int = 0
    error: float = 0.0
    reason: str = ""


class SvdDecomposition(Pass):
    """Splits 1x1 convolutions, Gemm and MatMul in two."""

    name: ClassVar[str] = "svd"

    def __init__(self, config: SvdConfig) -> None:
        self.config = config
        self._cache: WeightCache[MatrixFactors] = WeightCache()

    def plan(self, model: Model, context: PassContext) -> Plan:
        """Choose ranks from the weights; every node that is not split says why.

        Where the context knows how long splits take, `auto` makes none that is not faster; where it can only race whole
        networks, those with which the network is fastest.
        """
        self._cache.clear()
        if self.config.spec.rule == "off":
            return Plan(self.name)
        sites, skipped = find_matrix_sites(model, context)
        reasons = {each.node: each.reason for each in skipped}
        splittable = {site.node for site in sites}
        found = parallel_map(lambda s: self._choose(s, splittable, context.round_to), sites, lambda s: s.weight.nbytes)
        times = self._times(model, sites, found, context)
        choices = [
            choice if times is None else _if_faster(choice, times.get(site.node))
            for site, choice in zip(sites, found, strict=True)
        ]
        if self.config.spec.rule == "auto" and times is None:
            choices = _raced(model, sites, choices, context)
        decisions: list[Decision] = []
        ledger = ParamsLedger({s.node for s, choice in zip(sites, choices, strict=True) if choice.rank})
        for site, choice in zip(sites, choices, strict=True):
            if choice.rank:
                timed = (
                    {} if times is None else {"ms": [times[site.node][r] for r in (WHOLE, Split(None, choice.rank))]}
                )
                decisions.append({**_decision(site, choice, ledger), **timed})
            else:
                reasons[site.node] = choice.reason
        ordered = tuple(Skipped(node.name, reasons[node.name]) for node in model.nodes if node.name in reasons)
        return Plan(self.name, tuple(decisions), ordered)

    def rewrite(self, model: Model, plan: Plan, context: PassContext) -> Provenance:
        """Split the planned nodes of `model`.

        Raises:
            RecipeError: the plan names nodes or ranks that the model does not have.
        """
        sites = {site.node: site for site in find_matrix_sites(model, PassContext())[0]}
        work = [_planned(sites, decision) for decision in plan.decisions]
        require_distinct(site.node for site, _ in work)
        unique = {(id(site.weight), *_how(site, rank)): (site, rank) for site, rank in work}
        found = parallel_map(lambda pair: self._factors(*pair), unique.values(), lambda pair: pair[0].weight.nbytes)
        factors = dict(zip(unique, found, strict=True))
        self._cache.clear()
        nodes = {node.name: node for node in model.nodes}
        constants: dict[tuple[object, ...], tuple[gs.Constant, gs.Constant]] = {}
        for site, rank in work:
            key = (id(site.weight), *_how(site, rank))
            if key not in constants:
                pair = factors.pop(key)
                constants[key] = (
                    model.new_constant(f"{site.node}_svd_first_weight", pair.first),
                    model.new_constant(f"{site.node}_svd_second_weight", pair.second),
                )
            replace_by_chain(model, nodes[site.node], factor_links(model, nodes[site.node], *constants[key]))
        return {}

    def remeasured(self, model: Model, plan: Plan) -> Plan:
        """Return the plan with the errors of this model's weights."""
        sites = {site.node: site for site in find_matrix_sites(model, PassContext())[0]}
        work = [_planned(sites, decision) for decision in plan.decisions]
        return remeasured(plan, work, self._factors, self._cache, _how)

    def _factors(self, site: MatrixSite, rank: int) -> MatrixFactors:
        try:
            return self._cache.take(site.weight, _how(site, rank)) or matrix_factors(site, rank)
        except (ValueError, np.linalg.LinAlgError) as error:
            raise RecipeError(f"plan: node '{site.node}': its weight cannot be decomposed: {error}") from error
        finally:
            release_mapped(site.weight)

    def _times(
        self, model: Model, sites: Sequence[MatrixSite], choices: Sequence[_Choice], context: PassContext
    ) -> Mapping[str, Mapping[Split, float]] | None:
        """Ask how long the splits take: `auto` makes those that are faster, where that is known."""
        if self.config.spec.rule != "auto" or context.split_times is None:
            return None
        pairs = zip(sites, choices, strict=True)
        return context.split_times(
            model, {site.node: [Split(None, choice.rank)] for site, choice in pairs if choice.rank}
        )

    def _rank(self, spectrum: Spectrum) -> int:
        spec = self.config.spec
        if spec.rule == "ratio":
            return ratio_rank(spectrum.shape[0], spec.share)
        return energy_rank(spectrum.values, self.config.auto_energy if spec.rule == "auto" else spec.share)

    def _choose(self, site: MatrixSite, splittable: set[str], round_to: int) -> _Choice:
        spec = self.config.spec
        try:
            spectrum = short_side_spectrum(site.matrix())
            smallest, largest = spectrum.values[-1], spectrum.values[0]
            if largest - smallest <= _FLAT * largest:
                return _Choice(reason="its singular values are all equal: no component matters less than another")
            rank = rounded_up(self._rank(spectrum), size=spectrum.shape[0], round_to=round_to)
            if spec.rule == "auto" and not site.cost(rank).pays:
                return _Choice(reason=f"no split: rank {rank} does not lower both MACs and parameters")
            if spec.rule == "auto" and (others := [name for name in site.sharers if name not in splittable]):
                return _Choice(reason=f"shares its weight with {others[0]}, which keeps it")
            if spec.rule == "energy" and rank == spectrum.shape[0]:
                return _Choice(reason=f"full rank {rank}: nothing to leave out")
            factors = matrix_factors(site, rank, spectrum)
        except (ValueError, np.linalg.LinAlgError) as error:
            return _Choice(reason=f"its weight cannot be decomposed: {error}")
        finally:
            release_mapped(site.weight)
        self._cache.put(site.weight, _how(site, rank), factors)
        return _Choice(rank, factors.relative_error)


def _if_faster(choice: _Choice, times: Mapping[Split, float] | None) -> _Choice:
    if not choice.rank:
        return choice
    fastest, reason = fastest_split(times, [Split(None, choice.rank)])
    return _Choice(reason=reason) if fastest is None else choice


def _raced(
    model: Model, sites: Sequence[MatrixSite], choices: Sequence[_Choice], context: PassContext
) -> list[_Choice]:
    """Return the choices without the splits that do not make the network faster."""
    savings = {
        site.node: Saving(Split(None, choice.rank), site.cost(choice.rank).saved_macs)
        for site, choice in zip(sites, choices, strict=True)
        if choice.rank
    }
    whole = raced_splits(model, savings, context)
    return [
        _Choice(reason=whole[site.node]) if site.node in whole else choice
        for site, choice in zip(sites, choices, strict=True)
    ]


def matrix_factors(site: MatrixSite, rank: int, spectrum: Spectrum | None = None) -> MatrixFactors:
    """Return the truncated SVD of a node's matrix as the weights of two nodes, from the weights alone."""
    svd = truncated_svd(site.matrix(), rank, spectrum=spectrum)
    return MatrixFactors(_stored(site, svd.right), _stored(site, svd.left), svd.relative_error)


def _stored(site: MatrixSite, matrix: Matrix) -> Array:
    laid_out = matrix if site.transposed else matrix.T
    return as_stored(laid_out.reshape(*laid_out.shape, *site.weight.shape[2:]), site.weight.dtype)


def factor_links(model: Model, node: gs.Node, first: gs.Constant, second: gs.Constant) -> list[Link]:
    """Return the two nodes that take a node's place, with these weights."""
    bias = [node.inputs[2]] if has_input(node, 2) else []
    of_first: dict[str, Any] = dict(node.attrs)
    of_second: dict[str, Any] = {}
    operands = [first]
    if node.op == "Conv":
        of_second = {"kernel_shape": [1] * (len(first.shape) - 2)}
    elif node.op == "Gemm":
        transposed = {"transB": int(node.attrs.get("transB", 0))}
        of_first = {"transA": int(node.attrs.get("transA", 0)), **transposed}
        of_second = {**transposed, **{name: node.attrs[name] for name in ("alpha", "beta") if name in node.attrs}}
        if model.opset < _FIRST_OPSET_OF_GEMM_WITHOUT_C:
            zero = np.zeros(1, model.values(first).dtype)
            operands.append(model.new_constant(f"{node.name}_svd_first_zero", zero))
    return [
        Link("_svd_first", node.op, of_first, operands),
        Link("_svd_second", node.op, of_second, [second, *bias]),
    ]


def _how(site: MatrixSite, rank: int) -> tuple[object, ...]:
    """What determines the factors besides the weight itself."""
    return site.transposed, rank


def _decision(site: MatrixSite, choice: _Choice, ledger: ParamsLedger) -> Decision:
    cost = site.cost(choice.rank)
    factors = (id(site.weight), *_how(site, choice.rank))
    return {
        "node": site.node,
        "kind": "svd",
        "ranks": [choice.rank],
        "channels": list(reversed(site.matrix_shape)),
        "error": choice.error,
        "macs": list(cost.macs) if cost.macs else None,
        "params": ledger.enter(cost, weight=site.weight_name, sharers=site.sharers, factors=factors),
    }


def _planned(sites: dict[str, MatrixSite], decision: Decision) -> tuple[MatrixSite, int]:
    try:
        node = str(decision["node"])
        (rank,) = (operator.index(rank) for rank in decision["ranks"])
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"plan: a decision of pass 'svd' lacks a node or one rank: {dict(decision)}") from error
    if node not in sites:
        raise RecipeError(f"plan: node '{node}' has no constant matrix in this model; it is another model's plan")
    most = min(sites[node].matrix_shape)
    if not 1 <= rank <= most:
        raise RecipeError(f"plan: node '{node}': the rank is {rank}, expected 1 to {most}")
    return sites[node], rank
