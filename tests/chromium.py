"""A headless Chromium for tests, driven over its debugging pipe (Chrome DevTools Protocol); no package is needed.

    with Chromium() as browser:
        browser.open("page.html")
        browser.evaluate("document.title")
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-quic --disable-sync "
    "--disable-background-networking --disable-component-update --disable-extensions --hide-scrollbars "
    "--force-color-profile=srgb --remote-debugging-pipe"
)


class Chromium:
    """A browser with one page. Requests that leave the machine's files are collected in `requests`."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self.sender = os.pipe()
        self.receiver, theirs_out = os.pipe()

        def connect() -> None:  # the browser reads commands from 3 and writes answers to 4
            first, second = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(first, 3)
            os.dup2(second, 4)

        command = [str(PROGRAM), *FLAGS.split(), f"--user-data-dir={self.folder.name}", "about:blank"]
        self.process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.number, self.session = b"", 0, None
        self.requests: list[str] = []
        self.errors: list[str] = []
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Network.enable", maxTotalBufferSize=0)  # else the page's process keeps a copy of the file

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *details: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.sender)
        os.close(self.receiver)
        self.folder.cleanup()

    def call(self, method: str, timeout: float = 120, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events that arrive meanwhile are noted."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.sender, data) :]
        end = time.monotonic() + timeout
        while True:
            answer = self._receive(end - time.monotonic())
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, timeout: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            if timeout <= 0 or not select.select([self.receiver], [], [], timeout)[0]:
                raise TimeoutError("Chromium does not answer")
            chunk = os.read(self.receiver, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium has ended")
            self.buffer += chunk
        raw, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(raw)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not re.match(r"(file|data|blob|about):", url):
                self.requests.append(url)
        elif message.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])

    def open(self, path: Path | str, fragment: str = "") -> None:
        """Opens a file and waits until its scripts have run (`ready` is set on the window)."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=Path(path).resolve().as_uri() + (f"#{fragment}" if fragment else ""))
        self.wait("document.readyState === 'complete' && window.ready === true")

    def evaluate(self, expression: str, timeout: float = 120) -> Any:
        """The value of a JavaScript expression; a promise is awaited. Raises RuntimeError for an exception."""
        result = self.call(
            "Runtime.evaluate", timeout, expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    def wait(self, condition: str, timeout: float = 60) -> None:
        """Waits until a JavaScript condition holds."""
        end = time.monotonic() + timeout
        while not self.evaluate(f"!!({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} does not come true; errors: {self.errors}")
            time.sleep(0.05)

    def resize(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Sets the size of the window and the colour scheme that the user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str, code: int = 0) -> None:
        """Presses and releases a key, such as ArrowRight."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path | str, whole: bool = True) -> None:
        """Writes a PNG of the page, all of it or only the window."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        options = {"clip": clip, "captureBeyondViewport": True} if whole else {}
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"]))

    def renderer_bytes(self) -> int:
        """Private memory of the page's process, in bytes (Linux)."""
        sizes = re.findall(r"^Private_\w+: +(\d+) kB", self._of_renderers("smaps_rollup"), re.M)
        return 1024 * sum(map(int, sizes))

    def renderer_seconds(self) -> float:
        """Processor time of the page's process in seconds, of all its threads (Linux)."""
        fields = [line.rpartition(")")[2].split() for line in self._of_renderers("stat").splitlines()]
        return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")

    def _of_renderers(self, name: str) -> str:
        """A file of /proc/PID, joined for all renderer processes of this browser."""
        texts = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                if b"--type=renderer" in command and self.folder.name.encode() in command:
                    texts.append((process / name).read_text())
            except OSError:
                continue
        return "".join(texts)
