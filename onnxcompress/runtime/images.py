"""Images to model inputs: decoding, resizing, cropping, scaling; one image at a time, threads over a batch."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxcompress.errors import DataError
from onnxcompress.runtime.preprocess import MOST_PIXELS, Preprocess, Size
from onnxcompress.runtime.tensors import Array, shown_shape

if TYPE_CHECKING:
    from PIL.Image import Image

_LEVELS, _FEWEST_LEVELS = 256, 128
"""Values of a pixel; with fewer than half of them left for an input of whole numbers, an image is hardly one."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


class ImageTransform:
    """Turns images into arrays of one dtype by a `Preprocess` that was fitted to the model."""

    def __init__(self, preprocess: Preprocess, dtype: np.dtype[Any]) -> None:
        self.preprocess = preprocess
        self.dtype = dtype
        self._channels = len(preprocess.mean)
        self._mean = np.asarray(preprocess.mean, np.float32)
        self._std = np.asarray(preprocess.std, np.float32)

    def require_levels(self, where: str) -> None:
        """Refuse a preprocessing that leaves next to nothing of a pixel: for an input of whole numbers, one to -1..1.

        Args:
            where: what the images are for, for the message.

        Raises:
            DataError: it does.
        """
        if self.dtype.kind == "f":
            return
        grey = np.repeat(np.arange(_LEVELS, dtype=np.float32)[:, None, None], self._channels, axis=2)
        left = min(len(np.unique(values)) for values in self._scaled(grey).T)
        if left < _FEWEST_LEVELS:
            raise DataError(
                f"{where} is {self.dtype}, and --preprocess {self.preprocess.name} leaves {left} of the {_LEVELS} "
                "values of a pixel: give raw (0 to 255), or a TOML file whose scale, mean and std suit whole numbers"
            )

    def from_file(self, path: Path) -> Array:
        """Decode a file; return (C, H, W) or (H, W, C) by the layout.

        Raises:
            DataError: the file is missing or does not decode.
        """
        try:
            with path.open("rb") as stream:
                return self.from_stream(stream, str(path))
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such image") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error

    def from_stream(self, stream: IO[bytes], where: str) -> Array:
        """Decode an image file's bytes; errors as `from_file`."""
        from PIL import Image

        try:
            with Image.open(stream) as image:
                return self._from_image(_of_bytes(image, where).convert(self._mode), where)
        except DataError:
            raise
        # Pillow's decoders raise many kinds (OSError, SyntaxError, ValueError, struct.error, bombs) on damaged files.
        except Exception as error:
            raise DataError(f"{where}: not an image that decodes: {error}") from error

    def from_pixels(self, pixels: npt.NDArray[np.uint8], where: str) -> Array:
        """Transform a decoded image (H, W) or (H, W, C), C 1 or 3."""
        from PIL import Image

        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return self._from_image(image.convert(self._mode), where)

    @property
    def _mode(self) -> str:
        return "L" if self._channels == 1 else "RGB"

    def _from_image(self, image: Image, where: str) -> Array:
        pixels = np.asarray(self._sized(image, where), np.float32)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        elif self.preprocess.channel_order == "BGR":
            pixels = pixels[:, :, ::-1]
        values = self._scaled(pixels)
        if self.preprocess.layout != "NHWC":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values)

    def _scaled(self, pixels: Array) -> Array:
        """Return the input's numbers of pixels (H, W, C)."""
        values = pixels * np.float32(self.preprocess.scale)
        values -= self._mean
        values /= self._std
        if self.dtype.kind != "f":
            limits = np.iinfo(self.dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        typed: Array = values.astype(self.dtype)
        return typed

    def _sized(self, image: Image, where: str) -> Image:
        """Resize and crop; Pillow sizes are (width, height), ours (height, width)."""
        crop, resize = self.preprocess.crop, self.preprocess.resize
        height, width = image.height, image.width
        if self.preprocess.adaptable and crop == (height, width):
            return image
        if resize is None and crop is not None and (height < crop[0] or width < crop[1]):
            resize = crop
        target = resize if resize is None or self.preprocess.stretch else _covering(height, width, resize)
        if target is not None and target[0] * target[1] > MOST_PIXELS:
            raise DataError(
                f"{where}: {width}x{height} pixels would be resized to {target[1]}x{target[0]}; leave it out"
            )
        if target is not None and target != (height, width):
            image = image.resize((target[1], target[0]), _resampling(self.preprocess.interpolation))
        if crop is None:
            return image
        if image.height < crop[0] or image.width < crop[1]:
            raise DataError(
                f"{where}: {image.width}x{image.height} pixels after resizing, the crop needs {crop[1]}x{crop[0]}"
            )
        top, left = (image.height - crop[0]) // 2, (image.width - crop[1]) // 2
        return image.crop((left, top, left + crop[1], top + crop[0]))


def stack(arrays: list[Array], names: list[str]) -> Array:
    """Stack transformed images into a batch.

    Raises:
        DataError: they differ in size, which only happens where neither the model nor the preset says one.
    """
    for array, name in zip(arrays, names, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"{name}: becomes {shown_shape(array.shape)} but {names[0]} {shown_shape(arrays[0].shape)}: the model "
                "fixes no image size; give a preprocess TOML file with resize and crop"
            )
    return np.stack(arrays)


def _of_bytes(image: Image, where: str) -> Image:
    """Return an image with a byte for each value of a pixel: Pillow would cut wider ones off at 255.

    Raises:
        DataError: it has values of a range that nothing tells.
    """
    from PIL import Image as images

    # Pillow gives the 16 bits of PGM, and in older releases those of PNG, as 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        return images.fromarray((values * 255 // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit whole numbers" if image.mode == "I" else "floating-point numbers"
        raise DataError(f"{where}: holds {kind}, whose range nothing tells; save it with 8 or 16 bits, or give a .npz")
    return image


def _covering(height: int, width: int, size: Size) -> Size:
    """The smallest size of the image's proportions that covers `size`; the other side truncated as in torchvision."""
    if size[0] * width >= size[1] * height:
        return size[0], max(size[1], int(size[0] * width / height))
    return max(size[0], int(size[1] * height / width)), size[1]


def _resampling(name: str) -> Any:
    from PIL import Image

    return Image.Resampling[name.upper()]
