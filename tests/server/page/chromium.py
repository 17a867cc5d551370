"""A headless Chromium, driven through a pipe by its DevTools protocol: no driver, no websocket, no library."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 20  # seconds until what is waited for counts as missing
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads commands from file 3 and writes to file 4. Both are copied away first: either may be 3 or 4 already.
AT_3_AND_4 = """
import os, sys
reading, writing = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))
os.dup2(os.dup2(reading, 100), 3), os.dup2(os.dup2(writing, 101), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium(folder: Path) -> Iterator["Browser"]:
    """A browser whose profile is in a folder; it ends with the block."""
    to_browser, ours_out = os.pipe()
    ours_in, from_browser = os.pipe()
    ends = (to_browser, from_browser)
    command = [sys.executable, "-IS", "-c", AT_3_AND_4, *map(str, ends), find_chromium() or "", *FLAGS]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--user-data-dir={folder}", "about:blank"], pass_fds=ends, stdout=log, stderr=log
        )
    os.close(to_browser)
    os.close(from_browser)
    with os.fdopen(ours_out, "wb", buffering=0) as outward, os.fdopen(ours_in, "rb") as inward:
        try:
            yield Browser(outward, inward)
        finally:
            process.terminate()
            process.wait()


class Browser:
    """Commands to a browser, one at a time."""

    def __init__(self, outward: BinaryIO, inward: BinaryIO) -> None:
        self._outward, self._inward, self._buffer, self._number = outward, inward, b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        self._outward.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._inward.fileno(), 1 << 16)
            if not read:
                raise RuntimeError("the browser has ended")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(
        self, address: str, *, width: int = 1180, height: int = 820, theme: str = "light", scale: float = 1
    ) -> "Tab":
        """A new tab of its own profile at an address, once it has loaded."""
        profile = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=profile)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, profile)
        for domain in ("Page", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 500,
        )
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        tab.call("Emulation.setFocusEmulationEnabled", enabled=True)  # several tabs have the focus
        tab.visit(address)
        return tab


class Tab:
    """One page: what a person does with it, and what it shows."""

    def __init__(self, browser: Browser, session: str, profile: str) -> None:
        self._browser, self._session, self.profile, self._begin = browser, session, profile, 0

    def visit(self, address: str) -> None:
        """Show another page, once it has loaded; what was logged before is no complaint of it."""
        self._begin = len(self._browser.events)
        self.call("Page.navigate", url=address)
        self.wait(f"location.href.startsWith({address!r}) && document.readyState === 'complete'")

    def leave(self) -> None:
        """Show no page, and forget what the last one stored."""
        self.evaluate("localStorage.clear(), sessionStorage.clear()")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
        self.visit("about:blank")

    def close(self) -> None:
        """Close the tab and forget its profile."""
        self._browser.call("Target.disposeBrowserContext", browserContextId=self.profile)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to this page."""
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", expression))
        return answer["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait until an expression is true, and give its value; AssertionError where that does not happen."""
        end = time.monotonic() + PATIENCE
        while not (value := self.evaluate(condition)):
            assert time.monotonic() < end, f"never true: {condition}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def reload(self) -> None:
        """Load the page again."""
        self.evaluate("window.isOld = true")
        self.call("Page.reload")
        self.wait("!window.isOld && document.readyState === 'complete'")

    def text(self, selector: str) -> str:
        """What is written in the last element of a selector, once there is one."""
        last = f"[...document.querySelectorAll({selector!r})].at(-1)"
        self.wait(f"{last} !== undefined")
        return self.evaluate(f"{last}.innerText")

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return self.evaluate(f"document.querySelectorAll({selector!r}).length")

    def point(self, selector: str, label: str = "") -> None:
        """Move the mouse over the last visible element of a selector whose text contains the label."""
        x, y = self._middle(selector, label)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str, label: str = "") -> None:
        """Click the middle of the last visible element of a selector whose text contains the label."""
        x, y = self._middle(selector, label)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Write text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def screenshot(self, path: Path) -> None:
        """Write what is visible as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the page logged as an error or threw so far."""
        self.evaluate("0")  # what was logged before is received before this answer
        found = []
        for event in self._browser.events[self._begin :]:
            if event.get("sessionId") != self._session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found

    def _middle(self, selector: str, label: str) -> tuple[float, float]:
        found = (
            f"[...document.querySelectorAll({selector!r})].filter((e) => e.innerText.includes({json.dumps(label)})"
            " && e.checkVisibility() && !e.disabled).at(-1)"
        )
        self.wait(found + " !== undefined")
        middle = (
            f"(() => {{ const e = {found}; e.scrollIntoView({{block: 'nearest'}});"
            " const b = e.getClientRects()[0]; return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        x, y = self.evaluate(middle)
        return x, y
