"""Interrupts: Ctrl-C that is heeded wherever it falls."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

AGAIN_SECONDS = 0.02


@contextlib.contextmanager
def heeded() -> Iterator[None]:
    """Within the block SIGINT raises KeyboardInterrupt in the main thread, and never where that would be ignored.

    Python prints and forgets what is raised in a callback of its garbage collector, of which some libraries have one;
    a signal falls there often, since it is first looked at when the collection ends. It is then sent again. Outside of
    the main thread, and where the program that started this one had SIGINT ignored, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) in (
        signal.SIG_IGN,
        None,
    ):
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt(number: int, frame: FrameType | None) -> None:
    """The handler itself."""
    collecting = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in collecting:
            again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
