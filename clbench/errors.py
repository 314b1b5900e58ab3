"""Errors that are the user's to mend: each is one sentence, shown without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ClbenchError(Exception):
    """What came, what could come and what to do, in one or two sentences; exit code 2."""


class UnknownName(ClbenchError):
    """A name that no table knows.

    >>> str(UnknownName("method", "trelora", ["ewc", "treelora"]))
    "no method called 'trelora'. Did you mean 'treelora'? Known: ewc, treelora."

    Papers' spellings lead there too: the names of methods are small, and a "p" stands for each "+".

    >>> str(UnknownName("method", "NEW++", ["new", "newpp"]))
    "no method called 'NEW++'. Did you mean 'newpp'? Known: new, newpp."
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        spelled = {one.lower(): one for one in names}
        close = difflib.get_close_matches(name.lower().replace("+", "p"), spelled, n=1, cutoff=0.5)
        hint = f" Did you mean '{spelled[close[0]]}'?" if close else ""
        super().__init__(f"no {kind} called '{name}'.{hint} Known: {', '.join(names) or 'none'}.")


class BadValue(ClbenchError):
    """A setting of the wrong type or out of range; names the setting."""


class StoreError(ClbenchError):
    """The store cannot be read or written; names the path."""


class NotAvailable(ClbenchError):
    """Something this machine lacks: a device, weights, a data set; says where to get it."""


class LeakError(ClbenchError):
    """Learning touched what it must not see (test data), or kept more than it declared."""


class Unsupported(ClbenchError):
    """The method declines the suite; the reason is shown in the table."""


class Diverged(ClbenchError):
    """The training loss is no longer finite."""


class Parted(ClbenchError):
    """The processes that teach one cell together are no longer together; nothing is recorded of it."""


class Differ(ClbenchError):
    """Processes that teach one cell together do not hold the same."""
