"""Refitting one layer: the weights of its chain from samples of its inputs now and of the original's outputs.

A chain of one node is ridge regression. A chain with factors is reduced-rank regression: the input factor spans the
directions of the input channels that carry the fitted response, the output factor the leading directions of what the
core makes of them. Where nothing but a Relu reads the layer, what matters of an output below zero is only that it
stays there: in a few rounds such targets are replaced by what the fit gives, if that is negative too (X. Zhang et al.,
Accelerating Very Deep Convolutional Networks, TPAMI 2016), which minimises the error behind the Relu.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxcompress.linalg.moments import Covariances, Inputs, Rows, accumulate_made, in_blocks, joint_moments
from onnxcompress.linalg.parallel import parallel_map
from onnxcompress.linalg.regression import Metric, input_spectrum, project_inputs, response_spectrum, ridge, solve_ridge
from onnxcompress.linalg.spectrum import Matrix

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Strengths that are tried, in units of the mean variance of an input; the strongest hardly leaves the prior."""

UNJUDGED = 1.0
"""Where there are too few images to hold any out."""

SHRINKAGE = 1.0
"""How far the inputs' covariance is drawn towards equal variance when there is one sample for each input: to its mean.
It grows with the square of the inputs for each sample. A classifier of 1,024 features, halved in rank by 500 images,
lost 0.025 of divergence on other images with four times this, and 0.042 with a fifth of it."""

_EVERY, _EVERY_OF_MANY = 5, 10  # so manieth image is held out
_ENOUGH_HELD_OUT = 50

_CACHED_ROWS = 256
_LARGEST = np.finfo(np.float32).max


def held_out(images: int) -> npt.NDArray[np.bool_]:
    """Return which of so many images, (images,), are kept out of every layer's fit.

    They choose the ridge and judge what was fitted: every fifth, of more than 250 images fewer, down to every tenth.

    In no layer they are fitted to, as the images that earlier layers were fitted to come out of them with less error
    than others do: to the next layer they promise better inputs than it will have. A GoogLeNet at 0.55 of its MACs, 500
    images: divergence on 200 others 0.048 where the fifth took part in every fit once it had chosen, 0.055. With the
    fifth, tenth and sixteenth of 500 images held out, SqueezeNet at 0.7 is off by 0.169, 0.165 and 0.165.
    """
    every = min(_EVERY_OF_MANY, max(_EVERY, images // _ENOUGH_HELD_OUT))
    return np.asarray(np.arange(images) % every == every - 1)


@dataclass(frozen=True)
class ChainShape:
    """What a layer's chain looks like: positions of the core, and ranks where it has factors (None: it has not).
    Without `has_constant` nothing can be added to its outputs: the slope alone has to answer, the inputs' means too.

    Where the input factor spans a part of the kernel, rows and slopes come with that part beside the channels: see
    `spanned_last`. What the factors keep is what counts most in the metric of the outputs' errors.
    """

    positions: int
    rank_in: int | None = None
    rank_out: int | None = None
    metric: Metric | None = None
    has_constant: bool = True


@dataclass(frozen=True)
class ChainWeights:
    """The weights of a chain.

    Attributes:
        first: (I, R_in) or None.
        core: (K, R_in, R_out), with I and O where there are no factors.
        last: (R_out, O) or None.
        constant: (O,).
    """

    first: Matrix | None
    core: Matrix
    last: Matrix | None
    constant: Matrix

    def slope(self) -> Matrix:
        """Return the chain's weights multiplied out, (K I, O)."""
        slope = self.core if self.first is None else self.first @ self.core
        slope = slope if self.last is None else slope @ self.last
        return slope.reshape(-1, slope.shape[-1])

    def answers(self, inputs: Rows) -> Rows:
        """Return the outputs (n, O) for inputs (n, K I)."""
        if self.first is not None:
            inputs = mapped_inputs(inputs, self.first)
        answers = inputs @ self.core.reshape(-1, self.core.shape[-1]).astype(np.float32)
        answers = answers if self.last is None else answers @ self.last.astype(np.float32)
        answers += self.constant.astype(np.float32)
        return answers


@dataclass(frozen=True)
class Samples:
    """Rows of one layer.

    Attributes:
        inputs: (n, K I).
        targets: (n, O).
        relu: whether the error counts behind a Relu.
        shared: the inputs with what is known of them, where other layers have them, too.
    """

    inputs: Rows
    targets: Rows
    relu: bool
    shared: Inputs | None = None

    def group(self, number: int, groups: int, positions: int) -> Samples:
        """Return what one group of a grouped convolution, with so many positions of its kernel, sees and makes."""
        count = len(self.inputs)
        own = self.inputs.reshape(count, positions, groups, -1)[:, :, number]
        targets = self.targets.reshape(count, groups, -1)[:, number]
        return Samples(np.ascontiguousarray(own).reshape(count, -1), np.ascontiguousarray(targets), self.relu)

    def lack(self) -> float:
        """Return by how much inputs that are there more than once fall short of as many different ones; 0 of those.

        As a share of the inputs' variance: what `SHRINKAGE` is in units of.
        """
        rows, features = self.inputs.shape
        repeated = (features / max(self.known.distinct(), 1)) ** 2 - (features / max(rows, 1)) ** 2
        return SHRINKAGE * float(repeated)

    @cached_property
    def known(self) -> Inputs:
        """What is known of the inputs."""
        return self.shared or Inputs(self.inputs)

    def error(self, slope: Matrix, constant: Matrix, metric: Metric | None = None) -> float:
        """Return the relative squared error of affine weights in a metric, behind the Relu where there is one."""
        return self.error_of(ChainWeights(None, slope[None], None, constant), ChainShape(1, metric=metric))

    def error_of(self, chain: ChainWeights, shape: ChainShape) -> float:
        """Return the error of a chain's weights in the metric of its shape."""
        wanted, metric = self.targets, shape.metric
        got = in_blocks(lambda at: chain.answers(self.inputs[at]), len(wanted), wanted.shape[1])
        if self.relu:
            wanted, got = np.maximum(wanted, 0.0), np.maximum(got, 0.0)
        size, missed = (_energy(each, metric) for each in (wanted - wanted.mean(axis=0), got - wanted))
        if size > 0.0:
            return missed / size
        return 0.0 if missed == 0.0 else float("inf")


def joined(samples: Sequence[tuple[Samples, Samples | None]]) -> tuple[Samples, Samples | None]:
    """Return what to fit to and what judges, each put together from several layers that share their weights."""
    if len(samples) == 1:
        return samples[0]
    training, judging = ([own for own in each if own is not None] for each in zip(*samples, strict=True))
    return _joined(training), _joined(judging) if judging else None


def _joined(samples: Sequence[Samples]) -> Samples:
    inputs, targets = (np.concatenate([getattr(each, name) for each in samples]) for name in ("inputs", "targets"))
    return Samples(inputs, targets, all(each.relu for each in samples))


def _energy(rows: Rows, metric: Metric | None) -> float:
    measured = rows if metric is None else rows @ metric.root.astype(np.float32)
    return float(np.einsum("no,no->n", measured, measured).sum(dtype=np.float64))


def mapped_inputs(inputs: Rows, first: Matrix) -> Rows:
    """Return inputs (n, K I) behind an input factor (I, R): (n, K R)."""
    factor = first.astype(np.float32)
    positions = inputs.shape[1] // len(factor)

    def mapped(at: slice) -> Rows:
        own = inputs[at]
        rows: Rows = (own.reshape(-1, len(factor)) @ factor).reshape(len(own), -1)
        return rows

    return in_blocks(mapped, len(inputs), positions * factor.shape[1])


def fit_chain(
    training: Samples, judging: Samples | None, shape: ChainShape, prior: Matrix, rounds: int
) -> ChainWeights:
    """Fit a chain to samples.

    Args:
        training, judging: what is fitted to, and what chooses the ridge, or None.
        prior: what the slope is drawn towards, (K I, O): the original's weights.
        rounds: of the fit behind the Relu; 0 fits what stands before it.
    """
    moments = joint_moments(training.known, training.targets)
    covariances = moments.centred() if shape.has_constant else moments.about_zero()
    covariances = replace(covariances, count=training.known.distinct())
    strength, chain, least = UNJUDGED, _fit(covariances, shape, prior, UNJUDGED), float("inf")
    if judging:
        strength, chain, least = _best(covariances, judging, shape, prior, chain)
    if training.relu and rounds:
        behind = _fit_behind_relu(training, covariances, chain, shape, prior, strength, rounds)
        if judging is None or judging.error_of(behind, shape) < least:
            chain = behind
    return chain


def _best(
    covariances: Covariances, judging: Samples, shape: ChainShape, prior: Matrix, chain: ChainWeights
) -> tuple[float, ChainWeights, float]:
    """Return the best ridge, its chain and its error, looked for up or down from `UNJUDGED`, of which `chain` is."""

    def tried(strength: float) -> tuple[float, ChainWeights, float]:
        own = chain if strength == UNJUDGED else _fit(covariances, shape, prior, strength)
        return strength, own, judging.error_of(own, shape)

    start = RIDGES.index(UNJUDGED)
    # Most layers need all three.
    lower, best, higher = parallel_map(tried, RIDGES[start - 1 : start + 2], lambda _: covariances.xx.nbytes)
    upwards = higher[2] < best[2]
    nearest, others = (higher, RIDGES[start + 2 :]) if upwards else (lower, RIDGES[: start - 1][::-1])
    for found in itertools.chain([nearest], map(tried, others)):
        if not found[2] < best[2]:
            break
        best = found
    return best


def _fit(covariances: Covariances, shape: ChainShape, prior: Matrix, strength: float) -> ChainWeights:
    first = None
    if shape.rank_in is not None:
        slope = ridge(covariances, prior, strength)
        directions = input_spectrum(covariances.xx, slope, shape.positions, shape.metric)[1]
        first = np.linalg.qr(directions[:, : shape.rank_in])[0]
    return _fit_behind(covariances, first, shape, prior, strength)


def _fit_behind(
    covariances: Covariances, first: Matrix | None, shape: ChainShape, prior: Matrix, strength: float
) -> ChainWeights:
    """Fit core and output factor behind a given input factor."""
    xx, xy, mean_x = covariances.xx, covariances.xy, covariances.mean_x
    positions = shape.positions
    if first is not None:
        xx, xy = project_inputs(xx, xy, first, positions)
        prior = _mapped(prior, first, positions)
        mean_x = (mean_x.reshape(positions, -1) @ first).reshape(-1)
    slope = solve_ridge(xx, xy, prior, strength)
    last = None
    core = slope
    if shape.rank_out is not None:
        # Few samples see few directions; without shrinkage the others would not count at all.
        variance = float(np.trace(xx)) / len(xx) or 1.0  # where no input varies, all count alike
        spread = SHRINKAGE * (len(xx) / max(covariances.count, 1)) ** 2 * variance
        core, outer = response_spectrum(xx + spread * np.eye(len(xx)), slope, shape.metric).factors(
            slope, shape.rank_out
        )
        last = outer.T
        slope = core @ last
    constant = covariances.mean_y - mean_x @ slope
    return ChainWeights(first, core.reshape(positions, -1, core.shape[-1]), last, constant)


def _fit_behind_relu(
    samples: Samples,
    covariances: Covariances,
    chain: ChainWeights,
    shape: ChainShape,
    prior: Matrix,
    strength: float,
    rounds: int,
) -> ChainWeights:
    """Improve core, output factor and constant for the error behind the Relu; the input factor stays."""
    inputs, positions = samples.inputs, shape.positions
    xx, mean_x = covariances.xx, covariances.mean_x
    reduced = replace(shape, rank_in=None)
    if chain.first is not None:
        first = chain.first
        xx, _ = project_inputs(xx, covariances.xy, first, positions)
        mean_x = (mean_x.reshape(positions, -1) @ first).reshape(-1)
        prior = _mapped(prior, first, positions)
        inputs = mapped_inputs(inputs, first)
    for _ in range(rounds):
        present = replace(chain, first=None)

        def wanted(at: slice, present: ChainWeights = present) -> Rows:
            return _behind_relu(present.answers(inputs[at]), samples.targets[at])

        sum_y, sum_xy = accumulate_made(inputs, wanted, samples.targets.shape[1])
        mean_y = sum_y / len(inputs) if shape.has_constant else np.zeros(len(sum_y))
        xy = sum_xy / len(inputs) - np.outer(mean_x, mean_y)
        moments = replace(covariances, xx=xx, xy=xy, mean_x=mean_x, mean_y=mean_y)
        fitted = _fit_behind(moments, None, reduced, prior, strength)
        chain = replace(fitted, first=chain.first)
    return chain


def _behind_relu(answers: Rows, targets: Rows) -> Rows:
    """Write targets (n, O) over answers: where they are not above zero the answers are right, as far as they are not.

    A maximum and a minimum, a few rows in the cache at a time: a choice value by value takes five times as long, about
    what the product takes that gave the answers.
    """
    for at in range(0, len(answers), _CACHED_ROWS):
        own, wanted = answers[at : at + _CACHED_ROWS], np.maximum(targets[at : at + _CACHED_ROWS], 0.0)
        np.minimum(own, wanted, out=own)
        wanted -= (wanted == 0.0) * _LARGEST  # no more than any answer where that may stay
        np.maximum(own, wanted, out=own)
    return answers


def _mapped(slope: Matrix, first: Matrix, positions: int) -> Matrix:
    """Return a slope (K I, O) seen through an input factor (I, R): (K R, O)."""
    kernel = slope.reshape(positions, first.shape[0], -1)
    mapped: Matrix = first.T @ kernel
    return mapped.reshape(-1, kernel.shape[-1])
