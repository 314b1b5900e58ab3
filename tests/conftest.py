"""What tests share: one torch thread, no download, reproducible examples, a browser."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Set before anything imports torch, so that a test that needs no torch does not pay for it. Sums are bit-identical
# only at an equal number of threads, and two test processes share the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["CLBENCH_CACHE"] = "off"  # no test finds, or leaves, anything in the user's cache

# No deadline: a shared machine is sometimes slow. Derandomised: a run that passed passes again.
settings.register_profile("clbench", deadline=None, derandomize=True)
settings.load_profile("clbench")


# The browser reads from descriptor 3 and writes to 4.
_LAUNCH = "import os, sys; [os.dup2(int(sys.argv[i]), i + 2) for i in (1, 2)]; os.execvp(sys.argv[3], sys.argv[3:])"


class Tab:
    """A page in a headless browser, driven through its pipe."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, mine_out = os.pipe()
        mine_in, theirs_out = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        command = [program, *flags, f"--user-data-dir={profile}", "--window-size=1280,900", "about:blank"]
        launch = [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), *command]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(launch, pass_fds=(theirs_in, theirs_out), stdout=quiet, stderr=quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self.inward, self.outward, self.rest, self.count = mine_in, mine_out, b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: dict[str, str] = {}

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params, **self.session}
        os.write(self.outward, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.inward], [], [], 60)[0], "the browser is silent"
            got = os.read(self.inward, 1 << 20)
            assert got, "the browser has ended"
            self.rest += got
        message, _, self.rest = self.rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def js(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        until = time.monotonic() + 60
        while not self.js("document.body !== null && document.body.dataset.drawn === 'all'"):
            assert time.monotonic() < until, "the page was never drawn"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        box = self.js(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            f" return [b.x + b.width / 2, b.y + b.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def complaints(self) -> list[dict[str, Any]]:
        """What the console holds beside plain messages."""
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
        said = [e for e in self.events if e["method"] == "Runtime.consoleAPICalled"]
        return [e for e in self.events if e["method"] in bad] + [e for e in said if e["params"]["type"] != "log"]

    def close(self) -> None:
        self.session = {}
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.inward)
        os.close(self.outward)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """An empty page; skips where there is no browser."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    opened = Tab(program, tmp_path_factory.mktemp("profile"))
    try:
        opened.attach()
        yield opened
    finally:
        opened.close()
