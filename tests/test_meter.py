"""The meter: seconds, peak memory, operations and bytes of learning."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from clbench.meter import Meter, stopwatch, tensor_bytes

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the mark can be reset on Linux only")


def touched(mib: int) -> torch.Tensor:
    return torch.ones(mib * 2**18)


@LINUX
def test_peak_memory_sees_what_was_allocated_and_given_back() -> None:
    meter = Meter(CPU)
    meter.start()
    touched(80)
    assert 75 < meter.stop().peak_mib < 120


@LINUX
def test_peak_memory_is_not_fooled_by_an_earlier_larger_peak() -> None:
    meter = Meter(CPU)
    touched(300)
    meter.start()
    touched(80)
    assert 75 < meter.stop().peak_mib < 120
    meter.start()
    assert meter.stop().peak_mib < 40


@LINUX
def test_what_is_held_since_the_meter_was_made_counts() -> None:
    meter = Meter(CPU)
    model = touched(50)
    meter.start()
    assert 45 < meter.stop().peak_mib < 90
    assert len(model) > 0


def test_the_first_step_is_timed_apart() -> None:
    meter = Meter(CPU)
    meter.start()
    with meter.first_step():
        time.sleep(0.2)
    time.sleep(0.05)
    reading = meter.stop()
    assert reading.first_step_seconds >= 0.2
    assert 0.05 <= reading.seconds < 0.2


def test_a_stretch_without_steps_has_no_operations() -> None:
    meter = Meter(CPU)
    meter.start()
    with meter.first_step():
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert meter.stop().flops == 2 * 2 * 2 * 2
    meter.start()
    reading = meter.stop()
    assert reading.flops is None
    assert reading.first_step_seconds == 0


def test_operations_of_a_linear_model_are_those_counted_by_hand() -> None:
    batch, width, classes = 5, 7, 3
    model, inputs = nn.Linear(width, classes, bias=False), torch.ones(batch, width, requires_grad=True)
    meter = Meter(CPU)
    meter.start()
    with meter.first_step():
        model(inputs).sum().backward()
    # forward, gradient of the weight, gradient of the inputs: a product and a sum each
    assert meter.stop().flops == 3 * 2 * batch * width * classes


def test_operations_of_attention_are_counted() -> None:
    batch, heads, tokens, width = 2, 3, 17, 8
    q = torch.rand(batch, heads, tokens, width)
    meter = Meter(CPU)
    meter.start()
    with meter.first_step():
        nn.functional.scaled_dot_product_attention(q, q, q)
    assert meter.stop().flops == 2 * 2 * batch * heads * tokens * tokens * width


def test_a_phase_is_the_sum_of_its_entries() -> None:
    meter = Meter(CPU)
    meter.start()
    for _ in range(3):
        with meter.phase("search"):
            time.sleep(0.02)
        with meter.phase("penalty"):
            pass
        time.sleep(0.02)
    reading = meter.stop()
    assert list(reading.phases) == ["search", "penalty"]
    assert 0.06 <= reading.phases["search"] <= reading.seconds - 0.06
    assert 0 < reading.phases["penalty"] < 0.02


def test_a_phase_leaves_the_first_step_out_and_begins_anew_with_the_stretch() -> None:
    meter = Meter(CPU)
    meter.start()
    with meter.first_step(), meter.phase("search"):
        time.sleep(0.05)
    assert meter.stop().phases == {}
    with meter.phase("search"):
        time.sleep(0.01)
    assert meter.stop().phases["search"] < 0.05
    meter.start()
    assert meter.stop().phases == {}


class Gpu:
    """A device that takes 1 ms for the first entry of a phase, 2 for the second, …, told by its events alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.milliseconds, self.events, self.waits = 0.0, 0, 0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, stream: object) -> None:
                gpu.events += 1
                self.at = gpu.milliseconds

            def elapsed_time(self, other: Event) -> float:
                assert gpu.waits > 0
                return other.at - self.at

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: setattr(gpu, "waits", gpu.waits + 1))
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)


def test_on_a_gpu_every_eighth_entry_of_a_phase_stands_for_all_and_none_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    meter = Meter(torch.device("cuda"))
    meter.start()
    with meter.first_step(), meter.phase("search"):
        gpu.milliseconds += 1000
    for entry in range(20):
        with meter.phase("search"):
            gpu.milliseconds += entry + 1
        if entry < 3:
            with meter.phase("penalty"):
                gpu.milliseconds += 5
    assert gpu.waits == 0
    assert gpu.events == 3 + 2 * 3 + 2
    reading = meter.stop()
    assert gpu.waits == 1
    assert reading.phases == pytest.approx({"search": 20 * (1 + 9 + 17) / 3 / 1000, "penalty": 3 * 5 / 1000})
    assert reading.seconds == pytest.approx((210 + 15) / 1000)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_phases_of_a_real_gpu_lie_within_the_stretch() -> None:
    device = torch.device("cuda")
    matrix = torch.rand(2048, 2048, device=device)
    meter = Meter(device)
    meter.start()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(50):
            with meter.phase("product"):
                matrix @ matrix
            matrix @ matrix
    finally:
        torch.cuda.set_sync_debug_mode("default")
    reading = meter.stop()
    assert 0 < reading.phases["product"] < reading.seconds


def test_the_stopwatch_gives_seconds_even_after_an_error() -> None:
    def stopped() -> None:
        with stopwatch(CPU) as watched:
            measured.append(watched)
            time.sleep(0.02)
            raise ValueError("stop")

    measured: list[list[float]] = []
    with pytest.raises(ValueError, match="stop"):
        stopped()
    assert measured[0][0] >= 0.02


def test_bytes_of_tensors() -> None:
    assert tensor_bytes({"a": torch.zeros(3, dtype=torch.float64), "b": torch.zeros(2, 2, dtype=torch.uint8)}) == 28
