"""Fingerprints: a hash of the source that a method is made of, taken without importing it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path


def of_file(path: Path) -> str:
    """Hash of one source file: that of a method given by its path."""
    return _digest([path])


def of_module(name: str) -> str:
    """Hash of module `name` and of what belongs to it among its imports, and theirs in turn.

    To a module of clbench belong its own package and the private modules beside it; to one of another
    distribution that whole distribution's top-level package. Docstrings, comments and layout do not count: a
    better word for what a method does must not make its results stale. Raises ModuleNotFoundError when there is no
    such module.
    """
    waiting, found = [name], dict[str, Path]()
    while waiting:
        module = waiting.pop()
        path = _source(module, _room(name))
        if path is None and module == name:
            raise ModuleNotFoundError(f"no module called '{name}'")
        if path is None or module in found:
            continue
        found[module] = path
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        waiting += [other for other in _imports(path, package) if _belongs(other, name)]
    return _digest([found[module] for module in sorted(found)])


def _room(name: str) -> str:
    """The package in which a module's own may be: clbench.methods, or another distribution's top."""
    parts = name.split(".")
    return ".".join(parts[:2] if parts[0] == "clbench" else parts[:1])


def _belongs(module: str, to: str) -> bool:
    room, parts = _room(to), to.split(".")
    if parts[0] != "clbench":
        return module == room or module.startswith(f"{room}.")
    own = ".".join(parts[:3])
    return module.startswith(f"{room}._") or module == own or module.startswith(f"{own}.")


def _source(module: str, room: str) -> Path | None:
    """Where the source of a module of `room` lies; only the room is asked for, so that nothing in it is imported."""
    spec = importlib.util.find_spec(room)
    if spec is None:
        return None
    if module == room:
        return Path(spec.origin) if spec.origin else None
    below = Path(*module.removeprefix(f"{room}.").split("."))
    places = [Path(folder) / below for folder in spec.submodule_search_locations or ()]
    candidates = [path for place in places for path in (place / "__init__.py", place.with_name(f"{place.name}.py"))]
    return next((path for path in candidates if path.is_file()), None)


def _imports(path: Path, package: str) -> list[str]:
    """Names that may be modules: of `from a import b` both a and a.b. `package`: where a relative import begins."""
    names: list[str] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return names


def _tree(path: Path) -> ast.Module:
    """The parsed source; that of a file that does not parse is its text. Whoever imports it is told."""
    return _parsed(path.read_bytes())


@cache  # siblings are shared by many
def _parsed(content: bytes) -> ast.Module:
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError):
        return ast.Module([ast.Assign([], ast.Constant(content.decode(errors="replace")))], [])


def _code(node: object) -> str:
    """All of a parsed source but docstrings, comments and layout.

    Empty fields are left out: versions of Python differ in which of them there are.
    """
    if isinstance(node, list):
        return f"[{' '.join(_code(item) for item in node if not _is_text(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [f"{name}={_code(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({' '.join(fields)})"


def _is_text(node: object) -> bool:
    """Whether it is a string that stands alone: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(_code(_tree(path)).encode(errors="replace"))
        total.update(b"\0")
    return total.hexdigest()[:12]
