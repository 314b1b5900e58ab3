"""Catalog: the only place that turns names into objects."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from clbench import fingerprint
from clbench.backbones import CONTENTS as BACKBONES
from clbench.backbones import FAMILIES, WEIGHTS
from clbench.contents import Entry
from clbench.errors import BadValue, ClbenchError, UnknownName
from clbench.methods import CONTENTS as _METHODS
from clbench.suites import CONTENTS as _LISTED

if TYPE_CHECKING:
    from clbench.method import Method
    from clbench.plan import Row
    from clbench.suite import Contender, Files, Suite

__all__ = [
    "BACKBONES",
    "MethodType",
    "current_fingerprint",
    "current_fingerprints",
    "kind_of",
    "method_type",
    "methods",
    "rows",
    "settings",
    "suite",
    "suites",
    "word",
]

_SUITES: dict[str, Entry] = {
    **_LISTED,
    "tiny": Entry("clbench.tiny:tiny", "random patterns on a random ViT, for trying things out in seconds"),
    "tiny-text": Entry("clbench.tiny:tiny_text", "symbols among letters for a random language model, in seconds"),
}
ENTRY_POINTS = "clbench.methods"
"""Installed packages may register a method: name = "package.module:Class"."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""What a method may be called: its name is also a folder in the store."""


def methods() -> dict[str, Entry]:
    """Every method by name: ours, then those of installed packages."""
    found = dict(_METHODS)
    for point in metadata.entry_points(group=ENTRY_POINTS):
        found.setdefault(point.name, Entry(point.value, f"from the package '{point.dist.name if point.dist else '?'}'"))
    return found


def suites() -> dict[str, Entry]:
    """Every suite by name."""
    return dict(_SUITES)


def suite(
    name: str,
    recipe: Mapping[str, str] | None = None,
    *,
    files: Files | None = None,
    backbone: str = "",
    weights: str = "default",
    remote_code: bool = False,
) -> Suite:
    """The suite called `name`, or the same otherwise.

    For all methods alike: fields of the recipe are replaced by what the words in `recipe` say, the data by other
    `files`, the backbone by another of `backbones.CONTENTS` or of a family, its weights by others of
    `backbones.WEIGHTS`. `remote_code`: whether code that came with the backbone may run.
    """
    if name not in _SUITES:
        raise UnknownName("suite", name, _SUITES)
    found: Suite = _SUITES[name].load()
    if files is not None:
        found = found.of(files)
    _refuse_unknown_backbone(backbone, weights)
    if backbone:
        found = replace(found, backbone=backbone)
    if weights != "default":
        found = replace(found, weights=weights)
    if remote_code:
        found = replace(found, remote_code=True)
    if not recipe:
        return found
    others = {method: {k: v for k, v in own.items() if k not in recipe} for method, own in found.recipes.items()}
    equal = {"task_epochs": ""} if "epochs" in recipe else {}  # those of each task would overrule it
    return replace(found, recipe=_changed(found.recipe, {**equal, **recipe}, "recipe"), recipes=others)


def _refuse_unknown_backbone(backbone: str, weights: str) -> None:
    plain = backbone.partition("@")[0]
    family, colon, _ = plain.partition(":")
    if colon and family not in FAMILIES:
        raise UnknownName("family of backbones", family, FAMILIES)
    if plain and not colon and plain not in BACKBONES:
        raise UnknownName("backbone", plain, [*BACKBONES, *(f"{family}:NAME" for family in FAMILIES)])
    if weights not in WEIGHTS:
        raise UnknownName("choice of weights", weights, WEIGHTS)


@dataclass(frozen=True)
class MethodType:
    """A method's class and the fingerprint of its source."""

    cls: type[Method]
    fingerprint: str


def method_type(spec: str) -> MethodType:
    """The class named by a listed name or by `FILE.py:CLASS`."""
    place, wanted = _file_and_class(spec)
    if place:
        return _from_file(place, wanted)
    entry = _listed(spec)
    try:
        cls: type[Method] = entry.load()
    except (ImportError, AttributeError) as error:
        raise ClbenchError(f"the method '{spec}' cannot be loaded from {entry.target}: {error}.") from error
    return MethodType(cls, fingerprint.of_module(entry.module))


def _listed(name: str) -> Entry:
    listed = methods()
    if name not in listed:
        raise UnknownName("method", name, listed)
    return listed[name]


def _file_and_class(spec: str) -> tuple[str, str]:
    """The two parts of `FILE.py:CLASS`; the class may be missing, both are for a listed name.

    >>> _file_and_class("C:/mine.py:Mine"), _file_and_class("mine.py"), _file_and_class("mine")
    (('C:/mine.py', 'Mine'), ('mine.py', ''), ('', ''))
    """
    if spec.endswith(".py"):
        return spec, ""
    place, separator, wanted = spec.rpartition(".py:")
    return (f"{place}.py", wanted) if separator else ("", "")


def _existing(place: str) -> Path:
    path = Path(place)
    if not path.is_file():
        raise ClbenchError(f"no file at '{place}'; pass --method FILE.py:CLASS with an existing file.")
    return path


def _from_file(place: str, wanted: str) -> MethodType:
    from clbench.method import Method

    path = _existing(place)
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
    _refuse_incomplete(cls, wanted, place)
    return MethodType(cls, fingerprint.of_file(path))


def _refuse_incomplete(cls: type[Method], wanted: str, place: str) -> None:
    name = getattr(cls, "name", None)
    if not isinstance(name, str):
        raise ClbenchError(f"{wanted} in '{place}' has no name; add a line such as: name = '{wanted.lower()}'.")
    if not _NAME.fullmatch(name):
        raise ClbenchError(
            f"{wanted} in '{place}' calls itself '{name}'; a name is made of letters, digits, '_', '-' and '.'."
        )
    if name in methods() or name in ("recipe", "suite"):
        raise ClbenchError(f"{wanted} in '{place}' calls itself '{name}', which is taken; choose another name.")
    if inspect.isabstract(cls):
        lacking = ", ".join(sorted(cls.__abstractmethods__))
        raise ClbenchError(f"{wanted} in '{place}' lacks {lacking}; see clbench.method.Method for what it must return.")


def _import_file(path: Path) -> ModuleType:
    name = f"clbench_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Not through the loader, whose cached bytecode may be of an older file of equal size and second.
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except ClbenchError as error:
        raise ClbenchError(f"'{path}' does not import: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        words = str(error).splitlines()[0] if str(error) else "no message"
        raise ClbenchError(f"'{path}' does not import: {type(error).__name__}: {words.rstrip('.')}.") from error
    return module


def settings(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """What `--set` words say: owner -> field -> value; the owner of a bare `field=value` is ''.

    >>> settings(["recipe.epochs=1", "mode=a=b"])
    {'recipe': {'epochs': '1'}, '': {'mode': 'a=b'}}
    """
    said: dict[str, dict[str, str]] = {}
    for word in words:
        place, separator, value = word.partition("=")
        owner, _, field = place.strip().rpartition(".")
        if not separator or not field:
            raise BadValue(f"--set takes METHOD.field=value, recipe.field=value or field=value; got '{word}'.")
        if field in said.setdefault(owner, {}):
            raise BadValue(f"--set gives '{place}' twice; leave one of the two out.")
        said[owner][field] = value.strip()
    return said


def rows(suite: Suite, specs: Sequence[str], settings: Mapping[str, Mapping[str, str]]) -> list[Row]:
    """The methods to compare: the suite's own contenders, or those named, with `--set` words put in.

    `settings` is owner -> field -> word; '' stands for the only method of the run.
    """
    from clbench.plan import Row
    from clbench.suite import Contender

    contenders = [Contender(spec) for spec in dict.fromkeys(specs)] if specs else list(suite.contenders)
    kinds = [method_type(contender.method) for contender in contenders]
    _refuse_namesakes(kinds)
    spoken = _owned(settings, [kind.cls.name for kind in kinds])
    made: list[Row] = []
    for contender, kind in zip(contenders, kinds, strict=True):
        name = kind.cls.name
        tuned = dict(suite.settings.get(name, {}))
        base = _built(kind.cls, tuned, name)
        fields = _spoken(kind.cls, spoken.get(name, {}), name, {**tuned, **contender.settings})
        method, recipe = _built(kind.cls, fields, name), suite.recipe_of(contender)
        words = (_variant(suite, contender, method, base), _changed_recipe(suite))
        made.append(Row(method, ", ".join(filter(None, words)), kind.fingerprint, recipe, contender.method))
    return list({(row.method.name, row.variant): row for row in made}.values())


def _refuse_namesakes(kinds: Sequence[MethodType]) -> None:
    first: dict[str, MethodType] = {}
    for kind in kinds:
        if first.setdefault(kind.cls.name, kind).fingerprint != kind.fingerprint:
            raise ClbenchError(f"two methods of this run call themselves '{kind.cls.name}'; rename one of them.")


def _owned(settings: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """`settings` with every owner among `names`; a bare field goes to the only one."""
    known = list(dict.fromkeys(names))
    owned = dict(settings)
    bare = owned.pop("", {})
    if bare and len(known) != 1:
        field, word = next(iter(bare.items()))
        raise BadValue(
            f"'--set {field}={word}' does not say whose field it is, and this run has {len(known)} methods; "
            f"write METHOD.{field}={word} or recipe.{field}={word}."
        )
    if bare:
        owned[known[0]] = {**owned.get(known[0], {}), **bare}
    unreached = sorted(set(owned) - set(known))
    if unreached:
        raise UnknownName("method in this run", unreached[0], [*known, "recipe", "suite"])
    return owned


def _changed_recipe(suite: Suite) -> str:
    """The recipe's fields that are not the listed suite's, in words: they tell rows of one table apart."""
    listed = _SUITES[suite.name].load().of(suite.files).recipe if suite.name in _SUITES else suite.recipe
    mine, plain = suite.recipe.model_dump(mode="json"), listed.model_dump(mode="json")
    return ", ".join(f"recipe.{field}={word(value)}" for field, value in mine.items() if value != plain[field])


def _variant(suite: Suite, row: Contender, method: Method, base: Method) -> str:
    """What tells the row from the suite's plain one: a contender's label, or the changed fields in words."""
    mine, plain = method.model_dump(mode="json"), base.model_dump(mode="json")
    changed = {field: value for field, value in mine.items() if value != plain[field]}
    for contender in suite.contenders:
        if contender.label and (contender.method, contender.recipe) == (method.name, row.recipe):
            theirs = _built(type(method), {**suite.settings.get(method.name, {}), **contender.settings}, method.name)
            if theirs == method:
                return contender.label
    return ", ".join(f"{field}={word(value)}" for field, value in changed.items())


def word(value: Any) -> str:
    """A value as `--set` takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


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
        into[field] = _read(cls.model_fields[field].annotation, text, f"{owner}.{field}")
    return into


def _read(annotation: Any, text: str, place: str) -> Any:
    """The value that `text` stands for; 'none' is None where the type has that and nothing else fits."""
    readings: list[Any] = [text]
    if any(get_origin(part) is tuple for part in (annotation, *get_args(annotation))):
        readings = [tuple(part.strip() for part in text.split(",") if part.strip())]
    if text.lower() in ("none", "null"):
        readings.append(None)
    for reading in readings:
        try:
            return TypeAdapter(annotation).validate_python(reading)
        except ValidationError:
            continue
    choices = [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []
    close = difflib.get_close_matches(text, choices, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise BadValue(f"{place} takes {kind_of(annotation)}; got '{text}'.{hint}")


def kind_of(annotation: Any) -> str:
    """A field's type in words.

    >>> kind_of(float | None), kind_of(Literal["adam", "sgd"]), kind_of(tuple[int, ...])
    ('a number or none', 'one of adam, sgd', 'one or several of: a whole number, separated by commas')
    """
    plain = {float: "a number", int: "a whole number", bool: "true or false", str: "a word", NoneType: "none"}
    if annotation in plain:
        return plain[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, UnionType):
        return " or ".join(map(kind_of, parts))
    if origin is Annotated:
        return kind_of(parts[0])
    if origin is tuple:
        return f"one or several of: {kind_of(parts[0])}, separated by commas"
    return str(annotation)


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
    place = f"{owner}.{field}" if field else owner
    what = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be").rstrip(".")
    # What does not belong to one field has the whole object as its input.
    return BadValue(f"{place} {what}; got {first['input']!r}." if field else f"{place}: {what}.")


def current_fingerprint(spec: str) -> str:
    """The fingerprint of the source of a listed method or of `FILE.py:CLASS`, without importing it."""
    place, _ = _file_and_class(spec)
    return fingerprint.of_file(_existing(place)) if place else fingerprint.of_module(_listed(spec).module)


def current_fingerprints() -> dict[str, str]:
    """Name -> fingerprint of every listed method's source as it is now, without importing any.

    A method of another package whose source cannot be found or read is left out.
    """
    found: dict[str, str] = {}
    for name, entry in methods().items():
        try:
            found[name] = fingerprint.of_module(entry.module)
        except (ImportError, OSError, SyntaxError, ValueError):
            continue
    return found
