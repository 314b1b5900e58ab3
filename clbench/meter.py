"""Meter: device seconds, peak memory, floating-point operations and stored bytes of learning."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

_MIB = 2**20
_EVERY = 8
"""On a GPU one in so many entries of a phase is measured: events in every step would cost what they measure."""


@dataclass(frozen=True)
class Reading:
    """What one stretch of learning cost."""

    seconds: float
    """Without the first step."""
    first_step_seconds: float
    peak_mib: float
    flops: float | None
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of the named parts of `seconds`; see `Meter.phase`."""


@dataclass
class _Phase:
    """What was seen of one named part."""

    entries: int = 0
    timed: float = 0.0
    """Seconds, where the processor's clock was read at every entry."""
    pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    """Begin and end of the measured entries on a GPU."""

    def seconds(self) -> float:
        """Of all entries. The device must have passed every event."""
        if not self.pairs:
            return self.timed
        measured = sum(float(begin.elapsed_time(end)) for begin, end in self.pairs) / 1000
        return measured / len(self.pairs) * self.entries


class Meter:
    """Measures learning on one device.

    On a GPU seconds come from events in the stream, read once at the end, so that measuring never
    makes a step wait, and peak memory is what PyTorch had allocated at most. On a CPU it is how far
    the process's resident memory rose above what it was when the meter was made, before the model:
    of the stretch alone under Linux, where the mark can be reset; elsewhere since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: dict[str, float | torch.cuda.Event] = {}
        self._phases: dict[str, _Phase] = {}
        self._in_first_step = False
        self._flops: float | None = None
        self._baseline_mib = 0.0
        if device.type == "cpu":
            _release_unused()
            self._baseline_mib = _status_mib("VmRSS:")

    def start(self) -> None:
        """Begin a stretch of learning."""
        self._marks, self._phases, self._in_first_step, self._flops = {}, {}, False, None
        self._reset_peak()
        self._mark("start")

    @contextlib.contextmanager
    def first_step(self) -> Iterator[None]:
        """Around the first step of the stretch: it is timed apart, and its operations are counted."""
        self._mark("step")
        self._in_first_step = True
        with FlopCounterMode(display=False) as counter:
            yield
        self._in_first_step = False
        self._flops = float(counter.get_total_flops())
        self._mark("stepped")

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Around a named part of each training step, such as a penalty; never waits for the device.

        On a CPU every entry is timed. On a GPU every eighth of that name is, the first included, by a pair
        of events that `stop` reads; the seconds are their mean times the number of entries, and hold the
        time in which the device waited for the part's next kernel. Entries inside `first_step` are left
        out, as that step is from the stretch's seconds. Phases of different names may overlap.
        """
        if self._in_first_step:
            yield
            return
        phase = self._phases.setdefault(name, _Phase())
        phase.entries += 1
        if self.device.type != "cuda":
            began = time.perf_counter()
            yield
            phase.timed += time.perf_counter() - began
        elif phase.entries % _EVERY == 1:
            begin = self._event()
            yield
            phase.pairs.append((begin, self._event()))
        else:
            yield

    def stop(self) -> Reading:
        """End the stretch; waits for the device."""
        self._mark("stop")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        first = self._between("step", "stepped") if "stepped" in self._marks else 0.0
        return Reading(
            seconds=self._between("start", "stop") - first,
            first_step_seconds=first,
            peak_mib=self._peak_mib(),
            flops=self._flops,
            phases={name: phase.seconds() for name, phase in self._phases.items()},
        )

    def _mark(self, name: str) -> None:
        self._marks[name] = self._event() if self.device.type == "cuda" else time.perf_counter()

    def _event(self) -> torch.cuda.Event:
        """Recorded now in the device's stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, first: str, last: str) -> float:
        begin, end = self._marks[first], self._marks[last]
        if isinstance(begin, float) and isinstance(end, float):
            return end - begin
        assert isinstance(begin, torch.cuda.Event)
        assert isinstance(end, torch.cuda.Event)
        return float(begin.elapsed_time(end)) / 1000

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _release_unused()
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def _peak_mib(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device)) / _MIB
        return max(0.0, _status_mib("VmHWM:") - self._baseline_mib)


def _release_unused() -> None:
    """Return freed memory to the system: kept by the allocator, it would count as used, or hide what is taken next."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _status_mib(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / _MIB if sys.platform == "darwin" else peak / 1024
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """How many bytes the tensors hold."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@contextlib.contextmanager
def stopwatch(device: torch.device) -> Iterator[list[float]]:
    """Seconds of the block, in the list's only element, once it has ended."""
    seconds: list[float] = []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    try:
        yield seconds
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
