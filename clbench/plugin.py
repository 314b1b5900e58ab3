"""Plugin: what a method does at Avalanche's hooks, and what it remembers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports reports missing or retired solvers that we do not use
    from avalanche.core import SupervisedPlugin

from clbench.errors import UnknownName
from clbench.model import Classifier

HOOKS = frozenset(name for name in dir(SupervisedPlugin) if name.startswith(("before", "after")))


def check_hooks(plugin: object) -> None:
    """Raise UnknownName where a plugin, or a class of plugins, has a misspelt hook: it would never be called."""
    for name in dir(plugin):
        if name.startswith(("before", "after")) and name not in HOOKS:
            raise UnknownName("hook of Avalanche", name, HOOKS)


def names_the_batch(plugin: object) -> bool:
    """Whether a hook around the forward pass says by itself that it looks at the batch; others may too."""
    hooks = [getattr(type(plugin), name, None) for name in ("before_forward", "after_forward", "before_backward")]
    words = {word for hook in hooks for word in getattr(getattr(hook, "__code__", None), "co_names", ())}
    return not words.isdisjoint(("mb_x", "mb_y", "mb_output", "mbatch"))


class Plugin(SupervisedPlugin[Any]):
    """What a method does at Avalanche's hooks, and what it must remember over tasks.

    A misspelt hook is refused when the class is made.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_hooks(cls)

    def state(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dicts that the next task or answering needs."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""

    def kept_samples(self) -> int:
        """How many training samples of past tasks are held."""
        return 0

    def kept_gradients(self) -> int:
        """How many gradients of past tasks are held."""
        return 0

    def keeps_class_statistics(self) -> bool:
        """Whether the features of past classes or tasks are held in some shorter form, such as their means.

        Found where an attribute says so by `holds_class_statistics`, as what methods share for it does.
        """
        return any(getattr(held, "holds_class_statistics", False) is True for held in vars(self).values())

    def learning_rate_factors(self, model: Classifier) -> Mapping[nn.Parameter, float]:
        """By what the step size is multiplied, for parameters that take another; asked before each task."""
        return {}

    def notes(self) -> dict[str, Any]:
        """JSON facts about the run that belong in its record."""
        return {}

    def marks(self) -> list[str]:
        """Sentences that must stand beside this run in every table; asked after the last task."""
        return []
