"""Preprocessing: presets and TOML files, to the last pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxcompress.errors import DataError, RecipeError
from onnxcompress.runtime.data import open_dataset
from onnxcompress.runtime.images import ImageTransform, stack
from onnxcompress.runtime.preprocess import PRESETS, fit_to_model, image_shape, load_preprocess
from onnxcompress.runtime.tensors import TensorInfo
from tests.runtime.networks import image_input, save_image


def transform(value: str | Path, info: TensorInfo) -> ImageTransform:
    preprocess = load_preprocess(value)
    return ImageTransform(fit_to_model(preprocess, image_shape(info, preprocess)), info.dtype)


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(text)
    return path


def test_caffe_is_a_centre_crop_in_bgr_without_the_mean(tmp_path: Path) -> None:
    pixels = save_image(tmp_path / "a.png", size=(256, 301))
    array = transform("caffe", image_input(size=224)).from_file(tmp_path / "a.png")
    crop = pixels[16:240, 38:262].astype(np.float32)  # the odd pixel stays on the right
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, (crop[:, :, ::-1] - np.float32([104, 117, 123])).transpose(2, 0, 1))


def test_caffe_enlarges_what_does_not_cover_the_crop(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", size=(100, 300))
    assert transform("caffe", image_input(size=224)).from_file(tmp_path / "a.png").shape == (3, 224, 224)


def test_imagenet_resizes_the_shorter_side_bilinearly(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", size=(300, 401))
    array = transform("imagenet", image_input(size=224)).from_file(tmp_path / "a.png")
    resized = Image.open(tmp_path / "a.png").resize((342, 256), Image.Resampling.BILINEAR).crop((59, 16, 283, 240))
    expected = (np.asarray(resized) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(array, expected.transpose(2, 0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("preset", "low", "high"), [("tf", -1.0, 1.0), ("unit", 0.0, 1.0)])
def test_ranges(preset: str, low: float, high: float) -> None:
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]] * 2, np.uint8)
    array = transform(preset, image_input(size=2)).from_pixels(pixels, "p")
    assert (float(array.min()), float(array.max())) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_an_image_of_the_models_size_is_taken_whole(preset: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    own = PRESETS[preset]
    array = transform(preset, image_input(size=32)).from_pixels(pixels, "p").transpose(1, 2, 0)
    ordered = pixels[:, :, ::-1] if own.channel_order == "BGR" else pixels
    expected = (ordered * own.scale - np.array(own.mean)) / np.array(own.std)
    np.testing.assert_allclose(array, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "crop", "resize"),
    [(224, 224, (224, 224), (256, 256)), (299, 299, (299, 299), (342, 342)), (112, 224, (112, 224), (128, 256))],
)
def test_presets_follow_the_models_size(height: int, width: int, crop: object, resize: object) -> None:
    info = TensorInfo("x", np.dtype(np.float32), (None, 3, height, width))
    fitted = fit_to_model(PRESETS["imagenet"], image_shape(info, PRESETS["imagenet"]))
    assert (fitted.crop, fitted.resize) == (crop, resize)


def test_unit_covers_the_models_size_and_an_open_model_takes_images_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 100, 3), dtype=np.uint8)
    assert transform("unit", image_input(size=32)).from_pixels(pixels, "p").shape == (3, 32, 32)
    as_is = transform("unit", image_input(size=None)).from_pixels(pixels, "p")
    np.testing.assert_allclose(as_is, pixels.transpose(2, 0, 1) / 255, rtol=0, atol=1e-6)
    assert transform("imagenet", image_input(size=None)).from_pixels(pixels, "p").shape == (3, 224, 224)


def test_a_model_of_one_channel_gets_the_luma_and_the_average_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    luma = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)
    array = transform("caffe", image_input(channels=1)).from_pixels(pixels, "p")
    np.testing.assert_allclose(array, luma[None] - (104 + 117 + 123) / 3, rtol=0, atol=1e-4)


def test_grey_images_for_a_model_of_three_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for shaped in (pixels, pixels[:, :, None]):
        array = transform("unit", image_input()).from_pixels(shaped, "p")
        np.testing.assert_allclose(array, np.stack([pixels / 255] * 3), rtol=0, atol=1e-6)


def test_the_layout_is_seen_from_the_model_and_half_precision_is_kept() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    info = TensorInfo("x", np.dtype(np.float16), (None, 8, 8, 3))
    array = transform("unit", info).from_pixels(pixels, "p")
    assert array.dtype == np.float16
    np.testing.assert_allclose(array, pixels / 255, rtol=0, atol=1e-3)


def test_integer_inputs_are_rounded_and_clipped(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    array = transform(toml(tmp_path, ""), image_input(dtype=np.uint8)).from_pixels(pixels, "p")
    np.testing.assert_array_equal(array, pixels.transpose(2, 0, 1))
    shifted = transform(toml(tmp_path, "mean = 200"), image_input(dtype=np.uint8)).from_pixels(pixels, "p")
    np.testing.assert_array_equal(shifted, np.maximum(pixels.astype(int) - 200, 0).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("preset", "dtype", "left"),
    [("imagenet", np.uint8, 3), ("unit", np.uint8, 2), ("tf", np.int64, 3), ("unit", np.int32, 2)],
)
def test_whole_numbers_are_too_coarse_for_a_small_range(preset: str, dtype: Any, left: int, tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, [image_input(dtype=dtype)], preprocess=preset)
    assert f"--preprocess {preset} leaves {left} of the 256 values of a pixel: give raw" in str(caught.value)


def test_raw_pixels_suit_whole_numbers(tmp_path: Path) -> None:
    pixels = save_image(tmp_path / "a.png", size=(8, 8))
    for info in (image_input(dtype=np.uint8), image_input()):
        (batch,) = open_dataset(tmp_path, [info], preprocess="raw").batches(1)
        np.testing.assert_array_equal(batch.inputs["x"][0], pixels.transpose(2, 0, 1))


def test_sixteen_bits_are_read_as_eight(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(values).save(tmp_path / name)
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())  # not all Pillows write it
    for name in ("a.png", "a.tiff", "a.pgm"):
        array = transform("unit", image_input(channels=1)).from_file(tmp_path / name)
        np.testing.assert_allclose(array[0], values / 65535, rtol=0, atol=1 / 255)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float32, "floating-point numbers"), (np.int32, "32-bit whole numbers")]
)
def test_values_of_an_unknown_range_are_refused(dtype: Any, kind: str, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=f"a.tiff: holds {kind}, whose range nothing tells"):
        transform("unit", image_input()).from_file(tmp_path / "a.tiff")


def test_every_key_of_a_file(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        'resize = [10, 12]\ncrop = 8\nchannel_order = "bgr"\nmean = [0.1, 0.2, 0.3]\nstd = 0.5\nscale = 0.01\n'
        'layout = "NHWC"\ninterpolation = "nearest"\n',
    )
    pixels = np.random.default_rng(0).integers(0, 256, (20, 36, 3), dtype=np.uint8)
    info = TensorInfo("x", np.dtype(np.float32), (None, 8, 8, 3))
    resized = np.asarray(Image.fromarray(pixels).resize((12, 10), Image.Resampling.NEAREST))[1:9, 2:10, ::-1]
    expected = (resized * 0.01 - np.array([0.1, 0.2, 0.3])) / 0.5
    np.testing.assert_allclose(transform(path, info).from_pixels(pixels, "p"), expected, rtol=0, atol=1e-5)


def test_a_single_number_resizes_the_shorter_side(tmp_path: Path) -> None:
    pixels = np.zeros((20, 36, 3), np.uint8)
    assert transform(toml(tmp_path, "resize = 10"), image_input(size=None)).from_pixels(pixels, "p").shape == (
        3,
        10,
        18,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resize = ", "not a readable TOML file"),
        ("size = 8", "unknown key 'size'; the keys are resize, crop"),
        ("resize = 0", "resize = 0 is not a positive whole number"),
        ("crop = [8, 8, 8]", "crop = "),
        ('channel_order = "GBR"', "channel_order = 'GBR' is not RGB or BGR"),
        ("mean = [1, 2]", "mean = "),
        ("std = [1, 0, 1]", "std = .* is not free of zeros"),
        ("scale = [1, 1, 1]", "scale = .* is not one number"),
        ("scale = true", "scale = True is not a number"),
        ("layout = 3", "layout = 3 is not NCHW or NHWC"),
        ('interpolation = "cubic"', "interpolation"),
    ],
)
def test_a_file_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"p\.toml: .*{message}"):
        load_preprocess(toml(tmp_path, text))


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"'cafe' is neither a preset \(.*, unit, raw\) nor a TOML file"):
        load_preprocess("cafe")


def test_a_crop_that_is_not_the_models_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="crop 9x9 is not the model's 8x8"):
        transform(toml(tmp_path, "crop = 9"), image_input())


def test_an_image_that_does_not_cover_the_crop(tmp_path: Path) -> None:
    path = toml(tmp_path, "resize = [4, 20]\ncrop = 8")
    with pytest.raises(DataError, match="p: 20x4 pixels after resizing, the crop needs 8x8"):
        transform(path, image_input()).from_pixels(np.zeros((9, 9, 3), np.uint8), "p")


@pytest.mark.parametrize("shape", [(None, 10), (None, 4, 8, 8), (None, 6, 8, 6)])
def test_inputs_that_take_no_images(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(DataError, match="'x'"):
        image_shape(TensorInfo("x", np.dtype(np.float32), shape), PRESETS["unit"])


def test_images_of_different_sizes_do_not_stack() -> None:
    with pytest.raises(DataError, match=r"b: becomes \[3,5,5\] but a \[3,4,4\]: the model fixes no image size"):
        stack([np.zeros((3, 4, 4)), np.zeros((3, 5, 5))], ["a", "b"])


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_image_that_does_not_decode(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    if content is None:
        save_image(path, size=(64, 64))
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png: not an image that decodes"):
        transform("unit", image_input()).from_file(path)
