from __future__ import annotations

import pytest
import torch

from clbench.padding import ANSWER, IGNORED, NOTHING, PROMPT, is_text, join, stack, trimmed

NARROW = torch.tensor([[[5, 6], [PROMPT, ANSWER]]])
WIDE = torch.tensor([[[7, 8, 9], [PROMPT, PROMPT, ANSWER]], [[0, 0, 4], [NOTHING, NOTHING, PROMPT]]])


def test_narrower_text_is_padded_on_its_left() -> None:
    joined = join([NARROW, WIDE])
    assert joined.tolist() == [[[0, 5, 6], [NOTHING, PROMPT, ANSWER]], *WIDE.tolist()]
    assert torch.equal(join([WIDE, NARROW]), joined[[1, 2, 0]])


def test_narrower_targets_are_ignored_where_they_were_not() -> None:
    assert join([torch.tensor([[1]]), torch.tensor([[2, 3]])]).tolist() == [[IGNORED, 1], [2, 3]]


@pytest.mark.parametrize(
    "parts",
    [
        [torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.ones(2, 3, 2, 2, dtype=torch.uint8)],
        [torch.tensor([1, 2]), torch.tensor([3])],
        [torch.rand(1, 4), torch.rand(3, 4)],
        [torch.rand(1, 4, 2), torch.rand(3, 4, 2)],
    ],
)
def test_what_is_no_text_is_only_put_together(parts: list[torch.Tensor]) -> None:
    assert torch.equal(join(parts), torch.cat(parts))


def test_a_generator_of_parts_is_enough() -> None:
    assert torch.equal(join(part for part in (NARROW, WIDE)), join([NARROW, WIDE]))  # type: ignore[arg-type]


def test_stacked_parts_have_a_dimension_of_their_own() -> None:
    targets = [torch.tensor([[1], [2]]), torch.tensor([[3, 4], [5, 6]])]
    assert stack(targets).tolist() == [[[IGNORED, 1], [IGNORED, 2]], [[3, 4], [5, 6]]]
    images = [torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)]
    assert torch.equal(stack(images), torch.stack(images))
    assert stack([WIDE, join([NARROW, NARROW])]).shape == (2, 2, 2, 3)


def test_columns_that_no_row_needs_are_dropped() -> None:
    inputs, targets = join([NARROW, WIDE]), torch.tensor([[IGNORED, 6], [8, 9], [IGNORED, IGNORED]])
    found = trimmed(inputs[:1], targets[:1])
    assert torch.equal(found[0], NARROW)
    assert found[1].tolist() == [[6]]
    assert torch.equal(trimmed(inputs, targets)[0], inputs)
    assert torch.equal(trimmed(inputs, targets)[1], targets)
    question_alone = trimmed(inputs[2:], torch.tensor([[IGNORED, 3]]))
    assert question_alone[0].tolist() == [[[4], [PROMPT]]]


def test_images_are_not_trimmed() -> None:
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([1, 0])
    same = trimmed(images, labels)
    assert (same[0] is images, same[1] is labels) == (True, True)
    empty = torch.zeros(0, 2, 5, dtype=torch.int64)
    assert trimmed(empty, torch.zeros(0, 3, dtype=torch.int64))[0].shape == (0, 2, 5)


def test_text_is_told_from_images_and_features() -> None:
    assert is_text(NARROW)
    assert not is_text(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert not is_text(torch.zeros(2, 3, 4))
