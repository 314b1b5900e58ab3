from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clbench import backbones
from clbench.adapters.bottleneck import Bottlenecks, attach
from clbench.model import Classifier


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def adapted() -> tuple[Classifier, Bottlenecks]:
    model = backbones.build("tiny-vit", 4, 0).eval()
    return model, attach(model, 5, 0.1, source())


def images() -> Tensor:
    return torch.randint(0, 256, (6, 1, 8, 8), generator=source(5), dtype=torch.uint8)


@torch.no_grad()
def shaken(adapters: Bottlenecks, seed: int) -> None:
    """Make the live adapters do something."""
    for layer in adapters.layers:
        for part in layer.parts:
            part.copy_(torch.randn(part.shape, generator=source(seed)))


def test_starts_equal_to_the_backbone_to_the_bit() -> None:
    model, adapters = adapted()
    plain = backbones.build("tiny-vit", 4, 0).eval()
    assert torch.equal(model(images()), plain(images()))
    shaken(adapters, 1)
    assert not torch.allclose(model(images()), plain(images()), atol=1e-2)
    adapters.restart(source(2))
    assert torch.equal(model(images()), plain(images()))


def test_stands_beside_the_feed_forward_networks_of_a_language_model() -> None:
    model, plain = (backbones.build("nano-lm", 0, 0).eval() for _ in range(2))
    adapters = attach(model, 5, 0.1, source())
    inputs = torch.ones(2, 2, 6, dtype=torch.int64)
    assert torch.equal(model.features(inputs), plain.features(inputs))
    assert len(adapters.layers) == 2
    shaken(adapters, 1)
    given: list[Tensor] = []
    for block, layer in zip(plain.blocks, adapters.layers, strict=True):
        norm, mlp = block[1].post_attention_layernorm, block[1].mlp
        norm.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
        mlp.register_forward_hook(
            lambda module, inputs, out, layer=layer: (
                out + 0.1 * F.linear(F.relu(F.linear(given[-1], layer.down, layer.down_bias)), layer.up, layer.up_bias)
            )
        )
    torch.testing.assert_close(model.features(inputs), plain.features(inputs))
    assert len(given) == 2


def test_a_block_by_hand() -> None:
    model, adapters = adapted()
    shaken(adapters, 1)
    plain = backbones.build("tiny-vit", 4, 0).eval().body.blocks[0]
    x, layer = torch.randn(2, 5, 16, generator=source(3)), adapters.layers[0]
    half = x + plain.attn(plain.norm1(x))
    side = F.relu(half @ layer.down.T + layer.down_bias) @ layer.up.T + layer.up_bias
    expected = half + plain.mlp(plain.norm2(half)) + 0.1 * side
    torch.testing.assert_close(model.body.blocks[0](x), expected)


def test_only_the_adapters_and_the_head_are_trainable() -> None:
    model, adapters = adapted()
    assert len(adapters.layers) == 2
    mine = {id(part) for layer in adapters.layers for part in layer.parts}
    assert {id(p) for p in model.trainable()} == mine | {id(p) for p in model.head.parameters()}
    assert sum(part.numel() for layer in adapters.layers for part in layer.parts) == 2 * (2 * 5 * 16 + 5 + 16)


def test_down_is_drawn_as_a_linear_layer_s_and_by_the_generator_alone() -> None:
    _, first = adapted()
    _, second = adapted()
    for one, other in zip(first.layers, second.layers, strict=True):
        assert torch.equal(one.down, other.down)
        assert 0.8 / 16**0.5 < one.down.abs().max() <= 1 / 16**0.5
    assert not torch.equal(first.layers[0].down, first.layers[1].down)


def test_kept_adapters_can_be_used_and_none() -> None:
    model, adapters = adapted()
    plain = model(images())
    given = []
    for seed in (1, 2, 3):
        shaken(adapters, seed)
        given.append(model(images()))
        if seed < 3:
            adapters.keep()
    for slot in (0, 1):
        with adapters.using(slot):
            assert torch.equal(model(images()), given[slot])
    with adapters.using("none"):
        assert torch.equal(model(images()), plain)
        with adapters.using("live"):
            assert torch.equal(model(images()), given[2])
        assert torch.equal(model(images()), plain)
    assert torch.equal(model(images()), given[2])
