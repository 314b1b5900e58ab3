"""Team: how the processes that teach one cell together come together, started here, by torchrun or by accelerate."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from clbench.child import Child
from clbench.errors import BadValue, NotAvailable, Parted

if TYPE_CHECKING:
    from clbench.peers import Peers

PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and accelerate tell each process, beside LOCAL_RANK and LOCAL_WORLD_SIZE."""
JOIN_SECONDS = 600.0
"""So long the others are waited for: each loads PyTorch first."""
LEAVE_SECONDS = 2.0
NOTICE_SECONDS = 20.0
"""So long this process may take to notice that another has ended, before it ends too."""


@dataclass(frozen=True)
class Post:
    """Which process this is: number `rank` of `size`, of them number `local` on this machine."""

    rank: int
    size: int
    local: int


def post(environment: Mapping[str, str] = os.environ) -> Post | None:
    """What whoever started this process has told it; None where it was started alone.

    >>> told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    >>> post(told), post({**told, "WORLD_SIZE": "1"}), post({})
    (Post(rank=1, size=2, local=1), None, None)
    """
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local = int(environment.get("LOCAL_RANK", rank))
    except (KeyError, ValueError):
        return None
    told = all(environment.get(name) for name in PLACE)
    return Post(rank, size, local) if told and size > 1 and 0 <= rank < size else None


def asked(processes: int) -> int:
    """How many processes teach a cell, where a person asked for so many. Raises BadValue where they are others."""
    here = post()
    if here is None:
        return processes
    if processes not in (1, here.size):
        raise BadValue(
            f"--data-parallel is {processes} and {here.size} processes were started; leave it out where torchrun or "
            "accelerate starts them."
        )
    return here.size


class Team:
    """The processes of one command, from `assemble` to the end of the block, which the one that leads ends for all."""

    def __init__(self, processes: int, device_kind: str = "cpu") -> None:
        self.post, self.processes, self.device_kind = post(), processes, device_kind
        self.children: list[Child] = []
        self.peers: Peers | None = None
        self.loss = ""
        """What became of those who left before their time, in a sentence."""
        self._over = threading.Event()

    def __enter__(self) -> Team:
        return self

    def assemble(self, command: Sequence[str] = ()) -> Peers:
        """Wait until all are there, each with a device of its own where `device_kind` is `cuda`.

        `command` starts a follower, who is told its place by its environment; nobody is started where torchrun has done
        so. Raises NotAvailable where there are fewer devices, or where not all come.
        """
        from clbench.peers import ALONE

        if self.processes == 1:
            return ALONE
        here = self.post or Post(0, self.processes, 0)
        self._take_device(here)
        # What C++ says of cut lines would stand between the sentences.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        import torch.distributed as dist
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        from clbench.peers import Peers

        limit = timedelta(seconds=JOIN_SECONDS)
        try:
            if self.post is None:
                store = TCPStore("127.0.0.1", 0, None, True, limit, False)
                self._start(command, store.port)
            else:
                store, _, _ = next(rendezvous("env://", timeout=limit))
            backend = "cpu:gloo,cuda:nccl" if self.device_kind == "cuda" else "gloo"
            group = PrefixStore("clbench group", store)
            dist.init_process_group(backend, store=group, rank=here.rank, world_size=here.size)
        except RuntimeError as error:
            how = "; ".join(filter(None, (child.ended() for child in self.children)))
            raise NotAvailable(
                f"{here.size} processes were to learn together and did not all come{f': one {how}' if how else ''}."
            ) from error
        self.peers = Peers(here.rank, here.size, PrefixStore("clbench board", store))
        return self.peers

    def _take_device(self, here: Post) -> None:
        if self.device_kind != "cuda":
            return
        import torch

        seen, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", here.size))
        if seen < wanted:
            raise NotAvailable(
                f"{wanted} processes need a CUDA device each and {seen} {'is' if seen == 1 else 'are'} seen here; "
                "start fewer, or use --device cpu."
            )
        torch.cuda.set_device(here.local)

    def _start(self, command: Sequence[str], port: int) -> None:
        """Start the others, and watch them."""
        loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
        for name, value in loopback.items():
            os.environ.setdefault(name, value)
        told = {"WORLD_SIZE": str(self.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for rank in range(1, self.processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCH_CPP_LOG_LEVEL": "ERROR"}
            self.children.append(Child(command, environment={**told, **own}))
        threading.Thread(target=self._watch, name="team", daemon=True).start()

    def _watch(self) -> None:
        """End this process where another has ended and it does not notice: a GPU may wait for one that is gone."""
        while not self._over.wait(0.5):
            if self.gone():
                if not self._over.wait(NOTICE_SECONDS):
                    print(f"clbench: {self.gone()}", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def gone(self) -> str:
        """A sentence about processes that were started here and have ended; '' where all are there."""
        ended = {rank: child.ended() for rank, child in enumerate(self.children, start=1)}
        told = [f"process {rank} {how or 'left'}" for rank, how in ended.items() if how is not None]
        if not told:
            return ""
        return (
            f"of the {self.processes} processes that learn together {' and '.join(told)}, so the others end too; "
            "the same command goes on after the last finished task."
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send the others home."""
        if isinstance(error, Parted):
            self._hear_the_last()
        leads = self.post is None or self.post.rank == 0
        if kind is None and self.peers is None and self.post is not None and leads:
            self.assemble()  # those whom torchrun has started wait for a word
        if self.peers is not None and leads:
            with contextlib.suppress(RuntimeError):
                self.peers.announce(None)
        self._over.set()
        for child in self.children:
            child.stop(LEAVE_SECONDS)
        if self.peers is not None and self.device_kind == "cpu":  # NCCL would wait for those who are gone
            import torch.distributed as dist

            dist.destroy_process_group()

    def _hear_the_last(self) -> None:
        """A line is cut a moment before the one who cut it has ended."""
        end = time.monotonic() + 3.0
        while self.children and not (loss := self.gone()) and time.monotonic() < end:
            time.sleep(0.1)
        self.loss = loss if self.children else ""
