"""Ctrl-C is heeded, also where Python would print and forget it."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from clbench.interrupts import heeded


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """Ctrl-C as a shell in the foreground leaves it; one in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    wait()


def collected() -> None:
    gc.collect()
    wait()


def wait() -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.001)


def test_an_interrupt_is_raised_where_it_falls() -> None:
    with pytest.raises(KeyboardInterrupt), heeded():
        interrupted()


def test_in_a_callback_of_the_collector_it_is_not_lost() -> None:
    fell = []

    def callback(phase: str, info: dict[str, Any]) -> None:
        if not fell:
            fell.append(phase)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt), heeded():
            collected()
    finally:
        gc.callbacks.remove(callback)
    assert fell == ["start"]


def test_the_handler_of_before_is_put_back_and_other_threads_have_none() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []
    with heeded():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before

    def look() -> None:
        with heeded():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert inside == [before]


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heeded():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGINT, before)
