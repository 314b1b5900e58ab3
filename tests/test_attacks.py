"""Files of others are data: nothing in them is executed, followed out of the store, or unfolded without end."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clbench import backbones, checkpoint, files, memo, outcomes
from clbench.cli import app
from clbench.errors import ClbenchError, NotAvailable, StoreError
from clbench.record import Record
from clbench.store import Store, parse_record

OUTCOMES = {"labels": np.arange(40, dtype=np.int32), "tasks": np.zeros(40, np.int32), "round_1": np.zeros(40, np.int32)}
OUT = ("..", "../up", "a/b", "/etc", "a\\b", "C:x", "", ".", "nul\0", "line\n", "bell\x07")


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.mkdir, (str(self.path),)  # type: ignore[return-value]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")


def put(store: Store, key: str = "k1") -> Path:
    folder = store.cell("digits", "plain", key)
    folder.save(Record.example(key=key), OUTCOMES)
    return folder.path


# pickles


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def _npz(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, member in members.items():
            file.writestr(f"{name}.npy", member)
    return content.getvalue()


def test_the_bomb_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "gone off")))
    assert (tmp_path / "gone off").exists()


def test_no_pickle_among_outcomes_is_loaded(store: Store, tmp_path: Path) -> None:
    bomb = np.array([Bomb(tmp_path / "gone off")] * 40, dtype=object)
    path = put(store) / "outcomes.npz"
    for content in (_npz(labels=_npy(bomb)), pickle.dumps(bomb), _npy(bomb), _npz(labels=pickle.dumps(bomb))):
        path.write_bytes(content)
        loaded = store.load()
        assert loaded.outcomes(loaded.records[0]) is None
        assert loaded.last_outcomes(loaded.records[0]) is None
    assert CliRunner().invoke(app, ["table", "digits", "--store", str(store.root)]).exit_code == 0
    assert CliRunner().invoke(app, ["store", "check", "--store", str(store.root)]).exit_code == 1
    assert not (tmp_path / "gone off").exists()


def test_no_pickle_in_the_place_of_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"a": Bomb(tmp_path / "gone off")}, content)
    for bomb in (content.getvalue(), pickle.dumps(Bomb(tmp_path / "gone off"))):
        with pytest.raises(ValueError, match="no checkpoint"):
            checkpoint.unpack(bomb)
    assert not (tmp_path / "gone off").exists()


def test_no_pickle_in_the_place_of_a_record_is_loaded(store: Store, tmp_path: Path) -> None:
    (put(store) / "record.json").write_bytes(pickle.dumps(Bomb(tmp_path / "gone off")))
    assert "torn or no JSON" in store.load().problems[0]
    assert not (tmp_path / "gone off").exists()


# what unfolds without end


def _header(shape: str, descr: str = "'<i4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


STRANGE: dict[str, bytes] = {
    "a huge shape": _npz(labels=_header("(1000000000000,)")),
    "a shape beyond all numbers": _npz(labels=_header(f"({2**70},)")),
    "a negative shape": _npz(labels=_header("(-1,)") + b"\0" * 160),
    "a deep header": _npz(labels=_header("(" * 3000)),
    "a program for a header": _npz(labels=_header("(__import__('os').getpid(),)")),
    "words": _npz(labels=_npy(np.array(["a"] * 40))),
    "a table": _npz(labels=_npy(np.zeros((4, 10), np.int32))),
    "arrays of two lengths": _npz(labels=_npy(np.zeros(40, np.int32)), tasks=_npy(np.zeros(30, np.int32))),
    "another version of arrays": _npz(labels=_npy(np.zeros(40, np.int32)).replace(b"\x01\x00", b"\x03\x00", 1)),
    "an empty member": _npz(labels=b""),
    "no member": _npz(),
}


@pytest.mark.parametrize("what", STRANGE)
def test_strange_outcomes_are_none_and_the_table_is_printed(store: Store, what: str) -> None:
    (put(store) / "outcomes.npz").write_bytes(STRANGE[what])
    loaded = store.load()
    assert not loaded.outcomes(loaded.records[0])
    done = CliRunner().invoke(app, ["table", "digits", "--store", str(store.root)])
    assert (done.exit_code, done.exception) == (0, None)
    assert "plain" in done.stdout


def test_outcomes_that_would_fill_the_memory_are_not_unfolded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(store) / "outcomes.npz"
    path.write_bytes(_npz(labels=_header("(4000000,)") + bytes(16_000_000)))
    assert path.stat().st_size < 100_000
    assert outcomes.read_outcomes(path) is not None
    monkeypatch.setattr(outcomes, "MOST_BYTES", 10_000_000)
    assert outcomes.read_outcomes(path) is None


def test_a_file_larger_than_any_of_ours_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**31)  # holes take no room
    with pytest.raises(OSError, match="more than"):
        files.read_regular(tmp_path / "large")


DEEP = {
    "brackets": "[" * 200_000,
    "objects": '{"a":' * 200_000,
    "notes": json.dumps({**Record.example().model_dump(mode="json"), "notes": {"a": 1}}).replace(
        '{"a": 1}', '{"a":' * 5000 + "1" + "}" * 5000
    ),
    "a number without end": '{"schema_version": ' + "9" * 10_000 + "}",
    "a version that is a boolean": '{"schema_version": true}',
    "NaN": Record.example().model_dump_json().replace("0.5", "NaN"),
    "half a character": Record.example().model_dump_json().replace('"plain"', '"\\ud800"'),
}


@pytest.mark.parametrize("what", DEEP)
def test_a_record_that_means_harm_is_a_sentence(what: str) -> None:
    record, problem = parse_record(DEEP[what].encode(), Path("record.json"))
    assert record is None
    assert problem is not None
    assert problem.startswith("'record.json' is ")


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz", "bin"])
def test_no_pickle_among_weights_is_loaded(tmp_path: Path, suffix: str) -> None:
    bomb, path = Bomb(tmp_path / "gone off"), tmp_path / f"weights.{suffix}"
    stored = io.BytesIO()
    torch.save({"state_dict": {"norm.bias": torch.ones(1)}, "by": bomb}, stored)
    content = _npz(**{"params/norm": _npy(np.array([bomb], dtype=object))})
    for pickled in (stored.getvalue(), pickle.dumps(bomb, protocol=2), content):
        path.write_bytes(pickled)
        for family in ("timm:vit_tiny_patch16_224", "ibot:vit_tiny_patch16_224", "cifar-vit"):
            with pytest.raises(NotAvailable):
                backbones.build(f"{family}@{path}", 2, 0)
    assert not (tmp_path / "gone off").exists()


def test_a_language_model_that_is_pickled_is_not_loaded(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "vocab_size": 259}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1, "num_attention_heads": 2}))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "gone off")))
    for act in (backbones.weights_sha256, lambda name: backbones.build(name, 0, 0)):
        with pytest.raises(NotAvailable):
            act(f"hf:mine@{tmp_path}")
    assert not (tmp_path / "gone off").exists()


# paths


@pytest.mark.parametrize("name", OUT)
def test_no_name_leads_out_of_a_store(store: Store, name: str) -> None:
    for parts in ((name, "plain", "k1"), ("digits", name, "k1"), ("digits", "plain", name)):
        with pytest.raises(StoreError, match="cannot be the name of a file"):
            store.cell(*parts)
    assert store.load(name).records == [] if name else True
    for field in ("suite", "method", "key"):
        content = {**Record.example().model_dump(mode="json"), field: name}
        record, problem = parse_record(json.dumps(content).encode(), Path("record.json"))
        assert record is None
        assert problem == f"'record.json' is damaged at '{field}'; it is left out."


def test_tables_of_a_suite_outside_are_refused(store: Store, tmp_path: Path) -> None:
    put(Store.create(tmp_path / "other"))
    for word in ("../../other/runs/digits", str(tmp_path / "other" / "runs" / "digits")):
        done = CliRunner().invoke(app, ["table", word, "--store", str(store.root)])
        assert done.exit_code == 2
        assert "no suite called" in done.stderr


def test_a_store_whose_folders_are_links_out_is_neither_read_nor_written(store: Store, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other")
    put(other)
    before = sorted(path.name for path in other.root.rglob("*"))
    (store.root / "runs").rename(tmp_path / "moved")
    (store.root / "runs").symlink_to(other.root / "runs")
    assert store.load().records == []
    assert "leads out of the store" in store.load().problems[0]
    for act in (
        lambda: store.cell("digits", "plain", "k2"),
        lambda: memo.keep(store, "question", ["k1"]),
        lambda: store.running("k1", "cpu").__enter__(),
    ):
        with pytest.raises(StoreError, match="leads out of the store"):
            act()
    (store.root / "records").symlink_to(other.root)
    with pytest.raises(StoreError, match="leads out of the store"):
        store.publish(Record.example(), None)
    assert sorted(path.name for path in other.root.rglob("*")) == before


def test_a_log_that_is_a_link_is_not_written_through(store: Store, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    folder = store.cell("digits", "plain", "k1")
    folder.path.mkdir(parents=True)
    (folder.path / "log.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match=r"log\.jsonl"):
        folder.log("started")
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("name", ["record.json", "outcomes.npz", "manifest.json"])
def test_links_and_pipes_in_the_place_of_files_are_told_and_not_waited_for(store: Store, name: str) -> None:
    path = put(store) / name
    for make in (lambda: path.symlink_to("/dev/zero"), lambda: os.mkfifo(path), path.mkdir):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
        make()
        loaded = store.load()
        assert (loaded.records == []) == (name == "record.json")
        assert all(loaded.outcomes(record) is None for record in loaded.records if name == "outcomes.npz")
        done = CliRunner().invoke(app, ["store", "check", "--store", str(store.root)])
        assert done.exit_code == 1, name
        assert name in done.stderr


# imported results

TRACE = {"eval": {"accuracy": 0.5}, "results": ["A"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results-0-0-A.json", "[" * 200_000),
        ("results-0-0-A.json", '{"eval": {"accuracy": 1' + "0" * 400 + "}}"),
        ("results-0-0-A.json", '{"eval": {"accuracy": NaN}}'),
        ("results-999999999999-0-A.json", json.dumps(TRACE)),
        ("results-0-999999999999-A.json", json.dumps(TRACE)),
        ("results-0-0-A.json", pickle.dumps(TRACE).decode("latin1")),
    ],
)
def test_imported_files_that_mean_harm_are_sentences(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / name).write_text(text, encoding="utf-8")
    words: list[Any] = ["import", "trace", tmp_path / "p", "--method", "m", "--seed", "0", "--store", tmp_path / "s"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "p") in line


@pytest.mark.parametrize("name", ["../../up", "/etc/x", "a/b", "..", "x\n"])
def test_imported_names_lead_nowhere(tmp_path: Path, name: str) -> None:
    from clbench.imports.records import imported

    (tmp_path / "results-0-0-A.json").write_text(json.dumps(TRACE))
    for told in ({"suite": name, "method": "m"}, {"method": name}):
        with pytest.raises(ClbenchError, match="cannot name a"):
            imported("trace", tmp_path, seed=0, **told)


EVIL = "\x1b]0;mine\x07\x1b[2J\x9b31m<script>alert(1)</script>[bold]\u202ex"
PILOT = "2026-01-02 03:04:05 [trainer.py] => "
OTHERS: dict[str, tuple[str, str]] = {
    "a call": ("logs.pyd", "{'accmean_task1': __import__('os').mkdir('gone off')}"),
    "a call for a key": ("logs.pyd", "{__import__('os').mkdir('gone off'): 1}"),
    "a comprehension": ("logs.pyd", "[print(1) for _ in 'ab']"),
    "brackets without end": ("logs.pyd", "{'accmean_task1': " + "[" * 100_000),
    "signs without end": ("logs.pyd", "{'accmean_task1': " + "-" * 100_000 + "1}"),
    "a number without end": ("logs.pyd", "{'accuracy_1_task" + "9" * 5000 + "': 5.0}"),
    "a value without end": ("logs.pyd", "{'accmean_task1': " + "9" * 4000 + "}"),
    "an infinite score": ("logs.pyd", "{'accmean_task1': 1e999}"),
    "a name that leads out": ("logs.pyd", "{'accmean_task1': 5.0, 'model': '../../up', 'dataset': 'd', 'seed': 0}"),
    "a name of markup": ("logs.pyd", f"{{'accmean_task1': 5.0, 'model': 'm', 'dataset': {EVIL!r}, 'seed': 0}}"),
    "a pickle": ("logs.pyd", pickle.dumps({"accmean_task1": 5.0}, protocol=0).decode()),
    "a program in a log": ("a.log", f"{PILOT}seed: 0\n{PILOT}CNN: __import__('os').mkdir('gone off')"),
    "a curve that is a program": ("a.log", f"{PILOT}seed: 0\n{PILOT}CNN top1 curve: [__import__('os').mkdir('gone')]"),
    "a curve without end": ("a.log", f"{PILOT}seed: 0\n{PILOT}CNN top1 curve: " + "[" * 100_000),
    "results that are a pickle": ("1-a/all_results.json", pickle.dumps({}, protocol=0).decode()),
    "a score that is no number": ("1-a/all_results.json", json.dumps({"predict_exact_match_for_a": [EVIL]})),
    "results without end": ("1-a/all_results.json", "[" * 200_000),
}
SYSTEM = {"logs.pyd": "mammoth", "a.log": "pilot", "1-a/all_results.json": "olora"}


@pytest.mark.parametrize("what", OTHERS)
def test_logs_of_other_systems_that_mean_harm_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name, text = OTHERS[what]
    path = tmp_path / "theirs" / name
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    words = ["import", SYSTEM[name], str(tmp_path / "theirs"), "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, words + (["--seed", "0"] if name != "logs.pyd" else []))
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("clbench: ")
    assert line.isprintable()
    assert len(line) < 1000
    assert not any(path.name.startswith("gone") for path in tmp_path.rglob("*"))


# what is printed


def evil_run(tmp_path: Path) -> Path:
    """A store with two runs, every free word of which would move a cursor, or be markup."""
    store = Store.create(tmp_path / "store")
    plain = Record.example()
    origin = plain.origin.model_copy(update={"device": EVIL, "command": EVIL, "versions": {EVIL: EVIL}, "commit": EVIL})
    facts: dict[str, Any] = {name: {EVIL: EVIL, "learning_rate": EVIL} for name in ("params", "recipe", "protocol")}
    for key, status in (("k1", "done"), ("k2", "failed")):
        evil = Record.example(
            key=key,
            seed=int(key[1]),
            variant=EVIL,
            status=status,
            reason=None if status == "done" else EVIL,
            tasks=(EVIL, f"{EVIL}2"),
            marks=(EVIL,),
            score_name=EVIL,
            notes={EVIL: EVIL, "tree": {EVIL: EVIL}},
            other_scores={EVIL: plain.scores},
            protocol_hash=EVIL,
            fingerprint=EVIL,
            origin=origin,
            **facts,
        )
        store.cell("digits", "plain", key).save(evil, OUTCOMES)
    return store.root


COMMANDS = (
    *("table digits", "table digits --format markdown", "table digits --format latex", "table digits --format csv"),
    *("list runs", "list runs --format json", "scores k1", "scores k1 --format json", "tree k1", "compare k1 k2"),
    *("leaderboard --out {out}/l.csv", "store check", "verify digits"),
    *("table digits --format json"),
    *("rerun k1", "compare k1 k2 --format json", "verify digits --format json"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_word_of_a_record_reaches_the_terminal_as_more_than_a_word(tmp_path: Path, command: str) -> None:
    root = evil_run(tmp_path)
    words = command.format(out=tmp_path).split()
    done = CliRunner().invoke(app, [*words, "--store", str(root)])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert [sign for sign in done.output if not sign.isprintable() and sign not in "\n\r\t"] == []
    for path in tmp_path.glob("*.csv"):
        assert [sign for sign in path.read_text(encoding="utf-8") if not sign.isprintable() and sign != "\n"] == []
