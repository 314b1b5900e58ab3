from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clbench import checkpoint
from clbench.backbones import build
from clbench.checkpoint import Untouched, learned, pack, restore, sha256, tensors_of, unpack
from clbench.model import Classifier

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TENSORS = st.builds(
    lambda shape, dtype: torch.arange(int(torch.tensor(shape).prod())).reshape(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
)
STATES = st.dictionaries(
    st.text() | st.integers(),
    st.recursive(
        PLAIN | TENSORS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


@given(STATES)
def test_what_is_packed_comes_back(state: dict[Any, Any]) -> None:
    back = unpack(pack(state))
    assert same(state, back)
    assert sha256(back) == sha256(state)


def test_tensors_that_share_storage_are_packed_apart() -> None:
    whole = torch.arange(6.0)
    back = unpack(pack({"whole": whole, "part": whole[2:4], "turned": whole.reshape(2, 3).T}))
    assert same(back, {"whole": whole, "part": whole[2:4], "turned": whole.reshape(2, 3).T})


@pytest.mark.parametrize("wrong", [{"a": {1, 2}}, {"a": object()}, {"a": {(1, 2): 3}}])
def test_what_cannot_be_packed_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="a checkpoint"):
        pack(wrong)


def test_torn_and_foreign_bytes_are_refused() -> None:
    from safetensors.torch import save

    whole = pack({"a": torch.ones(100), "b": [1, 2]})
    torn = [whole[:length] for length in (0, 1, 7, 8, 60, len(whole) - 1)]
    foreign = [save({"x": torch.ones(1)}), save({}, metadata={"state": "[{}]"}), save({}, metadata={"state": "no"})]
    for content in [*torn, *foreign, b"{}" * 50]:
        with pytest.raises(ValueError, match="no checkpoint"):
            unpack(content)


def test_no_byte_can_be_altered_unnoticed() -> None:
    """But for what says the same in other bytes, as white space does."""
    state, draws = {"a": torch.arange(40.0), "b": [torch.ones(3, dtype=torch.bool), 0.5, "x"]}, random.Random(0)

    def refused(content: bytes) -> bool:
        try:
            back = unpack(content)
        except ValueError:
            return True
        assert same(back, state)
        return False

    whole = pack(state)
    first = 8 + int.from_bytes(whole[:8], "little")  # byte of the tensors
    assert not refused(whole)
    for place, byte in enumerate(whole):
        altered = whole[:place] + bytes([byte ^ draws.randrange(1, 256)]) + whole[place + 1 :]
        assert refused(altered) or place < first


def test_a_file_without_a_hash_is_no_checkpoint() -> None:
    from safetensors.torch import save

    with pytest.raises(ValueError, match="does not have the hash"):
        unpack(save({}, metadata={"state": '{"__dict__": []}'}))


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.5]), "n": 1},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64), "n": 1},
        {"a": torch.tensor([[1.0, 2.0]]), "n": 1},
        {"b": torch.tensor([1.0, 2.0]), "n": 1},
        {"a": torch.tensor([1.0, 2.0]), "n": 2},
        {"n": 1},
    ],
)
def test_the_hash_covers_names_types_shapes_values_and_plain_facts(other: dict[str, Any]) -> None:
    state = {"a": torch.tensor([1.0, 2.0]), "n": 1}
    assert sha256(state) == sha256({"a": torch.tensor([1.0, 2.0]), "n": 1})
    assert sha256(other) != sha256(state)


def test_tensors_have_stable_names_and_are_not_copied() -> None:
    a, b = torch.zeros(1), torch.zeros(2)
    found = tensors_of({"none": None, "list": [1, a], "deep": {"b": b}})
    assert list(found) == ["list/1", "deep/b"]
    assert found["list/1"].data_ptr() == a.data_ptr()
    assert len(tensors_of({"a/b": a, "a": {"b": b}})) == 2


@pytest.fixture
def model() -> Classifier:
    made = build("tiny-vit", 4, seed=0)
    made.freeze_body()
    return made


def norm(model: Classifier) -> nn.LayerNorm:
    found = model.get_submodule("body.norm")
    assert isinstance(found, nn.LayerNorm)
    return found


def test_an_untouched_backbone_is_no_part_of_what_was_learned(model: Classifier) -> None:
    assert set(learned(model, Untouched(model))) == {"head.weight", "head.bias"}


def test_backbone_weights_count_while_and_after_they_are_trained(model: Classifier) -> None:
    untouched = Untouched(model)
    norm(model).requires_grad_(True)
    assert {"body.norm.weight", "body.norm.bias"} <= set(learned(model, untouched))
    with torch.no_grad():
        norm(model).weight.add_(1)
    norm(model).requires_grad_(False)
    names = set(learned(model, untouched))
    assert "body.norm.weight" in names
    assert "body.norm.bias" not in names


def test_replaced_backbone_weights_count_even_where_the_old_ones_are_gone(model: Classifier) -> None:
    untouched = Untouched(model)
    for _ in range(20):  # an identity would soon be given again
        norm(model).weight = nn.Parameter(torch.zeros(model.width), requires_grad=False)
        assert "body.norm.weight" in learned(model, untouched)


def test_data_that_is_replaced_counts(model: Classifier) -> None:
    untouched = Untouched(model)
    norm(model).weight.data = torch.zeros(model.width)
    assert "body.norm.weight" in learned(model, untouched)


class Growing(nn.Module):
    """A head with a row a class, a buffer that grows, one that is not kept, and something derived from the first."""

    past: Tensor
    scratch: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, 16))
        self.register_buffer("past", torch.zeros(0, 3))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)
        self.total = 0.0

    def refold(self) -> None:
        self.total = float(self.past.sum())


def test_a_model_that_has_grown_is_restored(model: Classifier) -> None:
    model.head = Growing(6)
    model.head.past = torch.ones(2, 3)
    with torch.no_grad():
        model.head.weight.fill_(7)
    norm(model).requires_grad_(True)
    state = learned(model, Untouched(model))
    assert "head.scratch" not in state

    fresh = build("tiny-vit", 4, seed=0)
    fresh.freeze_body()
    untouched = Untouched(fresh)
    fresh.head = Growing(2)
    seen_by_a_plugin = fresh.head.weight
    restore(fresh, unpack(pack(state)))
    assert fresh.head.weight is seen_by_a_plugin
    assert same(learned(fresh, untouched), state)
    assert fresh.head.total == 6.0


def test_restoring_into_another_model_fails(model: Classifier) -> None:
    with pytest.raises(AttributeError):
        restore(model, {"head.gone": torch.zeros(1)})
    with pytest.raises(AttributeError):
        restore(model, {"nowhere.weight": torch.zeros(1)})


def test_packing_leaves_the_state_alone() -> None:
    tensor = torch.ones(3, requires_grad=True)
    pack({"a": tensor})
    assert tensor.requires_grad
    assert checkpoint.tensors_of({"a": tensor})["a"].requires_grad is False
