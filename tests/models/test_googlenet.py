"""GoogLeNet has torchvision's parameters, its auxiliary heads, and smaller relatives."""

from __future__ import annotations

import hashlib

import pytest
import torch

from googlenet import INCEPTIONS, STEMS, GoogLeNet, scaled

# SHA-256 of the lines "name shape" of torchvision 0.28's own GoogLeNet().state_dict(), in its order.
TORCHVISION_STATE = "e2cf6c5ea7661faddd21ef8021b3150a0ce368e1d2a952fdeba8db9444c62064"


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module")
def full() -> GoogLeNet:
    return GoogLeNet()


def test_state_dict_is_torchvisions_name_by_name(full: GoogLeNet) -> None:
    state = full.state_dict()
    lines = "".join(f"{name} {tuple(value.shape)}\n" for name, value in state.items())
    assert len(state) == 364
    assert hashlib.sha256(lines.encode()).hexdigest() == TORCHVISION_STATE


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1.conv.weight", (64, 3, 7, 7)),
        ("conv1.bn.running_var", (64,)),
        ("inception3a.branch2.1.conv.weight", (128, 96, 3, 3)),
        ("inception3a.branch3.1.conv.weight", (32, 16, 3, 3)),
        ("inception5b.branch4.1.conv.weight", (128, 832, 1, 1)),
        ("aux1.fc1.weight", (1024, 2048)),
        ("aux2.conv.conv.weight", (128, 528, 1, 1)),
        ("fc.weight", (1000, 1024)),
    ],
)
def test_parameter_shapes(full: GoogLeNet, name: str, shape: tuple[int, ...]) -> None:
    assert tuple(full.state_dict()[name].shape) == shape


def test_parameter_counts_are_torchvisions(full: GoogLeNet) -> None:
    assert parameters(full) == 13_004_888
    assert parameters(GoogLeNet(aux_logits=False)) == 6_624_904


def test_batchnorm_has_torchvisions_epsilon(full: GoogLeNet) -> None:
    assert {layer.eps for layer in full.modules() if isinstance(layer, torch.nn.BatchNorm2d)} == {0.001}


def test_auxiliary_heads_answer_in_training_only() -> None:
    network = GoogLeNet(7, width=0.125)
    images = torch.randn(2, 3, 64, 64)
    network.train()
    assert [tuple(output.shape) for output in network(images)] == [(2, 7)] * 3
    network.eval()
    logits = network(images)
    assert tuple(logits.shape) == (2, 7)
    before = parameters(network)
    assert parameters(network.drop_auxiliary()) < before
    assert torch.equal(network(images), logits)


@pytest.mark.parametrize("stem", STEMS)
def test_smaller_relatives(stem: str) -> None:
    network = GoogLeNet(10, in_channels=1, width=0.125, stem=stem, aux_logits=False).eval()
    size = STEMS[stem].input_size
    assert tuple(network(torch.randn(1, 1, size, size)).shape) == (1, 10)


def test_widths_are_multiples_of_eight_and_the_papers_at_one() -> None:
    for filters in INCEPTIONS.values():
        assert all(scaled(count, 1.0) == count for count in filters)
        assert all(scaled(count, 0.3) % 8 == 0 for count in filters)


def test_transform_input_undoes_imagenet_normalisation() -> None:
    plain, transforming = GoogLeNet(5, width=0.125), GoogLeNet(5, width=0.125, transform_input=True)
    transforming.load_state_dict(plain.state_dict())
    plain.eval(), transforming.eval()
    pixels = torch.rand(2, 3, 64, 64)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(
        transforming((pixels - mean) / deviation), plain((pixels - 0.5) / 0.5), rtol=1e-4, atol=1e-4
    )


def test_transform_input_needs_three_channels() -> None:
    with pytest.raises(ValueError, match="in_channels=3, not 1"):
        GoogLeNet(in_channels=1, transform_input=True)
