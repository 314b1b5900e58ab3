"""Teaches cells of the tiny suite of text in two processes, then in one; see test_data_parallel.

Its arguments are an empty folder and a JSON list of [case, method, settings]; it prints what became of each case.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import torch
import torch.distributed as dist
from torch import Tensor

from clbench import catalog, plan, runner
from clbench.errors import Parted
from clbench.method import Method, Workbench
from clbench.peers import ALONE, Peers
from clbench.strategy import Plugin, Strategy

CPU = torch.device("cpu")


class _Listening(Plugin):
    """Adds the mean feature of the batch to the loss, which it has from a hook of the model."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__()
        self.bench = bench

    def before_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        def listen(module: Any, given: Any, output: Tensor) -> None:
            self.bench.model.heard = output.float().square().mean()  # type: ignore[assignment]

        self.bench.model.body.get_input_embeddings().register_forward_hook(listen)

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        strategy.loss += self.bench.model.heard


class Listening(Method):
    name = "listening"

    def plugins(self, bench: Workbench) -> list[Plugin]:
        bench.lora()
        return [_Listening(bench)]


class _Drifting(Plugin):
    """Does to the gradient what no other process does."""

    def before_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        for parameter in strategy.model.trainable():
            if parameter.grad is not None:
                parameter.grad *= 1 + strategy.peers.rank


class Drifting(Method):
    name = "drifting"

    def plugins(self, bench: Workbench) -> list[Plugin]:
        bench.lora()
        return [_Drifting()]


class _Failing(Plugin):
    """Fails in one process alone where it is told so, and else in all."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.alone = alone

    def before_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        if strategy.peers.rank or not self.alone:
            raise ZeroDivisionError("out of luck")


class Failing(Method):
    name = "failing"
    alone: bool = False

    def plugins(self, bench: Workbench) -> list[Plugin]:
        bench.lora()
        return [_Failing(self.alone)]


LOSSES: list[float] = []
_step = Strategy._training_step


def _noted(self: Strategy, **kwargs: Any) -> None:
    _step(self, **kwargs)
    LOSSES.append(float(self.loss))


def teach(method: str, settings: list[str], peers: Peers) -> dict[str, Any]:
    """One cell; what its record says, and the loss of each step."""
    LOSSES.clear()
    said = catalog.settings(settings)
    suite = catalog.suite("tiny-text", said.pop("recipe", {}))
    stream = suite.stream(0)
    (cell,) = plan.cells(suite, stream, catalog.rows(suite, [method], said), [0], 0, "cpu")
    try:
        record, outcomes = runner.run(cell, stream, device=CPU, peers=peers)
    except Parted as parted:
        return {"parted": str(parted)}
    facts = json.loads(record.model_dump_json())
    said_last = {name: values.tolist() for name, values in outcomes.items() if name.startswith("round")}
    return {"record": facts, "losses": list(LOSSES), "outcomes": said_last}


def main() -> None:
    """Be both processes."""
    torch.set_num_threads(1)
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    Strategy._training_step = _noted  # type: ignore[method-assign]
    rank = 0 if os.fork() else 1
    code = 1
    try:
        store = dist.FileStore(str(folder / "store"), 2)
        group = dist.PrefixStore("group", store)
        dist.init_process_group("gloo", store=group, rank=rank, world_size=2, timeout=timedelta(seconds=60))
        peers, found = Peers(rank, 2, dist.PrefixStore("board", store)), {}
        for case, method, settings in cases:
            if rank == 0:
                peers.announce({"case": case})
            else:
                assert peers.next() == {"case": case}
            found[case] = {"two": teach(method, settings, peers)}
        (folder / f"{rank}.json").write_text(json.dumps(found))
        if rank == 0:
            os.wait()
            for case, method, settings in cases:
                found[case]["one"] = teach(method, settings, ALONE)
            found["the other"] = json.loads((folder / "1.json").read_text())
            print(json.dumps(found))
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
