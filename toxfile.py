"""The tox runner `shared`: environments that name the same folder and the same packages use one installation.

tox 4 rebuilds a folder as soon as an environment of another name uses it. Ours differ in their commands alone, and
torch is several GB, so this runner leaves the name out of that comparison. Everything else still rebuilds it: another
interpreter, or a package that is no longer asked for.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class NamelessInfo(Info):
    """What tox remembers of a folder, without the name of the environment that used it last."""

    @contextmanager
    def compare(
        self, value: Any, section: str, sub_section: str | None = None
    ) -> Generator[tuple[bool, Any | None], None, None]:
        """Compare as tox does, under one name for all."""
        if section == ToxEnv.__name__:
            value = {**value, "name": "shared"}
        with super().compare(value, section, sub_section) as equal_and_old:
            yield equal_and_old


class SharedRunner(VirtualEnvRunner):
    """tox's ordinary virtual environment, with that memory."""

    @staticmethod
    def id() -> str:
        """Return the name for `runner =` in tox.ini."""
        return "shared"

    @property
    def cache(self) -> Info:
        """The memory of the folder."""
        return NamelessInfo(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    """Tell tox of the runner."""
    register.add_run_env(SharedRunner)
