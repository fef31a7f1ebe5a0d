"""A compressed network beside its original on the same samples: how far apart their blocks and outputs are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxcompress.errors import DataError
from onnxcompress.graph import Model
from onnxcompress.linalg.spectrum import Matrix
from onnxcompress.passes.base import PassContext, Provenance
from onnxcompress.passes.recovery.blocks import Block
from onnxcompress.passes.recovery.graph_module import GraphModule, Tensors
from onnxcompress.passes.recovery.output_errors import (
    Output,
    class_scores,
    compared_outputs,
    relative_error,
    sample_errors,
)
from onnxcompress.passes.recovery.output_weights import output_weights


@dataclass(frozen=True)
class Errors:
    """Errors of one batch.

    Attributes:
        blocks: relative squared error of each block's outputs, (blocks,).
        samples: see `sample_errors`.
    """

    blocks: Tensor
    samples: Tensor

    @property
    def outputs(self) -> Tensor:
        """Mean error of the network's outputs."""
        return self.samples.mean()

    def of_each(self, size: int) -> Tensor:
        """Return the errors of so many samples, (size,): all the mean where the outputs do not tell them apart."""
        return self.samples if len(self.samples) == size else self.outputs.expand(size)


class Pair:
    """The compressed network (trained) and its original (fixed), with what is compared between them.

    Args:
        blocks: in their order.
        outputs: of the whole network.
        provenance: which channels of the original's tensors remain.
        weights: of the outputs' squared errors, as `output_weights` gives them: of those that do not classify.
    """

    def __init__(
        self,
        student: GraphModule,
        teacher: GraphModule,
        blocks: Sequence[Block],
        outputs: tuple[Output, ...],
        provenance: Provenance,
        weights: Mapping[str, Matrix],
    ) -> None:
        self.student = student
        self.teacher = teacher.eval()
        self.blocks = tuple(blocks)
        self.outputs = outputs
        self._kept = {name: torch.from_numpy(numbers).to(student.device) for name, numbers in provenance.items()}
        self.weights = {name: torch.from_numpy(own).float().to(student.device) for name, own in weights.items()}
        self._cut = tuple(name for block in blocks for name in block.outputs)
        self._wanted = tuple(dict.fromkeys((*self._cut, *(output.compared for output in outputs))))

    @torch.no_grad()
    def expected(self, feeds: Tensors) -> dict[str, Tensor]:
        """Return what the original answers, only the channels that remain."""
        answers = self.teacher.run(feeds, self._wanted)
        kept = self._kept
        return {n: t.index_select(1, kept[n]) if n in kept and n in self._cut else t for n, t in answers.items()}

    def classifying(self, answers: Tensors) -> Output | None:
        """Return the first output whose answers are class scores, None where there is none."""
        return next(
            (
                output
                for output in self.outputs
                if output.compared not in self.weights and class_scores(answers[output.compared]) is not None
            ),
            None,
        )

    @torch.no_grad()
    def original_scores(self, output: Output, feeds: Tensors) -> Tensor:
        """Return the original's class scores (B, C) of an output that classifies."""
        scores = class_scores(self.teacher.run(feeds, (output.compared,))[output.compared])
        assert scores is not None
        return scores

    def computed(self, feeds: Tensors, *, apart: bool = False) -> dict[str, Tensor]:
        """Return what the compressed network computes; `apart` as for `compared`."""
        return self.student.run(feeds, self._wanted, cut=self._cut if apart else ())

    def compared(self, feeds: Tensors, *, apart: bool = False) -> tuple[dict[str, Tensor], Errors]:
        """Return what the compressed network computes, and how far that is from the original's answers.

        With `apart`, each error carries the gradient of its own block only.
        """
        expected = self.expected(feeds)
        computed = self.computed(feeds, apart=apart)
        blocks = [_mean_error(block.outputs, computed, expected) for block in self.blocks]
        samples = sample_errors(self.outputs, computed, expected, self.weights)
        return computed, Errors(torch.stack(blocks) if blocks else samples.new_zeros(0), samples)

    def check_finite(self, feeds: Tensors) -> None:
        """Refuse networks that give NaN or infinity.

        Raises:
            DataError: one of them does; names the first tensor that is not finite.
        """
        for which, module in (("the original", self.teacher), ("the compressed model", self.student)):
            with torch.no_grad():
                name = first_not_finite(module, feeds, self._wanted)
            if name is not None:
                raise DataError(f"tensor '{name}' of {which} holds NaN or infinite values; look at the layer before it")


def make_pair(model: Model, blocks: Sequence[Block], device: torch.device, context: PassContext) -> Pair:
    """Return a compressed model beside the original that it was made from, both on a device.

    Raises:
        UnsupportedOpError: a node cannot be trained through.
    """
    original = context.original or model
    outputs = compared_outputs(model, original)
    wanted = [output.compared for output in outputs]
    student, teacher = GraphModule(model, wanted).to(device), GraphModule(original, wanted).to(device)
    # Processes that train together have the same training data, and no others.
    samples = context.training or context.calibration
    weights = output_weights(original, wanted, samples, context.numbers) if samples else {}
    return Pair(student, teacher, blocks, outputs, context.provenance, weights)


def first_not_finite(module: GraphModule, feeds: Tensors, wanted: Collection[str]) -> str | None:
    """Return the first tensor on the way to `wanted` that holds NaN or infinity, None where there is none."""
    answers = module.run(feeds, tuple(wanted))
    if all(_is_finite(tensor) for tensor in answers.values()):
        return None
    names = [str(t.name) for node in module.model.nodes for t in node.outputs if t.name in module.computed]
    for name in names:
        if not _is_finite(module.run(feeds, (name,))[name]):
            return name
    return next(name for name, tensor in answers.items() if not _is_finite(tensor))


def to_feeds(arrays: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return inputs on a device; images with their channels last, in which convolutions run faster."""
    feeds = {}
    for name, tensor in arrays.items():
        moved = tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)
        feeds[name] = moved.contiguous(memory_format=torch.channels_last) if moved.dim() == 4 else moved
    return feeds


def _mean_error(names: Sequence[str], computed: Tensors, expected: Tensors) -> Tensor:
    return torch.stack([relative_error(computed[name], expected[name]) for name in names]).mean()


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
