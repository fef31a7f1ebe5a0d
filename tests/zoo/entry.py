"""One network of the zoo: how to build it, what it takes, which exporters can write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]

EXPORTERS = ("torchscript", "torchscript-bn", "dynamo")
"""As users export (BatchNormalization folded), the same with BatchNormalization kept, torch's newer exporter."""


@dataclass(frozen=True)
class ZooEntry:
    """A network and its inputs.

    Attributes:
        build: returns the network with torch's own initialisation; `network` makes it repeatable and harder.
        input_shapes: one shape for each input, the batch of 2 included.
        cannot: why an exporter cannot write this network, by the exporter's name.
    """

    build: Callable[[], nn.Module]
    input_shapes: tuple[Shape, ...]
    cannot: Mapping[str, str] = field(default_factory=dict)

    @property
    def input_shape(self) -> Shape:
        """Shape of the first input, which for most networks is the only one."""
        return self.input_shapes[0]

    def network(self, seed: int = 0) -> nn.Module:
        """Build the network in evaluation mode, all parameters and statistics drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.build()
            network.apply(_randomise)
        return network.eval()


def entry(build: Callable[[], nn.Module], *input_shapes: Shape, **cannot: str) -> ZooEntry:
    """Shorthand for tables: `entry(build, (2, 3, 32, 32), dynamo="why not")`."""
    return ZooEntry(build, input_shapes, cannot)


def _randomise(layer: nn.Module) -> None:
    """Make every parameter matter: nothing is zero, one, or equal in all channels, and signals keep their scale."""
    if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.running_mean.normal_(0.0, 0.2)
        layer.running_var.uniform_(0.5, 2.0)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d) and (
        layer.weight is not None
    ):
        nn.init.uniform_(layer.weight, 0.5, 1.2)
    bias: Tensor | None = getattr(layer, "bias", None)
    if isinstance(bias, nn.Parameter):
        nn.init.normal_(bias, 0.0, 0.1)
