"""EWC: a LoRA, or all weights, held back where the Fisher information of past tasks is large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from clbench.method import Method, Search, Workbench
from clbench.methods._all_weights import slowed, train_all
from clbench.methods._answers import answered
from clbench.methods._gradients import at_once, chunks, evaluating, flat, gradients_of_rows
from clbench.model import Classifier
from clbench.padding import IGNORED
from clbench.strategy import Plugin, Strategy

_CHUNK = 32
"""Samples whose gradients are taken at once."""
_NUMBERS = 2**28
"""Numbers that the gradients of as many may have where all weights are trained: 1 GiB."""


def fisher_diagonal(model: Classifier, inputs: Tensor, targets: Tensor, allowed: Tensor, chunk: int = _CHUNK) -> Tensor:
    """Mean over samples of the squared gradient of the sample's loss `[numbers]`, for what is trained.

    The loss is -log p(target | input); of text its mean over the answer's tokens. `allowed` `[classes]` bool are
    the logits that the training loss sees. Per-sample gradients: squaring the gradient of a batch's mean would
    give F/batch at the optimum, not F.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return model.losses(logits, targets, allowed)[0]

    total = [torch.zeros_like(parameter) for parameter in model.trainable()]
    for x, y in chunks(chunk, inputs, targets):
        for sums, gradients in zip(total, gradients_of_rows(model, loss, x[:, None], y[:, None]), strict=True):
            sums += gradients.square().sum(dim=0)
    return flat(total) / len(inputs)


@torch.no_grad()
def _sampled(model: Classifier, inputs: Tensor, targets: Tensor, allowed: Tensor, draws: torch.Generator) -> Tensor:
    """The model's own answers in the place of `targets`; of text each token behind the true ones before it."""
    logits, _ = answered(model(inputs).float(), targets)
    chances = logits.masked_fill(~allowed, float("-inf")).softmax(-1).cpu()
    own = torch.multinomial(chances.flatten(0, -2), 1, generator=draws).view(targets.shape).to(targets.device)
    return torch.where(targets == IGNORED, targets, own)


class _Consolidation(Plugin):
    def __init__(self, method: EWC, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.names: list[str] = []
        self.importance: Tensor | None = None
        self.centre: Tensor | None = None

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add λ/2 Σ F (θ - θ*)²."""
        if self.importance is None or self.centre is None or not self.method.penalty_weight:
            return
        away = flat(strategy.model.trainable()) - self.centre
        strategy.loss += 0.5 * self.method.penalty_weight * (self.importance * away.square()).sum()

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the task's Fisher information into the past's.

        Σ_k F_k (θ - θ_k)² equals (Σ F_k)(θ - c)² plus a constant, with c the mean of the θ_k weighted
        by F_k: the separate form needs no more memory or time than the online one.
        """
        fisher, here = self._fisher(strategy), flat(strategy.model.trainable()).detach()
        if self.importance is None or self.centre is None:
            self.importance, self.centre = fisher, here
        elif self.method.mode == "online":
            self.importance, self.centre = self.method.decay * self.importance + fisher, here
        else:
            total = self.importance + fisher
            moved = self.importance * self.centre + fisher * here
            self.centre = torch.where(total > 0, moved / total.clamp(min=1e-38), here)
            self.importance = total

    def _fisher(self, strategy: Strategy) -> Tensor:
        model: Classifier = strategy.model
        draws = self.bench.generator("fisher", strategy.task_index)
        picks = torch.randperm(len(strategy.examples), generator=draws)[: self.method.fisher_samples]
        inputs, targets = strategy.examples.batch(picks, strategy.device)
        with evaluating(model), strategy.autocast(cached=False):
            if self.method.labels == "sampled":
                size = at_once(strategy.recipe, inputs, len(inputs))
                pieces = zip(inputs.split(size), targets.split(size), strict=True)
                targets = torch.cat([_sampled(model, x, y, strategy.allowed, draws) for x, y in pieces])
            chunk = at_once(strategy.recipe, inputs, self._usual_chunk(model))
            return fisher_diagonal(model, inputs, targets, strategy.allowed, chunk)

    def _usual_chunk(self, model: Classifier) -> int:
        if self.method.scope == "lora":
            return _CHUNK
        return max(1, min(_CHUNK, _NUMBERS // sum(p.numel() for p in model.trainable())))

    def state(self) -> dict[str, Any]:
        """Importance and centre of the trained parameters."""
        return {"importance": self.importance, "centre": self.centre}

    def load_state(self, state: dict[str, Any]) -> None:
        """Importance and centre."""
        device = self.bench.device
        self.importance, self.centre = state["importance"].to(device), state["centre"].to(device)


class EWC(Method):
    """Kirkpatrick et al., PNAS 2017, Eq. 3: L + λ/2 Σ_k F_k (θ - θ*_k)² on the trained parameters.

    `labels="sampled"` draws the label from the model's own answer (the Fisher information);
    "gold" takes the true one (the empirical Fisher). Gradients are those of single samples, in
    evaluation mode, of the loss that was trained (masked logits), without the penalty. For a LoRA the
    factors are penalised, so the penalty depends on how ΔW is factored.

    `scope="full"` trains all weights, held in float32, at a step size of 1e-4 where none is given, and penalises each
    of them; that stores twice as many numbers as the network has, on the device. It takes the online form: the mean
    of anchors that the separate one needs would be made from several more copies of all weights.

    Of text p is the geometric mean over the answer's tokens: the loss that is trained. With the sum over them
    λ would mean something else for every length. "sampled" draws each token behind the true ones before it,
    because an answer of the model's own would need one pass a token.
    """

    name = "ewc"
    paper = "Kirkpatrick et al. 2017"

    penalty_weight: Annotated[float, Search(1, 1e5)] = Field(default=1000.0, ge=0, description="λ")
    scope: Literal["lora", "full"] = Field(default="lora", description="what learns and is held back")
    mode: Literal["separate", "online"] = Field(default="separate", description="all anchors, or only the last")
    decay: float = Field(default=1.0, gt=0, le=1, description="γ of the online form")
    labels: Literal["sampled", "gold"] = Field(default="sampled", description="true or empirical Fisher information")
    fisher_samples: int = Field(default=256, ge=1, description="samples of a task that the Fisher is taken over")

    @model_validator(mode="before")
    @classmethod
    def _slower_as_a_whole(cls, given: Any) -> Any:
        return slowed(given, "scope")

    @model_validator(mode="after")
    def _fits(self) -> EWC:
        if self.scope == "full" and self.mode == "separate":
            raise ValueError(
                "scope 'full' holds one anchor of all weights, the last; set mode 'online', or scope 'lora' for "
                "mode 'separate'"
            )
        return self

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA, or all weights, and their consolidation."""
        if self.scope == "full":
            train_all(bench.model)
        else:
            bench.lora()
        return [_Consolidation(self, bench)]
