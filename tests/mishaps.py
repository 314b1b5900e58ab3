"""Methods to which something happens before their second task, as CLBENCH_TEST_MISHAP says; see test_workers.

What they learn does not depend on it, so that runs with and without a mishap can be compared.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from clbench.method import Method, Workbench
from clbench.strategy import Plugin, Strategy


class _Mishap(Plugin):
    def before_training_exp(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        what, _, marker = os.environ.get("CLBENCH_TEST_MISHAP", "").partition(":")
        if strategy.task_index != 1 or not what or Path(marker).exists():
            return
        Path(marker).write_text(str(os.getpid()))
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)  # whoever reads the marker ends it


class Unlucky(Method):
    """A LoRA, once killed or held up."""

    name = "unlucky"
    paper = ""

    def plugins(self, bench: Workbench) -> list[Plugin]:
        """The recipe's LoRA, and the mishap."""
        bench.lora()
        return [_Mishap()]


class Raising(Method):
    """Fails in Python."""

    name = "raising"
    paper = ""

    def plugins(self, bench: Workbench) -> list[Plugin]:
        """None."""
        raise RuntimeError("out of luck")


class Leaving(Method):
    """Takes its process with it, every time."""

    name = "leaving"
    paper = ""

    def plugins(self, bench: Workbench) -> list[Plugin]:
        """None."""
        os._exit(7)
