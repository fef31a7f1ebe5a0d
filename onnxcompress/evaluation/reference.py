"""The original's outputs on a dataset, in temporary files: many compressed models can be held against them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from onnxcompress.errors import DataError
from onnxcompress.evaluation.metrics import class_scores
from onnxcompress.linalg.distributions import Kind, kind_of
from onnxcompress.linalg.sizes import Division, Sizes
from onnxcompress.runtime.array_file import ArrayFile
from onnxcompress.runtime.batch import Batch
from onnxcompress.runtime.capture import check_finite
from onnxcompress.runtime.dataset import DEFAULT_BATCH, Dataset
from onnxcompress.runtime.session import Session
from onnxcompress.runtime.tensors import Array


@dataclass(frozen=True)
class OutputTraits:
    """What the original's graph tells of its outputs.

    Attributes:
        open: names of outputs whose shape depends on the data, as the boxes that a NonMaxSuppression leaves. They are
            not compared: two models leave other rows, or fewer.
        made_from: tensors inside, which are compared in their place where both models have them.
        apart: names of outputs that a last Sigmoid made: each is the probability of its own class.
    """

    open: frozenset[str] = frozenset()
    made_from: tuple[str, ...] = ()
    apart: frozenset[str] = frozenset()


NO_TRAITS = OutputTraits()

Told = Callable[[int], None]
"""Progress: called with the number of samples done so far."""


class Reference:
    """What the original gives on every sample; a context manager that deletes the files.

    The first output of shape [N, C] or [N, C, 1, ...] with C > 1 is the one that classifies, but for those that are
    said to hold `numbers` of another kind. All floating-point outputs are kept, to be compared as numbers too; where
    there are none, all whole numbers and truth values. Of those whose shape depends on the data neither.

    Attributes:
        output: the name of the classifying output, or None.
        numbers: names of outputs of the same shape that hold numbers of another kind.
        kind: of its scores.
        traits: of the outputs; of what open ones are made from, what the session gives is compared.
        left_out: other outputs beside it, in which the original gave NaN or infinity, and open ones.
        divisions: {output: where it holds smaller numbers than elsewhere}, which are to be compared by themselves.
        samples: how many there are.

    Raises (constructor):
        DataError: the data have no samples or do not fit, the original gives NaN or infinity on them, or the disk is
            full.
    """

    def __init__(
        self,
        original: Session,
        data: Dataset,
        *,
        batch_size: int = DEFAULT_BATCH,
        progress: Told | None = None,
        numbers: Collection[str] = (),
        traits: OutputTraits = NO_TRAITS,
    ) -> None:
        self.data = data
        self.traits = traits
        self.numbers: tuple[str, ...] = ()
        self._numbers = frozenset(numbers)
        self.output: str | None = None
        self.kind = Kind.LOGITS
        self.samples = 0
        self.left_out: set[str] = set()
        self.divisions: dict[str, Division] = {}
        self._batches = data.kept(batch_size)
        self._files: dict[str, ArrayFile] = {}
        self._kinds: dict[str, Sizes] = {}
        try:
            for batch in self._batches():
                self._add(real_outputs(original, batch), batch)
                if progress:
                    progress(self.samples)
            found = {name: sizes.division() for name, sizes in self._kinds.items() if name in self._files}
            self.divisions = {name: division for name, division in found.items() if division is not None}
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def batches(self) -> Iterator[tuple[Batch, dict[str, Array]]]:
        """Stream the data again, each batch with the original's outputs on it, cut to the real samples.

        Raises:
            DataError: the data are not the same the second time.
        """
        for number, batch in enumerate(self._batches()):
            yield batch, {name: file[number] for name, file in self._files.items()}

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def _add(self, outputs: dict[str, Array], batch: Batch) -> None:
        if not self._files:
            self._choose(outputs, batch)
        for name, file in list(self._files.items()):
            if self.output not in (None, name) and not np.isfinite(outputs[name]).all():
                self.left_out.add(name)
                self._files.pop(name).close()
                continue
            check_finite(outputs[name], f"output '{name}' of the original, at samples from {self.samples}")
            file.append(outputs[name])
            if name in self._kinds:
                self._kinds[name].add(outputs[name], batch.size)
        if self.output is not None and batch.labels is not None:
            classes = outputs[self.output].shape[1]
            if batch.labels.max() >= classes:
                worst = batch.labels.max()
                raise DataError(f"{self.data.name}: label {worst} is not a class; the model has 0 to {classes - 1}")
        self.samples += batch.size

    def _choose(self, outputs: dict[str, Array], batch: Batch) -> None:
        made_from = [name for name in self.traits.made_from if name in outputs]
        given = {name: array for name, array in outputs.items() if name not in made_from}
        told = [n for n, array in given.items() if array.dtype.kind == "f"] or ([] if made_from else list(given))
        self.left_out |= self.traits.open.intersection(told)
        compared = [name for name in told if name not in self.left_out] + made_from
        self._files = {name: ArrayFile() for name in compared}
        shaped = {n: None if n in made_from else class_scores(outputs[n], batch.size) for n in compared}
        self.numbers = tuple(name for name in compared if shaped[name] is not None and name in self._numbers)
        floating = [name for name in compared if outputs[name].dtype.kind == "f"]
        self._kinds = {name: Sizes() for name in floating if shaped[name] is None or name in self.numbers}
        for name, scores in shaped.items():
            if scores is not None and name not in self.numbers:
                self.output, self.kind = name, kind_of(scores, apart=name in self.traits.apart)
                return


def real_outputs(session: Session, batch: Batch) -> dict[str, Array]:
    """Run a batch; return its outputs without those of samples that only fill it up."""
    rows = len(next(iter(batch.inputs.values())))
    outputs = session.run(batch.inputs)
    if batch.size == rows:
        return outputs
    return {name: array[: batch.size] if array.shape[:1] == (rows,) else array for name, array in outputs.items()}
