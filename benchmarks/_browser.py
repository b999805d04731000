"""Chromium without a window, asked through its DevTools protocol over a pipe."""

import fcntl
import json
import os
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_S = 60.0
# DevTools reads the third and writes the fourth file that the browser is given.
READS, WRITES = 3, 4


def find_chromium() -> str | None:
    """Return the path of a Chromium, None if there is none."""
    return next((path for path in map(which, NAMES) if path), None)


class Tab:
    """One page of a browser; the protocol's calls, and what its events said.

    Attributes:
        errors: What the console and uncaught exceptions said.
        requests: Addresses that the page asked for, other than itself.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call one method of the protocol; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._event(answer)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; promises are waited for."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end_s = time.monotonic() + TIMEOUT_S
        while not self.evaluate(expression):
            if time.monotonic() > end_s:
                raise TimeoutError(f"{expression} was not true within {TIMEOUT_S:.0f} s")

    def show(self, *, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Set the size of the screen, and whether the reader wants a dark page."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=phone, **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, **clip: float) -> None:
        """Write what a reader would see of the whole page, or of a rectangle of it."""
        part = {"clip": {**clip, "scale": 1}} if clip else {}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, **part)
        path.write_bytes(b64decode(shot["data"]))

    def _next(self) -> Any:
        while b"\0" not in self._buffer:
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _event(self, event: Any) -> None:
        method, said = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(said["exceptionDetails"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(said["entry"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning"):
            self.errors.append(str(said["args"]))
        elif method == "Network.requestWillBeSent":
            address = said["request"]["url"]
            if not address.startswith(("data:", "blob:", "about:")):
                self.requests.append(address)


def _place(reads: int, writes: int) -> None:
    """Give the pipes the numbers that the browser expects; in its process."""
    # Out of the way first, or the first could end what the second is.
    away = [fcntl.fcntl(number, fcntl.F_DUPFD, WRITES + 1) for number in (reads, writes)]
    os.dup2(away[0], READS)
    os.dup2(away[1], WRITES)


@contextmanager
def chromium_tab(path: str, flags: Sequence[str] = ()) -> Iterator[Tab]:
    """Start the browser at `path`, without network; it is gone after the block."""
    to_browser, from_browser = os.pipe(), os.pipe()
    with TemporaryDirectory() as folder:
        command = [
            path,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder}",
            *flags,
        ]
        browser = subprocess.Popen(
            command,
            pass_fds=(READS, WRITES),
            preexec_fn=partial(_place, to_browser[0], from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            yield Tab(to_browser[1], from_browser[0])
        finally:
            browser.terminate()
            browser.wait(timeout=TIMEOUT_S)
            os.close(to_browser[1])
            os.close(from_browser[0])
