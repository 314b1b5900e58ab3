"""Images: how a suite is made of one of the vision streams, without reading anything before it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from clbench.errors import BadValue, UnknownName
from clbench.protocol import digest
from clbench.suite import USUAL, Files, Suite, later
from clbench.suites._references import REFERENCES

if TYPE_CHECKING:
    from clbench.stream import Stream

VALIDATION_SHARE = 0.10
"""Of each class's training images."""
NORMALISATIONS = ("none", "0.5", "imagenet")
TRANSFORMS = ("pilot", "coda", "hide-cifar", "plain", "crop32")
"""As backbones and `clbench.transforms` have them; here, so that another is refused before PyTorch is loaded."""
_stream = later("clbench.suites._vision:stream")


def of_images(
    name: str,
    stream: str,
    *,
    order: str = "natural",
    transform: str = "pilot",
    normalisation: str = "none",
    validation_share: float = VALIDATION_SHARE,
    **fields: Any,
) -> Suite:
    """A suite of one of `_vision.LAYOUTS`; its files' folder is that of the data set.

    A person may choose another order of classes (a name of `_vision.ORDERS`, or every class once), other numbers of
    classes in a task, another transform (`NAME` or `NAME@PIXELS`) or normalisation, or the copy of the images that was
    prepared with a short side.
    """
    usual = {"order": order, "sizes": "", "transform": transform, "normalisation": normalisation, "short_side": ""}

    def of(files: Files) -> Suite:
        if files.tasks:
            raise BadValue(f"the tasks of '{name}' are cut from one data set and belong together; leave out --task.")
        chosen = {**usual, **dict(files.choices)}
        if chosen["normalisation"] not in NORMALISATIONS:
            raise UnknownName("normalisation", chosen["normalisation"], NORMALISATIONS)
        view, at, pixels = chosen["transform"].partition("@")
        if view not in TRANSFORMS or (at and not pixels.isdecimal()):
            raise UnknownName("transform", chosen["transform"], (*TRANSFORMS, "NAME@PIXELS"))
        return Suite(
            name=name,
            make_stream=_maker(stream, chosen, validation_share, files),
            stream_name=stream,
            transform=chosen["transform"],
            normalisation=chosen["normalisation"],
            notes=lambda made: _notes(chosen, validation_share, made),
            references=REFERENCES.get(name, ()),
            files=files,
            reads=of,
            choices=chosen,
            **fields,
        )

    return of(USUAL)


def _maker(stream: str, chosen: Mapping[str, str], share: float, files: Files) -> Callable[[int], Stream]:
    order: Any = _numbers("order", chosen["order"]) or chosen["order"]
    sizes: Any = _numbers("sizes", chosen["sizes"]) or None
    if sizes is None and chosen["sizes"]:
        raise BadValue(
            f"suite.sizes is the classes of a task, or of each, as in 20 or 50,25,25; got '{chosen['sizes']}'."
        )
    if sizes is not None and len(sizes) == 1:
        (sizes,) = sizes
    side = chosen["short_side"]
    if side and not (side.isdecimal() and side.isascii() and int(side)):
        raise BadValue(f"suite.short_side is the N of 'clbench data prepare --short-side N'; got '{side[:60]}'.")
    seen = {"order": order, "sizes": sizes, "transform": chosen["transform"], "validation_share": share}

    def make(order_seed: int) -> Stream:
        return _stream(stream, order_seed, at=files.folder, short_side=int(side) if side else None, **seen)

    return make


def _numbers(name: str, word: str) -> tuple[int, ...]:
    """The numbers that a word lists, none where it is a name. Raises BadValue for a list of something else.

    >>> _numbers("sizes", "50,10,10"), _numbers("order", "natural")
    ((50, 10, 10), ())
    """
    parts = [part.strip() for part in word.split(",")]
    if not any(part.isdecimal() for part in parts):
        return ()
    if not all(part.isdecimal() and part.isascii() for part in parts):
        raise BadValue(f"suite.{name} takes numbers with commas between them; got '{word[:60]}'.")
    return tuple(map(int, parts))


def _notes(chosen: Mapping[str, str], share: float, made: Stream) -> tuple[str, ...]:
    """For the card: order and split in words, and hashes by which a person can hold another system's run against it."""
    from clbench.transforms import worded

    said = [f"class order: {chosen['order']}", f"validation: {share:g} of the training images"]
    said += [f"classes of each task: {chosen['sizes']}"] if chosen["sizes"] else []
    said += [f"short side: {chosen['short_side']}"] if chosen["short_side"] else []
    if made.tasks:
        taught: list[Any] = [c for task in made for c in task.classes]
        if len(set(taught)) < len(taught):
            taught = [task.name for task in made]  # the same classes in every domain
        data = getattr(made.tasks[0].train, "data_sha256", "unknown")
        said += [f"class order sha256: {digest(taught)}", f"images, labels and split sha256: {data[:12]}"]
    return (*said, f"views: {worded(chosen['transform']).describe()}")
