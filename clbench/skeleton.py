"""Skeleton: a small method of one's own to start from, with its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from clbench import catalog
from clbench.errors import BadValue, ClbenchError
from clbench.files import write_atomically

_METHOD = '''\
"""$NAME: a LoRA whose weights are drawn back to where the last task left them."""

import torch
from pydantic import Field

from clbench.method import Method, Workbench
from clbench.strategy import Plugin, Strategy


class _Pull(Plugin):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight, self.anchor = weight, torch.empty(0)

    def before_backward(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        if len(self.anchor):
            away = torch.nn.utils.parameters_to_vector(strategy.model.trainable()) - self.anchor.to(strategy.device)
            strategy.loss += self.weight * away.square().sum()

    def after_training_exp(self, strategy: Strategy, *args: object, **kwargs: object) -> None:
        self.anchor = torch.nn.utils.parameters_to_vector(strategy.model.trainable()).detach()

    def state(self) -> dict[str, torch.Tensor]:
        return {"anchor": self.anchor}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.anchor = state["anchor"]


class $CLASS(Method):
    """Loss + weight * |theta - theta*|^2, where theta* is what was trained when the last task ended."""

    name = "$NAME"
    paper = ""
    weight: float = Field(default=0.1, ge=0, description="strength of the pull; 0 turns it off")

    def plugins(self, bench: Workbench) -> list[Plugin]:
        """Attach the recipe's LoRA and return the pull: fresh ones for every run."""
        bench.lora()
        return [_Pull(self.weight)]
'''

_TEST = '''\
"""$NAME passes the laws and learns."""

from pathlib import Path

from typer.testing import CliRunner

from clbench import catalog, conformance
from clbench.cli import app

METHOD = $SPEC


def test_laws() -> None:
    kind = catalog.method_type(METHOD)
    verdicts = list(conformance.check(kind.cls, kind.fingerprint))
    assert [f"{verdict.law}: {verdict.reason}" for verdict in verdicts if verdict.passed is False] == []


def test_runs(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", "tiny", "--method", METHOD, "--store", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "$NAME" in done.output
'''

_LISTED = '"$NAME"'
_BESIDE = """f"{Path(__file__).with_name('$NAME.py')}:$CLASS\""""


def write_method(name: str, out: Path) -> str:
    """Write NAME.py and test_NAME.py into the folder `out`; returns what to do next.

    In a checkout of clbench, where `out` is its folder of methods, the test goes where the other methods' are. Raises
    BadValue for a name that cannot be used, ClbenchError where a file exists or the folder is absent.
    """
    _refuse(name, out)
    at_home = out.resolve() == Path.cwd() / "methods" and (out / "__init__.py").is_file()
    kind = "".join(part.capitalize() for part in name.split("_"))
    spec = _LISTED if at_home else _BESIDE
    method = out / f"{name}.py"
    test = Path("tests/methods") / f"test_{name}.py" if at_home else out / f"test_{name}.py"
    for path in (method, test):
        if path.exists():
            raise ClbenchError(f"'{path}' exists and is not overwritten; choose another name or move it away.")
    for path, text in ((method, _METHOD), (test, _TEST)):
        filled = text.replace("$SPEC", spec).replace("$NAME", name).replace("$CLASS", kind)
        write_atomically(path, filled.encode())
    if at_home:
        line = f'    "{name}": Entry("clbench.methods.{name}:{kind}", "what it does in one line", "its paper"),'
        return f"wrote {method} and {test}\nAdd to CONTENTS in {out / '__init__.py'}:\n{line}"
    return f"wrote {method} and {test}\nTry it: clbench run tiny --method {method}:{kind}"


def _refuse(name: str, out: Path) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise BadValue(f"'{name}' cannot name a method's file; use lower-case letters, digits and '_', a letter first.")
    if name in catalog.methods():
        raise BadValue(f"there is a method called '{name}' already; choose another name.")
    if not out.is_dir():
        state = "is not a folder" if out.exists() else "does not exist"
        raise ClbenchError(f"'{out}' {state}; create the folder or choose another with --out.")
