"""Plans that somebody edited or damaged: carried out with a warning where they fit, else refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxcompress.cli import main
from onnxcompress.errors import PassError
from onnxcompress.passes.tucker import TuckerDecomposition
from tests.tiny_models import conv_net, save_data

OPTIONS = ["--calib", "data.npz", "--no-latency", "--no-progress", "--overwrite", "-q"]
PRUNE, TUCKER, INT8 = 1, 2, 4

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(), "in.onnx")
    save_data(Path("data.npz"), conv_net())
    words = ["--prune", "0.25", "--tucker", "ratio=0.5", "--svd", "ratio=0.5", "--quantize", "int8"]
    assert main(["in.onnx", "out.onnx", *words, "--save-plan", "plan.json", *OPTIONS]) == 0
    value: dict[str, Any] = json.loads(Path("plan.json").read_text())
    assert [each["pass"] for each in value["passes"]][PRUNE:] == ["prune", "tucker", "svd", "int8"]
    return value


def decision(value: dict[str, Any], number: int) -> dict[str, Any]:
    first: dict[str, Any] = value["passes"][number]["decisions"][0]
    return first


def replayed(value: dict[str, Any], *words: str, model: str = "in.onnx") -> int:
    Path("changed.json").write_text(json.dumps(value, indent=1))
    return main([model, "again.onnx", "--plan", "changed.json", *words, *OPTIONS])


def test_another_layout_is_no_change(plan: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert replayed(plan) == 0
    assert "was changed" not in capsys.readouterr().err
    assert Path("again.onnx").read_bytes() == Path("out.onnx").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["passes"][PRUNE]["decisions"].pop(0),
        lambda value: decision(value, PRUNE)["removed"].update(first=[1, 2]),
        lambda value: value["passes"][TUCKER]["decisions"].pop(0),
        lambda value: decision(value, TUCKER).update(ranks=[2, 5]),
        lambda value: decision(value, TUCKER).update(error=0.1),
    ],
)
def test_an_edited_plan_is_carried_out_and_said_to_be_one(
    change: Change, plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    change(plan)
    del plan["passes"][INT8]["decisions"][:]  # its nodes are others now
    assert replayed(plan) == 0
    assert "changed.json was changed after it was saved: its decisions are carried out as" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda value: decision(value, PRUNE).pop("removed"),
        lambda value: decision(value, PRUNE).update(removed=[1]),
        lambda value: decision(value, PRUNE).update(removed={"first": "x"}),
        lambda value: decision(value, PRUNE)["removed"].update(first=[1.5]),
        lambda value: decision(value, PRUNE)["removed"].update(first=[10**30]),
        lambda value: decision(value, TUCKER).update(ranks=[2, 3.7]),
        lambda value: decision(value, TUCKER).update(groups=0),
        lambda value: decision(value, TUCKER).update(factors=[]),
        lambda value: decision(value, TUCKER).pop("kind"),
        lambda value: decision(value, PRUNE).update(filters=None),
        lambda value: decision(value, TUCKER).update(macs=["x", 1]),
        lambda value: decision(value, TUCKER).update(channels=3),
        lambda value: decision(value, INT8).update(ranges={"x": [None, 1.0]}),
        lambda value: value.update(passes={}),
    ],
)
def test_a_damaged_plan_is_refused_in_one_line(
    change: Change, plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    change(plan)
    assert replayed(plan, "-v") == 2
    error = capsys.readouterr().err
    assert error.startswith("onnxcompress: error: ")
    assert len(error.splitlines()) == 1
    assert "plan" in error
    assert not Path("again.onnx").exists()


def test_entries_of_one_name_and_what_is_no_number_are_refused(
    plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(plan)
    for old, new, told in (
        ('"removed": {', '"removed": {}, "removed": {', "'removed' stands twice in one table"),
        ('"seed": 0', '"seed": NaN', "NaN is no JSON number"),
    ):
        assert old in text
        Path("changed.json").write_text(text.replace(old, new, 1))
        assert main(["in.onnx", "again.onnx", "--plan", "changed.json", *OPTIONS]) == 2
        assert told in capsys.readouterr().err


def test_a_forced_plan_of_another_model_that_breaks_a_pass_is_to_blame(
    plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("of another model")

    onnx.save(conv_net(seed=1), "other.onnx")
    monkeypatch.setattr(TuckerDecomposition, "rewrite", broken)
    assert replayed(plan, "--force-plan", model="other.onnx") == 2
    assert "changed.json: cannot be carried out" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("node"), PassError("self-check")])
def test_what_fails_on_a_plan_as_it_was_made_is_a_bug(
    error: Exception, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(TuckerDecomposition, "rewrite", broken)
    assert replayed(plan) == 70
    older = copy.deepcopy(plan)
    del older["digest"]
    assert replayed(older) == 2
    assert "it is not of this model and version" in capsys.readouterr().err


def test_a_mark_that_editors_put_at_the_beginning(plan: dict[str, Any]) -> None:
    Path("changed.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(plan).encode())
    assert main(["in.onnx", "again.onnx", "--plan", "changed.json", *OPTIONS]) == 0
    Path("recipe.toml").write_bytes(b"\xef\xbb\xbfprune = 0.25\n")
    assert main(["in.onnx", "again.onnx", "--recipe", "recipe.toml", *OPTIONS]) == 0
