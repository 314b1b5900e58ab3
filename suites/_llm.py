"""What the suites of text share: how a language model is taught, and which methods compete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clbench import datafolder
from clbench.recipe import Recipe
from clbench.seeding import derive
from clbench.suite import Contender, Files
from clbench.text import TextTask

if TYPE_CHECKING:
    from clbench.stream import Stream

BACKBONE = "llama-3.2-1b-instruct"
"""The smallest of the models that the TreeLoRA paper (arXiv 2506.10355, table 3) reports on."""
TRANSFORM = "text: questions of at most {prompt_tokens} tokens, cut: {truncation}; answers of at most {answer_tokens}"

# The scripts of TRACE for LoRA (github.com/BeyonderXX/TRACE): rank 8, alpha 32, dropout 0.1 on q and v, Adam with
# betas (0.9, 0.95), no decay, a constant 1e-4, gradients clipped at 1, bfloat16, 1024 + 512 tokens. They have one
# sample a device and gradients of 8 batches on 4 to 8 devices; 32 is the least of it, and TreeLoRA's.
RECIPE = Recipe(
    batch_size=32,
    micro_batch=4,
    eval_batch_size=32,
    optimizer="adam",
    betas=(0.9, 0.95),
    learning_rate=1e-4,
    clip=1.0,
    lora_rank=8,
    lora_alpha=32,
    lora_dropout=0.1,
    lora_sites=("q", "v"),
    precision="bfloat16",
    prompt_tokens=1024,
    answer_tokens=512,
)

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "finetune": {"learning_rate": 1e-5},  # TRACE's scripts
    "ewc": {"penalty_weight": 400.0},  # TRACE's code, whose Fisher information is estimated otherwise
    "gem": {"buffer_samples": 256, "reference_batch": 32},  # 32 a task of eight; four of each of eight a step
    "l2p": {"pool": 10, "length": 5, "top": 3, "pull_weight": 0.5, "learning_rate": 1e-3},
    "dualprompt": {"expert_length": 5, "learning_rate": 1e-3},
    "inflora": {"projections": ("q", "v")},  # those of the other LoRAs; its own, k and v, are for images
    "sd-lora": {"magnitude_rate": 10.0},  # one number of 0.8 hardly moves at 1e-4 [ours]
    "treelora": {"decomposition": "none", "penalty_weight": 0.5},  # the paper's appendix A.3
}
"""Where a method's own defaults are those of images."""


def contenders(tenths: int, treelora_epochs: tuple[int, ...] = ()) -> tuple[Contender, ...]:
    """The rows of a suite; TreeLoRA with its paper's passes over each task too, where it names them.

    `tenths` is how many rows TRACE's replay may keep: a tenth of every task's.
    """
    first = ("icl", "seqlora", "inclora", "finetune", "joint", "replay")
    then = ("ewc", "gem", "agem", "ogd", "lwf", "l2p", "dualprompt", "olora", "hidelora", "treelora")
    rows = [Contender(name) for name in first]
    rows.append(Contender("replay", {"flavour": "after", "buffer_samples": tenths}, label="after each task"))  # TRACE's
    rows += [Contender(name) for name in then]
    if treelora_epochs:
        rows.append(Contender("treelora", recipe={"task_epochs": treelora_epochs}, label="paper's epochs"))
    return tuple(rows)


def stream(tasks: Iterable[TextTask], order_seed: int = 0) -> Stream:
    """The tasks as a stream, in their order for seed 0 and shuffled for others."""
    from clbench.stream import Stream

    listed = list(tasks)
    if order_seed:
        listed.sort(key=lambda task: derive(order_seed, "order", task.name))
    return Stream.of_text(listed)


def tasks(stream: Stream) -> list[TextTask]:
    """The tasks of which a stream was made, in its order."""
    from clbench.stream import TextSet

    parts: list[object] = [task.train for task in stream]
    return [part.task for part in parts if isinstance(part, TextSet)]


def notes(stream: Stream) -> tuple[str, ...]:
    """What the tasks say of their rows, for the protocol card."""
    return tuple(f"{task.name}: {note}" for task in tasks(stream) for note in task.notes)


def folder(data: str, files: Files) -> Path:
    """Where the files of a data set lie."""
    return datafolder.folder(data, files.folder)
