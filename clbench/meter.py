"""Meter: device seconds, peak memory, floating-point operations and stored bytes of learning."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

_MIB = 2**20


@dataclass(frozen=True)
class Reading:
    """What one stretch of learning cost."""

    seconds: float
    """Without the first step."""
    first_step_seconds: float
    peak_mib: float
    flops: float | None


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
        self._flops: float | None = None
        self._baseline_mib = 0.0
        if device.type == "cpu":
            _release_unused()
            self._baseline_mib = _status_mib("VmRSS:")

    def start(self) -> None:
        """Begin a stretch of learning."""
        self._marks, self._flops = {}, None
        self._reset_peak()
        self._mark("start")

    @contextlib.contextmanager
    def first_step(self) -> Iterator[None]:
        """Around the first step of the stretch: it is timed apart, and its operations are counted."""
        self._mark("step")
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops = float(counter.get_total_flops())
        self._mark("stepped")

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
        )

    def _mark(self, name: str) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._marks[name] = event
        else:
            self._marks[name] = time.perf_counter()

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
