"""The zoo's networks as ONNX models, made by torch's exporters and kept under `build/zoo`."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

from export import to_onnx
from tests.zoo.entry import EXPORTERS
from tests.zoo.registry import ZOO

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "zoo"

Arrays = dict[str, npt.NDArray[np.float32]]


@functools.cache
def _sources_digest() -> str:
    """Changes with anything that decides what an export looks like."""
    digest = hashlib.sha256(f"{torch.__version__} {onnx.__version__}".encode())
    for path in [*sorted(Path(__file__).parent.glob("*.py")), ROOT / "models/googlenet.py", ROOT / "models/export.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def input_names(name: str) -> list[str]:
    """`input`, or `input0`, `input1`, … where there are several."""
    count = len(ZOO[name].input_shapes)
    return ["input"] if count == 1 else [f"input{number}" for number in range(count)]


def sample_inputs(name: str, *, batch: int = 2, seed: int = 0) -> Arrays:
    """Standard normal inputs of the network `name`, by the graph's input names."""
    generator = np.random.default_rng(seed)
    shapes = [(batch, *shape[1:]) for shape in ZOO[name].input_shapes]
    drawn = [generator.standard_normal(shape).astype(np.float32) for shape in shapes]
    return dict(zip(input_names(name), drawn, strict=True))


def expected_outputs(name: str, inputs: Arrays) -> list[npt.NDArray[np.float32]]:
    """What torch computes for `inputs`, one array for each output."""
    with torch.inference_mode():
        outputs = ZOO[name].network()(*(torch.from_numpy(array) for array in inputs.values()))
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def export(
    name: str, exporter: str = "torchscript", *, dynamic_batch: bool = True, opset: int | None = None
) -> onnx.ModelProto:
    """Return the ONNX model of network `name`.

    Args:
        name: a key of `ZOO`.
        exporter: one of `EXPORTERS`; not one that the entry says cannot.
        dynamic_batch: whether the batch size is left open.
        opset: None takes the exporter's own default.
    """
    assert exporter in EXPORTERS
    assert exporter not in ZOO[name].cannot, ZOO[name].cannot[exporter]
    variant = f"{name}-{exporter}-{'open' if dynamic_batch else 'fixed'}-{opset or 'default'}"
    path = CACHE / f"{variant}-{_sources_digest()}.onnx"
    if path.exists():
        return onnx.load_model_from_string(path.read_bytes())
    inputs = sample_inputs(name)
    outputs = expected_outputs(name, inputs)
    with warnings.catch_warnings():
        # Their doubts are settled by test_zoo.py: the model computes what torch does, at other batch sizes too.
        warnings.simplefilter("ignore")
        model = to_onnx(
            ZOO[name].network(),
            tuple(torch.from_numpy(array) for array in inputs.values()),
            exporter="dynamo" if exporter == "dynamo" else "torchscript",
            opset=opset,
            input_names=input_names(name),
            output_names=["output"] if len(outputs) == 1 else [f"output{number}" for number in range(len(outputs))],
            dynamic_batch=dynamic_batch,
            keep_batchnorm=exporter == "torchscript-bn",
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=CACHE)
    with os.fdopen(handle, "wb") as stream:
        stream.write(model.SerializeToString())
    os.replace(temporary, path)
    return model
