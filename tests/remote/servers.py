"""Servers of this machine for the tests of remote paths: s3 (moto), Google Cloud Storage (an emulator) and http."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run an s3 server on a loopback address, make it what `s3://` means, and give its address."""
    moto_server = pytest.importorskip("moto.server", reason="a development dependency")
    pytest.importorskip("s3fs", reason="the extra `remote`")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    use_s3_at(address, monkeypatch)
    # Buckets are kept in the process, for whichever server of it is asked.
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST"), timeout=60).close()
    try:
        yield address
    finally:
        forget_file_systems()
        server.stop()


def use_s3_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `s3://` lead to a server; it gives up at once where there is none."""
    options = {
        "endpoint_url": address,
        "key": "test",
        "secret": "test",
        "config_kwargs": {"connect_timeout": 2, "retries": {"max_attempts": 0}},
    }
    import fsspec.config

    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    monkeypatch.setenv("FSSPEC_S3", json.dumps(options))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    forget_file_systems()


def forget_file_systems() -> None:
    """Clients are kept by fsspec; one of a server that is gone must not serve the next test."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def gcs_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a server of Google Cloud Storage on a loopback address, make it what `gs://` means, and give its address."""
    # Otherwise gcsfs asks Google itself what kind of bucket it is.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="a development dependency")
    gcsfs = pytest.importorskip("gcsfs", reason="the extra `gcs`")
    import fsspec.config

    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="models")
    server.start()
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    for name in ("gs", "gcs"):
        monkeypatch.setitem(fsspec.config.conf, name, {"token": "anon"})
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        yield address
    finally:
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.stop()


def put_inputs(files: Any) -> None:
    """Put `in.onnx` and `data.npz` of the working directory into the bucket `models` of an fsspec file system."""
    for name in ("in.onnx", "data.npz"):
        files.put_file(name, f"models/{name}")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def http_server(folder: Path, encrypted: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve a folder on a loopback address, as https where a context is given, and give the address."""
    pytest.importorskip("aiohttp", reason="the extra `remote`")
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if encrypted is not None:
            server.socket = encrypted.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http{'s' if encrypted else ''}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
