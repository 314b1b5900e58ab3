"""Strategy: the one door to Avalanche; its training template with our loaders, optimiser and loss."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports reports missing or retired solvers that we do not use
    from avalanche.core import BasePlugin
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates import SupervisedTemplate

from clbench.answers import Answers, Sheet
from clbench.errors import BadValue, Diverged, NotAvailable
from clbench.loader import Loader, experience
from clbench.meter import Meter
from clbench.model import Classifier
from clbench.peers import ALONE, Peers
from clbench.plugin import HOOKS, Plugin, check_hooks, names_the_batch
from clbench.recipe import Recipe
from clbench.seeding import derive
from clbench.stream import Examples, Task
from clbench.terms import HeadMasking
from clbench.untaught import rows_stay

__all__ = ["EARLY", "HOOKS", "Plugin", "Strategy", "check_hooks"]

EARLY = 3
"""After so many steps of a task processes that share batches compare what they hold for the first time."""
_A_SHARE = (
    "the method looks at each batch while it is learned, and of that every process has a share alone; teach it by one "
    "process."
)


class Strategy(SupervisedTemplate[Any, Any, Any]):
    """Avalanche's supervised template on our terms; see `runner` for who calls it.

    Plugins may use `model`, `mb_x`, `mb_y`, `mb_output`, `loss`, `clock`, `examples` (the task's
    training data), `task_index`, `task_classes`, `seen_classes` (both sorted index tensors) and may
    set `allowed` (`[classes]` or `[batch, classes]` bool) to say which logits the loss sees. One that
    infers the task of a test example sets `inferred` (int64 `[batch]`, task indices in the stream's
    order) at `before_eval_forward`, in every batch of a scoring pass or in none; it is None before
    each. Parts of a step are timed by `meter.phase`.

    Where `peers` share each batch, its hooks from `before_forward` to `before_backward` cannot see batch and output,
    and what they add to the loss must not depend on them; from `after_backward` on, gradients and loss are those of
    the whole batch, which is there again.
    """

    def __init__(
        self,
        *,
        model: Classifier,
        recipe: Recipe,
        plugins: Sequence[BasePlugin[Any]],
        meter: Meter,
        device: torch.device,
        seed: int,
        on_epoch: Callable[[int, int, float], None] = lambda epoch, epochs, loss: None,
        peers: Peers = ALONE,
    ) -> None:
        self.peers, self._withheld = peers, False
        for plugin in plugins:
            check_hooks(plugin)
            if peers.size > 1 and names_the_batch(plugin):
                raise NotAvailable(_A_SHARE)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No loggers specified")
            evaluator = EvaluationPlugin()
        super().__init__(
            model=model,
            optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0),  # replaced at each task
            train_mb_size=recipe.batch_size,
            train_epochs=recipe.epochs,
            eval_mb_size=recipe.eval_batch_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
        )
        # It holds no metric, yet would copy the experience at each hook of each step.
        self.plugins.remove(evaluator)
        self.recipe, self.meter, self.seed, self.on_epoch = recipe, meter, seed, on_epoch
        self.head_masking: HeadMasking = "current"
        self.learning_rate = recipe.learning_rate
        self.note: Callable[[Tensor, Tensor], None] | None = None
        """Told of the inputs, and their places, that a plugin reads from the task as they are."""
        self.examples: Examples
        self.task_index = -1
        self.task_classes = torch.empty(0, dtype=torch.int64, device=self.device)
        self.seen_classes = torch.empty(0, dtype=torch.int64, device=self.device)
        self.allowed = torch.zeros(model.classes, dtype=torch.bool, device=self.device)
        self._seen = torch.zeros_like(self.allowed)
        self._highest: list[float] = []
        self._own_data: Any = None
        self._eval_loader: Loader
        self.inferred: Tensor | None = None
        self._sheet = Sheet()

    @property
    def mbatch(self) -> Any:
        """Inputs, targets and task indices of the batch."""
        self._refuse_a_share()
        return self._mbatch

    @mbatch.setter
    def mbatch(self, batch: Any) -> None:
        self._refuse_a_share()
        self._mbatch = batch

    @property
    def mb_output(self) -> Any:
        """What the model gave for the batch."""
        self._refuse_a_share(self._mb_output is None and self.is_training)
        return self._mb_output

    @mb_output.setter
    def mb_output(self, output: Any) -> None:
        self._refuse_a_share()
        self._mb_output = output

    def _refuse_a_share(self, is_gone: bool = False) -> None:
        if self._withheld or (is_gone and self.peers.size > 1):
            raise NotAvailable(_A_SHARE)

    # learning

    def learn(self, index: int, task: Task) -> None:
        """Train on one task; the meter runs from before the first hook to after the last."""
        self.examples, self.task_index = task.train, index
        before = set(self.seen_classes.tolist())
        self.see(task)
        self.train_mb_size, self.eval_mb_size = self.recipe.batch_size, self.recipe.eval_batch_size
        taught = experience(task.train, index)
        taught.classes_in_this_experience = set(task.classes)
        taught.previous_classes = before
        taught.classes_seen_so_far = before | set(task.classes)
        self.meter.start()
        self.train(taught, eval_streams=[])

    def see(self, task: Task) -> None:
        """Make the task's classes the current ones and add them to those seen; none stand for all: answers are open."""
        self.model.begin(task)
        self.task_classes = torch.tensor(sorted(task.classes or range(len(self._seen))), device=self.device)
        self._seen[self.task_classes] = True
        self.seen_classes = self._seen.nonzero().flatten()
        if self.head_masking == "seen":
            self.allowed = self._seen.clone()
        else:
            self.allowed = torch.zeros_like(self._seen)
            self.allowed[self.task_classes] = True

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Avalanche's, and a note of its result, to see whether a plugin changes it."""
        super().train_dataset_adaptation(**kwargs)
        self._own_data = self.adapted_dataset

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Our loader; Avalanche's own where a plugin has changed the data."""
        if self.adapted_dataset is not self._own_data:
            self._refuse_a_share(True)
            super().make_train_dataloader(**kwargs)
            return
        seed = derive(self.seed, "order", self.task_index)
        task_of = torch.full((len(self.examples),), self.task_index)
        self.dataloader = Loader(self.examples, task_of, self.train_mb_size, self.device, seed, note=self.note)

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Our loader, in the order given."""
        self.dataloader = self._eval_loader

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Nothing: methods change the model themselves."""
        unchanged: nn.Module = self.model
        return unchanged

    def _check_distributed_training_compatibility(self) -> bool:
        """Avalanche goes by what plugins declare; here it is seen while they run."""
        return True

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """A fresh optimiser over what is trainable now (Avalanche's would take the frozen weights too)."""
        parameters = self.model.trainable()
        if not parameters:
            if self.train_epochs:
                raise BadValue("the method left nothing to train; attach an adapter, or set its schedule to 'none'.")
            return
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if not self.recipe.carry_optimizer or held != {id(p) for p in parameters}:
            self._start_optimizer(parameters)

    def _start_optimizer(self, parameters: list[nn.Parameter]) -> None:
        self.optimizer = self._fresh_optimizer(parameters)
        self._highest = [group["lr"] for group in self.optimizer.param_groups]

    def carried(self) -> dict[str, Any]:
        """What the optimiser takes along into the next task, for a checkpoint; {} where that has a fresh one."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        goes_on = self.recipe.carry_optimizer and held == {id(p) for p in self.model.trainable()}
        return self.optimizer.state_dict() if goes_on else {}

    def carry(self, state: dict[str, Any]) -> None:
        """Take back what `carried` gave; trainable must be what was so then."""
        if state:
            self._start_optimizer(self.model.trainable())
            self.optimizer.load_state_dict(state)

    def _fresh_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        recipe, rate = self.recipe, self.learning_rate
        groups = self._by_factor(parameters)
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        # Fused: one kernel where the loop takes ten, and no step count is read back.
        return kind(groups, lr=rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)

    def _by_factor(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        """One group for each step size."""
        factors: dict[nn.Parameter, float] = {}
        for plugin in self.plugins:
            if isinstance(plugin, Plugin):
                factors.update(plugin.learning_rate_factors(self.model))
        held: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            held.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        return [{"params": group, "lr": self.learning_rate * factor} for factor, group in held.items()]

    def training_epoch(self, **kwargs: Any) -> None:
        """One pass; the loss is looked at once, at its end, so that no step waits for the device."""
        loader = self.dataloader
        if isinstance(loader, Loader):
            loader.epoch, loader.augmented = self.clock.train_exp_epochs, True
        total, count = torch.zeros(1, device=self.device), 0
        for batch in loader:
            self.mbatch = batch
            if self._stop_training:
                break
            first = self.clock.train_exp_iterations == 0
            with self.meter.first_step() if first else contextlib.nullcontext():
                self._training_step(**kwargs)
            total += self.loss.detach()
            count += 1
            if self.peers.size > 1 and self.clock.train_exp_iterations == EARLY:
                self.peers.agree({**self.holdings(), "the batch": self.mbatch}, f"after {EARLY} steps")
        if isinstance(loader, Loader):
            loader.augmented = False
        loss = float(total) / max(1, count)
        if not math.isfinite(loss):
            raise self._divergence(loss)
        self.peers.refuse_unequal_terms()
        self.on_epoch(self.clock.train_exp_epochs + 1, self.train_epochs, loss)

    def _divergence(self, loss: float) -> Exception:
        """Why the loss is not finite: a masked target, or too large a step."""
        allowed = self.allowed.expand(len(self.mb_y), -1)
        if self.mb_y.ndim == 1 and not allowed.gather(1, self.mb_y[:, None]).all():
            return BadValue(
                "a training batch holds classes that the loss does not see, so it is infinite; a method that brings "
                "back past samples needs head_masking 'seen', or must set 'allowed' for them."
            )
        return Diverged(
            f"the loss became {loss} in epoch {self.clock.train_exp_epochs + 1} of task {self.task_index + 1}; "
            "lower the learning rate or the penalty weight."
        )

    def _training_step(self, **kwargs: Any) -> None:
        self._unpack_minibatch()
        self._before_training_iteration(**kwargs)
        self.optimizer.zero_grad()
        whole = self.mbatch
        with self.peers.own_draws(self.device, self.seed, self.task_index, self.clock.train_exp_iterations):
            total = self._passes(**kwargs)
        self.mbatch, self.loss = whole, total
        self._after_backward(**kwargs)
        self._before_update(**kwargs)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.trainable(), self.recipe.clip)
        self._set_rates()
        with rows_stay(self.model, self.recipe):
            self.optimizer_step()
        self._after_update(**kwargs)
        self._after_training_iteration(**kwargs)

    def _passes(self, **kwargs: Any) -> Tensor:
        """Gradients of the batch, in passes over this process's share of it; returns the whole batch's loss."""
        whole, mine = self.mbatch, self.peers.share(len(self.mb_y))
        size = self.recipe.micro_batch or max(1, len(mine))
        total: Tensor = self._make_empty_loss()
        added: Tensor = self._make_empty_loss()
        for first in mine[::size]:
            last = min(first + size, mine.stop)
            if last - first < len(whole[1]):
                self.mbatch = [part[first:last] for part in whole]
            share = len(self.mb_y) / len(whole[1])
            self.loss = self._make_empty_loss()
            self._on_a_share(self._before_forward, **kwargs)
            self.mb_output = self.forward()
            self._on_a_share(self._after_forward, **kwargs)
            own = self.criterion()
            self.loss += own
            self._on_a_share(self._before_backward, **kwargs)
            if self.peers.size > 1:
                added += (self.loss.detach() - own.detach()) * (last - first) / len(mine)
            if share < 1:
                self.loss = self.loss * share
            self.backward()
            total += self.loss.detach()
        if self.peers.size > 1:
            self.mb_output = None
            self.peers.add_up(self.model.trainable(), total, added, len(whole[1]))
        return total

    def _on_a_share(self, hook: Callable[..., None], **kwargs: Any) -> None:
        """Call a hook that must not see what differs between processes."""
        self._withheld = self.peers.size > 1
        try:
            hook(**kwargs)
        finally:
            self._withheld = False

    def holdings(self) -> dict[str, Any]:
        """What must be equal in all processes: what is trained, and the tensors that each plugin holds."""
        held: dict[str, Any] = {"what is trained": self.model.trainable()}
        for number, plugin in enumerate(self.plugins):
            tensors = {name: value for name, value in vars(plugin).items() if _is_of_tensors(value)}
            held[f"what the plugin {type(plugin).__name__} ({number}) holds"] = tensors
        return held

    def _set_rates(self) -> None:
        """The step sizes of the coming update, by the recipe's schedule."""
        if self.recipe.schedule == "constant":
            return
        step, steps = self.clock.train_exp_iterations, self.train_epochs * len(self.dataloader)
        factor = self.recipe.rate_at(step / steps, self.clock.train_exp_epochs, self.train_epochs)
        for group, highest in zip(self.optimizer.param_groups, self._highest, strict=True):
            group["lr"] = highest * factor

    def forward(self) -> Tensor:
        """Logits of the mini-batch, in the recipe's precision."""
        with self.autocast():
            logits: Tensor = self.model(self.mb_x)
        return logits.float()

    def autocast(self, cached: bool = True) -> torch.autocast:
        """The precision that the recipe asks for. Inside a function transform `cached=False`: no cast outlives it."""
        wanted = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted, cache_enabled=cached)

    def criterion(self) -> Tensor:
        """The mean of the samples' losses over the allowed logits."""
        losses: Tensor = self.model.losses(self.mb_output, self.mb_y, self.allowed)
        return losses.mean()

    # scoring

    def answer(self, examples: Examples, task_of: Tensor, batch_size: int | None = None) -> Answers:
        """Ask for the classes of `examples`.

        `task_of` `[n]` holds the true task of each example, for methods that declare they use it. Raises
        BadValue where a plugin has set `inferred` to anything but a task for every example.
        """
        self.eval_mb_size = batch_size or self.recipe.eval_batch_size
        size, part = self.eval_mb_size, (self.peers.rank, self.peers.size)
        self._eval_loader = Loader(examples, task_of, size, self.device, None, part)
        self._sheet = Sheet()
        self.eval(experience(examples, self.task_index))
        return self._sheet.closed(self.model.words, self.task_index, self.peers)

    def eval_epoch(self, **kwargs: Any) -> None:
        """One pass over the examples, keeping the answers."""
        for batch in self.dataloader:
            self.mbatch = batch
            self._unpack_minibatch()
            self.inferred = None
            self._before_eval_iteration(**kwargs)
            self._before_eval_forward(**kwargs)
            with self.autocast():
                self.mb_output = self.model.reply(self.mb_x, self.mb_y)
            self._after_eval_forward(**kwargs)
            answers, margins = self.model.settle(self.mb_output, self._seen)
            self._sheet.note(answers, margins, self.inferred)
            self._after_eval_iteration(**kwargs)
        self.inferred = None


def _is_of_tensors(value: object) -> bool:
    """Whether it is a tensor, or a list, tuple or dict of some."""
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and _is_of_tensors(list(value.values()))
    parts = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(part, Tensor) for part in parts)
