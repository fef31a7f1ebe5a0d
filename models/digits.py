"""Writes scikit-learn's handwritten digits as `.npz`: `python models/digits.py --out models`.

1,797 images of 8x8 pixels, 0 to 16, become uint8 `images` (N, 32, 32, 1), each pixel a 4x4 square scaled to 0 to 255,
and `labels` (N,) uint8; read them with the preset `unit`. 500 of them, drawn with the class shares kept, are the test
split.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

TEST_IMAGES = 500
SPLIT_SEED = 0

Split = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def load_digits() -> tuple[Split, Split]:
    """Return (images, labels) of the training split (1,297 images) and of the test split (500 images)."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    pixels, labels = load(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.kron(images, np.ones((1, 4, 4), np.uint8))[..., np.newaxis]
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, random_state=SPLIT_SEED, stratify=labels
    )
    labels = labels.astype(np.uint8)
    return (images[train], labels[train]), (images[test], labels[test])


def write_npz(path: Path, split: Split) -> None:
    """Write one split; the file appears whole or not at all, and the same data give the same bytes."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        np.savez_compressed(stream, images=split[0], labels=split[1])
    os.replace(temporary, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as digits-train.npz and digits-test.npz.")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder (default: models)")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, split in zip(("train", "test"), load_digits(), strict=True):
        path = arguments.out / f"digits-{name}.npz"
        write_npz(path, split)
        logging.info("%s: %d images, %d bytes", path, len(split[1]), path.stat().st_size)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
