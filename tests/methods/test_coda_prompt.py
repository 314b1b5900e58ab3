from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clbench import tiny
from clbench.errors import BadValue
from clbench.methods.coda_prompt import KINDS, CodaPrompt, orthogonality, orthonormal_rows, weights

SETTINGS = tiny.tiny.settings["coda-prompt"]


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_weights_are_cosines_of_attended_queries_and_keys() -> None:
    query, keys, attentions = numbers(0, 3, 5), numbers(1, 2, 4, 5), numbers(2, 2, 4, 5)
    found = weights(query, keys, attentions)
    assert found.shape == (3, 2, 4)
    for b in range(3):
        for block in range(2):
            for m in range(4):
                attended = query[b] * attentions[block, m]
                cosine = F.cosine_similarity(attended, keys[block, m], dim=0)
                torch.testing.assert_close(found[b, block, m], cosine)
    assert found.abs().max() <= 1
    same = weights(query[:1], (query[:1] * attentions[0])[None], attentions[:1])
    torch.testing.assert_close(same, torch.ones_like(same))


def test_fresh_rows_are_orthonormal_and_orthogonal_to_rows_that_are_not() -> None:
    past = numbers(0, 4, 10)
    rows = orthonormal_rows(past, 3, source())
    torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(rows @ past.T, torch.zeros(3, 4, dtype=torch.float64))
    crowded = orthonormal_rows(past, 7, source())
    torch.testing.assert_close(crowded @ crowded.T, torch.eye(7, dtype=torch.float64))
    assert not torch.allclose(crowded @ past.T, torch.zeros(7, 4, dtype=torch.float64), atol=1e-2)


def test_the_penalty_is_zero_only_where_rows_are_orthonormal() -> None:
    rows = torch.linalg.qr(numbers(0, 8, 8)).Q
    past, live = rows[None, :3].float(), rows[None, 3:6].float()
    assert orthogonality(past, live).item() == pytest.approx(0, abs=1e-10)
    assert orthogonality(past, 1.01 * live).item() > 1e-5
    assert orthogonality(past, live + 0.01 * past).item() > 1e-6


@pytest.mark.parametrize("count", [0, 4])
def test_the_penalty_has_the_gradient_of_the_whole_mean(count: int) -> None:
    past, live = numbers(0, 2, count, 5), numbers(1, 2, 3, 5).requires_grad_()
    rows = torch.cat([past, live], dim=1)
    eye = torch.eye(count + 3, dtype=torch.float64)
    whole = sum(((block @ block.T - eye) ** 2).mean() for block in rows)
    left_out = sum(((block @ block.T - eye[:count, :count]) ** 2).sum() / (count + 3) ** 2 for block in past)
    torch.testing.assert_close(orthogonality(past, live), whole - left_out)
    ours, theirs = (torch.autograd.grad(term, live)[0] for term in (orthogonality(past, live), whole))
    torch.testing.assert_close(ours, theirs)


def test_past_components_are_frozen_and_take_part(begin: Any, teach: Any) -> None:
    run = teach(begin(CodaPrompt(**SETTINGS)), 0)
    components = run.model.prefixer
    learned = {kind: components.get_parameter(kind).detach().clone() for kind in KINDS}
    teach(run, 1)
    for kind in KINDS:
        assert torch.equal(components.get_buffer(f"past_{kind}"), learned[kind])
    trained = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert trained == {"head.weight", "head.bias", *(f"prefixer.{kind}" for kind in KINDS)}
    teach(run, 2)
    assert components.get_buffer("past_prompts").shape == (2, 8, 2, 16)
    query = numbers(3, 5, 16).float()
    found = components(torch.zeros(5, 5, 16), lambda: query).attention
    prompts, keys, attentions = (
        torch.cat([components.get_buffer(f"past_{kind}"), components.get_parameter(kind)], dim=1) for kind in KINDS
    )
    for block in range(2):
        expected = torch.zeros(5, 2, 16)
        for m in range(12):
            alpha = F.cosine_similarity(query * attentions[block, m], keys[block, m][None], dim=1)
            expected += alpha[:, None, None] * prompts[block, m]
        key, value = found[block]
        torch.testing.assert_close(torch.cat([key, value], dim=1), expected)


def test_components_of_a_task_begin_orthonormal(begin: Any, teach: Any) -> None:
    run = begin(CodaPrompt(**SETTINGS))
    components = run.model.prefixer
    for past, live in components.pairs():
        assert past.shape[1] == 0
        for rows in live:
            torch.testing.assert_close(rows @ rows.T, torch.eye(4))
    run.strategy.learning_rate = 1e-12
    teach(run, 0, 1)
    for past, live in components.pairs():
        torch.testing.assert_close(live @ past.mT, torch.zeros(2, 4, 4), atol=1e-6, rtol=0)


def test_the_penalty_is_added_with_its_weight(begin: Any) -> None:
    run = begin(CodaPrompt(**SETTINGS, orthogonality_weight=0.25))
    components = run.model.prefixer
    with torch.no_grad():
        components.get_parameter("keys").mul_(2)  # KK' - I = 3 I in both blocks
    run.strategy.loss = torch.zeros(1)
    run.plugins[0].before_backward(run.strategy)
    assert run.strategy.loss.item() == pytest.approx(0.25 * 2 * 4 * 9 / 16, rel=1e-5)


def test_more_components_than_numbers_in_a_feature_are_refused(begin: Any) -> None:
    with pytest.raises(BadValue, match="is 17, and features have 16 numbers"):
        begin(CodaPrompt(components=17))
