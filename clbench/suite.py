"""Suite: a stream, a backbone, a recipe, a score, and the methods to compare."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clbench import backbones
from clbench.errors import BadValue, NotAvailable, UnknownName
from clbench.protocol import Protocol
from clbench.recipe import Recipe

if TYPE_CHECKING:
    from clbench.stream import Stream


def later(target: str) -> Callable[..., Stream]:
    """The function `module:name`, imported when it is called, so that naming a suite loads no torch."""

    def make(*args: Any, **kwargs: Any) -> Stream:
        module, _, name = target.partition(":")
        made: Stream = getattr(importlib.import_module(module), name)(*args, **kwargs)
        return made

    return make


@dataclass(frozen=True)
class Contender:
    """One row of a comparison: a method by name, with settings where they are not the method's own."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the recipe that this row has otherwise."""
    label: str = ""
    """What tells this row from another of the same method; empty for the plain one."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A published figure to hold ours against; see `clbench.verify`."""

    method: str
    metric: str
    """One of `clbench.verify.MEASURES`, with the sign that it has there, whatever a table printed."""
    value: float
    """In the metric's unit: percent or seconds."""
    tolerance: float | None
    """How far from it ours may lie, in that unit; None: it is shown and never judged."""
    source: str
    variant: str = ""
    """Which row of the method it is held against; '' for the plain one."""
    score: str = ""
    """Which marks of the answers it is about; '' for the suite's own."""
    protocol: Mapping[str, str | int | float] = field(default_factory=dict)
    """What is known of how it was made, by the terms of `clbench.verify.facts`."""
    verified: bool = True
    """False: recalled, never read in the source."""
    note: str = ""
    """What a reader must know of it."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Which files a stream is made of, and how, where a person says so."""

    folder: Path | None = None
    """None: where the data usually lies, below `clbench.datafolder.root()`."""
    tasks: tuple[str, ...] = ()
    """Only these, in the suite's order; (): all."""
    choices: tuple[tuple[str, str], ...] = ()
    """Names of `Suite.choices`, each with the word that stands for another than the suite's."""


USUAL = Files()


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is taught, to what, how, and who competes."""

    name: str
    make_stream: Callable[[int], Stream]
    """order_seed -> stream; 0 is the natural order."""
    stream_name: str
    backbone: str
    recipe: Recipe
    transform: str
    """What is done to inputs, in words; `{field}` stands for the recipe's field."""
    normalisation: str
    contenders: tuple[Contender, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of a method that this suite has tuned: method -> field -> value."""
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """How a method is taught where that is not the suite's recipe: method -> field of the recipe -> value."""
    weights: str = "default"
    """The backbone's weights: `default`, or `random` for timing alone."""
    remote_code: bool = False
    """Whether code that came with the backbone may run."""
    notes: Callable[[Stream], tuple[str, ...]] = lambda stream: ()
    """What is known about the data of a stream, for the protocol card."""
    score: str = "accuracy"
    references: tuple[Reference, ...] = ()
    files: Files = USUAL
    """What the stream is made of; only for a suite that reads files."""
    reads: Callable[[Files], Suite] | None = None
    """The suite of other files; None where it reads none. Nothing is read before the stream is made."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """In what a person may have its stream otherwise, as `--set suite.NAME=WORD`: name -> the word for how it is."""

    def of(self, files: Files) -> Suite:
        """The same suite of other files, or cut otherwise.

        Raises BadValue where it reads none or offers no choice, UnknownName for a choice that is none, NotAvailable
        for a missing folder.
        """
        if files == self.files:
            return self
        for name, _ in files.choices:
            if not self.choices:
                raise BadValue(f"the suite '{self.name}' is as it is; leave out --set suite.{name}.")
            if name not in self.choices:
                raise UnknownName(f"choice of '{self.name}'", name, self.choices)
        if self.reads is None:
            raise BadValue(f"the suite '{self.name}' makes its tasks itself; leave out --from and --task.")
        if files.folder is not None and not files.folder.expanduser().is_dir():
            if files.folder.expanduser().is_file():
                raise NotAvailable(
                    f"'{files.folder}' is a file, and --from takes a folder: unpack an archive of text, and let "
                    "'clbench data prepare' take one of images."
                )
            raise NotAvailable(f"no folder at '{files.folder}'; pass --from FOLDER with the data of '{self.name}'.")
        return self.reads(files)

    def stream(self, order_seed: int = 0) -> Stream:
        """The tasks in the order of `order_seed`."""
        return self.make_stream(order_seed)

    def recipe_of(self, contender: Contender) -> Recipe:
        """What a row is taught by. Raises ValidationError for a field that recipes lack."""
        changed = {**self.recipes.get(contender.method, {}), **contender.recipe}
        return Recipe(**{**self.recipe.model_dump(), **changed}) if changed else self.recipe

    def protocol(self, stream: Stream, order_seed: int) -> Protocol:
        """The suite's own card; a method's terms are put in by the runner."""
        return Protocol(
            suite=self.name,
            stream=self.stream_name,
            stream_sha256=stream.sha256(),
            order_seed=order_seed,
            tasks=len(stream),
            backbone=backbones.without_path(self.backbone),
            weights_sha256=backbones.weights_sha256(self.backbone, self.weights, self.remote_code),
            normalisation=self.normalisation,
            score=self.score,
            data=self.notes(stream),
            **self._taught(),
        )

    def taught(self, card: Protocol) -> Protocol:
        """`card`, of the same data and backbone, with the terms of this suite's recipe."""
        return card.model_copy(update=self._taught())

    def _taught(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "transform": self.transformed,
            "epochs": recipe.mean_epochs,
            "task_epochs": recipe.task_epochs,
            "batch_size": recipe.batch_size,
            "eval_samples": recipe.eval_samples,
            "marks": self._marks(),
        }

    @property
    def transformed(self) -> str:
        """What is done to inputs, with the recipe's numbers."""
        return self.transform.format_map(self.recipe.model_dump())

    def _marks(self) -> tuple[str, ...]:
        """What every number of the suite must be read with."""
        recipe = self.recipe
        marks = {
            "random weights: for timing alone": self.weights == "random",
            "the backbone's own code was run (--trust-remote-code)": self.remote_code,
            "as in TRACE's code, a long question loses its beginning, instruction and all": recipe.truncation == "left",
            f"as in TRACE's code, answers are sampled, at temperature {recipe.temperature:g}": recipe.temperature > 0,
            "as in TRACE's code, one optimiser goes through the whole stream": recipe.carry_optimizer,
        }
        return tuple(words for words, holds in marks.items() if holds)
