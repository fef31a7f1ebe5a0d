"""Providers: names, availability, options, and no silent fall-back."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import onnxruntime
import pytest

from onnxcompress.errors import ModelError, ProviderUnavailableError, RecipeError
from onnxcompress.runtime import providers
from onnxcompress.runtime.providers import (
    CPU_PROVIDER,
    SHORT_NAMES,
    Provider,
    complaints,
    plain_message,
    provider_name,
    resolve_provider,
)
from onnxcompress.runtime.session import Session, SessionSettings
from tests.runtime.networks import classifier

MODEL = classifier().SerializeToString()
LIBRARY = (
    b"\x1b[1;31m2025-01-01 00:00:00.0 [E:onnxruntime:Default, a.cc:1 operator()] /src/b.cc:2 X& a::B::Get() "
    b"[ONNXRuntimeError] : 1 : FAIL : Failed to load library with error: libcublas.so.13: cannot open it\n\x1b[m\n"
)
"""As onnxruntime-gpu 1.31 writes it where there is no CUDA."""


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that says it has CUDA and TensorRT; the sessions of this machine still start on the CPU."""
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(providers, "preload_libraries", lambda provider: None)


class FakeSession:
    """What onnxruntime gives when a provider's libraries do not load: a line on standard error, and the CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        os.write(2, b"2025-01-01 00:00:00.0 [W:onnxruntime:Default, a.cc:1 f] Failed to create it. Require cuDNN 9.*\n")

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_cpu_under_all_its_names(name: str) -> None:
    provider = resolve_provider(name)
    assert (provider.name, provider.requested, provider.is_cpu) == ("CPUExecutionProvider", name, True)
    assert provider.as_onnxruntime() == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize(("short", "full"), SHORT_NAMES.items())
def test_short_names_are_names_that_onnxruntime_has(short: str, full: str) -> None:
    assert provider_name(short) == full
    assert full in onnxruntime.get_all_providers()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"'gpu' is not known.*cpu, cuda, tensorrt.*CUDAExecutionProvider"):
        resolve_provider("gpu")


def test_a_missing_provider_says_what_is_there_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        ProviderUnavailableError,
        match=r"'cuda' \(CUDAExecutionProvider\).* has CPUExecutionProvider; install onnxruntime-gpu",
    ) as failure:
        resolve_provider("cuda")
    assert failure.value.exit_code == 6
    with pytest.raises(ProviderUnavailableError, match="onnxruntime-openvino"):
        resolve_provider("OpenVINOExecutionProvider")
    with pytest.raises(ProviderUnavailableError, match="install a build of onnxruntime that has it"):
        resolve_provider("XnnpackExecutionProvider")


@pytest.mark.usefixtures("with_cuda")
def test_a_recorded_graph_is_refused_as_it_would_answer_for_other_inputs() -> None:
    assert resolve_provider("cuda", {"cuda": {"enable_cuda_graph": "0"}}).options["enable_cuda_graph"] == "0"
    with pytest.raises(RecipeError, match=r"enable_cuda_graph is not supported.*leave it out"):
        resolve_provider("cuda", {"cuda": {"enable_cuda_graph": "1"}})


@pytest.mark.usefixtures("with_cuda")
def test_options_are_pinned_given_and_passed_behind() -> None:
    assert resolve_provider("cuda").as_onnxruntime() == [
        ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "EXHAUSTIVE"}),
        ("CPUExecutionProvider", {}),
    ]
    given = {"cuda": {"cudnn_conv_algo_search": "HEURISTIC", "device_id": "1"}}
    assert resolve_provider("cuda", given).options == given["cuda"]
    assert resolve_provider("cuda", given).device_id == 1
    assert resolve_provider("tensorrt", given).as_onnxruntime() == [
        ("TensorrtExecutionProvider", {}),
        ("CUDAExecutionProvider", given["cuda"]),
        ("CPUExecutionProvider", {}),
    ]
    named = {f"CUDAExecutionProvider.{name}": value for name, value in given["cuda"].items()}
    assert resolve_provider("tensorrt", given).all_options() == named
    assert resolve_provider("cuda", given).all_options() == given["cuda"]
    with pytest.raises(RecipeError, match="'cdua' is not known"):
        resolve_provider("cpu", {"cdua": {}})


@pytest.mark.usefixtures("with_cuda")
def test_a_provider_that_does_not_start_is_no_cpu_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    with pytest.raises(
        ProviderUnavailableError,
        match=r"^provider 'cuda' \(CUDAExecutionProvider\) is installed but does not start: Fail",
    ) as failure:
        Session(MODEL, resolve_provider("cuda"))
    assert "Require cuDNN 9.*" in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.usefixtures("with_cuda")
@pytest.mark.parametrize(
    ("message", "error"),
    [
        ('Unknown provider option: "foo"', RecipeError),
        ("Invalid OpenVINO EP option: foo", RecipeError),
        ("CUDA failure 100: no CUDA-capable device is detected", ProviderUnavailableError),
    ],
)
def test_a_provider_that_raises(message: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = onnxruntime.InferenceSession

    def start(source: Any, options: Any, providers: Any, **kwargs: Any) -> Any:
        if providers[0][0] == "CUDAExecutionProvider":
            raise RuntimeError(message)
        return genuine(source, options, providers=["CPUExecutionProvider"], **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(error, match=message[:15]):
        Session(MODEL, resolve_provider("cuda"))


@pytest.mark.usefixtures("with_cuda")
def test_a_broken_model_is_not_blamed_on_the_provider() -> None:
    with pytest.raises(ModelError, match="cannot load it"):
        Session(b"no model", Provider("cuda", "CUDAExecutionProvider"))


def test_the_complaints_of_a_silent_failure_and_standard_error_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    with complaints() as caught:
        os.write(2, b"noise\n" + 2 * LIBRARY)
    assert caught.in_one_line() == "Failed to load library with error: libcublas.so.13: cannot open it"
    with complaints() as caught, contextlib.suppress(IndexError):
        [][1]
    assert caught.in_one_line() == ""
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("/src/a/b.cc:729 void a::b::Register(Options&, const a::Options&) Please install it", "Please install it"),
        ("/src/b.cc:20 std::string f(std::shared_ptr<X>) [ERROR] [OpenVINO] No GPU", "[ERROR] [OpenVINO] No GPU"),
        ("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 100: no device", "CUDA failure 100: no device"),
        ("two\nlines (of text)", "two lines (of text)"),
    ],
)
def test_messages_without_where_they_come_from(message: str, plain: str) -> None:
    assert plain_message(message) == plain


@pytest.mark.usefixtures("with_cuda")
def test_what_a_provider_that_starts_has_to_say_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Started(FakeSession):
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return []

        get_outputs = get_inputs

    monkeypatch.setattr(onnxruntime, "InferenceSession", Started)
    Session(MODEL, resolve_provider("cuda"))
    assert "Require cuDNN 9.*" in capfd.readouterr().err


def test_options_that_nobody_would_read() -> None:
    with pytest.raises(RecipeError, match="'cpu' has no options, but was given foo"):
        resolve_provider("cpu", {"cpu": {"foo": "1"}})


def test_a_provider_with_threads_of_its_own_is_told_how_many() -> None:
    openvino = Provider("openvino", "OpenVINOExecutionProvider", {"device_type": "CPU"})
    assert openvino.with_threads(2).options == {"device_type": "CPU", "num_of_threads": "2"}
    for options in ({"num_of_threads": "4"}, {"load_config": "{}"}):
        given = Provider("openvino", "OpenVINOExecutionProvider", options)
        assert given.with_threads(2) is given
    assert CPU_PROVIDER.with_threads(2) is CPU_PROVIDER


def test_a_device_number_that_is_none() -> None:
    with pytest.raises(RecipeError, match="device_id"):
        _ = Provider("cuda", "CUDAExecutionProvider", {"device_id": "first"}).device_id


def test_the_provider_that_runs_is_recorded() -> None:
    session = Session(MODEL, CPU_PROVIDER, SessionSettings(threads=1))
    assert session.providers == ("CPUExecutionProvider",)
