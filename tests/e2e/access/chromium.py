"""A headless Chromium, driven by its DevTools protocol over the websocket client that the kubernetes client brings.

https://chromedevtools.github.io/devtools-protocol/ has the methods that are named here.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..scenario import Deadline, Failed

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = (1500, 2400)
_LOG_NAME = "log.txt"
_START_S = 60
_ANSWER_S = 60


def find_chromium() -> str:
    """The program's path, or an empty string: CHROMIUM names another one."""
    named = os.environ.get("CHROMIUM", "")
    return named or next(filter(None, map(shutil.which, NAMES)), "")


class Page:
    """One tab. Elements are named by CSS selectors; what is awaited is looked for until the deadline."""

    def __init__(self, address: str, deadline: Deadline) -> None:
        import websocket

        self._deadline = deadline
        self._numbers = itertools.count(1)
        # Without the header Origin, which Chromium refuses unless it was told to take it.
        self._socket = websocket.create_connection(address, timeout=_ANSWER_S, suppress_origin=True)
        self.call("Page.enable")
        self.resize(*SIZE)

    def resize(self, width: int, height: int) -> None:
        """Have the page laid out, and pictured, in so many pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one method of the protocol; Failed with Chromium's own words for an error."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") != number:
                continue  # an event
            if "error" in message:
                raise Failed(f"the browser refuses {method}: {message['error'].get('message')}")
            return dict(message["result"])

    def open(self, url: str) -> None:
        """Load an address anew, also where only the part after # differs."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, as JSON."""
        response = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in response:
            raise Failed(f"the page fails at {expression[:200]}: {response['exceptionDetails'].get('text')}")
        return response["result"].get("value")

    def wait_for(self, expression: str, condition: str) -> Any:
        """The first true value of a JavaScript expression."""
        while True:
            if value := self.evaluate(expression):
                return value
            self._deadline.check(f"{condition} in the page, which says: {self.text()[:300]}")
            time.sleep(0.5)

    def has(self, selector: str) -> bool:
        """Whether there is such an element."""
        return bool(self.evaluate(f"!!document.querySelector({json.dumps(selector)})"))

    def wait_for_element(self, selector: str, title: str) -> None:
        """Wait until there is such an element."""
        self.wait_for(f"!!document.querySelector({json.dumps(selector)})", title)

    def text(self) -> str:
        """All that the page says, in one line."""
        return " ".join(str(self.evaluate("document.body ? document.body.innerText : ''")).split())

    def click(self, selector: str) -> None:
        """Press the left button in the middle of an element, as a hand would."""
        position = self.wait_for(_middle(selector), selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=position[0], y=position[1], button="left", clickCount=1)

    def fill(self, selector: str, text: str) -> None:
        """Write into a field, over what is there."""
        self.click(selector)
        self.evaluate(f"(document.querySelector({json.dumps(selector)})).select()")
        if text:
            self.call("Input.insertText", text=text)
        else:
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key="Delete", code="Delete", windowsVirtualKeyCode=46)

    def screenshot(self, file: Path) -> None:
        image = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(image))


def _middle(selector: str) -> str:
    """An expression for the place of an element that is shown, or null."""
    return f"""(() => {{
        const element = document.querySelector({json.dumps(selector)});
        if (!element || element.disabled) return null;
        const middle = () => {{
            const box = element.getBoundingClientRect();
            return box.width && box.height ? [box.x + box.width / 2, box.y + box.height / 2] : null;
        }};
        const within = (value, size) => value >= 0 && value < size;
        const seen = place => place && within(place[0], innerWidth) && within(place[1], innerHeight);
        if (!seen(middle())) element.scrollIntoView({{block: "center"}});
        return seen(middle()) ? middle() : null;
    }})()"""


@contextlib.contextmanager
def opened(program: str, deadline: Deadline) -> Iterator[Page]:
    """A page of a browser that begins and ends with the block, with a profile of its own."""
    with tempfile.TemporaryDirectory(prefix="imagemill-e2e-", ignore_cleanup_errors=True) as profile:
        words = [
            program, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-proxy-server",
            f"--window-size={SIZE[0]},{SIZE[1]}", "about:blank",
        ]  # fmt: skip
        if os.geteuid() == 0:
            words.insert(1, "--no-sandbox")  # which root's Chromium asks for
        with (Path(profile) / _LOG_NAME).open("wb") as log_file:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file)
        try:
            page = Page(_address(process, Path(profile)), deadline)
            try:
                yield page
            finally:
                page.close()
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """The websocket of the first tab, when the browser is up; Failed with its last words when it is not."""
    until = time.monotonic() + _START_S
    file = profile / "DevToolsActivePort"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, IndexError, ValueError):
            port = int(file.read_text().splitlines()[0])
            with direct.open(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.2)
    process.kill()
    log_text = (profile / _LOG_NAME).read_text(errors="replace")
    raise Failed(f"Chromium does not start: {' '.join(log_text.split())[-500:] or 'without a word'}")
