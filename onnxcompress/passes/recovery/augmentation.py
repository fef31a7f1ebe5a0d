"""Random views of images: mirrored, cropped and shifted on the way to the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_IMAGE_CHANNELS = (1, 3, 4)
_SMALLEST_IMAGE = 8


@dataclass(frozen=True)
class Views:
    """How far views go from the image.

    Attributes:
        mirror: whether every second view is mirrored.
        zoom: a view shows at least this share of the image's area, enlarged to its size; 1.0 does not zoom.
        stretch: its proportions change by up to this factor.
        shift: it moves by up to this share of the image's size, zeros moving in.
    """

    mirror: bool = True
    zoom: float = 1.0
    stretch: float = 1.0
    shift: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether a view is always the image itself."""
        return not self.mirror and self.zoom == 1.0 and self.stretch == 1.0 and self.shift == 0.0


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether a sample of this shape is an image (C, H, W)."""
    return len(shape) == 3 and shape[0] in _IMAGE_CHANNELS and min(shape[1:]) >= _SMALLEST_IMAGE


def random_views(images: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """Return one view of each image (B, C, H, W), drawn by a generator of the host."""
    if views.is_plain:
        return images
    transforms = torch.stack([_transform(images, views, generator) for _ in range(len(images))])
    if views.zoom == views.stretch == 1.0 and views.shift == 0.0:
        mirrored = (transforms[:, 0, 0] < 0).to(images.device)
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)
    grid = functional.affine_grid(transforms.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _transform(images: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """Return the affine map (2, 3) from a view's coordinates (-1 to 1) to its image's."""
    flip, area, ratio, x, y = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    share = views.zoom + (1.0 - views.zoom) * area
    stretch = views.stretch ** (2 * ratio - 1)
    width, height = min(1.0, (share * stretch) ** 0.5), min(1.0, (share / stretch) ** 0.5)
    # Whole pixels, where nothing is enlarged: a shift alone must not blur.
    right = _offset(x, 1.0 - width, views.shift, images.shape[3])
    down = _offset(y, 1.0 - height, views.shift, images.shape[2])
    width = -width if views.mirror and flip < 0.5 else width
    return torch.tensor([[width, 0.0, right], [0.0, height, down]], dtype=torch.float32)


def _offset(drawn: float, slack: float, shift: float, size: int) -> float:
    reach = slack + 2 * shift
    offset = (2 * drawn - 1) * reach
    return round(offset * size / 2) * 2 / size if slack == 0.0 else offset
