"""Published figures: every one is of a listed method and metric, and a few are those of the papers."""

from __future__ import annotations

import pytest

from clbench import catalog, plan
from clbench.protocol import Protocol
from clbench.record import Record
from clbench.suite import Reference
from clbench.suites import _references, _references_text
from clbench.verify import MEASURES, TERMS, facts

PROTOCOL = Protocol(
    **dict.fromkeys(("suite", "stream", "stream_sha256", "backbone", "weights_sha256"), "-"),
    **dict.fromkeys(("transform", "normalisation", "score"), "-"),
    **dict.fromkeys(("order_seed", "tasks", "epochs", "batch_size"), 0),
)
ALL = {**_references.REFERENCES, **_references_text.REFERENCES}


def value(suite: str, method: str, metric: str, variant: str = "", source: str = "") -> list[float]:
    return [
        r.value
        for r in ALL[suite]
        if (r.method, r.metric, r.variant) == (method, metric, variant) and source in r.source
    ]


@pytest.mark.parametrize("suite", ALL)
def test_a_reference_names_what_there_is(suite: str) -> None:
    assert suite in catalog.suites()
    known = set(catalog.methods()) | _references.ELSEWHERE
    for reference in ALL[suite]:
        assert reference.method in known
        assert reference.metric in MEASURES
        assert set(reference.protocol) <= set(TERMS)
        assert reference.source
        assert (reference.tolerance is None) == (reference.metric == "train_seconds")
        assert reference.verified == ("[M]" not in reference.source)


def test_no_figure_is_there_twice() -> None:
    for references in ALL.values():
        keys = [
            (r.method, r.variant, r.metric, r.source, r.note, r.score, *sorted(map(str, r.protocol.items())))
            for r in references
        ]
        assert len(keys) == len(set(keys))


def test_percents_and_signs() -> None:
    def wrong(reference: Reference) -> bool:
        if reference.metric == "train_seconds":
            return reference.value < 1
        if reference.metric == "bwt_treelora":
            return not -100 < reference.value <= 0
        return not (reference.metric.startswith("bwt") or 0 < reference.value < 100)

    assert [r for references in ALL.values() for r in references if wrong(r)] == []


def test_figures_of_the_papers() -> None:
    assert value("cifar100-parity-hide", "treelora", "avg_accuracy", source="table 1") == [88.54]
    assert value("cifar100-parity-hide", "treelora", "forgetting", source="table 1") == [4.37]
    assert value("cifar100-parity-hide", "treelora", "train_seconds", source="table 1") == [214]
    assert value("cifar100-parity-hide", "treelora", "avg_accuracy", "epochs=2") == [87.73]
    assert value("cub200-parity-hide", "seqlora", "avg_accuracy", "unmasked") == [9.10]
    assert value("imagenet-r-parity-pilot", "sd-lora", "avg_incremental_accuracy") == [82.04]
    assert value("imagenet-r-20", "hide-prompt", "avg_accuracy") == [73.59]
    assert value("cifar100-20x5", "ease", "avg_accuracy_pooled") == [85.80]
    assert value("cub200", "ease", "avg_accuracy_pooled") == [86.81]
    assert value("imagenet-r", "ease", "avg_accuracy_pooled") == [70.58]
    assert value("cub200", "ncm", "avg_accuracy_pooled") == [86.73]
    assert value("cifar100-parity-coda", "inflora", "avg_accuracy", source="0.73") == [86.51]
    assert value("cifar100-parity-pilot", "slca", "avg_accuracy", "no alignment") == [88.86]
    one_b = [r.value for r in ALL["trace-500"] if r.protocol.get("backbone") == "llama-3.2-1b-instruct"]
    assert {29.73, -17.03, 482, 36.14, -7.36, 179} <= set(one_b)
    assert value("trace-15", "treelora", "bwt_treelora", "paper's epochs") == [-6.41]
    assert value("trace-500", "treelora", "avg_accuracy", "paper's epochs", "three tasks") == [45.59]
    assert value("trace-500", "gem", "bwt_treelora", source="three tasks") == [-16.25]
    assert value("olora-order6", "olora", "avg_accuracy", source="O-LoRA") == [72.17]
    assert value("trace", "seqlora", "bwt_trace") == [-45.7]


def test_a_published_spread_gives_the_tolerance() -> None:
    tolerances = {r.source: r.tolerance for r in ALL["cifar100-parity-coda"] if r.method == "inflora"}
    assert tolerances["InfLoRA (Liang and Li 2024): 86.51 ± 0.73"] == pytest.approx(1.46)
    assert tolerances["InfLoRA, log in its repository"] == 1.5


def test_the_rows_that_are_held_against_figures_compete() -> None:
    """A figure without a row of ours could never be reached; other epochs are asked for by --set."""
    for name in ALL:
        suite = catalog.suite(name)
        rows = {(row.method.name, row.variant) for row in catalog.rows(suite, [], {})}
        if name in _references_text.REFERENCES:
            rows |= {(method, "") for method in catalog.methods()}  # of TRACE's table, some are named with --method
        figures = {(r.method, r.variant) for r in ALL[name] if "=" not in r.variant}
        assert {figure for figure in figures - rows if figure[0] not in _references.ELSEWHERE} == set(), name


TAUGHT = ("epochs", "batch size", "optimiser", "step size", "schedule", "head masking")


@pytest.mark.parametrize("name", [name for name in _references.REFERENCES if "-parity-" in name])
def test_every_row_is_taught_as_one_of_its_figures_was(name: str) -> None:
    """As far as the source says how."""
    suite = catalog.suite(name)
    card = PROTOCOL.model_copy(update=suite._taught())
    wrong: dict[str, list[set[str]]] = {}
    for row in catalog.rows(suite, [], {}):
        recipe = row.recipe or suite.recipe
        run = Record.example(
            params=row.method.model_dump(mode="json"),
            recipe=recipe.facts(),
            protocol=plan.terms(suite, card, row.method, recipe).model_dump(mode="json"),
        )
        mine = facts(run)
        for figure in ALL[name]:
            if (figure.method, figure.variant) == (row.method.name, row.variant):
                stated = [term for term in TAUGHT if term in figure.protocol and mine[term] is not None]
                other = {term for term in stated if str(mine[term]) != str(figure.protocol[term])}
                wrong.setdefault(f"{row.method.name} {row.variant}", []).append(other)
    assert {row: min(others, key=len) for row, others in wrong.items() if set() not in others} == {}
