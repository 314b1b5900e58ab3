"""A child is told and says lines, and how it ended is known."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from clbench.child import Child, show, talk

ECHO = "import sys\nfor line in sys.stdin:\n    print('heard', line.strip(), flush=True)\n"


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def end_of(child: Child) -> tuple[list[str], str]:
    """What it said until it ended, and how it ended."""
    lines = []
    while (how := child.ended()) is None:
        lines += child.said()
        time.sleep(0.01)
    child.stop()
    return lines, how


def test_it_hears_and_speaks_and_leaves_when_nobody_waits() -> None:
    child = Child(python(ECHO))
    child.tell("one")
    assert child.wait(30) == "heard one"
    assert child.said() == []
    assert child.ended() is None
    child.dismiss()
    assert end_of(child) == ([], "")


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("import sys; sys.exit('out of luck')", "left with exit code 1 (out of luck)"),
        ("import os; os._exit(7)", "left with exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
    ],
)
def test_how_it_ended(program: str, how: str) -> None:
    child = Child(python(f"print('last', flush=True); {program}"))
    assert end_of(child) == (["last"], how)
    child.tell("too late")


def test_what_does_not_listen_is_killed_with_all_that_it_started() -> None:
    deaf = "import os, time; print(os.fork() or os.getpid(), flush=True); time.sleep(600)"
    child = Child(python(deaf))
    child.wait(30), child.wait(30)
    began = time.monotonic()
    child.stop(grace=0.1)
    assert time.monotonic() - began < 30
    assert child.ended() == "was ended by SIGKILL"


def test_what_it_left_behind_does_not_keep_it_alive() -> None:
    child = Child(python("import os, time; time.sleep(600) if os.fork() == 0 else print('bye', flush=True)"))
    assert end_of(child) == (["bye"], "")


def test_talk_is_the_same_in_one_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = "import os, sys; print(os.getcwd(), os.environ['MINE'], sys.stdin.readline().strip())"
    here = os.path.realpath(tmp_path)
    assert list(talk(python(program), here, {"MINE": "x"}, ["said"])) == [f"{here} x said"]
    show(python("print('shown')"), here, {}, [])
    assert capsys.readouterr().out == "shown\n"
    with pytest.raises(RuntimeError, match="left with exit code 3"):
        list(talk(python("raise SystemExit(3)"), here, {}, []))
    with pytest.raises(RuntimeError, match=r"could not be started in '.*nowhere' on that machine"):
        list(talk(python(""), str(tmp_path / "nowhere"), {}, []))
