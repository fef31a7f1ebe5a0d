"""The committed digits network and its data: what README.md of models/ says of them, and the scripts that made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import digits
import train

MODELS = Path(digits.__file__).parent
NETWORK = MODELS / "googlenet-digits.onnx"


def split(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(MODELS / f"digits-{name}.npz", allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def test_committed_network_recognises_the_digits() -> None:
    session = onnxruntime.InferenceSession(str(NETWORK), providers=["CPUExecutionProvider"])
    images, labels = split("test")
    (logits,) = session.run(["logits"], {"input": (images.astype(np.float32) / 255).transpose(0, 3, 1, 2)})
    assert len(labels) == 500
    assert np.mean(logits.argmax(1) == labels) >= 0.99


def test_committed_network_is_what_the_readme_says() -> None:
    model = onnx.load(NETWORK)
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    parameters = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert (operators.count("Conv"), operators.count("Concat"), parameters) == (57, 9, 366_170)
    assert 1_000_000 <= NETWORK.stat().st_size <= 2_000_000
    readme = (MODELS / "README.md").read_text("utf-8")
    assert "366,170 parameters" in readme
    assert model.opset_import[0].version == 17


def test_committed_digits_are_what_the_script_writes(tmp_path: Path) -> None:
    digits.main(["--out", str(tmp_path)])
    for name, count in {"train": 1297, "test": 500}.items():
        images, labels = split(name)
        with np.load(tmp_path / f"digits-{name}.npz", allow_pickle=False) as written:
            np.testing.assert_array_equal(written["images"], images)
            np.testing.assert_array_equal(written["labels"], labels)
        assert images.shape == (count, 32, 32, 1)
        assert (images.dtype, labels.dtype) == (np.uint8, np.uint8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-test.npz", "digits-train.npz"]


def test_splits_share_no_image() -> None:
    train_images, test_images = ({image.tobytes() for image in split(name)[0]} for name in ("train", "test"))
    assert not train_images & test_images


def test_training_lowers_the_loss_and_writes_checkpoint_and_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = split("train")
    small = tmp_path / "small.npz"
    np.savez_compressed(small, images=images[:96, ::2, ::2], labels=labels[:96])
    out, weights = tmp_path / "small.onnx", tmp_path / "small.pth"
    options = ["--stem", "tiny", "--width", "0.125", "--epochs", "6", "--batch", "16", "--padding", "1"]
    with caplog.at_level("INFO"):
        train.main(
            ["--train", str(small), "--test", str(small), "--out", str(out), "--weights", str(weights), *options]
        )
    losses = [record.args[2] for record in caplog.records if record.msg.startswith("epoch")]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.1
    assert torch.load(weights, weights_only=True)["config"]["num_classes"] == 10
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert session.run(None, {"input": np.zeros((3, 1, 16, 16), np.float32)})[0].shape == (3, 10)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 1), np.uint8)}, "has no labels"),
        ({"images": np.zeros((4, 8, 8, 1), np.float32), "labels": np.zeros(4, np.int64)}, "'images' is float32"),
        ({"images": np.zeros((4, 8, 8, 1), np.uint8), "labels": np.zeros(3, np.int64)}, "need the same length"),
        ({"images": np.array([None]), "labels": np.zeros(1, np.int64)}, "array 'images' holds pickled objects"),
    ],
)
def test_training_data_that_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(SystemExit, match=rf"bad\.npz: .*{message}"):
        train.main(["--train", str(tmp_path / "bad.npz"), "--out", str(tmp_path / "x.onnx")])


def test_moved_images_keep_their_pixels() -> None:
    images = torch.zeros(5, 9, 9, 1, dtype=torch.uint8)
    images[:, 4, 4] = 200
    moved = train.varied(images, 9, 3, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.flatten(1).sum(1).tolist() == [200] * 5
    assert not torch.equal(moved, images)


def test_squares_are_cut_out_of_every_image_also_at_its_edges() -> None:
    images = torch.full((200, 9, 9, 3), 7, dtype=torch.uint8)
    gone = train.cut_out(images, 4, torch.Generator().manual_seed(0)) == 0
    assert torch.equal(gone.any(3), gone.all(3))
    sizes = [(int(each.any(1).sum()), int(each.any(0).sum())) for each in gone.any(3)]
    assert all(int(each.sum()) == high * wide for each, (high, wide) in zip(gone.any(3), sizes, strict=True))
    assert {high for high, _ in sizes} == {wide for _, wide in sizes} == {2, 3, 4}
    assert bool(gone.any(0).all())
    assert int(images.sum()) == images.numel() * 7


def test_smaller_views_are_windows_and_half_of_them_mirrored() -> None:
    image = torch.arange(8 * 8 * 3, dtype=torch.uint8).reshape(1, 8, 8, 3)
    views = train.varied(image.expand(200, -1, -1, -1), 6, 0, torch.Generator().manual_seed(0), mirror=True)
    plain = [image[0, top : top + 6, left : left + 6] for top in range(3) for left in range(3)]
    is_plain = [any(torch.equal(view, window) for window in plain) for view in views]
    is_mirrored = [any(torch.equal(view, window.flip(1)) for window in plain) for view in views]
    assert all(first != second for first, second in zip(is_plain, is_mirrored, strict=True))
    assert 60 < sum(is_mirrored) < 140


def test_training_goes_on_from_its_checkpoint_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = split("train")
    folder = tmp_path / "images"
    for number, (image, label) in enumerate(zip(images[:40, ::2, ::2, 0], labels[:40], strict=True)):
        place = folder / f"{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    command = ["--train", str(folder), "--test", str(folder), "--stem", "tiny", "--width", "0.125", "--epochs", "3"]
    command += ["--batch", "16", "--padding", "1", "--optimizer", "sgd", "--rate", "0.1"]
    train.main([*command, "--weights", str(tmp_path / "whole.pth")])
    checkpoint = ["--checkpoint", str(tmp_path / "progress"), "--weights", str(tmp_path / "resumed.pth")]
    save = train.Progress.save

    def killed(self: train.Progress) -> None:
        save(self)
        if self.done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train.Progress, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main([*command, *checkpoint])
    train.main([*command, *checkpoint, "--resume"])
    whole, resumed = (
        torch.load(tmp_path / name, weights_only=True)["state_dict"] for name in ("whole.pth", "resumed.pth")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_starts_from_given_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = split("train")
    small = tmp_path / "small.npz"
    np.savez_compressed(small, images=images[:96, ::2, ::2], labels=labels[:96])
    command = ["--train", str(small), "--test", str(small), "--stem", "tiny", "--batch", "16", "--padding", "1"]
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    with caplog.at_level("INFO"):
        train.main([*command, "--width", "0.125", "--epochs", "6", "--weights", str(first)])
        train.main([*command, "--width", "0.125", "--epochs", "1", "--weights", str(second), "--start", str(first)])
    losses = [record.args[2] for record in caplog.records if record.msg.startswith("epoch")]
    assert losses[-1] < losses[0] - 0.1
    with pytest.raises(SystemExit, match=r"first\.pth: belongs to the network .*'width': 0\.125.*, not to "):
        train.main([*command, "--width", "0.25", "--epochs", "1", "--weights", str(second), "--start", str(first)])
    for name in ("small.npz", "nowhere.pth"):
        with pytest.raises(SystemExit, match=rf"{name}: is no checkpoint of --weights"):
            train.main([*command, "--weights", str(second), "--start", str(tmp_path / name)])
