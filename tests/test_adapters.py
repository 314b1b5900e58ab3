from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clbench import backbones, checkpoint
from clbench.adapters.lora import LoRA, LoRALinear, attach
from clbench.adapters.prompts import PromptPool
from clbench.model import Classifier, Site


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classifier() -> Classifier:
    return backbones.build("tiny-vit", 4, 0)


def fused(rank: int = 3, alpha: float = 6.0) -> LoRALinear:
    """q and v, but not k, of a fused layer 5 -> 3 * 4, with a live pair that does something."""
    base = nn.Linear(5, 12)
    layer = LoRALinear(base, Site("qkv", 0, {"q": (0, 4), "v": (8, 12)}), rank, alpha, source())
    with torch.no_grad():
        layer.up.copy_(numbers(1, 8, rank))
    return layer


def images(count: int = 6) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=source(5), dtype=torch.uint8)


def test_an_adapted_model_starts_equal_to_the_bit() -> None:
    model = classifier()
    before = model(images())
    lora = attach(model, ("q", "v"), 2, 2, source())
    assert len(lora) == 2
    assert torch.equal(model(images()), before)


def test_down_is_kaiming_uniform_and_up_zero() -> None:
    layer = LoRALinear(nn.Linear(400, 400), Site("x", 0, {"q": (0, 400)}), 50, 50, source())
    bound = 1 / math.sqrt(400)  # sqrt(2 / (1 + 5)) * sqrt(3 / 400)
    assert layer.down.abs().max() <= bound
    assert layer.down.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layer.up.any()


def test_equals_peft_on_the_same_weights() -> None:
    import peft

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)

    plain = Attention()
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q", "v"], lora_dropout=0.0)
    theirs = peft.inject_adapter_in_model(config, copy.deepcopy(plain))
    layers = {}
    for number, name in enumerate("qv"):
        layer = LoRALinear(getattr(plain, name), Site(name, 0, {name: (0, 8)}), 4, 8, source())
        with torch.no_grad():
            layer.up.copy_(numbers(number, 8, 4))
            getattr(theirs, name).lora_A["default"].weight.copy_(layer.down)
            getattr(theirs, name).lora_B["default"].weight.copy_(layer.up)
        setattr(plain, name, layer)
        layers[name] = layer
    x = numbers(9, 3, 6)
    torch.testing.assert_close(plain(x), theirs(x))
    plain(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.down.grad, getattr(theirs, name).lora_A["default"].weight.grad)
        torch.testing.assert_close(layer.up.grad, getattr(theirs, name).lora_B["default"].weight.grad)


def test_parts_of_a_fused_layer_get_their_own_rows() -> None:
    layer, x = fused(), numbers(2, 7, 5)
    change = layer(x) - layer.base(x)
    assert torch.equal(change[:, 4:8], torch.zeros(7, 4))  # k
    for rows, down, up in (
        (slice(0, 4), layer.down[:3], layer.up[:4]),
        (slice(8, 12), layer.down[3:], layer.up[4:]),
    ):
        torch.testing.assert_close(change[:, rows], 2.0 * x @ down.T @ up.T)


def test_a_single_middle_part() -> None:
    layer = LoRALinear(nn.Linear(5, 12), Site("qkv", 0, {"k": (4, 8)}), 2, 2, source())
    with torch.no_grad():
        layer.up.fill_(1.0)
    change = layer(numbers(3, 2, 5)) - layer.base(numbers(3, 2, 5))
    assert torch.equal(change[:, :4], torch.zeros(2, 4))
    assert torch.equal(change[:, 8:], torch.zeros(2, 4))
    assert change[:, 4:8].abs().min() > 0


def test_retired_pairs_are_kept_summed_and_frozen() -> None:
    layer, x = fused(), numbers(4, 7, 5)
    frozen = layer.base.weight.clone()
    pairs = []
    for seed in range(3):
        before = layer(x)
        pairs.append((layer.down.detach().clone(), layer.up.detach().clone()))
        layer.retire(source(10 + seed))
        torch.testing.assert_close(layer(x), before)
        assert not layer.up.any()
        assert not torch.equal(layer.down, pairs[-1][0])
        with torch.no_grad():
            layer.up.copy_(numbers(20 + seed, 8, 3))
    assert torch.equal(layer.past_down, torch.stack([down for down, _ in pairs]))
    assert torch.equal(layer.past_up, torch.stack([up for _, up in pairs]))
    pairs.append((layer.down.detach(), layer.up.detach()))
    expected = layer.base(x)
    for down, up in pairs:
        expected[:, :4] += 2.0 * x @ down[:3].T @ up[:4].T
        expected[:, 8:] += 2.0 * x @ down[3:].T @ up[4:].T
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer.base.weight, frozen)


def test_refold_gives_the_same_weight_to_the_bit() -> None:
    layer = fused()
    layer.retire(source(1))
    folded = layer.weight.clone()
    layer.weight = torch.zeros_like(folded)
    layer.refold()
    assert torch.equal(layer.weight, folded)


def test_only_the_first_blocks_are_adapted() -> None:
    model = classifier()
    lora = attach(model, ("v",), 2, 2, source(), blocks=1)
    assert len(lora) == 1
    assert isinstance(model.get_submodule("body.blocks.0.attn.qkv"), LoRALinear)
    assert type(model.get_submodule("body.blocks.1.attn.qkv")) is nn.Linear
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trainable == {
        *("head.weight", "head.bias"),
        *("body.blocks.0.attn.qkv.down", "body.blocks.0.attn.qkv.up"),
    }


def pool(length: int = 2, top: int = 3) -> PromptPool:
    return PromptPool(8, length, top, 6, source())


def test_the_nearest_prompts_are_those_of_brute_force() -> None:
    prompts, queries = pool(), numbers(1, 10, 6)
    given = prompts(torch.zeros(10, 4, 6), queries)
    total = 0.0
    for row, query in enumerate(queries):
        cosines = [F.cosine_similarity(query, key, dim=0).item() for key in prompts.keys]
        nearest = sorted(range(8), key=lambda m, cosines=cosines: -cosines[m])[:3]
        total += sum(cosines[m] for m in nearest)
        assert prompts.chosen[row].tolist() == nearest
        assert torch.equal(given[row], torch.cat([prompts.prompts[m] for m in nearest]))
    assert prompts.pull.item() == pytest.approx(total / 10, rel=1e-5)


def test_gradients_reach_the_chosen_prompts_and_keys_alone() -> None:
    prompts = pool()
    given = prompts(torch.zeros(2, 4, 6), numbers(2, 2, 6))
    (given.square().sum() - prompts.pull).backward()
    chosen = torch.zeros(8, dtype=torch.bool)
    chosen[prompts.chosen.flatten()] = True
    assert chosen.any()
    assert not chosen.all()
    assert torch.equal(prompts.prompts.grad.abs().sum((1, 2)) > 0, chosen)
    assert torch.equal(prompts.keys.grad.abs().sum(1) > 0, chosen)


def test_the_query_takes_no_gradient() -> None:
    model = classifier()
    seen = []

    def prompter(tokens: Tensor, query: Tensor) -> Tensor:
        seen.append(query)
        return tokens[:, :1]

    model.prompter = prompter
    model(images())
    assert model.body.patch_embed.proj.weight.requires_grad
    assert not seen[0].requires_grad


def test_the_pull_grows_as_the_keys_come_nearer() -> None:
    prompts, queries = pool(top=1), numbers(3, 1, 6)
    pulls = []
    start = prompts.keys.detach().clone()
    for share in (0.0, 0.5, 0.9, 1.0):
        with torch.no_grad():
            prompts.keys.copy_(start.lerp(queries.expand(8, -1), share))
        prompts(torch.zeros(1, 4, 6), queries)
        pulls.append(prompts.pull.item())
    assert pulls == sorted(pulls)
    assert pulls[-1] == pytest.approx(1.0)
    assert pulls[0] < 0.99


def test_a_sample_is_served_alike_alone_and_in_company() -> None:
    prompts, queries = pool(), numbers(4, 12, 6)
    together = prompts(torch.zeros(12, 4, 6), queries)
    alone = torch.cat([prompts(torch.zeros(1, 4, 6), query[None]) for query in queries])
    assert torch.equal(together, alone)


SITES = {
    "q and v of a fused layer": {"q": (0, 4), "v": (8, 12)},
    "k and v of a fused layer": {"k": (4, 8), "v": (8, 12)},
    "one part of a fused layer": {"k": (4, 8)},
    "a layer of one part": {"v": (0, 12)},
}


def live(layer: LoRALinear, seed: int) -> LoRALinear:
    """The layer with another live pair."""
    with torch.no_grad():
        layer.down.copy_(numbers(seed, *layer.down.shape))
        layer.up.copy_(numbers(seed + 100, *layer.up.shape))
    return layer


def banked(parts: dict[str, tuple[int, int]], slots: int = 3) -> tuple[LoRALinear, LoRA]:
    """A layer 5 -> 12 with `slots` kept pairs, and a live pair that is none of them."""
    layer = LoRALinear(nn.Linear(5, 12), Site("x", 0, parts), 3, 6.0, source())
    lora = LoRA([layer])
    for slot in range(slots):
        live(layer, slot)
        lora.keep()
    live(layer, 50)
    return layer, lora


@pytest.mark.parametrize("between", [(), (4,), (2, 3)])
@pytest.mark.parametrize("parts", SITES.values(), ids=SITES)
def test_a_kept_pair_serves_its_sample_as_the_live_pair_would(
    parts: dict[str, tuple[int, int]], between: tuple[int, ...]
) -> None:
    layer, lora = banked(parts)
    slots, x = torch.tensor([2, 0, 1, 2, 2]), numbers(3, 5, *between, 5)
    lora.choose(slots)
    together = layer(x)
    lora.choose(None)
    for sample, slot in enumerate(slots.tolist()):
        with torch.no_grad():
            layer.down.copy_(layer.bank_down[slot])
            layer.up.copy_(layer.bank_up[slot])
        torch.testing.assert_close(together[sample], layer(x)[sample])


def test_without_a_choice_the_live_pair_serves() -> None:
    layer, lora = banked(SITES["k and v of a fused layer"])
    x = numbers(3, 5, 4, 5)
    before = layer(x)
    lora.choose(torch.tensor([0, 0, 1, 1, 2]))
    assert not torch.allclose(layer(x), before)
    lora.choose(None)
    assert torch.equal(layer(x), before)


def test_what_is_kept_is_a_copy() -> None:
    layer, lora = banked(SITES["a layer of one part"])
    live(layer, 7)
    for slot in range(3):
        assert torch.equal(layer.bank_down[slot], numbers(slot, *layer.down.shape))
        assert torch.equal(layer.bank_up[slot], numbers(slot + 100, *layer.up.shape))
    assert not layer.bank_down.requires_grad
    lora.rewrite_kept(lambda bank: bank[[2, 0]])
    assert torch.equal(layer.bank_down[1], numbers(0, *layer.down.shape))
    assert torch.equal(layer.bank_up[0], numbers(102, *layer.up.shape))


def test_drawn_to_the_mean_of_the_kept_factor_by_factor() -> None:
    layer, lora = banked(SITES["k and v of a fused layer"])
    lora.draw_to_kept(0.25, [0, 2, 2])
    for factor, seed in ((layer.down, 0), (layer.up, 100)):
        start, first, third = (numbers(n + seed, *factor.shape) for n in (50, 0, 2))
        torch.testing.assert_close(factor.detach(), 0.75 * start + 0.25 * (first + 2 * third) / 3)
    before = layer.down.detach().clone()
    lora.draw_to_kept(0.0, [0, 1])
    assert torch.equal(layer.down, before)


def adapted() -> tuple[Classifier, LoRA, Tensor]:
    """A model whose live and two kept LoRAs all change its answers, and the answers it had before."""
    model = classifier()
    before = model(images()).detach()
    lora = attach(model, ("k", "v"), 2, 2, source())
    for seed in (1, 2, 3):
        for layer in lora.layers:
            live(layer, seed)
        if seed < 3:
            lora.keep()
    return model, lora, before


@pytest.mark.parametrize("slots", [None, [0, 1, 0, 1, 1, 0]])
def test_off_is_the_untouched_backbone_to_the_bit(slots: list[int] | None) -> None:
    model, lora, before = adapted()
    lora.choose(None if slots is None else torch.tensor(slots))
    chosen = model(images())
    assert not torch.allclose(chosen, before)
    with lora.off():
        assert torch.equal(model(images()), before)
        with lora.off():
            assert torch.equal(model(images()), before)
        assert torch.equal(model(images()), before)
    assert torch.equal(model(images()), chosen)
    with pytest.raises(ZeroDivisionError), lora.off():
        raise ZeroDivisionError
    assert torch.equal(model(images()), chosen)


def test_the_bank_comes_back_from_a_checkpoint() -> None:
    model, lora, _ = adapted()
    slots = torch.tensor([0, 1, 0, 1, 1, 0])
    lora.choose(slots)
    fresh = classifier()
    again = attach(fresh, ("k", "v"), 2, 2, source(9))
    content = checkpoint.pack(checkpoint.learned(model, checkpoint.Untouched(model)))
    checkpoint.restore(fresh, checkpoint.unpack(content))
    again.choose(slots)
    assert torch.equal(fresh(images()), model(images()))
    assert all(len(layer.bank_down) == len(layer.bank_up) == 2 for layer in again.layers)


@pytest.mark.parametrize("slots", [None, [0, 2, 1, 0]])
def test_half_precision_stays_half(slots: list[int] | None) -> None:
    layer, lora = banked(SITES["k and v of a fused layer"])
    lora.choose(None if slots is None else torch.tensor(slots))
    x = numbers(3, 4, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x), atol=0.3, rtol=0.03)


@pytest.mark.parametrize("between", [(), (4,), (2, 3)])
@pytest.mark.parametrize("parts", SITES.values(), ids=SITES)
def test_mixed_pairs_add_up_by_their_coefficients(parts: dict[str, tuple[int, int]], between: tuple[int, ...]) -> None:
    layer, lora = banked(parts)
    x, weights = numbers(4, 5, *between, 5), numbers(5, 5, 4, len(parts))
    lora.mix([weights])
    mixed = layer(x)
    lora.choose(None)
    expected = layer.base(x).detach()
    pairs = [*zip(layer.bank_down, layer.bank_up, strict=True), (layer.down, layer.up)]
    for place, (down, up) in enumerate(pairs):
        each = zip(down.split(3), up.split(layer.sizes), layer.bounds, strict=True)
        for part, (own_down, own_up, (first, last)) in enumerate(each):
            weight = weights[:, place, part].reshape(5, *[1] * (x.ndim - 1))
            expected[..., first:last] += 2.0 * weight * (x @ own_down.T @ own_up.T)
    torch.testing.assert_close(mixed, expected)
    lora.mix([weights[:1]])
    torch.testing.assert_close(layer(x)[:1], mixed[:1])
    with lora.off():
        torch.testing.assert_close(layer(x), layer.base(x))


def test_gradients_reach_coefficients_and_the_live_pair_only() -> None:
    layer, lora = banked(SITES["k and v of a fused layer"])
    weights = torch.ones(1, 4, 1, requires_grad=True)
    lora.mix([weights])
    layer(numbers(6, 5, 2, 5)).square().sum().backward()
    for reached in (weights, layer.down, layer.up):
        assert reached.grad is not None
        assert reached.grad.abs().min() > 0
