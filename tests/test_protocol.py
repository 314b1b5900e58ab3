from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from clbench.protocol import METHOD_TERMS, UNHASHED, Protocol, digest

FIELDS: dict[str, Any] = {
    "suite": "s",
    "stream": "t",
    "stream_sha256": "00",
    "order_seed": 0,
    "tasks": 2,
    "backbone": "b",
    "weights_sha256": "11",
    "transform": "none",
    "normalisation": "none",
    "score": "accuracy",
    "epochs": 5,
    "batch_size": 32,
}
OTHER: dict[str, Any] = {
    "suite": "s2",
    "stream": "t2",
    "stream_sha256": "01",
    "order_seed": 1,
    "tasks": 3,
    "backbone": "b2",
    "weights_sha256": "12",
    "transform": "flip",
    "normalisation": "mean",
    "score": "exact",
    "scored_on": "validation",
    "epochs": 6,
    "batch_size": 64,
    "head_masking": "seen",
    "schedule": "joint",
    "task_id_at_test": True,
    "buffer_samples": 1,
    "replay_batch": 1,
    "class_statistics": True,
    "stored_gradients": 3,
    "compat": ("reshape",),
    "task_epochs": (5, 3),
    "optimisation": "optimizer sgd",
    "eval_samples": 50,
    "marks": ("random weights",),
}
CARD = Protocol(**FIELDS)


def test_the_hashes_are_those_of_every_other_process() -> None:
    assert (CARD.hash, CARD.suite_hash) == ("3b6397f61784", "c9764778b525")


def test_the_order_of_fields_changes_nothing() -> None:
    assert Protocol(**dict(reversed(FIELDS.items()))).hash == CARD.hash


def test_there_is_another_value_for_every_field() -> None:
    assert OTHER.keys() == Protocol.model_fields.keys() - set(UNHASHED)


@pytest.mark.parametrize("field", OTHER)
def test_every_field_changes_the_hash_and_only_the_suites_own_its_hash(field: str) -> None:
    changed = Protocol(**{**FIELDS, field: OTHER[field]})
    assert changed.hash != CARD.hash
    assert (changed.suite_hash == CARD.suite_hash) == (field in METHOD_TERMS)


def test_departures_name_both_values() -> None:
    assert CARD.departures(CARD) == {}
    changed = CARD.model_copy(update={"epochs": 6, "schedule": "joint"})
    assert changed.departures(CARD) == {"epochs": (6, 5), "schedule": ("joint", "sequential")}


def test_a_card_is_frozen_and_knows_its_fields() -> None:
    with pytest.raises(ValidationError):
        CARD.epochs = 6  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Protocol(**FIELDS, colour="red")


def test_digest_has_the_asked_length() -> None:
    assert len(digest({}, 16)) == 16
