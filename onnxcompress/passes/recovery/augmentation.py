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
    # Drawn alike whatever the views are, so that turning one of them off leaves the others as they were.
    flip, area, ratio, across, down = torch.rand(5, len(images), generator=generator, dtype=torch.float64)
    mirrored = (flip < 0.5) & views.mirror
    if views.zoom == views.stretch == 1.0:
        height, width = images.shape[2:]
        offsets = [
            torch.round((2 * drawn - 1) * views.shift * size).long()
            for drawn, size in ((down, height), (across, width))
        ]
        return _moved(images, mirrored, *offsets)
    maps = _affine_maps(views, mirrored, area, ratio, across, down)
    grid = functional.affine_grid(maps.to(images.device, images.dtype), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _moved(images: Tensor, mirrored: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Move each image by whole pixels, zeros moving in: nothing is blurred, and it is a copy of memory."""
    count, _, height, width = images.shape
    reach = int(torch.maximum(down.abs().max(), across.abs().max()))
    padded = functional.pad(images, (reach,) * 4).permute(0, 2, 3, 1)
    rows = torch.arange(height) + (reach + down)[:, None]
    columns = torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(0), columns) + (reach + across)[:, None]
    rows, columns = rows.to(images.device), columns.to(images.device)
    numbers = torch.arange(count, device=images.device)
    return padded[numbers[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _affine_maps(views: Views, mirrored: Tensor, area: Tensor, ratio: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Return the affine maps (B, 2, 3) from the views' coordinates (-1 to 1) to their images'."""
    share = views.zoom + (1.0 - views.zoom) * area
    stretch = views.stretch ** (2 * ratio - 1)
    width, height = (share * stretch).sqrt().clamp(max=1.0), (share / stretch).sqrt().clamp(max=1.0)
    right, below = (2 * across - 1) * (1.0 - width + 2 * views.shift), (2 * down - 1) * (1.0 - height + 2 * views.shift)
    zero = torch.zeros_like(width)
    width = torch.where(mirrored, -width, width)
    return torch.stack([torch.stack([width, zero, right], 1), torch.stack([zero, height, below], 1)], 1)
