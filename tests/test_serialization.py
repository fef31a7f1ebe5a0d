"""Files: what is refused and how it is said, external data in and out, and writing whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import ModelError, RecipeError
from onnxcompress.graph import Model
from onnxcompress.serialization import (
    atomic_file,
    check_output_path,
    load_array,
    read_proto,
    write_proto,
)
from onnxcompress.tensor_bytes import array_to_tensor, model_size, serialized
from tests.small_models import session
from tests.tiny_models import conv_net
from tests.versions import has_bfloat16

SIDE_FILE = re.compile(r"m\.onnx\.[0-9a-f]{12}\.data")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def save_external(folder: Path, location: str = "weights.data") -> Path:
    path = folder / "in.onnx"
    onnx.save(conv_net(), path, save_as_external_data=True, size_threshold=0, location=location)
    return path


def change_entries(path: Path, **entries: str) -> None:
    """Set external-data entries of the first tensor."""
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


# Reading.


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_proto(tmp_path / "no.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        read_proto(tmp_path)
    for content, expected in [(b"", "is empty"), (b"hello, world", "is not an ONNX model"), (b"\x08\x08", "no graph")]:
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=expected):
            read_proto(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.int8, np.int64, np.bool_, np.complex64],
)
def test_arrays_come_back_as_they_were(dtype: Any) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    back = load_array(array_to_tensor("a", array), None)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_scalars_empty_arrays_strings_and_typed_fields() -> None:
    for array in (np.float32(3.0), np.zeros((0, 3), np.float32), np.array(["a", "b"], dtype=object)):
        back = load_array(array_to_tensor("a", np.asarray(array)), None)
        assert back.shape == np.asarray(array).shape
    assert load_array(helper.make_tensor("a", TensorProto.FLOAT16, [2], [1.0, 2.0]), None).tolist() == [1.0, 2.0]
    assert load_array(helper.make_tensor("a", TensorProto.INT4, [3], [1, -2, 3]), None).tolist() == [1, -2, 3]


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ([3], "declares shape [3] (12 bytes) but holds 16 bytes"),
        ([2, -2], "has a negative dimension"),
        ([2**62, 2**62], "but holds 16 bytes"),  # nothing of that size is asked for
        ([2**40], "but holds 16 bytes"),
    ],
)
def test_dimensions_that_disagree_with_the_data(dims: list[int], expected: str) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    with pytest.raises(ModelError, match=re.escape(expected)):
        load_array(tensor, None)
    tensor.ClearField("raw_data")
    with pytest.raises(ModelError, match=r"holds 0 bytes|negative"):
        load_array(tensor, None)


def test_an_unknown_element_type() -> None:
    with pytest.raises(ModelError, match="unknown element type 99"):
        load_array(TensorProto(name="w", dims=[1], data_type=99, raw_data=b"\0"), None)


# External data in.


def test_external_data_are_read_and_mapped(tmp_path: Path) -> None:
    path = save_external(tmp_path)
    model = Model.load(path)
    assert isinstance(model.constants()["w1"].values.base, np.memmap) or isinstance(
        model.constants()["w1"].values, np.memmap
    )
    assert Model.from_proto(conv_net()).to_bytes() == model.to_bytes()


def test_external_data_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    assert Model.load(save_external(tmp_path, "parts/weights.data")).weight_bytes > 0


def test_a_cache_links_a_model_and_its_external_data_to_files_of_other_names_elsewhere(tmp_path: Path) -> None:
    stored, shown = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    stored.mkdir()
    shown.mkdir(parents=True)
    model = save_external(stored)
    expected = Model.load(model).to_bytes()
    (shown / "weights.data").symlink_to((stored / "weights.data").rename(stored / "5f2b"))
    (shown / model.name).symlink_to(model.rename(stored / "9c1e"))
    assert Model.load(shown / model.name).to_bytes() == expected


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"location": "../weights.data"}, "must be a relative path inside the model's folder"),
        ({"location": "/etc/hostname"}, "must be a relative path inside the model's folder"),
        ({"location": ""}, "must be a relative path inside the model's folder"),
        ({"location": "link.data"}, "leads outside the model's folder"),
        ({"location": "linked/weights.data"}, "leads outside the model's folder"),
        ({"location": "no.data"}, "is missing"),
        ({"location": "."}, "outside|missing"),
        ({"offset": "-4"}, "needs .* bytes at offset -4"),
        ({"offset": str(2**62)}, "is truncated or belongs to another model"),
        ({"length": "4"}, "declared 4"),
        ({"length": str(2**62)}, "declared 4611686018427387904"),
        ({"offset": "four"}, "not a number"),
    ],
)
def test_external_data_that_cannot_be_used(tmp_path: Path, entries: dict[str, str], expected: str) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    path = save_external(folder)
    (outside / "weights.data").write_bytes((folder / "weights.data").read_bytes())
    (folder / "link.data").symlink_to(outside / "weights.data")
    (folder / "linked").symlink_to(outside)
    change_entries(path, **entries)
    with pytest.raises(ModelError, match=expected):
        Model.load(path)


def test_truncated_external_data(tmp_path: Path) -> None:
    path = save_external(tmp_path)
    content = (tmp_path / "weights.data").read_bytes()
    (tmp_path / "weights.data").write_bytes(content[:-1])
    with pytest.raises(ModelError, match="truncated or belongs to another model"):
        Model.load(path)


def test_external_data_need_a_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="given in memory; give the model's path"):
        Model.from_bytes(save_external(tmp_path).read_bytes())


# External data out.


def test_weights_go_to_a_side_file_named_by_their_hash(tmp_path: Path) -> None:
    model = Model.from_proto(conv_net())
    model.save(tmp_path / "m.onnx", external=True)
    (side,) = files(tmp_path) - {"m.onnx"}
    assert SIDE_FILE.fullmatch(side)
    assert (tmp_path / "m.onnx").stat().st_size < 3000
    assert Model.load(tmp_path / "m.onnx").to_bytes() == model.to_bytes()
    proto = onnx.load(tmp_path / "m.onnx")  # as onnx reads it
    np.testing.assert_array_equal(
        numpy_helper.to_array(proto.graph.initializer[0]),
        numpy_helper.to_array(conv_net().graph.initializer[0]),
    )
    offsets = [
        int(entry.value)
        for tensor in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert all(offset % 4096 == 0 for offset in offsets)


def test_the_same_weights_give_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Model.from_proto(conv_net()).save(tmp_path / name / "m.onnx", external=True)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_replacing_a_model_removes_its_own_side_file_only(tmp_path: Path) -> None:
    others = {"other.onnx.0123456789ab.data", "m.onnx.data", "m.onnx.weights.data", "m.onnx.0123456789AB.data"}
    for name in others:
        (tmp_path / name).write_bytes(b"keep")
    Model.from_proto(conv_net(seed=1)).save(tmp_path / "m.onnx", external=True)
    first = files(tmp_path)
    Model.from_proto(conv_net(seed=2)).save(tmp_path / "m.onnx", external=True, overwrite=True)
    second = files(tmp_path)
    assert len(first) == len(second) == len(others) + 2
    assert first != second
    assert others < second
    assert Model.load(tmp_path / "m.onnx").to_bytes() == Model.from_proto(conv_net(seed=2)).to_bytes()


# Whole or not at all.


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_file(path) as stream:
            stream.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == {"out.onnx"}


def test_a_failed_model_removes_its_new_side_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Model.from_proto(conv_net(seed=1)).save(tmp_path / "m.onnx", external=True)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    replace, calls = os.replace, []

    def fail_second(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(os, "replace", fail_second)
    with pytest.raises(RecipeError, match="No space left on device"):
        Model.from_proto(conv_net(seed=2)).save(tmp_path / "m.onnx", external=True, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_new_file_has_the_usual_mode_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    umask = os.umask(0o022)
    try:
        with atomic_file(path) as stream:
            stream.write(b"one")
        assert path.stat().st_mode & 0o777 == 0o644
        path.chmod(0o600)
        with atomic_file(path) as stream:
            stream.write(b"two")
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == b"two"


def test_output_paths_are_checked(tmp_path: Path) -> None:
    (tmp_path / "old.onnx").write_bytes(b"")
    check_output_path(tmp_path / "new.onnx", overwrite=False)
    check_output_path(tmp_path / "old.onnx", overwrite=True)
    for path, expected in [
        (tmp_path, "is a directory"),
        (tmp_path / "old.onnx", "--overwrite"),
        (tmp_path / "no" / "new.onnx", "does not exist"),
        (tmp_path / "old.onnx" / "new.onnx", "does not exist"),
    ]:
        with pytest.raises(RecipeError, match=expected):
            check_output_path(path, overwrite=False)


# Streaming: the bytes of protobuf without its copies.


def streamed() -> tuple[onnx.ModelProto, dict[str, Any]]:
    proto = conv_net()
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    del proto.graph.initializer[:]
    generator = np.random.default_rng(3)
    weights |= {
        "large": generator.standard_normal((300, 300)).astype(np.float32),
        "half": generator.standard_normal((70, 70)).astype(np.float16),
        "turned": generator.standard_normal((90, 300)).T,
        "flags": np.ones((5000,), np.bool_),
        "scalar": np.float32(3.0),
        "nothing": np.zeros((0, 3), np.float32),
        "words": np.array(["a", "b"], dtype=object),
        "nibbles": numpy_helper.to_array(helper.make_tensor("n", TensorProto.INT4, [9998], [1] * 9998)),
    }
    if has_bfloat16():
        weights["brain"] = generator.standard_normal((70, 70)).astype(ml_dtypes.bfloat16)
    return proto, weights


def test_pieces_are_the_bytes_that_protobuf_makes() -> None:
    proto, weights = streamed()
    helper.set_model_props(proto, {"author": "somebody"})
    proto.graph.doc_string = "behind the initializers"
    proto.functions.add(name="twice", domain="local")
    pieces = list(serialized(proto, weights))
    assert any(isinstance(piece, memoryview) and piece.nbytes == 360_000 for piece in pieces)
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    whole.graph.initializer.extend(array_to_tensor(name, array) for name, array in weights.items())
    assert b"".join(pieces) == whole.SerializeToString(deterministic=True)
    assert len(proto.graph.initializer) == 0


def test_what_is_said_of_weights_is_written_with_them(tmp_path: Path) -> None:
    """Behind values that are streamed, in tensors that are small or packed, and beside those in another file."""
    proto, weights = streamed()
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    whole.graph.initializer.extend(array_to_tensor(name, array) for name, array in weights.items())
    for number, tensor in enumerate(whole.graph.initializer):
        note = onnx.TensorProto(name=tensor.name)
        if number % 2:
            note.doc_string = f"on {tensor.name}"
        note.metadata_props.add(key="of", value=tensor.name)
        proto.graph.initializer.append(note)
        tensor.MergeFrom(note)
    expected = whole.SerializeToString(deterministic=True)
    assert b"".join(serialized(proto, weights)) == expected
    copied = onnx.ModelProto.FromString(proto.SerializeToString())
    assert model_size(copied, weights) == len(expected)
    write_proto(proto, weights, tmp_path / "m.onnx", external=True)
    written = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    given = {t.name: (t.doc_string, list(t.metadata_props)) for t in whole.graph.initializer}
    assert {t.name: (t.doc_string, list(t.metadata_props)) for t in written} == given


def test_fields_that_this_onnx_does_not_know_are_streamed_once() -> None:
    proto, weights = streamed()
    unknown = bytes([0xBA, 0x3E, 3]) + b"new"  # field 999, of bytes
    graph = proto.graph.SerializeToString() + unknown
    content = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import).SerializeToString()
    content += b"\x3a" + bytes([len(graph) & 127 | 128, len(graph) >> 7]) + graph + unknown
    newer = onnx.ModelProto.FromString(content)
    result = b"".join(serialized(newer, weights))
    assert result.count(unknown) == 2
    assert len(onnx.ModelProto.FromString(result).graph.initializer) == len(weights)


def test_packed_weights_stay_in_the_file(tmp_path: Path) -> None:
    """As they lie in memory, strings and four-bit numbers are not what a tensor holds."""
    proto, weights = streamed()
    write_proto(proto, weights, tmp_path / "m.onnx", external=True)
    tensors = {t.name: t for t in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer}
    assert list(tensors) == list(weights)
    within = {name for name, tensor in tensors.items() if tensor.data_location != TensorProto.EXTERNAL}
    assert within == {"words", "nibbles"}
    for name, array in weights.items():
        np.testing.assert_array_equal(load_array(tensors[name], tmp_path / "m.onnx"), array)


def test_external_data_inside_sub_graphs_are_read_with_them(tmp_path: Path) -> None:
    """As exporters write whose decoders are the branches of an If: initializers and Constants there."""
    weight = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    branches = []
    for op in ("Add", "Mul"):
        made = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(weight[0].copy(), f"{op}.k"))
        nodes = [made, helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node(op, ["a", "k"], [f"{op}.y"])]
        info = helper.make_tensor_value_info(f"{op}.y", TensorProto.FLOAT, None)
        branches.append(helper.make_graph(nodes, op, [], [info], [numpy_helper.from_array(weight, "w")]))
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["which"]),
        helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    given, wanted = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 40]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [given], [wanted], [numpy_helper.from_array(np.float32(0), "zero")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    expected = [session(proto.SerializeToString()).run(None, {"x": sign * abs(weight)})[0] for sign in (1, -1)]
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0, convert_attribute=True)
    (tmp_path / "other").mkdir()
    Model.load(path).save(tmp_path / "other" / "m.onnx")
    seen = [session((tmp_path / "other" / "m.onnx").read_bytes()).run(None, {"x": s * abs(weight)})[0] for s in (1, -1)]
    for one, other in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"external data 'm\.data' is missing"):
        Model.load(path)
