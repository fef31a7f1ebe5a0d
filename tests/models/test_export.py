"""models/export.py: both exporters, checkpoints of torchvision and of train.py, clear refusals."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import export
from googlenet import GoogLeNet

SMALL = ["--width", "0.125", "--num-classes", "7", "--stem", "small"]
SMALL_CONFIG = {"num_classes": 7, "in_channels": 3, "width": 0.125, "stem": "small"}


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": images})
    return logits


def with_statistics(network: GoogLeNet) -> GoogLeNet:
    """Give BatchNorm something to do: random statistics, from the seed in force."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2.0)
    return network.eval()


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_checkpoint_is_exported_without_auxiliary_heads(tmp_path: Path, exporter: str) -> None:
    torch.manual_seed(0)
    network = with_statistics(GoogLeNet(**SMALL_CONFIG))
    torch.save({"config": SMALL_CONFIG, "state_dict": network.state_dict()}, tmp_path / "small.pth")
    out = tmp_path / "small.onnx"
    export.main(
        ["--weights", str(tmp_path / "small.pth"), "--out", str(out), "--exporter", exporter, "--dynamic-batch"]
    )

    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    expected = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(run(out, images), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    model = onnx.load(out)
    assert not [tensor.name for tensor in model.graph.initializer if "aux" in tensor.name]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_plain_state_dict_as_torchvision_publishes_it(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = with_statistics(GoogLeNet(**SMALL_CONFIG))
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    out = tmp_path / "plain.onnx"
    export.main(["--weights", str(tmp_path / "plain.pth"), "--out", str(out), *SMALL])

    images = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    expected = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(run(out, images), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_batchnorm_is_folded_unless_kept(tmp_path: Path) -> None:
    counts = {}
    for name, options in {"folded": [], "kept": ["--keep-batchnorm"]}.items():
        out = tmp_path / f"{name}.onnx"
        export.main(["--out", str(out), *SMALL, *options])
        counts[name] = sum(node.op_type == "BatchNormalization" for node in onnx.load(out).graph.node)
    assert counts == {"folded": 0, "kept": 57}


def test_opset_and_seed(tmp_path: Path) -> None:
    written = {}
    for name, seed in {"a": "3", "b": "3", "c": "4"}.items():
        out = tmp_path / f"{name}.onnx"
        export.main(["--out", str(out), *SMALL, "--opset", "15", "--seed", seed])
        written[name] = out.read_bytes()
    assert written["a"] == written["b"] != written["c"]
    assert onnx.load(tmp_path / "a.onnx").opset_import[0].version == 15


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(GoogLeNet(**{**SMALL_CONFIG, "num_classes": 9}).state_dict(), tmp_path / "nine.pth")
    with pytest.raises(SystemExit, match=r"nine\.pth: does not fit"):
        export.main(["--weights", str(tmp_path / "nine.pth"), "--out", str(tmp_path / "x.onnx"), *SMALL])
    assert os.listdir(tmp_path) == ["nine.pth"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_unreadable_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(SystemExit, match=r"bad\.pth: cannot be read"):
        export.main(["--weights", str(tmp_path / "bad.pth"), "--out", str(tmp_path / "x.onnx")])


def test_dynamo_cannot_keep_batchnorm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        export.main(["--out", str(tmp_path / "x.onnx"), "--exporter", "dynamo", "--keep-batchnorm"])
    assert "--keep-batchnorm needs --exporter torchscript" in capsys.readouterr().err
