"""First session: an adapter is trained in the first task alone; later ones are only looked at."""

from __future__ import annotations

from typing import Any

from clbench.method import Workbench
from clbench.methods._prototypes import Answering, CosineHead, Views
from clbench.strategy import Plugin, Strategy


class FirstSession(Plugin):
    """Train the adapter with a cosine classifier; then `answer` takes its place and learns each task in one look.

    For methods with the schedule `first`: the harness gives the later tasks no epochs. As nothing moves any
    more, what was looked at in one task stays exact in the next.
    """

    def __init__(self, bench: Workbench, views: Views, answer: Answering) -> None:
        super().__init__()
        self.model, self.views = bench.model, views
        self.answer = answer.to(bench.device)
        bench.model.head = CosineHead(bench.model.get_parameter("head.weight"))

    def before_train_dataset_adaptation(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Freeze everything after the first task."""
        if strategy.task_index > 0:
            self.model.requires_grad_(False)

    def after_training_exp(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """One look at the task, in evaluation mode."""
        self.model.head = self.answer
        self.answer.learn(*self.views.of_task(strategy))

    def before_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """The views of the batch that its own forward pass does not give."""
        self.views.look(strategy)

    def after_eval_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """The batch is answered."""
        self.views.forget()

    def load_state(self, state: dict[str, Any]) -> None:
        """There is a state only after the first task: what answers is in place; its tensors are the model's."""
        self.model.head = self.answer
