"""A real browser for the report's test: Chromium without a window, driven over its DevTools
protocol, of which this needs six calls.

Nothing but a WebSocket client is needed, which Uvicorn brings; a driver of its own (Selenium's,
Playwright's) would have to be downloaded.
"""

import base64
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.helpers.installed import find_program

CHROMIUM = find_program("chromium")
PHONE, DESKTOP = 390, 1280


class Page:
    """`events` are all that the page sent since it was opened: requests, log entries, exceptions,
    console calls.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.numbers, self.events, self.session = socket, itertools.count(1), [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        session = {"sessionId": self.session} if self.session else {}
        self.socket.send(
            json.dumps({"id": number, "method": method, "params": parameters} | session)
        )
        while True:
            said = json.loads(self.socket.recv(timeout=60))
            if said.get("id") == number:
                assert "error" not in said, f"{method}: {said['error']}"
                return dict(said["result"])
            self.events.append(said)

    def open(self, file: Path, width: int = DESKTOP, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def wait(self, expression: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def ask(self, expression: str) -> Any:
        said = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def fetched(self) -> list[str]:
        """Addresses that were asked for, but for the page itself and what it carries in itself."""
        asked = [
            e["params"]["request"]["url"]
            for e in self.events
            if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith(("file:", "data:", "about:"))]

    def complaints(self) -> list[Any]:
        """Errors and warnings of the console and of the browser."""
        methods = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [e["params"] for e in self.events if e["method"] in methods]

    def picture(self, whole: bool = True) -> bytes:
        return base64.b64decode(
            self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        )

    def print(self) -> bytes:
        return base64.b64decode(
            self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
        )


@contextmanager
def page(folder: Path) -> Iterator[Page]:
    """`folder` is for the browser's profile. Without a sandbox: in a container, or as root,
    Chromium starts with none.
    """
    assert CHROMIUM
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        "about:blank",
    ]
    environment = os.environ | {
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "XDG_CACHE_HOME": str(folder),
    }
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        port = folder / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (port.is_file() and port.read_text().count("\n") == 1):
            assert process.poll() is None and time.monotonic() < end, (
                folder / "browser.log"
            ).read_text()
            time.sleep(0.05)
        number, path = port.read_text().split("\n")
        with connect(f"ws://127.0.0.1:{number}{path}", max_size=None, proxy=None) as socket:
            found = Page(socket)
            yield found
            found.session = None
            found.call("Browser.close")
    finally:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
