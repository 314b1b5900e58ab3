"""Fingerprints: a hash of the source that a method is made of, taken without importing it."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from pathlib import Path


def of_file(path: Path) -> str:
    """Hash of one source file: that of a method given by its path."""
    return _digest([path])


def of_module(name: str) -> str:
    """Hash of module `name` and of the private siblings (and own package) that it imports, in turn.

    Line endings do not count. Raises ModuleNotFoundError when there is no such module.
    """
    room = ".".join(name.split(".")[:2])
    waiting, found = [name], dict[str, Path]()
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            if module == name:
                raise ModuleNotFoundError(f"no module called '{name}'")
            continue
        found[module] = Path(spec.origin)
        waiting += [other for other in _imports(found[module]) if _belongs(other, name, room)]
    return _digest([found[module] for module in sorted(found)])


def _belongs(module: str, to: str, room: str) -> bool:
    own_package = ".".join(to.split(".")[:3]) if to.count(".") > 2 else to
    private = module.startswith(f"{room}._")
    return private or (module.startswith(f"{own_package}.") or module == own_package)


def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if _is_module(name)]


def _is_module(name: str) -> bool:
    if not name.startswith("clbench."):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes().replace(b"\r\n", b"\n"))
        total.update(b"\0")
    return total.hexdigest()[:12]
