"""Time of `clbench table` and `clbench list runs` on a store of 10,000 records, made in a temporary folder.

Prints seconds of each command as a program of its own: the first time, when there is no index of the store yet, and
again. Takes two minutes; `python benchmarks/big_store.py 500` makes a smaller store.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from clbench import catalog
from clbench.record import Record, TaskCosts
from clbench.store import Store

RECORDS, SUITES, TASKS, EXAMPLES = 10_000, 5, 10, 200
COMMANDS = (["table", "glyphs"], ["list", "runs"])


def fill(root: Path, count: int) -> None:
    """Records of five suites and all methods, with outcomes; seeds as many as it takes."""
    store, random = Store.create(root), np.random.default_rng(0)
    suites, prints = list(catalog.suites())[:SUITES], catalog.current_fingerprints()
    if "glyphs" not in suites:
        suites[0] = "glyphs"
    rows = [(suite, method) for suite in suites for method in prints]
    for number in range(count):
        suite, method = rows[number % len(rows)]
        record, outcomes = made(suite, method, prints[method], number // len(rows), f"{number:016x}", random)
        store.cell(suite, method, record.key).save(record, outcomes)


def made(
    suite: str, method: str, fingerprint: str, seed: int, key: str, random: np.random.Generator
) -> tuple[Record, dict[str, np.ndarray]]:
    """A record of ten tasks, and the answers to 200 examples of each after every one."""
    scores: list[tuple[float | None, ...]] = [(None,) * TASKS]
    for after in range(1, TASKS + 1):
        scores.append((*random.uniform(0.3, 0.9, after).tolist(), *[None] * (TASKS - after)))
    cost = Record.example().costs[0]
    costs = tuple(
        TaskCosts(**{**cost.model_dump(), "train_seconds": float(random.uniform(5, 9))}) for _ in range(TASKS)
    )
    card = {**Record.example().protocol, "suite": suite, "split": "f" * 64, "class_order": list(range(100))}
    record = Record.example(
        key=key,
        suite=suite,
        method=method,
        seed=seed,
        fingerprint=fingerprint,
        protocol=card,
        suite_protocol=card,
        protocol_hash=suite,
        suite_hash=suite,
        tasks=tuple(f"task {number}" for number in range(TASKS)),
        test_sizes=(EXAMPLES,) * TASKS,
        scores=tuple(scores),
        costs=costs,
    )
    total = TASKS * EXAMPLES
    labels = np.arange(total, dtype=np.int32) % 10
    outcomes = {"labels": labels, "tasks": np.repeat(np.arange(TASKS, dtype=np.int32), EXAMPLES)}
    for after in range(1, TASKS + 1):
        wrong = random.random(total) > 0.6
        outcomes[f"round_{after}"] = np.where(wrong, (labels + 1) % 10, labels).astype(np.int32)
    return record, outcomes


def seconds(store: Path, words: list[str]) -> float:
    """Of one command, from the start of the program to its end."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "clbench", *words, "--store", str(store)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), count)
        print(f"{count} records in {SUITES} suites")
        for turn in ("first", "again"):
            for words in COMMANDS:
                print(f"clbench {' '.join(words)}, {turn}: {seconds(Path(folder), words):.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else RECORDS)
