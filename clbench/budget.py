"""Budget: which cells to start so that a table is balanced at any time and nothing is begun that will not end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from clbench.plan import Cell


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a person wants to know before the start, and how long it may take."""

    measure: bool = False
    """Try a few steps of every method, to forecast what it will take."""
    seconds: float | None = None
    """By the clock on the wall, from the first cell on; None: no limit."""

    @property
    def forecasts(self) -> bool:
        """Whether cells that were never timed must be tried."""
        return self.measure or self.seconds is not None


NO_LIMITS = Limits()


@dataclass
class Budget:
    """Hands cells out until time is short.

    A seed is begun only where all its missing cells are forecast to fit, so that no method gets a seed more than
    another; the first seed is done as far as it fits, since something is better than nothing. A cell is started only
    where it is forecast to end in time, by what cells took before, scaled by what those of now take. What is running
    is never ended.
    """

    seconds: float
    workers: int = 1
    """How many cells run at once; a seed is then handed out as one batch."""
    now: Callable[[], float] = time.monotonic
    left_out: list[Cell] = field(default_factory=list)

    def batches(self, cells: Sequence[Cell], expected: Mapping[str, float | None]) -> Iterator[list[Cell]]:
        """The cells to run next, whenever those before have ended.

        `cells` are missing ones, seed by seed; `expected` are their seconds by key, None or 0 where they end at once.
        """
        start, forecast, spent = self.now(), 0.0, 0.0
        seeds = [list(group) for _, group in groupby(cells, key=lambda cell: cell.seed)]
        for number, seed in enumerate(seeds):
            scale = spent / forecast if forecast else 1.0
            times = {cell.key: scale * (expected.get(cell.key) or 0.0) for cell in seed}
            left = self.seconds - (self.now() - start)
            if self.left_out or (number and self.together(times.values()) > left):
                self.left_out += seed
                continue
            for batch in [[cell] for cell in seed] if self.workers == 1 else [seed]:
                fitting = self._fitting(batch, times, self.seconds - (self.now() - start))
                self.left_out += [cell for cell in batch if cell not in fitting]
                if not fitting:
                    continue
                before = self.now()
                yield fitting
                forecast += self.together(expected.get(cell.key) or 0.0 for cell in fitting)
                spent += self.now() - before

    def together(self, times: Iterable[float]) -> float:
        """Seconds of several cells, on all workers."""
        each = list(times)
        return max(sum(each) / self.workers, max(each, default=0.0))

    def _fitting(self, batch: Sequence[Cell], times: Mapping[str, float], left: float) -> list[Cell]:
        """As many of a batch, in order, as end within `left` seconds."""
        taken: list[Cell] = []
        for cell in batch:
            if left > 0 and self.together([times[one.key] for one in (*taken, cell)]) <= left:
                taken.append(cell)
        return taken
