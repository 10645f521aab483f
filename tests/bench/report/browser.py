"""A headless Chromium, asked over the pipe of its DevTools protocol: no port, no driver, no network."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 120
"""A browser that does not answer for so long has hung."""


def found_browser() -> str | None:
    """The first Chromium on PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. `events` holds everything that the browser told of it: requests, exceptions, console lines."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read = write, read
        self.waiting = b""
        self.last = 0
        self.session = ""
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self.last += 1
        message: dict[str, Any] = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.last:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            piece = os.read(self.read, 1 << 20)
            assert piece, "the browser closed its pipe"
            self.waiting += piece
        first, self.waiting = self.waiting.split(b"\0", 1)
        document: dict[str, Any] = json.loads(first)
        return document

    def attach(self) -> Self:
        """Open a tab and listen to it."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        return self

    def open(self, file: Path, *, width: int = 1200, height: int = 900, mobile: bool = False) -> None:
        """Load a file and wait until it is complete."""
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        self.send("Page.navigate", url=file.as_uri())
        deadline = time.monotonic() + SECONDS
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < deadline, "the page did not load"
            self.events.append(self._next())

    def value(self, script: str) -> Any:
        """What a JavaScript expression of ours gives; the page itself may run none."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def named(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of those events."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True)["data"])

    def picture(self) -> bytes:
        """The whole page as PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Page]:
    """A browser with a profile of its own in `folder`; ended when the block ends."""
    ours_read, theirs_write = os.pipe()
    theirs_read, ours_write = os.pipe()
    pairs = ((theirs_read, 3), (theirs_write, 4))
    ends = [os.dup(fd) for fd, _ in pairs]  # out of the way of 3 and 4

    def place() -> None:
        high = [os.dup2(end, 40 + i) for i, end in enumerate(ends)]
        for end, (_, number) in zip(high, pairs, strict=True):
            os.dup2(end, number)

    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-extensions", "--hide-scrollbars", f"--user-data-dir={folder}", "--remote-debugging-pipe",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, preexec_fn=place, close_fds=False, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (theirs_read, theirs_write, *ends):
        os.close(end)
    try:
        yield Page(ours_write, ours_read).attach()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours_write)
        os.close(ours_read)
