"""Peers: the processes that teach one cell together, and what they must agree on.

Each builds the same model from the same seed and is given the same batches, of which it puts a share through the
model; gradients and losses are added up over all. Whatever else happens in a step happens in every process alike.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]

from clbench import checkpoint
from clbench.errors import Differ, Parted
from clbench.meter import Reading
from clbench.seeding import derive

PATIENCE = 30.0
"""Seconds in which the others must fail too where one has failed."""
ROUNDING = 1e-5
"""How far what a method adds to the loss may differ between processes, relative to both."""
_BUCKET = 2**24  # numbers that are added up in one go


class Peers:
    """This process among those that teach one cell: number `rank` of `size`, the first of which leads.

    Every method but `next` and `announce` must be called by all of them, in the same order; with a size of 1 none
    does anything. `board` is where the one that leads puts up which cell comes next. Raises Parted where another has
    ended.
    """

    def __init__(self, rank: int = 0, size: int = 1, board: Store | None = None) -> None:
        self.rank, self.size, self.board = rank, size, board
        self._cells = 0
        self._apart: Tensor | None = None
        """How unequal the terms that the method adds to the loss were, at most."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that reads and writes the store and tells the person who waits."""
        return self.rank == 0

    # what comes next

    def announce(self, cell: Mapping[str, Any] | None) -> None:
        """Tell the others which cell comes next; None: no more."""
        if self.board is not None:
            self.board.set(f"cell {self._cells}", json.dumps(cell))
            self._cells += 1

    def next(self) -> dict[str, Any] | None:
        """What the one that leads has announced, waited for however long it takes."""
        assert self.board is not None
        name = f"cell {self._cells}"
        with _talking():
            while not self.board.check([name]):
                time.sleep(0.1)
            told: dict[str, Any] | None = json.loads(self.board.get(name))
        self._cells += 1
        return told

    def failed_together(self) -> bool:
        """Whether all have failed at the cell at hand, so that they may go on with the next."""
        if self.board is None:
            return True
        name = f"failed {self._cells}"
        with _talking():
            self.board.add(name, 1)
            end = time.monotonic() + PATIENCE
            while (count := int(self.board.add(name, 0))) < self.size and time.monotonic() < end:
                time.sleep(0.1)
        self._apart = None
        return count == self.size

    # a step

    def share(self, samples: int, rank: int | None = None) -> range:
        """The places in a batch that are this process's, or `rank`'s: as many for each, the first has one at least.

        >>> [list(Peers(rank, 2).share(5)) for rank in (0, 1)]
        [[0, 1, 2], [3, 4]]
        """
        rank = self.rank if rank is None else rank
        return range(-(-samples * rank // self.size), -(-samples * (rank + 1) // self.size))

    @contextlib.contextmanager
    def own_draws(self, device: torch.device, seed: int, *words: int) -> Iterator[None]:
        """Within the block PyTorch's own random numbers are this process's; after it they are everyone's again."""
        if self.size == 1:
            yield
            return
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
            torch.manual_seed(derive(seed, "process", self.rank, *words))
            yield

    def add_up(self, parameters: Sequence[nn.Parameter], loss: Tensor, added: Tensor, samples: int) -> None:
        """Replace the gradients and `loss` `[1]`, of a share of `samples` each, by their sums over all processes.

        A parameter without a gradient in any process stays without. `added` `[1]` is what the method has added to the
        mean of its samples' losses, for `refuse_unequal_terms`.
        """
        present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        with _talking():
            dist.all_reduce(present, op=dist.ReduceOp.MAX)
        terms = torch.zeros(self.size, device=added.device)
        terms[self.rank] = added[0]
        tensors = [loss, terms]
        for parameter, anywhere in zip(parameters, present.tolist(), strict=True):
            if anywhere:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                tensors.append(parameter.grad)
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten().float() for tensor in bucket])
            with _talking():
                dist.all_reduce(flat)
            for tensor, whole in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(whole.view_as(tensor))
        told = torch.stack([terms[rank] for rank in range(self.size) if self.share(samples, rank)])
        spread = (told.max() - told.min()) / (loss.abs() + told.abs().max() + 1e-9)
        self._apart = spread if self._apart is None else torch.maximum(self._apart, spread)

    def refuse_unequal_terms(self) -> None:
        """Raise Differ where, in a step since the last call, a method added other terms to the loss in each process.

        Such terms depend on the batch: their mean over shares need not be their value for the whole. Waits for the
        device.
        """
        apart, self._apart = self._apart, None
        if apart is not None and not float(apart) <= ROUNDING:
            raise Differ(
                f"what the method adds to the loss is not the same in the {self.size} processes, so it depends on the "
                "samples, of which each has a share alone; teach it by one process."
            )

    # agreement

    def agree(self, held: Mapping[str, Any], when: str) -> None:
        """Raise Differ where nested `held` is not the same to the bit in all processes; `when` ends the sentence."""
        if self.size == 1:
            return
        mine = {name: checkpoint.sha256(value) for name, value in held.items()}
        everyone = self._gathered(mine)
        differing = [name for name in mine if any(theirs.get(name) != mine[name] for theirs in everyone)]
        if differing or any(theirs.keys() != mine.keys() for theirs in everyone):
            raise Differ(
                f"{differing[0] if differing else 'what is held'} is not the same in the {self.size} processes {when}: "
                "the method depends on a process's own share of the batch; teach it by one process."
            )

    def woven(self, batches: Sequence[Any]) -> list[Any]:
        """The results of all batches in order, of which this process had every `size`-th, from its rank on.

        Tensors come from the processor's memory.
        """
        if self.size == 1:
            return list(batches)
        everyone = self._gathered(list(batches))
        return [everyone[i % self.size][i // self.size] for i in range(sum(map(len, everyone)))]

    def told(self, value: Any) -> Any:
        """What the one that leads holds."""
        if self.size == 1:
            return value
        box = [value]
        with _talking():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, reading: Reading) -> Reading:
        """What all devices together took: seconds and operations of all, memory of the one that needed most."""
        if self.size == 1:
            return reading
        everyone: list[Reading] = self._gathered(reading)
        counted = [each.flops for each in everyone if each.flops is not None]
        return replace(
            reading,
            seconds=reading.seconds * self.size,
            first_step_seconds=reading.first_step_seconds * self.size,
            peak_mib=max(each.peak_mib for each in everyone),
            flops=sum(counted) if counted else None,
            phases={name: seconds * self.size for name, seconds in reading.phases.items()},
        )

    def _gathered(self, value: Any) -> list[Any]:
        everyone: list[Any] = [None] * self.size
        with _talking():
            dist.all_gather_object(everyone, value)
        return everyone


ALONE = Peers()


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """Around every word with the others: a line that is cut is no failure of the method."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Parted(
            "another of the processes that learn together has ended, so this one cannot go on; the same command goes "
            "on after the last finished task."
        ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in groups that are not much larger than `_BUCKET`."""
    bucket, numbers = list[Tensor](), 0
    for tensor in tensors:
        bucket.append(tensor)
        numbers += tensor.numel()
        if numbers >= _BUCKET:
            yield bucket
            bucket, numbers = [], 0
    if bucket:
        yield bucket
