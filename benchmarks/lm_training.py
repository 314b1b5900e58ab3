"""What the strategy costs on text: training tokens a second against a bare loop on transformers and peft.

Both train the same language model with the same LoRA on the same batches in the same order, with the same fused Adam.
The bare loop is what one would write: transformers' own model and mask, peft's LoRA, and a cross-entropy over the
answers' tokens, of whose logits alone it asks; once with the mean over each answer, as here, once as transformers
does it, by `labels`, with the logits of all positions. The losses of the first epoch must agree, so that a loop that
does less cannot pass for a faster one. Read the column `ratio`: the median over the blocks of (strategy / bare loop)
in time; the target, 0.95 of the tokens a second, is 1.053.

    python benchmarks/lm_training.py --threads 2
    CLBENCH_TEST_DATA=FOLDER python benchmarks/lm_training.py    # with stories260k, which lies in FOLDER
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from _language import built, lessons, models
from _learner import CPU, Standing
from _paired import Comparison, arguments, compare
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from clbench import catalog
from clbench.loader import Loader
from clbench.meter import Meter
from clbench.method import Workbench
from clbench.padding import IGNORED, NOTHING
from clbench.recipe import Recipe
from clbench.seeding import derive
from clbench.stream import Examples, Task

METHOD = "seqlora"
RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=1e-3, lora_rank=8, lora_alpha=16)


def learner(backbone: str, rows: int) -> tuple[Standing, Task]:
    """A strategy before its first task, and the task."""
    model = built(backbone)
    task = lessons(model, RECIPE, rows)
    model.freeze_body()
    plugins = catalog.method_type(METHOD).cls().plugins(Workbench(model, RECIPE, CPU, 1, 0))
    return Standing(model=model, recipe=RECIPE, plugins=plugins, meter=Meter(CPU), device=CPU, seed=0), task


class Bare:
    """The same with transformers and peft alone."""

    def __init__(self, strategy: Standing, backbone: str, examples: Examples, labels: bool) -> None:
        ours = strategy.model
        fresh = built(backbone).body
        body = AutoModelForCausalLM.from_config(fresh.config, attn_implementation="sdpa")
        body.load_state_dict(fresh.state_dict())
        config = LoraConfig(r=RECIPE.lora_rank, lora_alpha=RECIPE.lora_alpha, target_modules=["q_proj", "v_proj"])
        self.model: Any = get_peft_model(body, config).train()
        self._take_over(ours)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=RECIPE.learning_rate, fused=True)
        tasks = torch.zeros(len(examples), dtype=torch.int64)
        self.loader = Loader(examples, tasks, RECIPE.batch_size, CPU, derive(0, "order", 0))
        self.labels, self.loss = labels, 0.0

    @torch.no_grad()
    def _take_over(self, ours: Any) -> None:
        """The LoRA's first numbers, layer by layer."""
        theirs = [parameter for name, parameter in self.model.named_parameters() if "lora_A" in name]
        downs = [parameter for name, parameter in ours.named_parameters() if name.endswith(".down")]
        for mine, own in zip(theirs, downs, strict=True):
            mine.copy_(own)

    def block(self) -> None:
        """One epoch."""
        total, batches = torch.zeros(()), 0
        for inputs, targets, _ in self.loader:
            self.optimizer.zero_grad()
            loss = self._whole(inputs, targets) if self.labels else self._answers(inputs, targets)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
            batches += 1
        self.loss = float(total) / batches
        self.loader.epoch += 1

    def _arguments(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        visible = (inputs[:, 1] != NOTHING).long()
        places = (visible.cumsum(1) - 1).clamp(min=0)
        return {"input_ids": inputs[:, 0], "attention_mask": visible, "position_ids": places}

    def _answers(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        span = targets.shape[1]
        logits = self.model(**self._arguments(inputs), logits_to_keep=span + 1, use_cache=False).logits[:, :-1]
        flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        mean: torch.Tensor = (flat.view_as(targets).sum(1) / (targets != IGNORED).sum(1)).mean()
        return mean

    def _whole(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        labels = F.pad(targets, (inputs.shape[-1] - targets.shape[1], 0), value=IGNORED)
        loss: torch.Tensor = self.model(**self._arguments(inputs), labels=labels, use_cache=False).loss
        return loss


def tokens_of(examples: Examples) -> int:
    """Tokens of an epoch, without padding."""
    inputs, _ = examples.batch(torch.arange(len(examples)), CPU)
    return int((inputs[:, 1] != NOTHING).sum())


def show(name: str, results: list[Comparison], tokens: int, chosen: argparse.Namespace) -> None:
    """Print tokens a second of each, and the ratios with their spread."""
    print(f"\n{name}; {chosen.threads} threads, {chosen.blocks} paired blocks of {chosen.steps} steps, {tokens} tokens")
    speeds = [("strategy", results[0].reference), *((result.name, result.mine) for result in results)]
    print("tokens a second: " + ", ".join(f"{tokens / float(np.median(times)):,.0f} {way}" for way, times in speeds))
    print(f"{'strategy against':<22}{'ms/step':>9}{'ratio':>9}   {'quartiles':<13}{'min-max':<11}{'target':>9}")
    for result in results:
        print(Comparison(result.name, 1 / 0.95, result.reference, result.mine).row(chosen.steps))


def main() -> None:
    chosen = arguments(__doc__)
    for name, backbone in models().items():
        strategy, task = learner(backbone, chosen.steps * RECIPE.batch_size)
        bare, plain = (Bare(strategy, backbone, task.train, labels) for labels in (False, True))
        told: list[float] = []
        strategy.on_epoch = lambda epoch, epochs, loss, told=told: told.append(loss)
        strategy.stand(0, task)
        strategy.block()
        bare.block()
        np.testing.assert_allclose(told[0], bare.loss, rtol=1e-4)
        ways = {"answers' logits": (bare.block, 0.0), "all logits, by labels": (plain.block, 0.0)}
        show(name, compare(strategy.block, ways, chosen.blocks), tokens_of(task.train), chosen)


if __name__ == "__main__":
    main()
