"""A headless Chromium, driven over its debugging pipe: JSON with a NUL behind each message, no port and no library.

with Browser(directory) as browser:
    page = browser.open("http://127.0.0.1:9464/")
    page.wait_for("document.title !== ''")
    assert page.complaints == []
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.support.services import HANG, UNIT

COMMANDS: Final = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """Return the browser's command. Without one the test is skipped; in CI it fails."""
    for command in COMMANDS:
        if found := shutil.which(command):
            return found
    if os.environ.get("CI") == "true":
        pytest.fail("no chromium here, and CI has to have one")
    pytest.skip("no chromium here")


class Browser:
    """One browser process with a profile of its own, ended with the block."""

    def __init__(self, profile: Path) -> None:
        ours_in, written = os.pipe()
        read, ours_out = os.pipe()
        theirs_in, theirs_out = fcntl.fcntl(read, fcntl.F_DUPFD, 10), fcntl.fcntl(written, fcntl.F_DUPFD, 10)
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        # The browser reads its descriptor 3 and writes 4: the shell puts the pipe there.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", chromium(), *flags, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (written, read, theirs_in, theirs_out):
            os.close(descriptor)
        self._in = os.fdopen(ours_in, "rb")
        self._out = os.fdopen(ours_out, "wb", buffering=0)
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self.pages: dict[str, Page] = {}
        self._thread = threading.Thread(target=self._read, name="browser", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        try:
            self._process.wait(UNIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._thread.join()
        self._in.close()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; return its result."""
        number = next(self._numbers)
        answer = self._answers[number] = queue.SimpleQueue()
        told = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        self._out.write(json.dumps(told).encode() + b"\0")
        try:
            got = answer.get(timeout=HANG)
        except queue.Empty:
            raise AssertionError(f"the browser does not answer {method}") from None
        assert "error" not in got, f"{method}: {got}"
        result: dict[str, Any] = got["result"]
        return result

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> "Page":
        """Open a page in a tab of its own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # a page in the background does not poll
        page.resize(width, height)
        page.emulate(dark=dark)
        page.call("Page.navigate", url=url)
        return page

    def _read(self) -> None:
        buffer = b""
        while data := os.read(self._in.fileno(), 1 << 16):
            *messages, buffer = (buffer + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                elif page := self.pages.get(message.get("sessionId", "")):
                    page.hear(message["method"], message["params"])


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []
        """What the console and the log say: errors, warnings, violations of the policy."""
        self.requests: list[str] = []
        """Every URL that was asked for."""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command to this tab; return its result."""
        return self._browser.call(method, self._session, **params)

    def hear(self, method: str, params: dict[str, Any]) -> None:
        """Take an event."""
        match method:
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([each.get("value") for each in params["args"]]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case _:
                pass

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page so many CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setScrollbarsHidden", hidden=True)

    def emulate(self, *, dark: bool = False, still: bool = False) -> None:
        """Be a machine whose user likes it dark, or without motion."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; return its value."""
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, f"{expression}: {got['exceptionDetails']}"
        return got["result"].get("value")

    def wait_for(self, expression: str, seconds: float = HANG) -> Any:
        """Wait until an expression is true; return its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() >= end:
                text = self.evaluate("document.body?.innerText")
                raise AssertionError(f"{expression}: not within {seconds} s; {self.complaints}; {text}")
            time.sleep(0.05)
        return value

    def press(self, key: str) -> None:
        """Press a key."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowDown": 40, "End": 35, "Home": 36}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        got = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(got["data"]))
