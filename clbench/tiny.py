"""Tiny suites, of images and of text, on random weights: for laws, tests and trying things out in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clbench.recipe import Recipe
from clbench.suite import Contender, Suite
from clbench.text import Row, TextTask

if TYPE_CHECKING:  # a table of these suites is made without torch
    import torch

    from clbench.stream import ImageSet, Stream

CLASSES_PER_TASK = 2
TRAIN, VALIDATION, TEST = 32, 8, 16
"""Images of a class."""


def images(label: int, part: str, count: int) -> torch.Tensor:
    """`[count, 1, 8, 8]` uint8: the class's own random pattern with noise."""
    import torch

    from clbench.seeding import generator

    pattern = torch.rand(8, 8, generator=generator(0, "tiny", label))
    noise = torch.randn(count, 1, 8, 8, generator=generator(0, "tiny", label, part)) * 0.25
    return ((pattern + noise).clamp(0, 1) * 255).to(torch.uint8)


def stream(order_seed: int = 0, tasks: int = 3) -> Stream:
    """`tasks` tasks of two classes; the first ones do not depend on how many follow."""
    import torch

    from clbench.stream import ImageSet, Stream, Task

    def part(classes: tuple[int, ...], name: str, count: int) -> ImageSet:
        pictures = torch.cat([images(c + 100 * order_seed, name, count) for c in classes])
        return ImageSet(pictures, torch.tensor(classes).repeat_interleave(count))

    made = []
    for first in range(0, tasks * CLASSES_PER_TASK, CLASSES_PER_TASK):
        classes = tuple(range(first, first + CLASSES_PER_TASK))
        parts = part(classes, "train", TRAIN), part(classes, "validation", VALIDATION), part(classes, "test", TEST)
        made.append(Task(" ".join(map(str, classes)), *parts, classes))
    return Stream(tuple(made))


tiny = Suite(
    name="tiny",
    make_stream=stream,
    stream_name="tiny",
    backbone="tiny-vit",
    recipe=Recipe(epochs=3, batch_size=16, learning_rate=1e-2, lora_rank=2, lora_alpha=2),
    transform="none",
    normalisation="none",
    contenders=(Contender("seqlora"), Contender("replay"), Contender("ncm")),
    settings={
        "finetune": {"learning_rate": 1e-3},
        "replay": {"buffer_samples": 24, "replay_batch": 8},
        "l2p": {"pool": 4, "length": 1, "top": 2},
        "l2pp": {"pool": 4, "length": 2, "top": 2},
        # Drawn from (-1, 1), longer prefixes drown the small signals of random weights.
        "dualprompt": {
            "general_blocks": (0,),
            "expert_blocks": (1,),
            "general_length": 1,
            "expert_length": 1,
            "epochs": 10,
        },
        "hide-prompt": {"length": 1, "epochs": 10},
        "coda-prompt": {"components": 4, "length": 2},
        "ranpac": {"expansion": 128},
    },
)

LETTERS, SYMBOLS = "ABCDEFGH", "+-*/=<>#"


def text_task(index: int, order_seed: int = 0) -> TextTask:
    """Which of two symbols is in a row of small letters: the answer is one of the task's own two capital letters."""
    import torch

    from clbench.seeding import generator

    draws = generator(0, "tiny text", index, order_seed)
    answers = LETTERS[2 * index % 8 : 2 * index % 8 + 2]

    def rows(count: int) -> tuple[Row, ...]:
        made = []
        for number in range(count):
            body = [chr(97 + int(place)) for place in torch.randint(26, (5,), generator=draws)]
            body[int(torch.randint(5, (1,), generator=draws))] = SYMBOLS[number % 2]
            made.append(Row(f"{index}{''.join(body)}?", answers[number % 2]))
        return tuple(made)

    return TextTask(
        name=f"{answers[0]} or {answers[1]}",
        kind="letter",
        prefix=str(index),
        cue="?",
        answer_tokens=2,
        train=rows(2 * TRAIN),
        validation=rows(2 * VALIDATION),
        test=rows(2 * TEST),
    )


def text_stream(order_seed: int = 0, tasks: int = 3) -> Stream:
    """`tasks` tasks of text; the first ones do not depend on how many follow."""
    from clbench.stream import Stream

    return Stream.of_text([text_task(index, order_seed) for index in range(tasks)])


tiny_text = Suite(
    name="tiny-text",
    make_stream=text_stream,
    stream_name="tiny-text",
    backbone="nano-lm",
    recipe=Recipe(epochs=10, batch_size=16, learning_rate=2e-2, lora_rank=4, lora_alpha=8),
    transform="none",
    normalisation="none",
    contenders=(Contender("seqlora"), Contender("replay"), Contender("joint")),
    score="strict",
    settings={
        "finetune": {"learning_rate": 1e-3},
        "replay": {"buffer_samples": 24, "replay_batch": 8},
        "derpp": {"buffer_samples": 24, "replay_batch": 8},
        "gem": {"buffer_samples": 24, "reference_batch": 8},
        "agem": {"buffer_samples": 24, "reference_batch": 8},
        "ewc": {"penalty_weight": 10.0, "fisher_samples": 32},
        "mas": {"penalty_weight": 1e-3, "samples": 32},
        "ogd": {"vectors": 16},
        # Random weights answer otherwise only after many steps where nothing in the blocks is trained.
        "l2p": {"pool": 2, "length": 16, "top": 1, "learning_rate": 0.2, "epochs": 60},
        "l2pp": {"depth": 2, "pool": 2, "length": 16, "top": 1, "learning_rate": 0.3, "epochs": 25},
        "dualprompt": {
            "general_blocks": (0,),
            "expert_blocks": (1,),
            "general_length": 1,
            "expert_length": 4,
            "learning_rate": 0.3,
            "epochs": 20,
        },
        "coda-prompt": {"components": 16, "length": 8, "learning_rate": 0.05, "epochs": 15},
        "s-prompt": {"length": 16, "learning_rate": 0.2, "epochs": 50},
        "hide-prompt": {"length": 4, "learning_rate": 0.3, "epochs": 25},
    },
)
