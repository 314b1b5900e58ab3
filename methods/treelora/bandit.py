"""The search for the past task nearest to the current one: a bandit in every layer, on the tree or flat.

Source: TreeLoRA (Qian et al., ICML 2025, arXiv 2506.10355), section 3.2 and equation 2; for ``search="reference"``
the code that its authors released (github.com/ZinYY/TreeLoRA, ``utils/kd_lora_tree.py``). ``N`` past tasks are the
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

Search: TypeAlias = Literal["lcb", "greedy", "random", "exhaustive", "reference"]
ExplorationUnit: TypeAlias = Literal["residual", "std"]

LARGEST_BOOST = 1.5  # released code


class Pull(NamedTuple):
    """One step of the search: the arm of each layer, its stored signature and the residual seen."""

    arms: Tensor  # [D] int64, task numbers
    signatures: Tensor  # [D, P]
    residuals: Tensor  # [D], in [0, 1]; with search="reference" the unscaled distances


class BanditState(TypedDict):
    """All that a resumed run needs beside tree and signatures."""

    counts: Tensor  # [D, N] float64
    sums: Tensor  # [D, N] float64
    moments: Tensor  # [2, D] float64: mean of the residuals seen, sum of their squared deviations from it
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
    * ``"reference"``, the released rule, for comparison. Its residual is the unscaled distance ``|v[d] - v_k[d]|``
      (``scale`` is 1), ``mu`` its mean and 0 before the first pull, ``T`` the steps of an epoch, ``t`` the pulls
      since the last reset, from 0 (the released code resets at every epoch)::

          b[d, k] = mu + sqrt(log(2 T (t + 1) (t + 2))) / sqrt(2 n + 1e-5)
          b       = b + min(b)                      the minimum over all arms and layers
          first   ~ softmax over k of sum_d b[d, k]
          b[:, k] = b[:, k] * min(m, 1.5)           for the arms k in first's child of the root
          arm[d]  ~ softmax over k of b[d, k] / (max(b) - min(b) + 1e-5)

      ``m`` is that child's threshold, 1 where it is a leaf; it is the released median similarity on a tree of
      ``similarity="inner"``, and may be negative. The released code forms the lower bound ``-mu - width`` out of
      sums of minus the distance and then negates it, so a far arm gets a large ``b``: of two arms of one child,
      pulled equally often, the nearer is drawn *less* often (more often where ``m < 0``). The scores of a layer
      span at most 1, so no arm is drawn more than e times as often as another. The shift by the minimum matters
      through the boost only. ``exploration`` plays no part in it.

    ``exploration_unit`` (``"lcb"`` only) says what ``c`` is measured in: ``"residual"`` takes it as it is, ``"std"``
    [ours] multiplies it by the standard deviation (divisor n - 1) of all residuals that were seen in that layer, of
    all arms, since the last reset; 0 until there are two.

    A step is ``pull``. Where the residual is not a comparison with the stored signature (``query="live"``: the
    batch's gradient at the past task's adapter), it is ``choose``, then ``observe`` with residuals over ``scale``
    that the caller computed. ``choose`` moves the random generator on: once a step.

    The state is float64 so that the counts stay exact over very many steps; a step adds O(D N) scalars for the
    bounds to O(D P) for the pulled arms.
    """

    def __init__(
        self,
        tree: Node,
        signatures: Tensor,
        *,
        exploration: float,
        exploration_unit: ExplorationUnit = "residual",
        search: Search = "lcb",
        steps_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare the search on the device of ``signatures`` [N, D, P]; ``exploration`` is ``c``.

        ``steps_per_epoch``: ``T``, needed by ``search="reference"`` only.

        Raises ValueError where the tree was not built over these signatures or ``T`` is missing, UnknownName and
        BadValue for a setting that cannot be.
        """
        if search not in get_args(Search):
            raise UnknownName("search", search, get_args(Search))
        if exploration_unit not in get_args(ExplorationUnit):
            raise UnknownName("exploration_unit", exploration_unit, get_args(ExplorationUnit))
        if search == "reference" and not steps_per_epoch:
            raise ValueError(f"steps_per_epoch is {steps_per_epoch}; the reference search needs 1 or more")
        if not exploration >= 0:
            raise BadValue(f"exploration is {exploration}; it must be 0 or more.")
        if signatures.dim() != 3 or signatures.shape[:2] != (len(tree.tasks), len(tree.smoothness)):
            given = f"{len(tree.tasks)} tasks and {len(tree.smoothness)} layers"
            raise ValueError(f"the tree has {given}, the signatures are {list(signatures.shape)}")
        self.search, self.exploration, self.exploration_unit = search, exploration, exploration_unit
        self._steps_per_epoch = steps_per_epoch or 0
        self._signatures = signatures.detach().float()
        count, layers, _ = signatures.shape
        device = signatures.device
        flat = flatten(tree)
        self._levels = flat.levels
        self._children = flat.children.to(device)
        self._order = flat.order.to(device)  # [N]
        self._starts, self._ends = flat.spans.T.contiguous().to(device)  # [N-1] each
        self._smoothness = flat.smoothness.T.contiguous().to(device)  # [D, 2N-1]
        self._stay = torch.arange(count, device=device).expand(layers, count)
        self._layer = torch.arange(layers, device=device)
        # Reused: fresh memory in every step costs more than the arithmetic. And abs and sum apart, because
        # vector_norm(ord=1) is several times slower on a CPU.
        self._scratch = torch.empty_like(self._signatures[0])  # [D, P]
        self._largest = torch.linalg.vector_norm(self._signatures, 1, dim=-1).amax(0)  # [D]
        self._by_layer = self._signatures.transpose(0, 1).contiguous() if search == "exhaustive" else None
        self._boosts = _boosts(tree).to(device)  # [N, N]
        self._one = torch.ones(layers, 1, dtype=torch.float64, device=device)
        self._state = torch.zeros(2, layers, count, dtype=torch.float64, device=device)
        self._moments = torch.zeros(2, layers, dtype=torch.float64, device=device)
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

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each layer's residuals, [D] float64; kept with ``exploration_unit="std"`` only."""
        return (self._moments[1] / max(self.step - 1, 1)).sqrt()

    @torch.no_grad()
    def pull(self, current: Tensor) -> Pull:
        """Choose an arm for each layer, compare ``current`` [D, P] with it, remember the residual."""
        scale = self.scale(current)
        arms = self._choose(current, scale)
        chosen = self._signatures[arms, self._layer]
        residuals = torch.sub(current, chosen, out=self._scratch).abs_().sum(-1) / scale
        self.observe(arms, residuals)
        return Pull(arms, chosen, residuals)

    @torch.no_grad()
    def choose(self, current: Tensor) -> Tensor:
        """Return the arm to pull in each layer, [D]; ``current`` [D, P] sets the scale of the smoothness.

        Remembers nothing: ``observe`` ends the step.
        """
        return self._choose(current, self.scale(current))

    @torch.no_grad()
    def observe(self, arms: Tensor, residuals: Tensor) -> None:
        """Remember the residuals [D] of the pulled ``arms`` [D]; ends the step."""
        index, residuals = arms.unsqueeze(1), residuals.double()
        self.counts.scatter_add_(1, index, self._one)
        self.sums.scatter_add_(1, index, residuals.unsqueeze(1))
        self.step += 1
        if self.exploration_unit == "std":  # Welford (1962): exact for equal residuals, which a sum of squares is not
            mean, squares = self._moments
            beyond = residuals - mean
            mean.add_(beyond, alpha=1 / self.step)
            squares.addcmul_(beyond, residuals - mean)

    @torch.no_grad()
    def scale(self, current: Tensor) -> Tensor:
        """Return the denominator of the residuals of ``current`` [D, P], [D], above 0; 1 with ``"reference"``."""
        if self.search == "reference":
            return torch.ones_like(self._largest)
        # The smallest normal number stands for 0: only 0 is ever divided by it.
        scale: Tensor = torch.abs(current, out=self._scratch).sum(-1) + self._largest
        return scale.clamp_min(torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def bounds(self, current: Tensor) -> Tensor:
        """Return the lower confidence bounds of the next step, [D, 2N-1], at the positions of ``FlatTree``."""
        return self._bounds(self.scale(current))

    @torch.no_grad()
    def reference_bounds(self) -> Tensor:
        """Return the shifted bounds of the released rule, [D, N] float64: large for far arms."""
        numerator = math.log(2 * self._steps_per_epoch * (self.step + 1) * (self.step + 2))
        bounds: Tensor = self.sums / self.counts.clamp_min(1.0) + (numerator / (2 * self.counts + 1e-5)).sqrt()
        return bounds + bounds.min()

    @torch.no_grad()
    def reference_scores(self, bounds: Tensor, first: Tensor) -> Tensor:
        """Return what the released rule takes a softmax of in every layer, [D, N] float64.

        ``bounds``: those of ``reference_bounds``. ``first``: the arm whose child of the root is boosted, [1] int64.
        """
        boosted = bounds * self._boosts.index_select(0, first)
        return boosted / (boosted.max() - boosted.min() + 1e-5)

    def pull_shares(self) -> Tensor:
        """Return each arm's share of its layer's pulls, [D, N] float64; zeros before the first."""
        shares: Tensor = self.counts / self.counts.sum(1, keepdim=True).clamp_min(1.0)
        return shares

    def reset(self) -> None:
        """Forget all pulls; the generator goes on."""
        self._state.zero_()
        self._moments.zero_()
        self.step = 0

    def state_dict(self) -> BanditState:
        """Return copies of all that the pulls changed."""
        return {
            "counts": self.counts.clone(),
            "sums": self.sums.clone(),
            "moments": self._moments.clone(),
            "step": self.step,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: BanditState) -> None:
        """Go on where ``state_dict`` was taken; tree, signatures and settings must be the same."""
        for own, saved in ((self.counts, state["counts"]), (self.sums, state["sums"])):
            if own.shape != saved.shape:
                raise ValueError(f"the state is of [D, N] = {list(saved.shape)}, this search of {list(own.shape)}")
            own.copy_(saved)
        self._moments.copy_(state["moments"])
        self.step = state["step"]
        self._generator.set_state(state["generator"].cpu())

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
            case "reference":
                shifted = self.reference_bounds()
                first = self._drawn(shifted.sum(0, keepdim=True))
                return self._drawn(self.reference_scores(shifted, first))

    def _drawn(self, logits: Tensor) -> Tensor:
        # The largest of logits plus Gumbel noise has softmax probabilities; torch.multinomial reads its weights back.
        noise = torch.empty_like(logits).exponential_(generator=self._generator).log_()
        return (logits - noise).argmax(1)

    def _bounds(self, scale: Tensor) -> Tensor:
        # A group is a stretch of the leaves, so its sum is a difference of running sums.
        running = torch.nn.functional.pad(self._state.index_select(2, self._order).cumsum(2), (1, 0))
        groups = running.index_select(2, self._ends) - running.index_select(2, self._starts)
        counts, sums = torch.cat([self._state, groups], 2).unbind()  # [D, 2N-1] each
        squared: float | Tensor = self.exploration**2 * math.log(self.step + 1)
        if self.exploration_unit == "std":
            squared = squared * self.deviation.square().unsqueeze(1)
        width = (squared / counts).sqrt_()
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


def _boosts(tree: Node) -> Tensor:
    """Return the released code's factor of every task, [N first arm, N] float64: 1 outside the first arm's child."""
    boosts = torch.ones(len(tree.tasks), len(tree.tasks), dtype=torch.float64)
    for child in tree.children:
        rows = torch.tensor(child.tasks)
        boosts[rows.unsqueeze(1), rows] = 1.0 if child.threshold is None else min(child.threshold, LARGEST_BOOST)
    return boosts
