"""What `--tucker` and `--svd` accept, and the ranks file."""

from __future__ import annotations

import json

import pytest

from onnxcompress.errors import RecipeError
from onnxcompress.passes.tucker import SvdConfig, TuckerConfig, parse_svd_spec, parse_tucker_spec


@pytest.mark.parametrize(
    ("text", "rule", "value"),
    [
        ("off", "off", None),
        ("auto", "auto", None),
        ("evbmf", "evbmf", None),
        ("energy=0.98", "energy", 0.98),
        ("ratio=1.0", "ratio", 1.0),
        ("ratio=1e-3", "ratio", 0.001),
    ],
)
def test_tucker_texts(text, rule, value):
    spec = parse_tucker_spec(text)
    assert (spec.rule, spec.value) == (rule, value)
    assert TuckerConfig.from_spec(text).spec == spec


@pytest.mark.parametrize("text", ["off", "auto", "energy=0.5", "ratio=0.5"])
def test_svd_texts(text):
    assert parse_svd_spec(text) == parse_tucker_spec(text)
    assert SvdConfig.from_spec(text).spec == parse_svd_spec(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "on", "AUTO", "energy", "energy=", "energy=x", "energy=0", "energy=1.5", "energy=-1", "energy=nan"),
        *("ratio=inf", "ratio=0.5=", "ranks", "ranks=", "auto=1", "evbmf=2", " auto"),
    ],
)
def test_texts_that_cannot_be_used(text):
    with pytest.raises(RecipeError, match=r"^tucker: ") as error:
        parse_tucker_spec(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["evbmf", "ranks=x.json", "energy=2"])
def test_svd_texts_that_cannot_be_used(text):
    with pytest.raises(RecipeError, match=r"^svd: "):
        parse_svd_spec(text)


def test_a_ranks_file(tmp_path):
    path = tmp_path / "ranks.json"
    path.write_text('{"a": [1, 2], "b/c": [30, 4]}')
    spec = parse_tucker_spec(f"ranks={path}")
    assert spec.rule == "ranks"
    assert spec.ranks == {"a": (1, 2), "b/c": (30, 4)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "expected"),
        ("3", "expected"),
        ("null", "expected"),
        ('{"a": 3}', "'a': expected"),
        ('{"a": [3]}', "'a': expected"),
        ('{"a": [3, 4, 5]}', "'a': expected"),
        ('{"a": {"in": 3, "out": 4}}', "'a': expected"),
        ('{"a": [3, 4.0]}', "'a': expected"),
        ('{"a": [3, "4"]}', "'a': expected"),
        ('{"a": [true, 4]}', "'a': expected"),
        ('{"a": [0, 4]}', "'a': expected"),
        ('{"a": [3, NaN]}', "'a': expected"),
        ('{"a": [-1, 4]}', "'a': expected"),
        ('{"a": [1, 2], "a": [1, 2]}', "'a' stands there twice"),
    ],
)
def test_ranks_files_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "ranks.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=r"^tucker: ranks file") as error:
        parse_tucker_spec(f"ranks={path}")
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_ranks_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(RecipeError, match="cannot be read"):
            parse_tucker_spec(f"ranks={path}")


@pytest.mark.parametrize("config", [{"floor": -0.1}, {"floor": 1.5}, {"min_rank": 0}])
def test_floors_out_of_range(config):
    with pytest.raises(RecipeError, match=r"^tucker: "):
        TuckerConfig(**config)


def test_an_energy_of_auto_out_of_range():
    with pytest.raises(RecipeError, match=r"^svd: "):
        SvdConfig(auto_energy=0.0)


def test_ranks_survive_json(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({'node \u00e9 "x"': [1, 1]}))
    assert parse_tucker_spec(f"ranks={path}").ranks == {'node \u00e9 "x"': (1, 1)}
