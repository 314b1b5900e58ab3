"""LwF: a LoRA that must answer for old classes as it did before the task, on the task's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from clbench.method import Method, Search, Workbench
from clbench.methods._answers import answered
from clbench.methods._gradients import evaluating
from clbench.strategy import Plugin, Strategy


def distillation(old: Tensor, new: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(old / T) ‖ softmax(new / T)), the mean over a batch of logits `[batch, …, classes]`.

    `shares` `[batch, …]`: what each of a sample's distributions counts. With T² the gradient keeps its size as T
    grows: it goes to the difference of the centred logits over the number of classes.
    """
    teacher, student = (old / temperature).log_softmax(-1), (new / temperature).log_softmax(-1)
    each = F.kl_div(student, teacher, reduction="none", log_target=True)
    return temperature**2 * ((each * shares.unsqueeze(-1)).sum() / len(old))


class _Distillation(Plugin):
    def __init__(self, method: LwF, bench: Workbench) -> None:
        super().__init__()
        self.method, self.bench = method, bench
        self.teacher: dict[str, Tensor] = {}
        self.known = torch.empty(0, dtype=torch.int64)

    def before_backward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Add the distillation over the classes that the teacher knows."""
        if not self.teacher or not self.method.weight:
            return
        model = strategy.model
        with torch.no_grad(), evaluating(model), strategy.autocast(cached=False):
            answer = functional_call(model, self.teacher, (strategy.mb_x,)).float()
        (old, shares), (new, _) = (answered(logits, strategy.mb_y) for logits in (answer, strategy.mb_output))
        if len(self.known) < model.classes:
            old, new = old[..., self.known], new[..., self.known]
        strategy.loss += self.method.weight * distillation(old, new, shares, self.method.temperature)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """The model as it is now teaches the next task."""
        self.teacher = {n: p.detach().clone() for n, p in strategy.model.named_parameters() if p.requires_grad}
        self.known = strategy.seen_classes.clone()

    def state(self) -> dict[str, Any]:
        """The teacher's own weights, and the classes it knows."""
        return {"teacher": self.teacher, "known": self.known}

    def load_state(self, state: dict[str, Any]) -> None:
        """The teacher."""
        device = self.bench.device
        self.teacher = {name: weight.to(device) for name, weight in state["teacher"].items()}
        self.known = state["known"].to(device)


class LwF(Method):
    """Li & Hoiem, ECCV 2016: L + α T² KL(softmax(z_old / T) ‖ softmax(z_new / T)) over the old classes.

    The teacher is the model at the end of the last task, on the current samples, in evaluation mode; only
    what is trained is copied, the backbone is shared. One more forward pass a step.

    Departures. One head for all tasks: the old classes form one softmax, not one a task. T² (Hinton et
    al. 2015), so that α means the same at every T. There is no phase that trains new head rows alone. Of text
    all tokens are old classes, and KL is the mean over the tokens of an answer, behind the true ones; the
    teacher's distributions are computed in each step, since kept they would take more than the data.
    """

    name = "lwf"
    paper = "Li & Hoiem 2016"

    weight: Annotated[float, Search(0.1, 10)] = Field(default=1.0, ge=0, description="α")
    temperature: float = Field(default=2.0, gt=0, description="T")

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and its teacher."""
        bench.lora()
        return [_Distillation(self, bench)]
