"""Headless Chromium by its DevTools protocol: pages opened, things clicked, what the console said, screenshots.

`CHROMIUM` is None where there is none; tests that need it skip with `NO_CHROMIUM`.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 60.0


class Browser:
    """One page. Raises AssertionError for what a page throws, TimeoutError for what does not come."""

    def __init__(self, folder: Path, *options: str, width: int = 1280, height: int = 2400) -> None:
        import websocket

        place = folder / "profile"
        command = [str(CHROMIUM), *QUIET, *options, f"--window-size={width},{height}", f"--user-data-dir={place}"]
        self.process = subprocess.Popen(
            [*command, "--remote-debugging-port=0", "about:blank"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self.number, self.problems, self.requested = 0, list[str](), list[str]()
        try:
            port_file = place / "DevToolsActivePort"
            self.wait(port_file.exists, "Chromium")
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                (page,) = [one for one in json.load(answer) if one["type"] == "page"]
            self.socket = websocket.create_connection(
                page["webSocketDebuggerUrl"], timeout=PATIENCE, suppress_origin=True
            )
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.process.kill()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("Browser.close")
            self.process.wait(PATIENCE)
        finally:
            self.socket.close()
            self.process.kill()
            self.process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; what the page says meanwhile is kept."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == self.number:
                assert "error" not in said, said["error"]
                return said["result"]
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        kind, what = said.get("method"), said.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.problems.append(what["exceptionDetails"]["text"])
        elif kind == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.problems.append(what["entry"]["text"])
        elif kind == "Runtime.consoleAPICalled" and what["type"] == "error":
            self.problems.append(str(what["args"]))
        elif kind == "Network.requestWillBeSent":
            self.requested.append(what["request"]["url"])

    def open(self, url: str) -> None:
        """Goes there and waits until it is loaded."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str, patience: float = PATIENCE) -> Any:
        """Waits until an expression is true."""
        return self.wait(lambda: self.evaluate(expression), expression, patience)

    def wait(self, there: Any, what: str, patience: float = PATIENCE) -> Any:
        end = time.monotonic() + patience
        while not (found := there()):
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: did not come in {patience:.0f} s")
            time.sleep(0.1)
        return found

    def click(self, selector: str) -> None:
        """A real click in the middle of the first such element, scrolled into view."""
        where = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Words, into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
