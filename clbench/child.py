"""Child: another process that is told lines and says lines, followed without waiting for it."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

GRACE_SECONDS = 10.0
"""So long a child that is told to end may put down what it holds, before it is killed."""


class Child:
    """A process of its own session: Ctrl-C reaches it only through whoever started it.

    It says lines on its standard output; of its standard error only the last words are kept. That nobody waits for it
    any more it sees by the end of its standard input. Raises OSError where it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], folder: str | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the child)
        try:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError:
            self._errors.close()
            raise
        self._lines, self._how = queue.SimpleQueue[str](), ""
        self._listener = threading.Thread(target=self._listen, name="child", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def tell(self, line: str) -> None:
        """One line; lost where it has ended, which `ended` says."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # closed there, or here
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def said(self) -> list[str]:
        """The lines that it said since last asked."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._lines.get_nowait())
        return lines

    def wait(self, seconds: float) -> str | None:
        """The next line, waited for so long; None where none came."""
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            return None

    def ended(self) -> str | None:
        """None while it lives or was not heard out; else how it ended in words, '' where it left in peace."""
        if self._listener.is_alive() or not self._lines.empty():
            return None
        return self._how

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """End it: it may put down what it holds, or is killed after `grace` seconds."""
        self.dismiss()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._kill()
        self._listener.join()

    def dismiss(self) -> None:
        """Let it see that nobody waits for it any more."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        threading.Thread(target=self._bury, name="burial", daemon=True).start()
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        code = self._process.wait()
        self._how = _words(code, _last_words(self._errors)) if code else ""
        self._process.stdout.close()
        self._errors.close()

    def _bury(self) -> None:
        """Once it has ended, end what it started, which may keep its output open."""
        self._process.wait()
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def _words(code: int, last: str) -> str:
    """How a process with this exit code ended.

    >>> _words(-9, ""), _words(3, "out of luck")
    ('was ended by SIGKILL', 'left with exit code 3 (out of luck)')
    """
    if code >= 0:
        how = f"left with exit code {code}"
    elif -code in set(signal.Signals):
        how = f"was ended by {signal.Signals(-code).name}"
    else:
        how = f"was ended by signal {-code}"
    return f"{how} ({last})" if last else how


def _last_words(errors: IO[bytes]) -> str:
    """The last line that is not empty, of at most 300 characters."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 4096))
    lines = [line.strip() for line in errors.read().decode("utf-8", "replace").splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "")


def talk(command: Sequence[str], folder: str, environment: Mapping[str, str], told: Sequence[str]) -> Iterator[str]:
    """Start a child, tell it the lines, and give what it says as it comes.

    For places that start processes elsewhere: only strings go in and out. Raises RuntimeError with how it ended where
    that was not in peace.
    """
    try:
        child = Child(command, folder, environment)
    except OSError as error:
        raise RuntimeError(f"could not be started in '{folder}' on that machine ({error.strerror})") from error
    try:
        for order in told:
            child.tell(order)
        while (how := child.ended()) is None:
            if (line := child.wait(0.2)) is not None:
                yield line
        if how:
            raise RuntimeError(how)
    finally:
        child.stop()


def show(command: Sequence[str], folder: str, environment: Mapping[str, str], told: Sequence[str]) -> None:
    """As `talk`, with what it says on the standard output."""
    for line in talk(command, folder, environment, told):
        print(line, flush=True)
