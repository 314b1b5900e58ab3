"""Data parallel: several processes teach one cell as one does, and say so where they cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from clbench import catalog, memory, origin, plugin, team
from clbench.errors import BadValue, Differ, NotAvailable
from clbench.loader import Loader
from clbench.means import Means
from clbench.peers import ALONE, Peers
from clbench.record import Record
from clbench.strategy import Plugin, Strategy
from clbench.stream import ImageSet

CPU = torch.device("cpu")
DRIVER = Path(__file__).with_name("peers_driver.py")
SHORT = ["recipe.epochs=2"]
ODD = [*SHORT, "recipe.batch_size=9", "recipe.micro_batch=2", "recipe.clip=0.5"]  # 64 rows: a last batch of one
ALIKE = {
    "plain": ["seqlora", SHORT],
    "odd batches": ["seqlora", ODD],
    "penalty": ["olora", SHORT],
    "importance": ["ewc", SHORT],
    "tree": ["treelora", [*SHORT, "treelora.decomposition=none"]],
    "slots": ["hidelora", SHORT],
    "projection": ["gem", SHORT],
    "rehearsal afterwards": ["replay", [*SHORT, "replay.flavour=after"]],
}
REFUSED = {
    "rehearsal": ["replay", SHORT, "looks at each batch"],
    "counts": ["l2p", ["l2p.epochs=1"], "holds is not the same in the 2 processes after 3 steps"],
    "listening": [f"{DRIVER}:Listening", SHORT, "adds to the loss is not the same"],
    "drifting": [f"{DRIVER}:Drifting", SHORT, "what is trained is not the same in the 2 processes after 3 steps"],
    "failing": [f"{DRIVER}:Failing", SHORT, "out of luck"],
}


@pytest.mark.parametrize("samples", [1, 2, 5, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_a_partition_and_the_first_is_never_empty(samples: int, size: int) -> None:
    shares = [list(Peers(rank, size).share(samples)) for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(samples))
    assert shares[0]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_part_of_the_loader_is_every_nth_of_its_batches() -> None:
    examples = ImageSet(torch.arange(11, dtype=torch.uint8)[:, None, None, None], torch.arange(11))
    task_of = torch.zeros(11, dtype=torch.int64)
    whole = [batch[1].tolist() for batch in Loader(examples, task_of, 2, CPU, None)]
    parts = [Loader(examples, task_of, 2, CPU, None, (first, 2)) for first in (0, 1)]
    assert [[batch[1].tolist() for batch in part] for part in parts] == [whole[::2], whole[1::2]]
    assert [len(part) for part in parts] == [3, 3]


def test_one_process_alone_agrees_with_itself() -> None:
    ALONE.agree({"anything": object()}, "ever")
    assert ALONE.woven([1, 2]) == [1, 2]
    assert ALONE.told("this") == "this"
    assert ALONE.failed_together()


def test_terms_that_differ_by_more_than_rounding_are_refused_once() -> None:
    peers = Peers(0, 2)
    peers._apart = torch.tensor([1e-7])
    peers.refuse_unequal_terms()
    peers._apart = torch.tensor([1e-3])
    with pytest.raises(Differ, match="adds to the loss is not the same in the 2 processes"):
        peers.refuse_unequal_terms()
    peers.refuse_unequal_terms()


def test_what_torchrun_tells_is_a_post_and_half_of_it_none() -> None:
    told = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "there", "MASTER_PORT": "29500"}
    assert team.post(told) == team.Post(rank=3, size=4, local=1)
    assert team.post({name: value for name, value in told.items() if name != "MASTER_ADDR"}) is None
    assert team.post({**told, "RANK": "first"}) is None


def test_processes_that_were_started_are_not_other_ones_than_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert team.asked(3) == 3
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert team.asked(1) == team.asked(2) == 2
    with pytest.raises(BadValue, match="--data-parallel is 3 and 2 processes were started"):
        team.asked(3)


def test_processes_that_share_batches_are_no_workers() -> None:
    with pytest.raises(BadValue, match="--data-parallel needs --executor inline"):
        Means(executor="process", processes=2)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NotAvailable, match="4 processes need a CUDA device each and 1 is seen"):
        team.Team(4, "cuda").assemble()


def test_a_record_tells_how_many_processes_made_it_and_older_ones_were_made_by_one() -> None:
    assert origin.device_name(CPU, 2) == f"2 x {origin.device_name(CPU)}"
    facts = Record.example().model_dump(mode="json")
    del facts["origin"]["processes"]
    assert Record.model_validate(facts).origin.processes == 1


class _Looks(Plugin):
    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        strategy.loss += strategy.mb_x.sum()


def test_a_hook_that_names_the_batch_is_seen_before_anything_is_learned() -> None:
    assert plugin.names_the_batch(_Looks())
    assert not plugin.names_the_batch(Plugin())


def test_the_forecast_is_of_one_process_and_its_share() -> None:
    suite = catalog.suite("tiny-text", {"batch_size": "32"})
    rows = catalog.rows(suite, ["seqlora"], {})
    (_, whole), (_, share) = (memory.told(suite, rows, int, processes)[0] for processes in (1, 2))
    place = memory.HEADS.index("activations")
    assert float(share[place]) < float(whole[place]) < 2.5 * float(share[place])
    assert share[1:5] == whole[1:5]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes made of every case, and what one did."""
    cases = [[case, method, settings] for case, (method, settings, *_) in {**ALIKE, **REFUSED}.items()]
    command = [sys.executable, str(DRIVER), str(tmp_path_factory.mktemp("peers")), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", ALIKE)
def test_two_processes_learn_what_one_does(both: dict[str, Any], case: str) -> None:
    two, one = both[case]["two"], both[case]["one"]
    assert two["record"]["status"] == one["record"]["status"] == "done", two["record"]["reason"]
    assert len(two["losses"]) == len(one["losses"]) >= 24
    assert two["losses"] == pytest.approx(one["losses"], abs=2e-5)
    assert two["record"]["scores"] == one["record"]["scores"]
    assert two["outcomes"] == one["outcomes"]
    costs, alone = two["record"]["costs"][0], one["record"]["costs"][0]
    assert costs["flops_per_step"] == pytest.approx(alone["flops_per_step"], rel=0.2)
    assert [costs[name] for name in ("steps", "train_samples")] == [alone[name] for name in ("steps", "train_samples")]


@pytest.mark.slow
@pytest.mark.parametrize("case", ALIKE)
def test_both_processes_come_to_equal_bits(both: dict[str, Any], case: str) -> None:
    mine, theirs = both[case]["two"]["record"], both["the other"][case]["two"]["record"]
    assert mine["weights_sha256"] == theirs["weights_sha256"]
    assert mine["scores"] == theirs["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_would_depend_on_a_share_fails_with_a_sentence(both: dict[str, Any], case: str) -> None:
    for found in (both[case], both["the other"][case]):
        assert found["two"]["record"]["status"] == "failed"
        assert REFUSED[case][2] in found["two"]["record"]["reason"]


@pytest.mark.slow
def test_the_record_says_that_two_made_it(both: dict[str, Any]) -> None:
    record, alone = (Record.model_validate(both["plain"][which]["record"]) for which in ("two", "one"))
    assert (record.origin.processes, alone.origin.processes) == (2, 1)
    assert record.origin.device == f"2 x {alone.origin.device}"
    assert record.key == alone.key
    assert any("2 processes shared each batch" in mark for mark in record.marks)
    assert alone.marks == ()


def clbench(store: Path) -> subprocess.Popen[str]:
    """The command, for two processes on the tiny suite of text."""
    command = [sys.executable, "-m", "clbench", "run", "tiny-text", "--method", "seqlora", "--data-parallel", "2"]
    words = ["--set", *SHORT]
    rest = ["--device", "cpu", "--threads", "1", "--store", str(store)]
    return subprocess.Popen([*command, *words, *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def record_in(store: Path) -> Record:
    (path,) = store.glob("runs/*/*/*/record.json")
    return Record.model_validate_json(path.read_bytes())


def events(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in store.glob("runs/*/*/*/log.jsonl") for line in path.read_text().splitlines()]


def followers(leader: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found += [int(path.parent.name)] if int(fields[1]) == leader else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_dead_follower_ends_all_and_the_same_command_goes_on(both: dict[str, Any], tmp_path: Path) -> None:
    cut = clbench(tmp_path)
    end = time.monotonic() + 240
    while not any(event["event"] == "task_done" for event in events(tmp_path)):
        assert time.monotonic() < end
        time.sleep(0.01)
    (other,) = followers(cut.pid)
    os.kill(other, signal.SIGKILL)
    _, said = cut.communicate(timeout=120)
    assert cut.returncode == 1
    assert "process 1 was ended by SIGKILL" in said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("runs/*/*/*/record.json"))
    again = clbench(tmp_path)
    table, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "2 processes shared each batch" in table
    assert "resumed" in [event["event"] for event in events(tmp_path)]
    assert record_in(tmp_path).weights_sha256 == both["plain"]["two"]["record"]["weights_sha256"]


@pytest.mark.slow
def test_torchrun_starts_them_too_and_only_the_first_says_and_writes_anything(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m")
    command = [sys.executable, *launcher, "clbench", "run", "tiny-text", "--method", "seqlora", "--set", *SHORT]
    rest = ["--device", "cpu", "--threads", "1", "--store", str(tmp_path / "store")]
    for _ in range(2):  # the second time nothing is missing
        done = subprocess.run([*command, *rest], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("seqlora") == done.stdout.count("seqlora (recipe.epochs=2)") + 2
        assert done.stdout.count("Average") == 1
    assert record_in(tmp_path / "store").origin.processes == 2
    assert len({event["pid"] for event in events(tmp_path / "store") if "pid" in event}) == 1
