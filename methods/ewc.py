"""EWC: a LoRA held back where the Fisher information of past tasks is large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from clbench.method import Method, Search, Workbench
from clbench.model import Classifier
from clbench.strategy import Plugin, Strategy


def fisher_diagonal(
    model: Classifier, inputs: Tensor, targets: Tensor, allowed: Tensor, chunk: int = 32
) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient of log p(target | input), for each trainable parameter.

    `allowed` `[classes]` bool are the logits that the training loss sees. Per-sample gradients: squaring
    the gradient of a batch's mean would give F/batch at the optimum, not F.
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def negative_log_likelihood(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (x[None],))
        return torch.nn.functional.cross_entropy(logits.masked_fill(~allowed, float("-inf")), y[None])

    per_sample = vmap(grad(negative_log_likelihood), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    with sdpa_kernel(SDPBackend.MATH):  # vmap would run the fused kernels one sample at a time
        for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
            for name, gradient in per_sample(trained, x, y).items():
                total[name] += gradient.square().sum(dim=0)
    return {name: value / len(inputs) for name, value in total.items()}


class _Consolidation(Plugin):
    def __init__(self, method: EWC, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.names: list[str] = []
        self.importance: Tensor | None = None
        self.centre: Tensor | None = None

    def _flat(self, strategy: Strategy) -> Tensor:
        return torch.cat([p.flatten() for p in strategy.model.parameters() if p.requires_grad])

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add λ/2 Σ F (θ - θ*)²."""
        if self.importance is None or self.centre is None or not self.method.penalty_weight:
            return
        away = self._flat(strategy) - self.centre
        strategy.loss += 0.5 * self.method.penalty_weight * (self.importance * away.square()).sum()

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Take the task's Fisher information into the past's.

        Σ_k F_k (θ - θ_k)² equals (Σ F_k)(θ - c)² plus a constant, with c the mean of the θ_k weighted
        by F_k: the separate form needs no more memory or time than the online one.
        """
        fisher, here = self._fisher(strategy), self._flat(strategy).detach()
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
        model.eval()
        draws = self.bench.generator("fisher", strategy.task_index)
        picks = torch.randperm(len(strategy.examples), generator=draws)[: self.method.fisher_samples]
        inputs, targets = strategy.examples.batch(picks, strategy.device)
        allowed = strategy.allowed
        if self.method.labels == "sampled":
            with torch.no_grad():
                chances = model(inputs).float().masked_fill(~allowed, float("-inf")).softmax(dim=1).cpu()
            targets = torch.multinomial(chances, 1, generator=draws).flatten().to(strategy.device)
        diagonal = fisher_diagonal(model, inputs, targets, allowed)
        model.train()
        return torch.cat([value.flatten() for value in diagonal.values()])

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
    """

    name = "ewc"
    paper = "Kirkpatrick et al. 2017"

    penalty_weight: Annotated[float, Search(1, 1e5)] = Field(default=1000.0, ge=0, description="λ")
    mode: Literal["separate", "online"] = Field(default="separate", description="all anchors, or only the last")
    decay: float = Field(default=1.0, gt=0, le=1, description="γ of the online form")
    labels: Literal["sampled", "gold"] = Field(default="sampled", description="true or empirical Fisher information")
    fisher_samples: int = Field(default=256, ge=1, description="samples of a task that the Fisher is taken over")

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and its consolidation."""
        bench.lora()
        return [_Consolidation(self, bench)]
