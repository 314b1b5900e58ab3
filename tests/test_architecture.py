"""The house: who may import whom, what loads without torch, and how long a function may be."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from clbench.methods import CONTENTS as METHODS
from clbench.terms import Schedule

ROOT = Path(__file__).parents[1]

# Within a floor, a bar is a step: what stands right of it may also import what stands left of it.
FLOORS = (
    "errors seeding terms padding text processes child job | record datafolder metrics scoring stream transforms "
    "recipe files glyphs words contents fingerprint determinism interrupts means | model lease manifest outcomes",
    "data | protocol backbones adapters meter pace checkpoint origin | method imagestore peers",
    "loader featurecache answers plugin untaught | suite strategy store stats row remarks | table tiny upkeep index "
    "| significance arrange verify | differences | repetition",
    "report imports methods suites",
    "marking plan costs | recall memory budget | exam shortage | state | filing | runner | executors | journal "
    "| trackers tune trial live team measure | conformance",
    "catalog",
    "memo views options again | forecast | compare rerun skeleton doctor "
    "| cli_cache cli_data cli_report cli_runs cli_store cli_tables cli_verify | cli worker follower | __main__",
)
FLOOR = {
    name: (floor, step)
    for floor, steps in enumerate(FLOORS)
    for step, names in enumerate(steps.split("|"))
    for name in names.split()
}

OPEN_ROOMS = {"adapters", "backbones", "data", "executors", "imports", "report", "scoring"}
"""Packages whose modules may import one another. In methods and suites only private siblings are shared."""

TORCH_FREE = [
    *("record", "metrics", "store", "table", "stats", "report", "contents", "fingerprint", "errors", "protocol"),
    *("significance", "arrange", "terms", "remarks", "recipe", "files", "catalog", "cli", "methods", "suites"),
    *("data.prepare", "differences", "imports.records"),
]
HEAVY = ("torch", "torchvision", "avalanche", "transformers", "timm", "peft")

ROOMS = {"clbench": "clbench", "methods": "clbench.methods", "suites": "clbench.suites"}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """The import name: methods/replay.py is clbench.methods.replay."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([ROOMS[folder], *rest]).removesuffix(".__init__")


SOURCES = {module_name(path): path for path in files(*ROOMS)}
EVERY_FILE = files(*ROOMS, "tests", "benchmarks")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(module: str) -> str:
    """The first name below clbench: clbench.methods.treelora.tree is in methods."""
    return module.split(".")[1] if "." in module else ""


def imported(module: str) -> Iterator[str]:
    """Every module of the house that this one imports, also inside functions and for types only."""
    for node in ast.walk(tree(SOURCES[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "clbench")
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "clbench":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in SOURCES else str(node.module) for name in names)


def shares_a_private_room(module: str, target: str) -> bool:
    """Whether a method or suite imports from its own package or a private sibling."""
    own = module.split(".")[2:3]
    name = target.split(".")[2:3]
    return bool(name) and (name == own or name[0].startswith("_"))


def may_import(module: str, target: str) -> bool:
    here, there = room(module), room(target)
    if not there:  # the version
        return True
    if here == there:
        return here in OPEN_ROOMS or shares_a_private_room(module, target)
    if there in ("methods", "suites"):
        return here == "catalog"
    return FLOOR[there] < FLOOR[here]


def test_imports_are_found() -> None:
    assert set(imported("clbench.methods")) == {"clbench.contents"}
    assert {"clbench.errors", "clbench.model"} <= set(imported("clbench.backbones.vision"))


def test_every_module_has_a_floor() -> None:
    assert {module for module in SOURCES if room(module) and room(module) not in FLOOR} == set()


@pytest.mark.parametrize("module", [module for module in SOURCES if room(module) in FLOOR])
def test_imports_only_lower_floors(module: str) -> None:
    assert [target for target in imported(module) if not may_import(module, target)] == []


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("clbench.runner", "clbench.store", True),
        ("clbench.store", "clbench.runner", False),
        ("clbench.runner", "clbench.methods", False),
        ("clbench.catalog", "clbench.methods", True),
        ("clbench.methods.ewc", "clbench.suites.digits", False),
        ("clbench.methods.ewc", "clbench.methods.replay", False),
        ("clbench.methods.ewc", "clbench.methods._buffer", True),
        ("clbench.methods.treelora.method", "clbench.methods.treelora.tree", True),
        ("clbench.stream", "clbench.errors", True),
        ("clbench.errors", "clbench.seeding", False),
        ("clbench.executors", "clbench.runner", True),
        ("clbench.runner", "clbench.executors", False),
        ("clbench.metrics", "clbench.record", False),
    ],
)
def test_the_rule_itself(module: str, target: str, allowed: bool) -> None:
    assert may_import(module, target) is allowed


def test_tables_load_without_torch() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {TORCH_FREE}:\n"
        "    importlib.import_module('clbench.' + name)\n"
        f"    heavy = sorted(set({HEAVY}) & set(sys.modules))\n"
        "    assert not heavy, f'clbench.{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_page_holds_a_docstring_and_the_version() -> None:
    docstring, version = tree(ROOT / "clbench" / "__init__.py").body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(version, ast.Assign)
    assert [ast.unparse(target) for target in version.targets] == ["__version__"]


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.split(".")[-1].startswith("_")])
def test_public_modules_have_a_docstring(module: str) -> None:
    assert ast.get_docstring(tree(SOURCES[module]))


@pytest.mark.parametrize("path", EVERY_FILE, ids=relative)
def test_files_and_functions_are_short(path: Path) -> None:
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = {node.name: typing.cast(int, node.end_lineno) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def docstrings(module: ast.Module) -> set[int]:
    """The identities of the expressions that only document: any bare string."""
    return {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}


def words(path: Path) -> list[str]:
    """Identifiers and string constants of a file, without its docstrings."""
    nodes = list(ast.walk(tree(path)))
    prose = docstrings(tree(path))
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    names += [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    names += [node.name for node in nodes if isinstance(node, ast.alias)]
    strings = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return names + [str(node.value) for node in strings if id(node) not in prose]


ENGLISH = {"joint", "replay"}
"""Names that are also the field's ordinary words: a sentence may hold them, only the bare name is refused."""


def names_a_method(word: str, method: str) -> bool:
    if method in ENGLISH:
        return word == method and word not in typing.get_args(Schedule)
    return re.search(rf"\b{method}\b", word) is not None


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_named_only_at_home(method: str) -> None:
    home = METHODS[method].module
    strangers = {
        name: path
        for name, path in SOURCES.items()
        if room(name) not in {"suites", "tiny"}
        and name != "clbench.methods"
        and name.split(".")[:3] != home.split(".")[:3]
    }
    found = {name: [word for word in words(path) if names_a_method(word, method)] for name, path in strangers.items()}
    # The one documented constant: overheads are measured against it. And a system that is called as its method.
    allowed = {"clbench.table": [[], [method]], "clbench.imports": [[], [method]]}
    assert {name: hits for name, hits in found.items() if hits not in allowed.get(name, [[]])} == {}


@pytest.mark.parametrize("module", [name for name, path in SOURCES.items() if ">>>" in path.read_text("utf-8")])
def test_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
