"""Damages: what the output loses where a layer's weights are disturbed; and the files of batches between parts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcompress.graph import Model
from onnxcompress.passes.base import PassContext
from onnxcompress.passes.recovery import refit_waves
from onnxcompress.passes.recovery.refit_layers import find_refit_layers
from onnxcompress.passes.recovery.refit_waves import BatchFiles
from onnxcompress.passes.recovery.sensitivity import Disturbance, measure_damages, measure_sensitivities
from onnxcompress.runtime.array_file import ArrayFile
from tests.small_models import run_all
from tests.tiny_models import conv_net, detector_net, samples


def _disturbed(proto: onnx.ModelProto, name: str, slope: np.ndarray, shift: np.ndarray) -> onnx.ModelProto:
    """Return the network with other weights (K I, O) of a layer, and its bias shifted."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    node = next(node for node in changed.graph.node if node.name == name)
    for tensor in changed.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name == node.input[1]:
            size = (-1, values.shape[1], values.shape[0])
            new = slope.T if values.ndim == 2 else slope.reshape(size).transpose(2, 1, 0).reshape(values.shape)
        elif tensor.name == node.input[2]:
            new = values + shift
        else:
            continue
        tensor.CopyFrom(onnx.numpy_helper.from_array(new.astype(np.float32), tensor.name))
    return changed


def _probabilities(proto: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = session.run(None, {"x": images})[0].astype(np.float64)
    probable = np.exp(scores - scores.max(axis=1, keepdims=True))
    return probable / probable.sum(axis=1, keepdims=True)


def _damage(original: onnx.ModelProto, changed: onnx.ModelProto, images: np.ndarray) -> float:
    p, q = _probabilities(original, images), _probabilities(changed, images)
    return float(np.sqrt((p * np.log(p / q)).sum(axis=1)).mean() ** 2)


def test_a_damage_is_the_mean_root_of_what_the_disturbed_network_loses() -> None:
    proto, images = conv_net(), samples(30)
    model = Model.from_proto(proto)
    layers = find_refit_layers(model, model, PassContext())[0]
    generator = np.random.default_rng(2)
    disturbances = {}
    for layer in layers:
        slope = layer.original[0].reshape(-1, layer.original.shape[-1])
        noise = 0.3 * slope.std() * generator.standard_normal(slope.shape)
        disturbances[layer.node] = Disturbance(slope + noise, 0.1 * generator.standard_normal(slope.shape[1]), 0.04)
    batches = [{"x": images[:16]}, {"x": images[16:]}]
    found = measure_sensitivities(model, layers, disturbances, batches)
    for name, each in disturbances.items():
        expected = _damage(proto, _disturbed(proto, name, each.slope, each.shift), images)
        assert found[name] * each.error == pytest.approx(expected, rel=1e-3)
    both = {name: disturbances[name] for name in ("first", "classifier")}
    changed = proto
    for name, each in both.items():
        changed = _disturbed(changed, name, each.slope, each.shift)
    damage = measure_damages(model, layers, {"both": both}, batches)["both"]
    assert damage == pytest.approx(_damage(proto, changed, images), rel=1e-3)


def test_an_output_before_the_layer_is_there_and_loses_nothing() -> None:
    proto, images = conv_net(), samples(12)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("r1", onnx.TensorProto.FLOAT, ["batch", 16, 8, 8]))
    model = Model.from_proto(proto)
    layers = find_refit_layers(model, model, PassContext())[0]
    by_name = {layer.node: layer for layer in layers}
    zero = {}
    for name in ("first", "second"):
        slope = np.zeros((by_name[name].original[0].shape[0] * by_name[name].original.shape[2], 16))
        zero[name] = {name: Disturbance(slope, np.zeros(16), 1.0)}
    found = measure_damages(model, layers, zero, [{"x": images}])
    only_last = measure_damages(Model.from_proto(conv_net()), layers, zero, [{"x": images}])
    assert found["second"] == pytest.approx(only_last["second"])
    changed = _disturbed(proto, "first", zero["first"]["first"].slope, np.zeros(16))
    before, after = (run_all(Model.from_proto(each), {"x": images})["r1"] for each in (proto, changed))
    of_map = float(np.square(after - before).sum() / np.square(before - before.mean(axis=0)).sum())
    assert found["first"] == pytest.approx(only_last["first"] + of_map, rel=1e-5)
    assert min(found.values()) > 0.0


@pytest.mark.parametrize("joined", [True, False])
def test_numbers_of_every_size_count(joined: bool) -> None:
    """Boxes in pixels beside scores, in one output or in two: a damage is relative to how much its numbers vary."""
    proto, images = detector_net(joined=joined), samples(24)
    model = Model.from_proto(proto)
    layers = find_refit_layers(model, model, PassContext())[0]
    changes = {}
    for layer in layers:
        slope = layer.original[0].reshape(-1, layer.original.shape[-1])
        changes[layer.node] = {layer.node: Disturbance(0.8 * slope, np.zeros(slope.shape[1]), 1.0)}
    found = measure_damages(model, layers, changes, [{"x": images[:10]}, {"x": images[10:]}])
    for name in ("first", "boxes_head", "scores_head"):
        changed = _disturbed(proto, name, changes[name][name].slope, np.zeros(1))
        before, after = (run_all(Model.from_proto(each), {"x": images}) for each in (proto, changed))
        pairs = [[each[kind].astype(np.float64) for each in (before, after)] for kind in ("boxes", "scores")]
        errors = [float(np.square(two - one).sum() / np.square(one - one.mean(axis=0)).sum()) for one, two in pairs]
        assert found[name] == pytest.approx(np.mean(errors) if joined else np.sum(errors), rel=1e-3)
    assert 0.02 < found["scores_head"] / found["boxes_head"] < 50.0


@pytest.mark.parametrize("room", [0, 40, 2**20])
def test_batches_are_kept_once_and_read_by_name(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_waves, "_IN_MEMORY_BYTES", room)
    files = BatchFiles()
    batches = [{"a": np.full(2, at), "b": np.full((1, 3), -at)} for at in range(4)]
    assert [batch["a"][0] for batch in files.passed_on(batches, ["a", "b"])] == [0, 1, 2, 3]
    # A stream that reads what was written before, while new names are written.
    longer = ({**batch, "c": batch["a"] + 10} for batch in files.read(["a"]))
    assert [sorted(batch) for batch in files.passed_on(longer, ["c"])] == 4 * [["a", "c"]]
    assert files.names == {"a", "b", "c"}
    files.keep(["b", "c", "never"])
    assert files.names == {"b", "c"}
    for _ in range(2):
        read = list(files.read(["b", "c"]))
        assert [int(batch["b"][0, 0]) for batch in read] == [0, -1, -2, -3]
        assert [int(batch["c"][0]) for batch in read] == [10, 11, 12, 13]
    assert list(files.read([])) == 4 * [{}]
    files.keep(())
    assert not files.names


def test_room_in_memory_is_taken_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_waves, "_IN_MEMORY_BYTES", 5 * 16)
    written: list[float] = []

    class Recorded(ArrayFile):
        def append(self, array: np.ndarray) -> None:
            written.append(array[0])
            super().append(array)

    monkeypatch.setattr(refit_waves, "ArrayFile", Recorded)
    files = BatchFiles()

    def take(name: str, first: int) -> None:
        batches: list[dict[str, np.ndarray]] = [{name: np.full(2, float(first + at))} for at in range(3)]
        assert len(list(files.passed_on(batches, [name]))) == 3

    take("a", 0)
    take("b", 10)
    assert written == [12.0]
    files.keep(["b"])
    take("c", 20)
    assert written == [12.0]
    assert [[batch[name][1] for name in "bc"] for batch in files.read("bc")] == [[10, 20], [11, 21], [12, 22]]
