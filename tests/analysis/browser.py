"""A headless Chromium for tests, driven over the DevTools protocol through a pipe: no port, no driver, no further package."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120.0
"""Seconds to wait for an answer; the first start on a busy machine takes tens."""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--mute-audio",
    "--remote-debugging-pipe",
)
KEYS = {
    "Enter": 13,
    "Tab": 9,
    "Escape": 27,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
    " ": 32,
}
QUIET = ("log", "info", "debug")


def chromium() -> str:
    """The program's path; skips the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("Chromium is not on this machine (Debian: apt-get install chromium)")
    return found


class Browser:
    """One process with one tab. `problems` collects what a page must not do: errors, refused content, dialogs."""

    def __init__(self, profile: Path) -> None:
        self.number, self.buffer, self.problems, self.session = 0, b"", [], None
        command = ["nice", "-n", "5", chromium(), *FLAGS, f"--user-data-dir={profile}"]
        there, self.write = _pipe()
        self.read, back = _pipe()
        ends = {there: 3, back: 4}
        self.process = subprocess.Popen(
            command, pass_fds=(3, 4), preexec_fn=lambda: [os.dup2(*pair) for pair in ends.items()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in ends:
            os.close(end)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """End the process."""
        os.close(self.write)
        os.close(self.read)
        self.process.terminate()
        self.process.wait()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command; events that come first are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._event(answer)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            self.buffer += os.read(self.read, 1 << 20)
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def _event(self, event: dict[str, Any]) -> None:
        kind, told = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.problems.append(f"exception: {told['exceptionDetails'].get('exception', {}).get('description', told)}")
        elif kind == "Runtime.consoleAPICalled" and told["type"] not in QUIET:
            self.problems.append(f"console {told['type']}: {told['args']}")
        elif kind == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"log: {told['entry']['text']}")
        elif kind == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {told['message']}")
            os.write(self.write, _accept(self.session))

    def open(self, page: Path, hash_: str = "") -> None:
        """Load a file and wait until its script has run; another hash alone does not load it again."""
        self.send("Page.navigate", url=f"{page.resolve().as_uri()}{hash_}")
        self.until("document.readyState === 'complete' && typeof state === 'object'")

    def run(self, script: str) -> Any:
        """The JSON value of an expression, awaited where it is a promise."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"].get("exception", {}).get("description", found)
        return found["result"].get("value")

    def until(self, condition: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys where the focus is; a text of one character is typed."""
        for key in keys:
            code = KEYS.get(key, ord(key.upper()[0]))
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else None)
            common = {"key": key, "windowsVirtualKeyCode": code, "code": key if len(key) > 1 else ""}
            self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
            self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def focus(self, selector: str) -> None:
        """Focus what a selector finds, as the Tab key would in the end."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus({{focusVisible: true}})")

    def size(self, width: int, height: int) -> None:
        """The viewport, a phone's below 500."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def prefer(self, scheme: str) -> None:
        """The system's colours: light or dark."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        """A PNG of the viewport."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not 3 or 4, which the child gets."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved


def _accept(session: str | None) -> bytes:
    return json.dumps({"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}, "sessionId": session}).encode() + b"\0"
