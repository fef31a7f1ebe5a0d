"""Chromium without a window, spoken to over its debugging pipe: what it loads, complains about and shows."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SECONDS = 60
_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without a window, and nothing that a browser does by itself.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


def chromium_path() -> str | None:
    """Return the browser of this machine, None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One page. `complaints` are console errors and uncaught exceptions, `requests` the addresses it asked for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._numbers, self._buffer = itertools.count(1), b""
        self._session = ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    def open(self, address: str) -> None:
        """Load an address and wait for it."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self._loaded = False
        self.send("Page.navigate", url=address)
        while not self._loaded:
            self._note(self._receive())

    def emulate(self, *, width: int, dark: bool) -> None:
        """Take on a width in CSS pixels and a colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, script: str) -> Any:
        """Return what a script of the test evaluates to."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wider_than_their_place(self) -> list[str]:
        """Return the parts of the page that have to be scrolled sideways, or whose end is cut off."""
        script = (
            "Array.from(document.querySelectorAll('html, section, .tile, .scroll, .tall, th, pre'))"
            ".filter(e => e.scrollWidth > e.clientWidth + 1)"
            ".map(e => `${e.tagName} ${e.className} in ${e.closest('section')?.id}`)"
        )
        return [str(name) for name in self.value(script)]

    def colours(self, *variables: str) -> list[tuple[int, int, int]]:
        """Return what variables of the style sheet are now, as red, green and blue."""
        script = (
            "(names => { const probe = document.body.appendChild(document.createElement('i'));"
            " const found = names.map(n => { probe.style.color = `var(${n})`; return getComputedStyle(probe).color; });"
            " probe.remove(); return found; })"
        )
        found = self.value(f"{script}({json.dumps(variables)})")
        return [tuple(int(part) for part in re.findall(r"\d+", colour)[:3]) for colour in found]  # type: ignore[misc]

    def screenshot(self, file: Path, *, height: int | None = None) -> None:
        """Save the whole page, or its first `height` pixels, as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(answer["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            assert time.monotonic() < deadline, "the browser is silent"
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        value: dict[str, Any] = json.loads(message)
        return value

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(parameters["entry"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(parameters["args"]))


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """Return the contrast ratio of two sRGB colours, 1 to 21 (WCAG 2.2, relative luminance)."""

    def luminance(colour: tuple[int, int, int]) -> float:
        parts = [c / 255.0 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@contextlib.contextmanager
def browser(executable: str) -> Iterator[Page]:
    """Start a browser with an empty profile; it ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, contextlib.ExitStack() as files:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        for descriptor in (to_write, from_read):
            files.callback(os.close, descriptor)
        # The protocol wants descriptors 3 and 4.
        command = 'in=$1; out=$2; shift 2; eval "exec 3<&$in 4>&$out"; exec "$@"'
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                command,
                "bash",
                str(to_read),
                str(from_write),
                executable,
                *_FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(to_read, from_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        try:
            yield Page(to_write, from_read)
        finally:
            process.terminate()
            process.wait(30)
