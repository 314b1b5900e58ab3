from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clbench import tiny
from clbench.methods._gradients import evaluating, flat, flat_gradient, parts, row_gradients
from clbench.methods.seqlora import SeqLoRA


def test_rows_equal_the_loop_over_batches(begin: Any, teach: Any) -> None:
    run = teach(begin(SeqLoRA()), 0)
    model, task = run.model.eval(), tiny.stream().tasks[1]
    inputs, targets = task.train.batch(torch.arange(12), run.device)
    inputs, targets = inputs.view(4, 3, *inputs.shape[1:]), targets.view(4, 3)
    expected = []
    for x, y in zip(inputs, targets, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        expected.append(flat_gradient(model.trainable()))
    found = row_gradients(model, nn.functional.cross_entropy, inputs, targets)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-6, rtol=1e-4)


def test_a_vector_comes_apart_as_it_was_joined() -> None:
    tensors = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.arange(4.0)]
    back = parts(flat(tensors), tensors)
    assert all(torch.equal(one, other) for one, other in zip(tensors, back, strict=True))
    assert flat(tensors[:1]).data_ptr() != tensors[0].data_ptr()  # an anchor must not follow the weights


def test_what_has_no_gradient_counts_as_zero() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    (2 * used).sum().backward()
    assert flat_gradient([used, unused]).tolist() == [2, 2, 0, 0, 0]


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.dropout(inputs)


def test_no_dropout_while_evaluating() -> None:
    model: Any = Noisy()
    with evaluating(model):
        assert torch.equal(model(torch.ones(64)), torch.ones(64))
    assert model.training
    assert model.dropout.training
