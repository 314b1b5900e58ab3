"""What holds for whatever may come: metrics, protocol hashes, the store's files, words on the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from clbench import catalog, metrics
from clbench.errors import BadValue, ClbenchError, UnknownName
from clbench.metrics import Undefined
from clbench.outcomes import TEXT, pack_outcomes, read_outcomes
from clbench.protocol import METHOD_TERMS, UNHASHED, Protocol, digest
from clbench.recipe import Recipe
from clbench.record import Record, TaskCosts
from clbench.store import Store, parse_record

# metrics, against formulas in which a missing cell is NaN and spoils whatever it enters


@st.composite
def triangles(draw: st.DrawFn, tasks: int | None = None) -> list[list[float | None]]:
    """Scores of a stream: a lower triangle, some of whose cells were not measured, with or without row 0."""
    tasks = tasks or draw(st.integers(1, 6))
    cell = st.floats(0, 1) if draw(st.booleans()) else st.one_of(st.none(), st.floats(0, 1))
    before = st.one_of(st.none(), st.floats(0, 1))
    return [
        [draw(cell) if task < after else draw(before) if task == after else None for task in range(tasks)]
        for after in range(tasks + 1)
    ]


NAIVE: dict[str, Callable[[np.ndarray, int], float]] = {
    "average_accuracy": lambda r, t: np.mean(r[t]),
    "average_incremental_accuracy": lambda r, t: np.mean([np.mean(r[i, :i]) for i in range(1, t + 1)]),
    "learning_accuracy": lambda r, t: np.mean([r[i + 1, i] for i in range(t)]),
    "forgetting": lambda r, t: np.mean([np.max(r[i + 1 : t, i]) - r[t, i] for i in range(t - 1)]),
    "bwt": lambda r, t: np.mean([r[t, i] - r[i + 1, i] for i in range(t - 1)]),
    "bwt_trace": lambda r, t: np.sum([r[t, i] - r[i + 1, i] for i in range(t - 1)]) / t,
    "bwt_treelora": lambda r, t: np.sum([np.minimum(r[t, i] - r[i + 1, i], 0) for i in range(t - 1)]) / t,
    "forward_transfer": lambda r, t: np.mean([r[i, i] - r[0, i] for i in range(1, t)]),
}
OF_ONE_TASK = ("average_accuracy", "average_incremental_accuracy", "learning_accuracy")


@given(triangles())
def test_metrics_are_their_formulas_and_undefined_just_where_those_have_no_value(scores: Any) -> None:
    tasks, cells = len(scores) - 1, np.array(scores, dtype=float)
    for name, formula in NAIVE.items():
        value = getattr(metrics, name)(scores)
        naive = formula(cells, tasks) if tasks > 1 or name in OF_ONE_TASK else float("nan")
        if np.isnan(naive):
            assert isinstance(value, Undefined), name
            assert value.reason
        else:
            assert value == pytest.approx(naive, abs=1e-12), name


@given(st.data())
def test_the_pooled_average_is_the_mean_over_all_samples(data: st.DataObject) -> None:
    scores = data.draw(triangles())
    sizes = data.draw(st.lists(st.integers(0, 50), min_size=len(scores) - 1, max_size=len(scores) - 1))
    value = metrics.average_accuracy_pooled(scores, sizes)
    if sum(sizes) == 0 or None in scores[-1]:
        assert isinstance(value, Undefined)
    else:
        of_samples = [score for score, size in zip(scores[-1], sizes, strict=True) for _ in range(size)]
        assert value == pytest.approx(np.mean(of_samples), abs=1e-12)


# protocol cards


def _values(model: type[BaseModel], name: str) -> st.SearchStrategy[Any]:
    """Whatever a field may hold."""
    field = model.model_fields[name]
    kinds = st.from_type(field.annotation)  # type: ignore[arg-type]
    return kinds.filter(lambda value: name != "eval_samples" or value is None or value > 0)


CARDS = st.fixed_dictionaries({name: _values(Protocol, name) for name in Protocol.model_fields})


@given(CARDS, st.randoms())
def test_equal_cards_have_equal_hashes_in_whatever_order_they_were_made(fields: dict[str, Any], shuffle: Any) -> None:
    card, names = Protocol(**fields), list(fields)
    shuffle.shuffle(names)
    again = Protocol(**{name: fields[name] for name in names})
    assert again == card
    assert (again.hash, again.suite_hash) == (card.hash, card.suite_hash)


@given(CARDS)
def test_a_card_is_the_same_after_json(fields: dict[str, Any]) -> None:
    card = Protocol(**fields)
    again = Protocol.model_validate_json(card.model_dump_json())
    assert again == card
    assert (again.hash, again.suite_hash) == (card.hash, card.suite_hash)
    assert Protocol.model_validate(card.model_dump(mode="json")).hash == card.hash


@given(CARDS, st.data())
def test_any_change_of_any_field_is_another_hash(fields: dict[str, Any], data: st.DataObject) -> None:
    card, name = Protocol(**fields), data.draw(st.sampled_from(list(Protocol.model_fields)))
    value = data.draw(_values(Protocol, name))
    assume(value != fields[name])
    other = Protocol(**{**fields, name: value})
    assert (other.hash != card.hash) == (name not in UNHASHED)
    assert (other.suite_hash != card.suite_hash) == (name not in UNHASHED and name not in METHOD_TERMS)


PLAIN_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN_JSON))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


# records and outcomes


FACTS = st.dictionaries(st.text(max_size=8), PLAIN_JSON, max_size=4)
SENTENCES = st.lists(st.text(max_size=20), max_size=2).map(tuple)
POSITIVE = st.floats(0, 1e300)
COSTS = st.builds(
    TaskCosts,
    **dict.fromkeys(("train_seconds", "warmup_seconds", "eval_seconds", "peak_memory_mib"), POSITIVE),
    **dict.fromkeys(("train_samples", "steps", "epochs", "eval_samples"), st.integers(0, 2**60)),
    flops_per_step=st.none() | POSITIVE,
    phase_seconds=st.dictionaries(st.text(max_size=5), POSITIVE, max_size=2),
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A finished or failed record with any facts, names and numbers."""
    tasks = draw(st.lists(st.text(max_size=10), min_size=1, max_size=4).map(tuple))
    done = draw(st.booleans())
    scores = draw(triangles(len(tasks)))
    return Record.example(
        tasks=tasks,
        test_sizes=tuple(draw(st.integers(0, 2**40)) for _ in tasks),
        scores=scores,
        other_scores=draw(st.dictionaries(st.text(max_size=5), st.just(scores), max_size=2)),
        costs=tuple(draw(COSTS) for _ in tasks),
        status="done" if done else "failed",
        reason=None if done else draw(st.text()),
        variant=draw(st.text(max_size=20)),
        seed=draw(st.integers(0, 2**63)),
        params=draw(FACTS),
        notes=draw(FACTS),
        protocol=draw(FACTS),
        marks=draw(SENTENCES),
        router_accuracy=draw(st.just(()) | st.just(tuple(0.1 * i for i, _ in enumerate(tasks)))),
    )


@st.composite
def outcomes(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Arrays of one length, and the bytes of what was said, of any."""
    length = draw(st.integers(1, 30))
    kinds = st.sampled_from(["<i4", "<f4", "<f8", "|b1", "|u1", "<i8"])

    def array(kind: str, numbers: int) -> np.ndarray:
        content = draw(st.binary(min_size=8 * numbers, max_size=8 * numbers))
        whole = np.frombuffer(content, kind if kind != "|b1" else "|u1")[:numbers]
        return whole % 2 == 1 if kind == "|b1" else whole

    names = draw(st.lists(st.from_regex(r"[a-z]{1,5}_[0-9]{1,3}", fullmatch=True), min_size=1, max_size=4, unique=True))
    arrays = {name: array(draw(kinds), length) for name in names}
    return {**arrays, f"{TEXT}round_1": array("|u1", draw(st.integers(0, 40)))}


@given(records(), outcomes())
@settings(max_examples=25)
def test_what_a_store_was_given_comes_back_bit_for_bit(record: Record, given_outcomes: dict[str, np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place))
        folder = store.cell(record.suite, record.method, record.key)
        folder.save(record, given_outcomes)
        content = folder.record_path.read_bytes()
        loaded = store.load()
        assert loaded.problems == []
        assert loaded.records == [record]
        assert same(loaded.outcomes(record), given_outcomes)
        folder.save(loaded.records[0], loaded.outcomes(record) or {})
        assert folder.record_path.read_bytes() == content
        if record.status == "done":
            store.publish(record, loaded.outcomes(record))
            published = store.load(published=True)
            assert published.records == [record]
            assert same(published.outcomes(record), given_outcomes)


def same(found: Any, expected: dict[str, np.ndarray]) -> bool:
    """Whether names, types and bytes are equal."""
    assert found is not None
    return {name: (array.dtype.str, array.tobytes()) for name, array in found.items()} == {
        name: (array.dtype.str, array.tobytes()) for name, array in expected.items()
    }


@given(outcomes(), st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
def test_torn_outcomes_are_none_or_arrays(arrays: dict[str, np.ndarray], place: int, bytes_: bytes) -> None:
    content = pack_outcomes(arrays)
    place %= len(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes.npz"
        for torn in (content[:place], content[:place] + bytes_ + content[place + len(bytes_) :]):
            path.write_bytes(torn)
            found = read_outcomes(path)
            assert found is None or all(array.ndim == 1 for array in found.values())


@given(records(), st.data())
def test_a_torn_record_is_a_record_or_a_sentence(record: Record, data: st.DataObject) -> None:
    content = record.model_dump_json().encode()
    place = data.draw(st.integers(0, len(content) - 1))
    torn = content[:place] + data.draw(st.binary(max_size=3)) + content[place + data.draw(st.integers(0, 5)) :]
    found, problem = parse_record(torn, Path("record.json"))
    assert (found is None) != (problem is None)
    assert problem is None or problem.startswith("'record.json' is ")


# words on the command line

IDENTIFIERS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
OWNERS = st.just("") | st.from_regex(r"[a-z][a-z0-9_.-]{0,8}[a-z]", fullmatch=True)


@given(st.dictionaries(st.tuples(OWNERS, IDENTIFIERS), st.text().map(str.strip), max_size=5))
def test_set_words_say_what_they_say(said: dict[tuple[str, str], str]) -> None:
    words = [f"{owner}.{field}={value}" if owner else f"{field}={value}" for (owner, field), value in said.items()]
    found = catalog.settings(words)
    assert {(owner, field): value for owner, own in found.items() for field, value in own.items()} == said
    if words:
        with pytest.raises(BadValue, match="twice"):
            catalog.settings([*words, words[0]])


@given(st.text())
def test_any_set_word_is_an_owner_a_field_and_a_value_or_refused(word: str) -> None:
    place, equals, value = word.partition("=")
    owner, _, field = place.strip().rpartition(".")
    if equals and field:
        assert catalog.settings([word]) == {owner: {field: value.strip()}}
    else:
        with pytest.raises(BadValue, match="--set takes"):
            catalog.settings([word])


def _fields(model: type[BaseModel]) -> st.SearchStrategy[tuple[str, Any]]:
    """A field of a model and a value that it may hold."""

    def held(name: str) -> st.SearchStrategy[tuple[str, Any]]:
        field = model.model_fields[name]
        parts = get_args(field.annotation) or (field.annotation,)
        numbers = st.floats(0, 1, exclude_min=True, exclude_max=True) if float in parts else st.integers(1, 1000)
        if field.annotation is str or (parts and str in parts):
            values: st.SearchStrategy[Any] = IDENTIFIERS | st.lists(IDENTIFIERS, max_size=3).map(tuple)
        elif {int, float} & set(parts):
            many = st.lists(numbers, max_size=3).map(tuple) | st.tuples(numbers, numbers)
            values = numbers | many | (st.none() if type(None) in parts else st.nothing())
        else:
            values = st.from_type(field.annotation)  # type: ignore[arg-type]
        reader = TypeAdapter(field.annotation)

        def fits(value: Any) -> bool:
            try:
                return bool(reader.validate_python(value, strict=True) == value)
            except ValidationError:
                return False

        return st.tuples(st.just(name), values.filter(fits))

    return st.sampled_from(list(model.model_fields)).flatmap(held)


def refusal(act: Callable[[], object]) -> str:
    """The sentence in which a value is refused; empty where it is taken."""
    try:
        act()
    except BadValue as error:
        return str(error)
    return ""


@given(_fields(Recipe))
@example(("betas", (0.5, 0.25)))
@example(("clip", None))
def test_a_recipes_value_in_words_is_the_value(field: tuple[str, Any]) -> None:
    name, value = field
    try:
        Recipe(**{name: value})
    except ValidationError:
        assume(False)
    said = catalog.suite("tiny", {name: catalog.word(list(value) if isinstance(value, tuple) else value)})
    assert getattr(said.recipe, name) == value
    changed = {other for other, own in said.recipe if own != getattr(catalog.suite("tiny").recipe, other)}
    assert changed <= {name, "task_epochs"}


@given(st.sampled_from(list(Recipe.model_fields)), st.text())
def test_a_recipes_field_takes_what_it_may_hold_and_refuses_the_rest_by_name(name: str, word: str) -> None:
    made: list[Recipe] = []
    refused = refusal(lambda: made.append(catalog.suite("tiny", {name: word}).recipe))
    assert f"recipe.{name}" in refused if refused else Recipe.model_validate(made[0].model_dump()) == made[0]


@given(st.sampled_from(list(catalog.methods())), st.data())
@settings(max_examples=50)
def test_a_methods_value_in_words_is_the_value(name: str, data: st.DataObject) -> None:
    kind = catalog.method_type(name).cls
    field, value = data.draw(_fields(kind))
    tuned = dict(catalog.suite("tiny").settings.get(name, {}))
    try:
        kind(**{**tuned, field: value})
    except ValidationError:
        assume(False)
    word = catalog.word(list(value) if isinstance(value, tuple) else value)
    for owner in (name, ""):
        (row,) = catalog.rows(catalog.suite("tiny"), [name], {owner: {field: word}})
        assert getattr(row.method, field) == value
        again = kind(**row.method.model_dump())
        assert again == row.method
        assert kind.model_validate_json(row.method.model_dump_json()) == row.method


@given(st.sampled_from(list(catalog.methods())), st.data(), st.text())
@settings(max_examples=50)
def test_a_methods_field_takes_what_it_may_hold_and_refuses_the_rest_by_name(
    name: str, data: st.DataObject, word: str
) -> None:
    kind = catalog.method_type(name).cls
    field = data.draw(st.sampled_from(list(kind.model_fields)))
    refused = refusal(lambda: catalog.rows(catalog.suite("tiny"), [name], {name: {field: word}}))
    assert not refused or refused.startswith(name)


@given(st.text())
@example("a\0.py:B")
@example(".py:")
@example("\ud800.py")
@example("~.py")
def test_any_word_for_a_method_suite_or_backbone_is_one_or_refused(word: str) -> None:
    assume(word not in catalog.methods())
    with pytest.raises(ClbenchError):
        catalog.method_type(word)
    with pytest.raises(ClbenchError):
        catalog.current_fingerprint(word)
    if word not in catalog.suites():
        with pytest.raises(UnknownName):
            catalog.suite(word)
    plain = word.partition("@")[0]
    if plain and plain not in catalog.BACKBONES and plain.partition(":")[0] not in ("hf", "hf-4bit", "timm", "ibot"):
        with pytest.raises(UnknownName):
            catalog.suite("tiny", backbone=word)
