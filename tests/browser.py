"""A headless Chromium driven through the DevTools protocol: pages, clicks, typing, screenshots; for tests of web pages.

`Browser(folder)` starts it with a profile of its own; nothing outside of loopback can be reached from it. A click
goes to the middle of an element, by mouse events as a person's, once it is there and nothing lies over it. Elements
are found by JavaScript expressions; `text` and `css` make the usual ones. `problems` are console errors and exceptions,
`requests` every URL that was asked for.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


def css(selector: str) -> str:
    """The first element of a selector."""
    return f"document.querySelector({json.dumps(selector)})"


def text(words: str, selector: str = "button, a, li, span") -> str:
    """The first visible element of a selector with these words."""
    found = f"e.textContent.trim() === {json.dumps(words)} && e.checkVisibility()"
    return f"[...document.querySelectorAll({json.dumps(selector)})].find(e => {found})"


class Browser:
    """One tab. Raises AssertionError with what the page says when something does not come in time."""

    def __init__(self, folder: Path, patience: float = 60, height: int = 1000) -> None:
        assert CHROMIUM is not None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.folder, self.patience, self._count = folder, patience, 0
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run",
            "--remote-allow-origins=*", f"--user-data-dir={folder / 'profile'}", f"--window-size=1400,{height}",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking",
            "about:blank",
        ]  # fmt: skip
        with (folder / "chromium.log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        port = self._eventually(
            lambda: (folder / "profile" / "DevToolsActivePort").read_text().split()[0], (OSError, IndexError)
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            page = next(one for one in json.load(answer) if one["type"] == "page")
        self._socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=patience)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.screenshot("failure")
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)

    def open(self, url: str) -> None:
        """Goes to a page and waits until it is loaded; what scripts show is waited for by what is done next."""
        self.command("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'", url)

    def click(self, element: str) -> None:
        """Scrolls to an element and clicks on it."""
        x, y = self._place(element)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, element: str, words: str) -> None:
        """Clicks into a field, removes what is there, and types."""
        self.click(element)
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key="a", code="KeyA", modifiers=2, commands=["selectAll"])
        self.command("Input.insertText", text=words)

    def wait(self, expression: str, what: str = "") -> Any:
        """The first true value of an expression."""
        return self._eventually(lambda: self.value(expression) or None, AssertionError, what or expression)

    def shows(self, words: str) -> None:
        """Waits for words anywhere on the page."""
        self.wait(f"document.body && document.body.innerText.includes({json.dumps(words)})", words)

    def value(self, expression: str) -> Any:
        """What an expression is, as JSON."""
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, name: str) -> Path:
        """The visible part of the page as `<folder>/<name>.png`."""
        path = self.folder / f"{name}.png"
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))
        return path

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol and its result; events that come meanwhile are noted."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(about["exceptionDetails"]["text"])
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.problems.append(about["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.problems.append(str(about["args"]))

    def _place(self, element: str) -> list[float]:
        """The middle of an element once it has stood still and is what is seen there."""
        seek = (
            f"(() => {{ const e = {element}; if (!e) return null;"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2,"
            "top = document.elementFromPoint(x, y);"
            "return top && (e.contains(top) || top.contains(e)) ? [x, y] : null; })()"
        )
        before = None
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            place = self.value(seek)
            if place and place == before:
                return place
            before = place
            time.sleep(0.1)
        raise AssertionError(f"{element}: not on the page, or covered: {self._said()}")

    def _eventually(
        self, get: Any, errors: type[Exception] | tuple[type[Exception], ...], what: str = "Chromium"
    ) -> Any:
        end = time.monotonic() + self.patience
        while True:
            try:
                if (found := get()) is not None:
                    return found
            except errors:
                pass
            assert time.monotonic() < end, f"{what}: did not come within {self.patience:g} s: {self._said()}"
            time.sleep(0.1)

    def _said(self) -> str:
        return self.value("document.body ? document.body.innerText.slice(0, 3000) : ''") if self._count else "no page"
