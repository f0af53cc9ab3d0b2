"""A real browser for the tests: Chromium without a window, driven by the DevTools protocol over two pipes."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--force-color-profile=srgb"),
)


def find_browser() -> str | None:
    """Path of a Chromium; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class PageError(AssertionError):
    """An exception of the page's JavaScript, or a browser that does not answer."""


class Browser:
    """One page. Every request of the page is in `requests`, what it logs as errors in `errors`."""

    def __init__(self, read: int, write: int, patience: float) -> None:
        self._read, self._write, self._patience = read, write, patience
        self._buffer, self._last, self._session = b"", 0, None
        self.requests: list[dict[str, Any]] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._send(message)
        deadline = time.monotonic() + self._patience
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _send(self, message: dict[str, Any]) -> None:
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._write, left) :]

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PageError(f"{what}: no answer; the page said {self.errors}")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise PageError(f"{what}: the browser has ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, fields = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(fields["request"])
        if method == "Runtime.exceptionThrown":
            details = fields["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if method == "Log.entryAdded" and fields["entry"]["level"] == "error":
            self.errors.append(f"{fields['entry']['text']} {fields['entry'].get('url', '')}")

    def go(self, address: str) -> None:
        """Open an address and wait until its document is loaded."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, program: str) -> Any:
        """Value of a JavaScript expression, awaited; it must be plain data."""
        found = self.call(
            "Runtime.evaluate", expression=program, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise PageError(f"{condition}: not so after {seconds:g} s; the page said {self.errors}")
            time.sleep(0.05)

    def drop(self, selector: str, *files: Path) -> None:
        """Give files to an input of the page, as a reader who opens them."""
        self.call("DOM.enable")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def click(self, x: float, y: float, *, shift: bool = False, to: tuple[float, float] | None = None) -> None:
        """Press the mouse at a point, move to another one if given, and release it."""
        fields = {"button": "left", "clickCount": 1, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **fields)
        if to is not None:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=to[0], y=to[1], **fields)
        end = to or (x, y)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], **fields)

    def press(self, key: str, *, shift: bool = False, control: bool = False) -> None:
        """Press a key and release it."""
        codes = {
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "Delete": 46,
            "Escape": 27,
            "Tab": 9,
        }
        fields = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        fields["modifiers"] = (8 if shift else 0) | (2 if control else 0)
        self.call("Input.dispatchKeyEvent", type="keyDown", **fields)
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def view(self, width: int, height: int, *, dark: bool = False, scale: float = 1, mobile: bool = False) -> None:
        """Set width, height, colours and density of the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, target: Path, *, whole: bool = False) -> None:
        """Write the window, or the whole page, as a PNG."""
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(made["data"]))


@contextmanager
def open_browser(profile: Path, patience: float = 120) -> Iterator[Browser]:
    """Start a browser with its own empty profile; end it at the end."""
    path = find_browser()
    assert path is not None, "no chromium"
    to_browser, from_browser = os.pipe(), os.pipe()
    command = f'exec 3<&{to_browser[0]} 4>&{from_browser[1]}; exec "$0" "$@"'
    process = subprocess.Popen(
        ["bash", "-c", command, path, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_browser[0], from_browser[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        yield Browser(from_browser[0], to_browser[1], patience)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser[0])
        os.close(to_browser[1])
