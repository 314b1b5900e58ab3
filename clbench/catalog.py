"""Catalog: the only place that turns names into objects."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from clbench import fingerprint
from clbench.backbones import CONTENTS as BACKBONES
from clbench.contents import Entry
from clbench.errors import BadValue, ClbenchError, UnknownName
from clbench.methods import CONTENTS as _METHODS
from clbench.suites import CONTENTS as _LISTED

if TYPE_CHECKING:
    from clbench.method import Method
    from clbench.plan import Row
    from clbench.suite import Suite

__all__ = ["BACKBONES", "MethodType", "current_fingerprints", "method_type", "methods", "rows", "suite", "suites"]

_SUITES: dict[str, Entry] = {
    **_LISTED,
    "tiny": Entry("clbench.tiny:tiny", "random patterns on a random ViT, for trying things out in seconds"),
}
ENTRY_POINTS = "clbench.methods"
"""Installed packages may register a method: name = "package.module:Class"."""


def methods() -> dict[str, Entry]:
    """Every method by name: ours, then those of installed packages."""
    found = dict(_METHODS)
    for point in metadata.entry_points(group=ENTRY_POINTS):
        found.setdefault(point.name, Entry(point.value, f"from the package '{point.dist.name if point.dist else '?'}'"))
    return found


def suites() -> dict[str, Entry]:
    """Every suite by name."""
    return dict(_SUITES)


def suite(name: str, recipe: Mapping[str, str] | None = None) -> Suite:
    """The suite called `name`, with fields of its recipe replaced by what the words in `recipe` say."""
    if name not in _SUITES:
        raise UnknownName("suite", name, _SUITES)
    found: Suite = _SUITES[name].load()
    return replace(found, recipe=_changed(found.recipe, recipe or {}, "recipe")) if recipe else found


@dataclass(frozen=True)
class MethodType:
    """A method's class and the fingerprint of its source."""

    cls: type[Method]
    fingerprint: str


def method_type(spec: str) -> MethodType:
    """The class named by a listed name or by `FILE.py:CLASS`."""
    if ".py" in spec:
        return _from_file(spec)
    listed = methods()
    if spec not in listed:
        raise UnknownName("method", spec, listed)
    try:
        cls: type[Method] = listed[spec].load()
    except (ImportError, AttributeError) as error:
        raise ClbenchError(f"the method '{spec}' cannot be loaded from {listed[spec].target}: {error}.") from error
    return MethodType(cls, fingerprint.of_module(listed[spec].module))


def _from_file(spec: str) -> MethodType:
    from clbench.method import Method

    place, _, wanted = spec.partition(":")
    path = Path(place)
    if not path.is_file():
        raise ClbenchError(f"no file at '{place}'; pass --method FILE.py:CLASS with an existing file.")
    module = _import_file(path)
    found = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    }
    if not found:
        raise ClbenchError(f"'{place}' defines no method; a method is a class derived from clbench.method.Method.")
    if not wanted and len(found) > 1:
        raise ClbenchError(f"'{place}' defines several methods; say which: {', '.join(f'{place}:{n}' for n in found)}.")
    wanted = wanted or next(iter(found))
    if wanted not in found:
        raise UnknownName(f"method class in '{place}'", wanted, found)
    cls = found[wanted]
    if not isinstance(getattr(cls, "name", None), str):
        raise ClbenchError(f"{wanted} in '{place}' has no name; add a line like: name = \"{wanted.lower()}\".")
    if cls.name in methods():
        raise ClbenchError(f"{wanted} in '{place}' calls itself '{cls.name}', which is taken; choose another name.")
    return MethodType(cls, fingerprint.of_file(path))


def _import_file(path: Path) -> ModuleType:
    name = f"clbench_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ClbenchError as error:
        raise ClbenchError(f"'{path}' does not import: {error}") from error
    except Exception as error:  # whatever a user's file may raise
        raise ClbenchError(f"'{path}' does not import: {type(error).__name__}: {error}.") from error
    return module


def rows(suite: Suite, specs: Sequence[str], settings: Mapping[str, Mapping[str, str]]) -> list[Row]:
    """The methods to compare: the suite's own contenders, or those named, with `--set` words put in."""
    from clbench.plan import Row
    from clbench.suite import Contender

    contenders = [Contender(spec) for spec in specs] if specs else list(suite.contenders)
    made: list[Row] = []
    reached: set[str] = set()
    for contender in contenders:
        kind = method_type(contender.method)
        name = kind.cls.name
        tuned = dict(suite.settings.get(name, {}))
        base = _built(kind.cls, tuned, name)
        words = settings.get(name, {})
        reached.add(name)
        method = _built(kind.cls, _spoken(kind.cls, words, name, {**tuned, **contender.settings}), name)
        made.append(Row(method, _variant(suite, name, method, base), kind.fingerprint))
    unreached = set(settings) - reached
    if unreached:
        raise UnknownName("method in this run", sorted(unreached)[0], reached)
    return list({(row.method.name, row.variant): row for row in made}.values())


def _variant(suite: Suite, name: str, method: Method, base: Method) -> str:
    """What tells the row from the suite's plain one: a contender's label, or the changed fields in words."""
    mine, plain = method.model_dump(mode="json"), base.model_dump(mode="json")
    changed = {field: value for field, value in mine.items() if value != plain[field]}
    for contender in suite.contenders:
        if contender.method == name and contender.label and dict(contender.settings) == changed:
            return contender.label
    return ", ".join(f"{field}={value}" for field, value in changed.items())


def _built(cls: type[Method], fields: Mapping[str, Any], name: str) -> Method:
    try:
        return cls(**fields)
    except ValidationError as error:
        raise _bad_value(error, name, cls.model_fields) from error


def _spoken(cls: type[BaseModel], words: Mapping[str, str], owner: str, into: dict[str, Any]) -> dict[str, Any]:
    """`into` with the fields that the words name, each read as the field's type wants it."""
    for field, text in words.items():
        if field not in cls.model_fields:
            raise UnknownName(f"field of {owner}", field, cls.model_fields)
        into[field] = _read(cls, field, text, owner)
    return into


def _read(cls: type[BaseModel], field: str, text: str, owner: str) -> Any:
    info = cls.model_fields[field]
    annotation = info.annotation
    if text.lower() in ("none", "null"):
        value: Any = None
    elif "tuple" in str(annotation):
        value = tuple(part.strip() for part in text.split(","))
    else:
        value = text
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise BadValue(
            f"{owner}.{field} takes {_kind(annotation)}; got '{text}'. See 'clbench show {owner}'."
            if owner != "recipe"
            else f"{owner}.{field} takes {_kind(annotation)}; got '{text}'."
        ) from error


def _kind(annotation: Any) -> str:
    text = str(annotation) if not inspect.isclass(annotation) else annotation.__name__
    words = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a word"}
    if text in words:
        return words[text]
    return text.replace("typing.", "").replace("Literal", "one of ").replace("Optional", "")


def _changed(recipe: BaseModel, words: Mapping[str, str], owner: str) -> Any:
    fields = _spoken(type(recipe), words, owner, recipe.model_dump())
    try:
        return type(recipe)(**fields)
    except ValidationError as error:
        raise _bad_value(error, owner, type(recipe).model_fields) from error


def _bad_value(error: ValidationError, owner: str, known: Mapping[str, Any]) -> ClbenchError:
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return UnknownName(f"field of {owner}", field, known)
    what = first["msg"][0].lower() + first["msg"][1:]
    return BadValue(f"{owner}{f'.{field}' if field else ''}: {what}; got {first['input']!r}."[:400])


def current_fingerprints() -> dict[str, str]:
    """Name -> fingerprint of every listed method's source as it is now, without importing any."""
    return {name: fingerprint.of_module(entry.module) for name, entry in methods().items()}
