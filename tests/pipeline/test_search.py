"""The search for how much to compress: what it tries, what it picks, what it tells, what it leaves to the gate."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.errors import BudgetInfeasibleError, RecipeError
from onnxcompress.evaluation import expectation
from onnxcompress.evaluation.expectation import Losses, SampleLosses, bound, measured_losses
from onnxcompress.evaluation.pooled import DIFFERING, pooled_bounds
from onnxcompress.evaluation.reference import Reference
from onnxcompress.evaluation.relative_error import RelativeError
from onnxcompress.pipeline import search
from onnxcompress.pipeline.search import Search
from onnxcompress.recipe import Recipe
from onnxcompress.runtime.data import dataset_for
from onnxcompress.runtime.session import Session
from tests.tiny_models import conv_net, samples, save_data

QUICK: dict[str, Any] = {"latency": False, "round_to": 1}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    save_data(Path("data.npz"), conv_net(), count=60)
    np.savez("calib.npz", x=samples(400, seed=5))
    return tmp_path


def test_expected_drop_weighs_a_difference_by_the_originals_own_probabilities(folder: Path) -> None:
    first, second = conv_net(), conv_net(seed=3)
    session = Session(first.SerializeToString())
    data = dataset_for(session, "calib.npz")
    with Reference(session, data) as reference:
        losses = measured_losses(Session(second.SerializeToString()), reference)
        same = measured_losses(Session(first.SerializeToString()), reference).classes
    seen = losses.classes
    logits = [Session(m.SerializeToString()).run({"x": samples(400, seed=5)})["y"] for m in (first, second)]
    own = np.exp(logits[0].astype(np.float64))
    own /= own.sum(axis=1, keepdims=True)
    classes = [scores.argmax(axis=1) for scores in logits]
    rows = np.arange(400)
    assert [each.shape for each in (seen.lost, seen.differing, seen.divergences)] == [(400,)] * 3
    assert seen.disagreement == pytest.approx(100 * (classes[0] != classes[1]).mean())
    other = np.exp(logits[1].astype(np.float64))
    other /= other.sum(axis=1, keepdims=True)
    assert seen.divergence == pytest.approx((own * np.log(own / other)).sum(axis=1).mean(), rel=1e-4)
    counted = own[rows, classes[0]] - own[rows, classes[1]]
    order = np.argsort(own, axis=1)
    first, second = order[:, -1], order[:, -2]
    before, after = (scores.astype(np.float64)[rows, first] - scores[rows, second] for scores in logits)
    line = np.polyval(np.polyfit(before, after, 1), before)
    turned = np.array([NormalDist().cdf(-value / (after - line).std()) for value in line])
    spread = turned * (own[rows, first] - own[rows, second])
    differing = (classes[0] != classes[1]).astype(float)
    bounds = [own.mean() + own.std(ddof=1) / 20 for own in (counted, spread)]
    assert bound(seen.lost) == pytest.approx(max(bounds), rel=1e-4)
    np.testing.assert_array_equal(seen.differing, differing)
    assert (bound(same.lost), same.disagreement, same.divergence) == (0.0, 0.0, 0.0)
    assert losses.apart == seen.divergence
    missed = np.square(logits[1].astype(np.float64) - logits[0]).sum() / np.square(logits[0].astype(np.float64)).sum()
    assert losses.error.value == pytest.approx(np.sqrt(missed), rel=1e-9)


def test_less_certain_throughout_loses_nothing(folder: Path) -> None:
    proto = conv_net()
    session = Session(proto.SerializeToString())
    halved = onnx.ModelProto()
    halved.CopyFrom(proto)
    for tensor in halved.graph.initializer:
        if tensor.name in halved.graph.node[-1].input:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) / 2, tensor.name))
    with Reference(session, dataset_for(session, "calib.npz")) as reference:
        losses = measured_losses(Session(halved.SerializeToString()), reference)
    seen = losses.classes
    assert (seen.disagreement, bound(seen.lost)) == (0.0, pytest.approx(0.0, abs=1e-5))
    # As numbers the outputs are far apart all the same.
    assert losses.error.value == pytest.approx(0.5, rel=1e-4)


def test_a_loss_is_expected_of_margins_that_scatter_though_none_turned_over() -> None:
    before = np.linspace(0.2, 3.0, 100)
    scattered = before + np.resize([0.15, -0.15], 100)
    assert scattered.min() > 0.0
    lost = expectation._lost_by_spread(np.stack([np.full(100, 0.4), before, scattered], 1))
    odds = [NormalDist(sigma=0.15).cdf(-margin) for margin in before]
    assert lost.mean() == pytest.approx(0.4 * np.mean(odds), rel=0.1)
    assert lost.mean() > 0.0005


def test_the_smallest_share_that_keeps_the_drop_is_taken(folder: Path) -> None:
    options = {"tucker": "auto", "svd": "auto", "data": "data.npz", "calib": "calib.npz", **QUICK}
    result = onnxcompress.compress("in.onnx", max_drop=0.05, **options)
    found = result.report.search
    assert found.measure == "expected_top1"
    assert found.samples == 100
    keeping = [trial for trial in found.trials if trial.drop is not None and trial.drop <= 0.05]
    share = min(trial.share for trial in keeping)
    assert found.chosen == {"prune": 0.0, "target": {"macs": share}}
    failing = [trial.share for trial in found.trials if trial not in keeping]
    assert max(failing, default=0.0) < share
    direct = onnxcompress.compress("in.onnx", target={"macs": share}, **options)
    assert direct.model.to_bytes() == result.model.to_bytes()
    assert [gate.name for gate in result.report.gates] == ["max_drop"]
    harsher = onnxcompress.compress("in.onnx", max_drop=20.0, **options).report
    assert harsher.search.chosen["target"]["macs"] < share


def test_unlabelled_evaluation_data_are_searched_for_agreement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def spied(*given: Any) -> list[float]:
        seen.append((*given, pooled_bounds(*given)))
        return seen[-1][-1]

    monkeypatch.setattr(search, "pooled_bounds", spied)
    options = {"data": "calib.npz", "tucker": "auto", "max_drop": 30.0, **QUICK}
    found = onnxcompress.compress("in.onnx", **options).report.search
    assert found.measure == "disagreement"
    assert found.samples == 25  # a quarter of the quarter that is set aside for calibration
    losses, divergences, power, bounds = seen[-1]
    assert power == DIFFERING
    assert [trial.disagreement for trial in found.trials] == [100.0 * each.mean() for each in losses]
    assert [trial.divergence for trial in found.trials] == [each.mean() for each in divergences]
    assert [trial.drop for trial in found.trials] == [100.0 * each for each in bounds]


def test_pruning_alone_is_searched_by_its_rate(folder: Path) -> None:
    options = {"data": "data.npz", "calib": "calib.npz", "prune": "auto", **QUICK}
    result = onnxcompress.compress("in.onnx", max_drop=20.0, **options)
    rate = result.report.search.chosen["prune"]
    assert 0.0 < rate < 1.0
    assert result.report.recipe["prune"] == "auto"
    assert result.plan.recipe["prune"] == rate
    ranked = {"prune": rate, "importance": "response", "prune_scope": "global"}
    direct = onnxcompress.compress("in.onnx", **{**options, **ranked}, recover="refit")
    assert direct.model.to_bytes() == result.model.to_bytes()


def test_pruning_alone_reaches_a_target_with_the_fewest_filters(folder: Path) -> None:
    options = {"data": "data.npz", "calib": "calib.npz", "prune": "auto", **QUICK}
    report = onnxcompress.compress("in.onnx", target={"macs": 0.5}, **options).report
    assert report.compression is not None
    assert report.compression.macs is not None
    assert 2.0 <= report.compression.macs < 2.6
    assert report.passed
    assert report.search.trials == ()


def test_both_under_a_target_take_the_rate_that_loses_least(folder: Path) -> None:
    options = {"data": "data.npz", "calib": "calib.npz", "prune": "auto", "tucker": "auto", "svd": "auto", **QUICK}
    found = onnxcompress.compress("in.onnx", target={"macs": 0.5}, **options).report.search
    closest = min(trial.divergence for trial in found.trials if trial.divergence is not None)
    assert [trial.prune for trial in found.trials if trial.divergence == closest] == [found.chosen["prune"]]
    assert found.trials[0].prune == 0.0


def test_filters_leave_where_that_keeps_the_drop_with_less_left(folder: Path) -> None:
    options = {"data": "data.npz", "calib": "calib.npz", "prune": "auto", "tucker": "auto", "svd": "auto", **QUICK}
    found = onnxcompress.compress("in.onnx", max_drop=0.05, **options).report.search
    split = [trial for trial in found.trials if trial.prune == 0.0]
    share = min(trial.share for trial in split if trial.drop <= 0.05)
    # All fractions are tried with the share that splits alone keep the drop with, and the best one with less.
    own = found.chosen["prune"]
    assert own > 0.0
    assert {trial.share for trial in found.trials if trial.prune not in (0.0, own)} == {share}
    closest = min((trial for trial in found.trials if trial.share == share), key=lambda trial: trial.divergence)
    assert closest.prune == own
    kept = [trial for trial in found.trials if trial.drop <= 0.05]
    assert found.judged[0].chosen["target"]["macs"] == min(trial.share for trial in kept) < share


def test_a_plan_of_a_search_replays_without_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["in.onnx", "a.onnx", "--tucker", "auto", "--svd", "auto", "--max-drop", "3", "--data", "data.npz"]
    words += ["--calib", "calib.npz", "--no-latency", "--save-plan", "p.json", "--report", "r.json", "--keep-failed"]
    assert main(words) in (0, 3)
    assert "Search: " in capsys.readouterr().out
    assert json.loads(Path("r.json").read_text())["search"]["trials"]
    assert main(["in.onnx", "b.onnx", "--plan", "p.json", "--calib", "calib.npz", "--no-latency", "-q"]) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


@pytest.mark.parametrize(
    "options", [["--max-drop", "20"], ["--max-drop", "20", "--steps", "2"], ["--target", "macs=0.5"]]
)
def test_a_plan_of_a_search_for_filters_replays_with_the_refit(folder: Path, options: list[str]) -> None:
    words = ["in.onnx", "a.onnx", "--prune", "auto", *options, "--data", "data.npz", "--calib", "calib.npz"]
    assert main([*words, "--no-latency", "--save-plan", "p.json", "-q"]) == 0
    assert main(["in.onnx", "b.onnx", "--plan", "p.json", "--calib", "calib.npz", "--no-latency", "-q"]) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def _unreachable(*arguments: Any) -> Any:
    raise BudgetInfeasibleError("macs: no")


def test_what_cannot_be_kept_is_told_with_what_was_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"data": "calib.npz", "tucker": "auto", "max_drop": 1.0, "recover": "none", **QUICK}
    losses = SampleLosses(*(np.array([low, high]) for low, high in ((0.06, 0.08), (0.06, 0.08), (0.5, 0.5))))
    error = RelativeError("y", 0.3, None, 0.02)
    monkeypatch.setattr(search, "measured_losses", lambda *models: Losses(losses, error))
    with pytest.raises(BudgetInfeasibleError, match=r"keeps max_drop 1 .*tried leaves \d+% .* may lose 8.00 points"):
        onnxcompress.compress("in.onnx", **options)
    with pytest.raises(BudgetInfeasibleError, match=r"keeps max_drop 1 and max_error 5 .* 8.00 points and 32.00 % of"):
        onnxcompress.compress("in.onnx", **options, max_error=5.0)
    monkeypatch.setattr(Search, "_compressed", _unreachable)
    with pytest.raises(BudgetInfeasibleError, match="no budget that was tried can be reached"):
        onnxcompress.compress("in.onnx", **options)


def test_auto_needs_a_limit_and_data() -> None:
    with pytest.raises(RecipeError, match="--prune auto chooses under a limit"):
        onnxcompress.compress(conv_net(), prune="auto", **QUICK)
    with pytest.raises(RecipeError, match="needs data"):
        onnxcompress.compress(conv_net(), prune="auto", target={"macs": 0.5}, **QUICK)
    with pytest.raises(RecipeError, match="is not a number; give a fraction"):
        Recipe(prune="most")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"prune": "auto", "max_drop": 1.0}, True),
        ({"tucker": "auto", "max_drop": 1.0}, True),
        ({"svd": "auto", "max_drop": 1.0}, True),
        ({"tucker": "auto", "max_drop": 1.0, "target": {"macs": 0.5}}, False),
        ({"prune": 0.1, "tucker": "auto", "max_drop": 1.0}, False),
        ({"tucker": "energy=0.9", "max_drop": 1.0}, False),
        ({"tucker": "auto", "max_error": 1.0}, True),
        ({"prune": "auto", "max_error": 1.0}, True),
        ({"tucker": "auto", "max_error": 1.0, "target": {"macs": 0.5}}, False),
        ({"tucker": "auto"}, False),
    ],
)
def test_when_a_search_is_made(options: dict[str, Any], expected: bool) -> None:
    assert Recipe(**options).is_searched is expected
