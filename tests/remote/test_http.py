"""Models and data at `http://`, from a real server of this machine; nothing can be written there."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import onnxcompress
from onnxcompress.cli import main
from onnxcompress.remote import RemoteFile, location
from tests.remote.servers import free_port, http_server
from tests.tiny_models import conv_net

QUICK = ["--no-latency", "--no-progress"]


@pytest.fixture
def address(workspace: Path) -> Iterator[str]:
    with http_server(workspace) as found:
        yield found


def test_a_model_and_data_are_read(address: str, tmp_path: Path) -> None:
    options = ["--prune", "0.25", *QUICK]
    assert main(["in.onnx", "here.onnx", "--data", "data.npz", *options]) == 0
    assert main([f"{address}/in.onnx?version=2", "there.onnx", "--data", f"{address}/data.npz", *options]) == 0
    assert Path("here.onnx").read_bytes() == Path("there.onnx").read_bytes()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_external_data_are_read_from_the_same_folder(address: str) -> None:
    Path("there").mkdir()
    options = {"save_as_external_data": True, "location": "sub/weights.bin", "size_threshold": 0}
    Path("there/sub").mkdir()
    onnx.save(conv_net(), "there/big.onnx", **options)
    here, there = (
        onnxcompress.compress(f"{where}there/big.onnx", prune=0.25, latency=False) for where in ("", f"{address}/")
    )
    assert here.model.to_bytes() == there.model.to_bytes()


@pytest.mark.parametrize(
    ("source", "output", "code", "expected"),
    [
        ("ADDRESS/none.onnx", "out.onnx", 4, "/none.onnx: no such file"),
        ("http://127.0.0.1:PORT/in.onnx", "out.onnx", 4, "/in.onnx: cannot be read: Client"),
        ("in.onnx", "ADDRESS/out.onnx", 2, "/out.onnx: http addresses can only be read; give a path, s3:// or gs://"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    source: str, output: str, code: int, expected: str, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(free_port())
    source, output = (text.replace("ADDRESS", address).replace("PORT", port) for text in (source, output))
    assert main([source, output, "--prune", "0.25", *QUICK]) == code
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not Path("out.onnx").exists()


def test_a_truncated_answer_is_no_model(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("cut.onnx").write_bytes(Path("in.onnx").read_bytes()[:2000])
    assert main([f"{address}/cut.onnx", "out.onnx", "--prune", "0.25", *QUICK]) == 4
    assert f"{address}/cut.onnx: is not an ONNX model" in capsys.readouterr().err


def test_addresses() -> None:
    assert location("models/in.onnx") == Path("models/in.onnx")
    assert location("C://in.onnx") == Path("C://in.onnx")
    assert location("module:callable") == Path("module:callable")
    signed = RemoteFile("https://host/models/in.onnx?signature=a/b")
    assert (location(str(signed)), signed.name, signed.protocol) == (signed, "in.onnx", "https")
    assert str(signed.beside("w.bin")) == "https://host/models/w.bin"
    assert RemoteFile("s3://bucket/in.onnx").beside("w.bin").address == "s3://bucket/w.bin"


def test_an_encrypted_connection_is_checked(workspace: Path) -> None:
    trustme = pytest.importorskip("trustme", reason="a development dependency")
    authority = trustme.CA()
    encrypted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(encrypted)
    authority.cert_pem.write_to_path("authority.pem")
    with http_server(workspace, encrypted) as address:
        assert address.startswith("https://")

        def run(**trusted: str) -> subprocess.CompletedProcess[str]:
            words = [f"{address}/in.onnx", "out.onnx", "--prune", "0.25", *QUICK]
            command = [sys.executable, "-m", "onnxcompress", *words]
            environment = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
            return subprocess.run(command, capture_output=True, text=True, env=environment | trusted)

        unknown = run()
        assert unknown.returncode == 4
        assert "certificate verify failed" in unknown.stderr
        assert not Path("out.onnx").exists()
        assert run(SSL_CERT_FILE=str(Path("authority.pem").absolute())).returncode == 0
        assert Path("out.onnx").exists()
