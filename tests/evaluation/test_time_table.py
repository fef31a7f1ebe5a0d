"""Time tables: what comes back from a file, what is refused, and how times between measured ones are guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from onnxcompress.analysis.split import WHOLE, Split
from onnxcompress.errors import RecipeError
from onnxcompress.evaluation.time_table import Conditions, TimeTable, check_conditions, read_time_table

HERE = Conditions("a CPU", "x86_64", "1.20.0", "CPUExecutionProvider", {}, threads=2, batch=1, block=16)
SPLITS = [WHOLE, Split(None, 16), Split(32, None), Split(16, 32), Split(24, 16, 1)]


def macs(split: Split) -> float:
    return float((split.rank_in or 64) * (split.rank_out or 64))


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_split_reads_back_from_its_text(split: Split) -> None:
    assert Split.parsed(str(split)) == split


@pytest.mark.parametrize("text", ["", "16", "0x16", "ax16", "1x2x3", "-1x8"])
def test_other_text_is_no_split(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Split.parsed(text)


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = TimeTable(
        HERE, {"Conv": dict(zip(SPLITS, (4.0, 3.0, 2.0, 1.0, 0.5), strict=True))}, {"ab": {"given_ms": 9.0}}
    )
    path = tmp_path / "t.json"
    path.write_text(json.dumps(table.to_json()))
    assert read_time_table(path) == table


def test_what_was_measured_is_taken_as_it_is_and_the_rest_from_its_neighbours() -> None:
    # Time in proportion to the cost: a guess must come out right wherever it is made.
    table = TimeTable(HERE, {"k": {s: macs(s) / 100 for s in (WHOLE, Split(16, 16), Split(32, 32), Split(None, 16))}})
    table.layers["k"][Split(48, 48)] = 77.0
    assert table.time_of("k", Split(48, 48), macs) == 77.0
    del table.layers["k"][Split(48, 48)]
    assert table.time_of("k", Split(24, 24), macs) == pytest.approx(macs(Split(24, 24)) / 100)
    assert table.time_of("k", Split(24, None), macs) is None  # no split of this kind was measured
    assert table.time_of("k", Split(24, 24, 1), macs) is None
    assert table.time_of("other", WHOLE, macs) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("processor", "another CPU"), ("onnxruntime", "1.19.2"), ("threads", 1), ("batch", 8), ("options", {"a": "1"})],
)
def test_a_table_of_other_conditions_is_refused_with_what_differs(name: str, value: object) -> None:
    other = TimeTable(replace(HERE, **{name: value}))
    check_conditions(TimeTable(HERE), HERE, "t.json")
    with pytest.raises(RecipeError, match=rf"^t\.json: .*{name}.*--force-time-table"):
        check_conditions(other, HERE, "t.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.update(schema=2),
        lambda value: value.pop("layers"),
        lambda value: value["conditions"].pop("threads"),
        lambda value: value["layers"].update(k={"16by16": 1.0}),
        lambda value: value["layers"].update(k={"whole": -1.0}),
        lambda value: value["layers"].update(k={"whole": "fast"}),
        lambda value: value["layers"].update(k=None),
        lambda value: value["layers"].update(k={"whole": 1e308}),
        lambda value: value["conditions"].update(block=-1),
        lambda value: value["conditions"].update(threads=1.5),
        lambda value: value["conditions"].update(batch=10**30),
    ],
)
def test_a_damaged_table_is_refused_by_its_name(damage, tmp_path: Path) -> None:
    value = TimeTable(HERE, {"k": {WHOLE: 1.0}}).to_json()
    damage(value)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(value))
    with pytest.raises(RecipeError, match=r"t\.json: is (no|a damaged) time table"):
        read_time_table(path)


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        read_time_table(tmp_path / "none.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(RecipeError, match="is not JSON"):
        read_time_table(tmp_path / "t.json")
