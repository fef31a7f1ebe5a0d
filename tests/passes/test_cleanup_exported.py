"""Clean-up of what torch's exporter writes when it is told to leave BatchNorm and Dropout in."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from onnxcompress.graph import Model
from tests.passes.cleanup_models import assert_close, clean, ops

TOLERANCE = 1e-5


def network() -> Any:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Shuffled(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8))
            self.norm = nn.GroupNorm(2, 8)
            self.preactivation = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Dropout(0.3))
            self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2), nn.BatchNorm2d(8), nn.Identity())
            self.head = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 5))

        def forward(self, x: Any) -> Any:
            stem = self.stem(x)
            y = self.depthwise(stem)
            n, c, h, w = y.shape
            y = self.norm(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))
            y = self.preactivation(y + stem)
            y = self.up(y)
            y = nn.functional.interpolate(y, size=stem.shape[2:], mode="nearest") + stem
            return self.head(y.mean((2, 3)))

    torch.manual_seed(0)
    module = Shuffled()
    with torch.no_grad():
        for each in module.modules():
            if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d)):
                each.weight.uniform_(0.5, 1.5)
                each.bias.normal_(0, 0.3)
                each.running_mean.normal_(0, 0.3)
                each.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize("opset", [11, 14, 18])
@pytest.mark.parametrize("folding", [True, False])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore:Converting a tensor")
def test_a_network_with_everything_in_is_cleaned_and_computes_the_same(opset: int, folding: bool) -> None:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.onnx.export(
        network(),
        (torch.zeros(2, 3, 16, 16),),
        stream,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}, "y": {0: "n"}},
        opset_version=opset,
        do_constant_folding=folding,
        training=torch.onnx.TrainingMode.PRESERVE,
        dynamo=False,
    )
    model = Model.from_bytes(stream.getvalue())
    assert ops(model).count("BatchNormalization") == 5
    cleaned, plan = clean(model)
    left = ops(cleaned)
    # The one in front of a ReLU has no linear neighbour.
    assert left.count("BatchNormalization") == 1
    assert not {"Identity", "Dropout", "Constant"} & set(left)
    assert len(left) < len(ops(model))
    assert {"batchnorm", "fold"} <= {d["step"] for d in plan.decisions}
    for n, h, w in ((1, 16, 16), (3, 21, 26)):
        assert_close(model, cleaned, TOLERANCE, n=n, h=h, w=w)
    assert np.isfinite([t.values.sum() for t in cleaned.constants().values() if t.values.dtype.kind == "f"]).all()
