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
