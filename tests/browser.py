"""A headless Chromium, driven by the W3C WebDriver protocol of its chromedriver; standard library only."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars"]  # fmt: skip


def there() -> bool:
    """True if it is installed (Debian: chromium and chromium-driver)."""
    return all(map(shutil.which, ("chromium", "chromedriver")))


class Browser:
    """One window."""

    def __init__(self, base: str, session: str) -> None:
        self.at = f"{base}/session/{session}"

    def ask(self, path: str, said: Any = None) -> Any:
        """What the driver answers to a command; without a body it is a GET."""
        return _ask(self.at + path, said)

    def open(self, page: Path) -> None:
        """Load a file."""
        self.ask("/url", {"url": page.as_uri()})

    def run(self, script: str, *given: Any) -> Any:
        """What a script returns; it runs beside the page, whose policy does not hold for it."""
        return self.ask("/execute/sync", {"script": script, "args": list(given)})

    def dialog(self) -> str | None:
        """The text of a dialog that is open; None if there is none."""
        try:
            return str(self.ask("/alert/text"))
        except urllib.error.HTTPError as none:
            assert orjson.loads(none.read())["value"]["error"] == "no such alert"
            return None

    def cdp(self, command: str, **params: Any) -> Any:
        """A command of the Chrome DevTools protocol."""
        return self.ask("/goog/cdp/execute", {"cmd": command, "params": params})

    def scheme(self, name: str) -> None:
        """light or dark."""
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self, path: Path) -> bytes:
        """A picture of the whole page, as PNG; it is written there, too."""
        size = self.cdp("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = base64.b64decode(self.cdp("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])
        path.write_bytes(data)
        return data

    def log(self) -> list[str]:
        """What the console and the network said since the last time."""
        return [f"{one['level']}: {one['message']}" for one in self.ask("/se/log", {"type": "browser"})]


@contextlib.contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A browser with a new profile, which ends with the context."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        place = os.environ | {"TMPDIR": "/tmp"}  # a socket is to be there, whose path has a hundred characters at most
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=place)
        try:
            base = f"http://127.0.0.1:{_port(driver)}"
            options = {"args": [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]}
            wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options, "unhandledPromptBehavior": "ignore",
                                      "goog:loggingPrefs": {"browser": "ALL"}}}  # fmt: skip
            session = _ask(f"{base}/session", {"capabilities": wanted})["sessionId"]
            yield Browser(base, session)
            _ask(f"{base}/session/{session}", method="DELETE")
        finally:
            driver.terminate()
            driver.wait()
            if driver.stdout:
                driver.stdout.close()


def _port(driver: subprocess.Popen[bytes]) -> int:
    """The port that a driver has taken, once it listens there."""
    assert driver.stdout
    for line in driver.stdout:
        if said := re.search(rb"started successfully on port (\d+)", line):
            return int(said[1])
    raise AssertionError("chromedriver has not started")


def _ask(url: str, said: Any = None, method: str | None = None) -> Any:
    data = None if said is None else orjson.dumps(said)
    asked = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(asked, timeout=300) as answer:
        return orjson.loads(answer.read())["value"]
