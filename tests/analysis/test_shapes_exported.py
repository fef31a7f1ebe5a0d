"""Shape arithmetic as torch's exporter writes it: after folding, every element is static or a named dimension."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from onnxcompress.analysis.shapes import ShapeValues, fold_static_values
from onnxcompress.graph import Model
from tests.small_models import session


def exported(module: Any, sizes: Sequence[tuple[int, ...]], opset: int) -> Model:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    examples = tuple(torch.zeros(size) for size in sizes)
    names = [f"x{i}" for i in range(len(sizes))]
    axes = {name: {0: "n", 2: "h", 3: "w"} for name in names}
    torch.onnx.export(
        module.eval(),
        examples,
        stream,
        input_names=names,
        output_names=["y"],
        dynamic_axes={**axes, "y": {0: "n"}},
        opset_version=opset,
        dynamo=False,
        do_constant_folding=False,
    )
    return Model.from_bytes(stream.getvalue())


def torch_modules() -> dict[str, tuple[Callable[[Any], Any], int]]:
    torch = pytest.importorskip("torch")

    class Wrapped(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, function: Callable[..., Any], *children: Any) -> None:
            super().__init__()
            self.function = function
            self.inner = torch.nn.ModuleList(children)

        def forward(self, *inputs: Any) -> Any:
            return self.function(self.inner, *inputs)

    def shuffle(_: Any, x: Any) -> Any:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    def upsample(_: Any, x: Any, y: Any) -> Any:
        return torch.nn.functional.interpolate(x, size=y.shape[2:], mode="nearest") + y

    return {
        "shuffle": (Wrapped(shuffle), 1),
        "chunk": (Wrapped(lambda _, x: torch.cat([p * 2 for p in x.chunk(2, dim=1)], 1)), 1),
        "interpolate": (Wrapped(upsample), 2),
        "expand_as": (Wrapped(lambda _, x, y: x.mean((2, 3), keepdim=True).expand_as(y) + y), 2),
        "group_norm": (Wrapped(lambda inner, x: inner[0](x), torch.nn.GroupNorm(3, 6)), 1),
        "flatten": (Wrapped(lambda _, x: x.view(x.size(0), x.size(1), -1).mean(2).view(x.size(0), -1)), 1),
    }


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", ["shuffle", "chunk", "interpolate", "expand_as", "group_norm", "flatten"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore:Converting a tensor")
def test_exported_shape_arithmetic_is_understood(name: str, opset: int) -> None:
    module, count = torch_modules()[name]
    model = exported(module, [(2, 6, 8, 10)] * count, opset)
    folded = model.copy()
    fold_static_values(folded)
    folded.refresh_shapes()
    folded.check()
    shape_values = ShapeValues(folded)
    for reader in folded.nodes:
        if reader.op in ("Reshape", "Expand", "Resize", "Slice") and len(reader.inputs) > 1:
            target = reader.inputs[3 if reader.op == "Resize" and len(reader.inputs) > 3 else 1]
            values, origins = shape_values.values(target), shape_values.origin(target)
            assert values is not None, reader.name
            assert origins is not None, reader.name
            explained = [v is not None or o is not None for v, o in zip(values, origins, strict=True)]
            assert all(explained), (reader.name, values, origins)
    rng = np.random.default_rng(0)
    for size in ((1, 6, 8, 10), (3, 6, 12, 14)):
        feed = {f"x{i}": rng.standard_normal(size).astype(np.float32) for i in range(count)}
        before, after = (session(m.to_bytes()).run(None, feed)[0] for m in (model, folded))
        assert before.tobytes() == after.tobytes()
