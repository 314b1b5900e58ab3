"""Images: how a suite is made of one of the vision streams, without reading anything before it is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clbench.errors import BadValue
from clbench.suite import USUAL, Files, Suite, later
from clbench.suites._references import REFERENCES

if TYPE_CHECKING:
    from clbench.stream import Stream

VALIDATION_SHARE = 0.10
"""Of each class's training images."""
_stream = later("clbench.suites._vision:stream")


def of_images(
    name: str,
    stream: str,
    *,
    order: str = "natural",
    transform: str = "pilot",
    validation_share: float = VALIDATION_SHARE,
    **fields: Any,
) -> Suite:
    """A suite of one of `_vision.LAYOUTS`; its files' folder is that of the data set."""

    def of(files: Files) -> Suite:
        if files.tasks:
            raise BadValue(f"the tasks of '{name}' are cut from one data set and belong together; leave out --task.")
        return Suite(
            name=name,
            make_stream=_maker(stream, order, transform, validation_share, files),
            stream_name=stream,
            transform=transform,
            notes=lambda made: (f"class order: {order}", f"validation: {validation_share:g} of the training images"),
            references=REFERENCES.get(name, ()),
            files=files,
            reads=of,
            **fields,
        )

    return of(USUAL)


def _maker(stream: str, order: str, transform: str, share: float, files: Files) -> Callable[[int], Stream]:
    def make(order_seed: int) -> Stream:
        return _stream(stream, order_seed, order=order, transform=transform, validation_share=share, at=files.folder)

    return make
