"""How an image becomes a model's input: presets, TOML files, and their fit to a model.

A pixel value v in 0..255 of a channel becomes `(v * scale - mean) / std`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.runtime.tensors import TensorInfo

Size = tuple[int, int]

MOST_PIXELS = 2**26
"""No image is made larger: such a size is a mistake, and its numbers would take gigabytes."""

_LARGEST = 2.0**127
_SMALLEST = 2.0**-126


@dataclass(frozen=True)
class Preprocess:
    """A recipe from a decoded image to numbers.

    Attributes:
        name: for messages.
        resize: the size (height, width) that the resized image just covers, its proportions kept; None resizes only
            images that do not cover the crop.
        stretch: resize to exactly that size instead.
        crop: size (height, width) of the centre crop; None takes the model's size.
        channel_order: `RGB` or `BGR`; a model of one channel gets the luma (ITU-R 601) and the average mean and std.
        mean, std: one number for each channel in `channel_order`.
        scale: factor of the pixel values before mean and std.
        layout: `NCHW`, `NHWC`, or None for what the model's input shape shows.
        adaptable: a preset: resize and crop follow the model's size, and an image of exactly that size is taken whole.
    """

    name: str
    resize: Size | None = None
    stretch: bool = False
    crop: Size | None = None
    channel_order: str = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    layout: str | None = None
    interpolation: str = "bilinear"
    adaptable: bool = False


PRESETS: Mapping[str, Preprocess] = MappingProxyType(
    {
        # BVLC's reference models: images whose shorter side is already 256 (or any size: only the centre is seen).
        "caffe": Preprocess("caffe", crop=(224, 224), channel_order="BGR", mean=(104.0, 117.0, 123.0), adaptable=True),
        # torchvision's classification models.
        "imagenet": Preprocess(
            "imagenet",
            resize=(256, 256),
            crop=(224, 224),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            scale=1 / 255,
            adaptable=True,
        ),
        # TensorFlow's Inception and MobileNet: -1 to 1.
        "tf": Preprocess(
            "tf", resize=(256, 256), crop=(224, 224), mean=(1.0, 1.0, 1.0), scale=1 / 127.5, adaptable=True
        ),
        # 0 to 1, at the model's size.
        "unit": Preprocess("unit", scale=1 / 255, adaptable=True),
        # 0 to 255, at the model's size: for models that scale pixels themselves, as Keras' EfficientNet does.
        "raw": Preprocess("raw", adaptable=True),
    }
)


@dataclass(frozen=True)
class ImageShape:
    """What a model's image input asks for; a size of None is open."""

    channels: int
    height: int | None
    width: int | None
    layout: str


def load_preprocess(value: str | Path | Preprocess) -> Preprocess:
    """Return a preset by its name, or read a TOML file.

    Raises:
        RecipeError: neither a preset nor a readable, valid file.
    """
    if isinstance(value, Preprocess):
        return value
    if str(value) in PRESETS:
        return PRESETS[str(value)]
    path = Path(value)
    if not os.path.isfile(path):  # also where no file can have such a name
        raise RecipeError(f"preprocess '{value}' is neither a preset ({', '.join(PRESETS)}) nor a TOML file")
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        table = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise RecipeError(f"{path}: not a readable TOML file: {error}") from error
    return _from_table(table, path)


def image_shape(info: TensorInfo, preprocess: Preprocess) -> ImageShape:
    """Return what the model's only input asks of an image.

    Raises:
        DataError: the input is no batch of images of 1 or 3 channels.
    """
    if len(info.shape) != 4:
        raise DataError(f"input {info.described()} does not take images: 4 dimensions are needed")
    first, last = info.shape[1], info.shape[3]
    # NCHW wherever its channel place fits: an open or square shape is far more often that.
    layout = preprocess.layout or ("NHWC" if first not in (1, 3) and last in (1, 3) else "NCHW")
    channels, height, width = info.shape[1:] if layout == "NCHW" else (last, info.shape[1], info.shape[2])
    if not isinstance(channels, int):
        channels = 3
    if channels not in (1, 3):
        raise DataError(f"input {info.described()} has {channels} channels in layout {layout}; images have 1 or 3")
    return ImageShape(
        channels,
        height if isinstance(height, int) else None,
        width if isinstance(width, int) else None,
        layout,
    )


def fit_to_model(preprocess: Preprocess, shape: ImageShape) -> Preprocess:
    """Return `preprocess` with the model's crop and layout, and one mean and std for each of its channels.

    Raises:
        DataError: the file's crop is not the model's size.
    """
    wanted = (shape.height, shape.width)
    crop, resize = preprocess.crop, preprocess.resize
    if shape.height and shape.width and (crop is None or preprocess.adaptable):
        native, crop = crop, (shape.height, shape.width)
        if preprocess.adaptable:
            # 256 for 224, in proportion for other sizes; a preset without a size of its own covers the model's.
            resize = _scaled(resize, crop, native) if resize and native else (None if native else crop)
    if crop is not None and any(size not in (None, c) for size, c in zip(wanted, crop, strict=True)):
        raise DataError(f"{preprocess.name}: crop {crop[0]}x{crop[1]} is not the model's {wanted[0]}x{wanted[1]}")
    mean, std = preprocess.mean, preprocess.std
    if shape.channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    elif len(mean) == 1 or len(std) == 1:
        mean, std = mean * (3 // len(mean)), std * (3 // len(std))
    return replace(preprocess, crop=crop, resize=resize, mean=mean, std=std, layout=shape.layout)


def _scaled(resize: Size, crop: Size, native: Size) -> Size:
    return round(resize[0] * crop[0] / native[0]), round(resize[1] * crop[1] / native[1])


def _from_table(table: Mapping[str, Any], path: Path) -> Preprocess:
    known = ("resize", "crop", "channel_order", "mean", "std", "scale", "layout", "interpolation")
    for key in table:
        if key not in known:
            raise RecipeError(f"{path}: unknown key '{key}'; the keys are {', '.join(known)}")

    def wrong(key: str, expected: str) -> RecipeError:
        return RecipeError(f"{path}: {key} = {repr(table[key])[:60]} is not {expected}")

    def choice(key: str, default: str | None, choices: tuple[str, ...], fold: Any) -> Any:
        value = table.get(key, default)
        if key in table and (not isinstance(value, str) or fold(value) not in choices):
            raise wrong(key, " or ".join(choices))
        return None if value is None else fold(value)

    def numbers(key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = table.get(key, list(default))
        values = value if isinstance(value, list) else [value]
        if len(values) not in (1, 3) or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
            raise wrong(key, "a number, or a list of 1 or 3 numbers")
        if not all(abs(v) <= _LARGEST for v in values):
            raise wrong(key, "finite, as single-precision numbers are")
        return tuple(float(v) for v in values)

    def size(key: str) -> Size | None:
        value = table.get(key)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value, value]
        if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            raise wrong(key, "a positive whole number of pixels or [height, width]")
        if values[0] * values[1] > MOST_PIXELS:
            raise wrong(key, f"a size of at most {MOST_PIXELS} pixels")
        return values[0], values[1]

    std = numbers("std", (1.0,))
    if min(abs(s) for s in std) < _SMALLEST:
        raise wrong("std", "free of zeros")
    scale = numbers("scale", (1.0,))
    if len(scale) != 1:
        raise wrong("scale", "one number")
    return Preprocess(
        name=str(path),
        resize=size("resize"),
        stretch=isinstance(table.get("resize"), list),
        crop=size("crop"),
        channel_order=choice("channel_order", "RGB", ("RGB", "BGR"), str.upper),
        mean=numbers("mean", (0.0,)),
        std=std,
        scale=scale[0],
        layout=choice("layout", None, ("NCHW", "NHWC"), str.upper),
        interpolation=choice("interpolation", "bilinear", ("nearest", "bilinear", "bicubic", "lanczos"), str.lower),
    )
