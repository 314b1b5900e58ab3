"""Process: workers on this machine, each a process that does one cell after another on one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clbench.child import Child
from clbench.plan import Cell

CONTEXT_BYTES = 2**30
"""What a process takes on a GPU beside its tensors: CUDA's own and the libraries' kernels."""
SPARE = 0.9
"""The part of a GPU's memory that cells may be forecast to take together; a forecast is an estimate."""


@dataclass(frozen=True)
class Gpu:
    """A graphics processor as a worker is shown it."""

    name: str
    """What CUDA_VISIBLE_DEVICES calls it."""
    bytes: int


def gpus(listed: str | None, sizes: Sequence[int]) -> list[Gpu]:
    """The GPUs that this process sees, under the names by which it can show them to others.

    `listed`: this process's own CUDA_VISIBLE_DEVICES; `sizes`: the memory of each that it sees, in bytes.

    >>> [gpu.name for gpu in gpus("3,GPU-8f", [10, 10])], [gpu.name for gpu in gpus(None, [10, 10])]
    (['3', 'GPU-8f'], ['0', '1'])
    """
    names = [name.strip() for name in listed.split(",")] if listed else [str(i) for i in range(len(sizes))]
    return [Gpu(name, size) for name, size in zip(names, sizes, strict=False)]


def fits(gpu: Gpu, needs: Sequence[int | None]) -> bool:
    """Whether cells with these forecasts may share a GPU; one that nothing is known of has it to itself.

    >>> gpu = Gpu("0", 10 * 2**30)
    >>> fits(gpu, [None]), fits(gpu, [None, 2**30]), fits(gpu, [3 * 2**30, 3 * 2**30]), fits(gpu, [3 * 2**30] * 3)
    (True, False, True, False)
    """
    if len(needs) == 1:
        return True
    known = [need for need in needs if need is not None]
    return len(known) == len(needs) and sum(known) + len(known) * CONTEXT_BYTES <= SPARE * gpu.bytes


@dataclass
class Seat:
    """Room for one worker, who stays from one cell to the next."""

    gpu: Gpu | None = None
    child: Child | None = None
    key: str = ""
    """Of the cell that it is at."""

    def said(self) -> list[str]:
        """The lines of its worker."""
        return self.child.said() if self.child else []

    def ended(self) -> str | None:
        """How its worker ended."""
        return self.child.ended() if self.child else ""

    def release(self) -> None:
        """The worker may be given another cell."""
        self.key = ""

    def stop(self) -> None:
        """End the worker; the next cell gets a new one."""
        self.key = ""
        if self.child is not None:
            self.child.stop()
            self.child = None


@dataclass
class Processes:
    """A place with `workers` seats, shared out over the GPUs if there are any; see `clbench.executors.driver.Place`."""

    command: Sequence[str]
    """Starts a worker."""
    workers: int
    gpus: Sequence[Gpu] = ()
    needs: Mapping[str, int | None] = field(default_factory=dict)
    """Key -> bytes that the cell is forecast to take on a GPU."""
    patience: float | None = 600.0
    """Enough to import everything on a slow disk, see `clbench.executors.driver.Place`."""

    def __post_init__(self) -> None:
        shared = [self.gpus[number % len(self.gpus)] if self.gpus else None for number in range(self.workers)]
        self.seats = [Seat(gpu) for gpu in shared]

    def start(self, cell: Cell, order: str) -> Seat | None:
        """On the least used device with room; a worker that is there already is taken before a new one."""
        free = [seat for seat in self.seats if not seat.key and self._room(seat.gpu, cell.key)]
        if not free:
            return None
        seat = min(free, key=lambda seat: (len(self._at(seat.gpu)) if seat.gpu else 0, seat.child is None))
        if seat.child is not None and seat.child.ended() is not None:
            seat.stop()
        seat.child = seat.child or Child(self.command, environment=_shown(seat.gpu))
        seat.key = cell.key
        seat.child.tell(order)
        return seat

    def close(self) -> None:
        """Let all workers go at once, then wait for each."""
        for seat in self.seats:
            if seat.child is not None:
                seat.child.dismiss()
        for seat in self.seats:
            seat.stop()

    def _room(self, gpu: Gpu | None, key: str) -> bool:
        return gpu is None or fits(gpu, [self.needs.get(other) for other in (*self._at(gpu), key)])

    def _at(self, gpu: Gpu | None) -> list[str]:
        return [seat.key for seat in self.seats if seat.key and seat.gpu == gpu]


def _shown(gpu: Gpu | None) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": gpu.name} if gpu is not None else {}


def threads_of(asked: int | None, usual: int, workers: int) -> int:
    """Processor threads of each of several workers of one machine: those asked for, or a fair part of the usual ones.

    >>> threads_of(None, 8, 3), threads_of(4, 8, 3), threads_of(None, 2, 8)
    (2, 4, 1)
    """
    return asked or max(1, usual // workers)
