"""The search for the past task nearest to the current one: a bandit in every layer, on the tree or flat.

Source: TreeLoRA (Qian et al., ICML 2025, arXiv 2506.10355), section 3.2 and equation 2. ``N`` past tasks are the
arms, ``D`` layers each pull one arm a step, ``P`` numbers a layer (layers of fewer numbers are padded with zeros,
which changes no distance). Nothing here waits for the device: no value is read back and no Python branch depends
on one.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias, TypedDict, get_args

import torch
from torch import Tensor

from clbench.errors import BadValue, UnknownName
from clbench.methods.treelora.tree import Node, flatten

Search: TypeAlias = Literal["lcb", "greedy", "random", "exhaustive"]


class Pull(NamedTuple):
    """One step of the search: the arm of each layer, its stored signature and the residual seen."""

    arms: Tensor  # [D] int64, task numbers
    signatures: Tensor  # [D, P]
    residuals: Tensor  # [D], in [0, 1]


class BanditState(TypedDict):
    """All that a resumed run needs beside tree and signatures."""

    counts: Tensor  # [D, N] float64
    sums: Tensor  # [D, N] float64
    step: int
    generator: Tensor


class Bandit:
    """One task's search over the past tasks' signatures.

    The residual of arm ``k`` in layer ``d`` is ``xi = |v[d] - v_k[d]| / (|v[d]| + max_j |v_j[d]|)`` in L1 norms, 0
    where all are 0; ``v`` is the current task's running signature. The denominator is the same for all arms
    [ours], so that the nearest arm stays the nearest and ``xi`` lies in [0, 1].

    ``search``:

    * ``"lcb"``, the lower confidence bound on the tree. With ``mu`` the mean residual and ``n`` the pulls of an
      arm, or of all arms below a node, ``t`` the step being played (from 1) and ``delta`` the node's smoothness in
      that layer over the same denominator::

          arm:   L = mu - c sqrt(log t / n)
          node:  L = max(min over its children of L, mu - c sqrt(log t / n) - delta)

      never pulled: minus infinity. The walk goes from the root to the child of smallest ``L``, the left one of
      equals. This is the bandit on smooth trees of Coquelin & Munos (2007) turned to minimisation. It departs from
      the paper's printed equation 2, which leaves the node's own mean out of the bound [ours]. A leaf of several
      tasks is a node whose children are its tasks. With ``delta`` infinite everywhere the node's own term never
      counts, the bound is the smallest one below, and the walk ends at the arm of smallest bound: flat LCB.
    * ``"greedy"``: the smallest mean, arms never pulled first; no tree.
    * ``"random"``: uniform, from the search's own generator (the paper's ablation).
    * ``"exhaustive"``: all N residuals, the smallest one; N D P arithmetic a step and a copy of all signatures.

    The state is float64 so that sums over very many steps, and the matrix product that adds up the nodes, stay
    exact in the counts whatever precision the device multiplies float32 in.
    """

    def __init__(
        self, tree: Node, signatures: Tensor, *, exploration: float, search: Search = "lcb", seed: int = 0
    ) -> None:
        """Prepare the search on the device of ``signatures`` [N, D, P]; ``exploration`` is ``c``.

        Raises ValueError where the tree was not built over these signatures, UnknownName and BadValue for a
        setting that cannot be.
        """
        if search not in get_args(Search):
            raise UnknownName("search", search, get_args(Search))
        if not exploration >= 0:
            raise BadValue(f"exploration is {exploration}; it must be 0 or more.")
        if signatures.dim() != 3 or signatures.shape[:2] != (len(tree.tasks), len(tree.smoothness)):
            given = f"{len(tree.tasks)} tasks and {len(tree.smoothness)} layers"
            raise ValueError(f"the tree has {given}, the signatures are {list(signatures.shape)}")
        self.search, self.exploration = search, exploration
        self._signatures = signatures.detach().float()
        count, layers, _ = signatures.shape
        device = signatures.device
        flat = flatten(tree)
        self._levels = flat.levels
        self._children = flat.children.to(device)
        self._members = flat.members.T.contiguous().to(device)  # [N, 2N-1]
        self._smoothness = flat.smoothness.T.contiguous().to(device)  # [D, 2N-1]
        self._stay = torch.arange(count, device=device).expand(layers, count)
        self._layer = torch.arange(layers, device=device)
        self._largest = torch.linalg.vector_norm(self._signatures, 1, dim=-1).amax(0)  # [D]
        self._by_layer = self._signatures.transpose(0, 1).contiguous() if search == "exhaustive" else None
        self._one = torch.ones(layers, 1, dtype=torch.float64, device=device)
        self._state = torch.zeros(2, layers, count, dtype=torch.float64, device=device)
        self._generator = torch.Generator(device).manual_seed(seed)
        self.step = 0

    @property
    def counts(self) -> Tensor:
        """Pulls of each arm, [D, N] float64, live."""
        return self._state[0]

    @property
    def sums(self) -> Tensor:
        """Sum of each arm's residuals, [D, N] float64, live."""
        return self._state[1]

    @torch.no_grad()
    def pull(self, current: Tensor) -> Pull:
        """Choose an arm for each layer, compare ``current`` [D, P] with it, remember the residual."""
        scale = self._scale(current)
        arms = self._choose(current, scale)
        chosen = self._signatures[arms, self._layer]
        residuals = _l1(current - chosen) / scale
        self.observe(arms, residuals)
        return Pull(arms, chosen, residuals)

    @torch.no_grad()
    def choose(self, current: Tensor) -> Tensor:
        """Return the arm to pull in each layer, [D]; ``current`` [D, P] sets the scale of the smoothness."""
        return self._choose(current, self._scale(current))

    @torch.no_grad()
    def observe(self, arms: Tensor, residuals: Tensor) -> None:
        """Remember the residuals [D] of the pulled ``arms`` [D]; ends the step."""
        index = arms.unsqueeze(1)
        self.counts.scatter_add_(1, index, self._one)
        self.sums.scatter_add_(1, index, residuals.double().unsqueeze(1))
        self.step += 1

    @torch.no_grad()
    def bounds(self, current: Tensor) -> Tensor:
        """Return the lower confidence bounds of the next step, [D, 2N-1], at the positions of ``FlatTree``."""
        return self._bounds(self._scale(current))

    def pull_shares(self) -> Tensor:
        """Return each arm's share of its layer's pulls, [D, N] float64; zeros before the first."""
        shares: Tensor = self.counts / self.counts.sum(1, keepdim=True).clamp_min(1.0)
        return shares

    def reset(self) -> None:
        """Forget all pulls; the generator goes on."""
        self._state.zero_()
        self.step = 0

    def state_dict(self) -> BanditState:
        """Return copies of the counts, the sums, the step and the generator's state."""
        return {
            "counts": self.counts.clone(),
            "sums": self.sums.clone(),
            "step": self.step,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: BanditState) -> None:
        """Go on where ``state_dict`` was taken; tree, signatures and settings must be the same."""
        for own, saved in ((self.counts, state["counts"]), (self.sums, state["sums"])):
            if own.shape != saved.shape:
                raise ValueError(f"the state is of [D, N] = {list(saved.shape)}, this search of {list(own.shape)}")
            own.copy_(saved)
        self.step = state["step"]
        self._generator.set_state(state["generator"].cpu())

    def _scale(self, current: Tensor) -> Tensor:
        # The smallest normal number stands for 0: only 0 is ever divided by it.
        scale: Tensor = _l1(current) + self._largest
        return scale.clamp_min(torch.finfo(torch.float32).tiny)

    def _choose(self, current: Tensor, scale: Tensor) -> Tensor:
        match self.search:
            case "lcb":
                return self._walk(self._bounds(scale))
            case "greedy":
                return (self.sums / self.counts).masked_fill(self.counts == 0, -math.inf).argmin(1)
            case "random":
                layers, count = self.counts.shape
                return torch.randint(count, (layers,), generator=self._generator, device=self.counts.device)
            case "exhaustive":
                assert self._by_layer is not None
                return torch.cdist(current.unsqueeze(1), self._by_layer, p=1).squeeze(1).argmin(1)

    def _bounds(self, scale: Tensor) -> Tensor:
        counts, sums = (self._state @ self._members).unbind()  # [D, 2N-1] each
        width = (self.exploration**2 * math.log(self.step + 1) / counts).sqrt_()
        bounds: Tensor = (sums / counts).sub_(width).sub_(self._smoothness / scale.unsqueeze(1))
        bounds.masked_fill_(counts == 0, -math.inf)
        count = self.counts.shape[1]
        for first, last in self._levels:
            below = bounds.index_select(1, self._children[first - count : last - count].flatten())
            nearest = below.view(len(bounds), -1, 2).amin(2)
            torch.maximum(bounds[:, first:last], nearest, out=bounds[:, first:last])
        return bounds

    def _walk(self, bounds: Tensor) -> Tensor:
        left, right = self._children.T
        onward = torch.where(bounds.index_select(1, left) <= bounds.index_select(1, right), left, right)
        onward = torch.cat([self._stay, onward], 1)  # [D, 2N-1]: the better child of a node, a task itself
        place = onward[:, -1:]
        for _ in self._levels[1:]:
            place = onward.gather(1, place)
        return place.squeeze(1)


def _l1(rows: Tensor) -> Tensor:
    # abs and sum apart: vector_norm(ord=1) is several times slower on a CPU
    return rows.abs().sum(-1)
