"""SAPT: all tasks' LoRAs at once, weighted for each sample by a learned attention over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clbench.adapters.lora import LoRA
from clbench.errors import BadValue
from clbench.loader import Loader
from clbench.method import Method, Resources, Search, Workbench
from clbench.methods._buffer import too_few
from clbench.methods._untouched import untouched
from clbench.strategy import Plugin, Strategy
from clbench.stream import Stream


class TaskAttention(nn.Module):
    """Log-weights of the tasks for a feature vector f: log softmax_i(k_i · q / √width).

    q = LayerNorm(SiLU(W_2 W_1 f)), with `hidden` numbers between the two. Past keys are frozen; the query
    network goes on learning.
    """

    past_keys: Tensor

    def __init__(self, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.narrow, self.widen = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.key = nn.Parameter(torch.empty(width))
        self.register_buffer("past_keys", torch.empty(0, width))
        with torch.no_grad():
            for layer in (self.narrow, self.widen):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * layer.in_features**-0.5)
        self.restart(generator)

    @torch.no_grad()
    def restart(self, generator: torch.Generator) -> None:
        """Draw a fresh key, uniform in (-1, 1)."""
        self.key.copy_(torch.rand(self.key.shape, generator=generator) * 2 - 1)

    def retire(self, generator: torch.Generator) -> None:
        """Freeze the live key and draw a fresh one."""
        self.past_keys = torch.cat([self.past_keys, self.key.detach()[None]])
        self.restart(generator)

    def forward(self, features: Tensor) -> Tensor:
        """`[…, width]` to `[…, tasks]`, the current task last."""
        query = self.norm(F.silu(self.widen(self.narrow(features))))
        keys = torch.cat([self.past_keys, self.key[None]])
        products: Tensor = query @ keys.T / keys.shape[1] ** 0.5
        return products.log_softmax(-1)


def drift(stored: Tensor, log_weights: Tensor, owner: Tensor) -> Tensor:
    """Σ over past tasks of the mean over their exemplars of KL(stored weights of the task ‖ weights now).

    stored: `[past, tasks]`, zero for tasks that came later, log_weights: `[exemplars, tasks]`, owner: the past
    task of each exemplar, `[exemplars]`.
    """
    target = stored[owner]
    divergence = (torch.xlogy(target, target) - target * log_weights).sum(1)
    counts = torch.zeros_like(stored[:, 0]).index_add(0, owner, torch.ones_like(divergence))
    return (divergence / counts[owner]).sum()


class _Shared(Plugin):
    def __init__(self, method: SAPT, bench: Workbench, lora: LoRA) -> None:
        super().__init__()
        self.method, self.bench, self.lora = method, bench, lora
        width, device = bench.model.width, bench.device
        self.attention = TaskAttention(width, method.hidden, bench.generator("attention")).to(device)
        bench.model.add_module("lora_attention", self.attention)
        self.features = torch.zeros(0, width, device=device)
        """Frozen features of the exemplars, `[exemplars, width]`, and whose they are."""
        self.owner = torch.zeros(0, dtype=torch.int64, device=device)
        self.stored: list[Tensor] = []
        """Each past task's mean weights at its end, `[tasks by then]`."""

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Freeze the last task's pairs and key, and start fresh ones."""
        if strategy.task_index > 0:
            draws = self.bench.generator("fresh pair", strategy.task_index)
            self.lora.keep()
            self.lora.restart(draws)
            self.attention.retire(draws)
        padded = [F.pad(own, (0, strategy.task_index + 1 - len(own))) for own in self.stored]
        self.targets = torch.stack(padded) if padded else None

    def _frozen(self, strategy: Strategy, inputs: Tensor) -> Tensor:
        with self.lora.off():
            return untouched(strategy, inputs)

    def _weigh(self, strategy: Strategy) -> Tensor:
        """Use each sample's own weights in all layers; returns their logarithms `[batch, tasks]`."""
        log_weights: Tensor = self.attention(self._frozen(strategy, strategy.mb_x))
        self.lora.mix([log_weights.exp()[:, :, None]] * len(self.lora))
        return log_weights

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """One weighting a sample."""
        self._weigh(strategy)

    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """The same at test; the heaviest task is noted as the inferred one."""
        strategy.inferred = self._weigh(strategy).argmax(1)

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Hold the weights of past tasks' exemplars where they were."""
        if self.targets is not None and len(self.owner):
            strategy.loss += self.method.kl_weight * drift(self.targets, self.attention(self.features), self.owner)

    @torch.no_grad()
    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Keep the task's mean weights and the features of a few samples; older tasks keep fewer."""
        if self.method.arm == "none":
            return
        examples, task = strategy.examples, strategy.task_index
        shortage = too_few("exemplars", self.method.exemplars, task + 1, "tasks")
        if shortage:
            raise BadValue(f"{shortage}.")
        strategy.model.eval()
        whose = torch.zeros(len(examples), dtype=torch.int64)
        loader = Loader(examples, whose, strategy.recipe.eval_batch_size, strategy.device, None)
        features = torch.cat([self._frozen(strategy, inputs) for inputs, *_ in loader])
        self.stored.append(self.attention(features).exp().mean(0))
        order = torch.randperm(len(examples), generator=self.bench.generator("exemplars", task)).to(features.device)
        quota = self.method.exemplars // (task + 1)
        groups = [self.features[self.owner == past][:quota] for past in range(task)] + [features[order][:quota]]
        self.features = torch.cat(groups)
        self.owner = torch.cat([self.owner.new_full((len(group),), place) for place, group in enumerate(groups)])

    def kept_samples(self) -> int:
        """Exemplars; a sample's features count as the sample."""
        return len(self.owner)

    def state(self) -> dict[str, Any]:
        """Exemplars and stored weights; pairs, keys and the query network are the model's."""
        return {"features": self.features, "owner": self.owner, "stored": self.stored}

    def load_state(self, state: dict[str, Any]) -> None:
        """Exemplars and stored weights."""
        device = self.bench.device
        self.features, self.owner = state["features"].to(device), state["owner"].to(device)
        self.stored = [weights.to(device) for weights in state["stored"]]


class SAPT(Method):
    """Zhao et al., ACL 2024: h = W_0 x + s Σ_i≤t w_i B_i A_i x with w = softmax_i(k_i · q / √d) of the sample.

    The current pair, its key and the query network are trained; past pairs and keys are frozen. The same w
    weighs all layers and is computed once a sample; all pairs are applied in one product.

    q comes from the untouched backbone's features, of text the mean of its last states over the question's tokens,
    whatever the answer and the padding are; the original takes the largest of the question's embedded tokens in each
    dimension, padding among them. So a step has one more forward pass. Reflection (`arm`) keeps the weights of past
    tasks where they were: kl_weight Σ_i<t mean KL(w̄_i ‖ w). The default is without, which keeps nothing of any
    sample; "exemplar" does it on training samples. Of these only the frozen features are needed and kept, and they
    are declared as kept samples. A departure: the original does it on generated samples, which are declined here. They
    come from a second LoRA, trained as a generator, and are shipped with its code as data files: another trained
    model would be what is compared, and no other method is given one.
    Rank and s are the recipe's.
    """

    name = "sapt"
    paper = "Zhao et al. 2024"

    hidden: int = Field(default=100, ge=1, description="numbers between the query network's two layers")
    arm: Literal["none", "exemplar"] = Field(default="none", description="hold past tasks' weights on kept samples")
    exemplars: int = Field(default=160, ge=1, description="samples kept over the whole stream, as many of each task")
    kl_weight: Annotated[float, Search(0.1, 2)] = Field(default=0.5, ge=0, description="of the reflection")

    def resources(self) -> Resources:
        """A pair and a key a task, and the exemplars."""
        exemplars = self.exemplars if self.arm == "exemplar" else 0
        return Resources(buffer_samples=exemplars, replay_batch=exemplars, stored_mib_per_task=32.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Fewer exemplars than tasks."""
        if self.arm == "none":
            return None
        return too_few("exemplars", self.exemplars, len(stream), "tasks")

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA a task and the attention over them."""
        return [_Shared(self, bench, bench.lora())]
