"""How `cifar-vit` is made: supervised classification of small photographs that a person brings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from clbench import transforms
from clbench.backbones.vision import cifar_vit, to_unit
from clbench.data import cache, cifar
from clbench.data.contents import CONTENTS
from clbench.errors import BadValue, NotAvailable
from clbench.files import write_atomically
from clbench.seeding import generator

NAME = "cifar-vit"
SIDE = 32
CIFAR10 = tuple(f"data_batch_{number}" for number in range(1, 6))
EVAL_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class VitRecipe:
    """AdamW with a linear warm-up and a cosine to zero; crops out of a border of four pixels, mirrored or not."""

    epochs: int
    """Passes over the training images."""
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    label_smoothing: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0, of so many.

        >>> [round(VitRecipe(epochs=1).rate_at(step, 100), 5) for step in (0, 4, 99)]
        [0.0002, 0.001, 0.0]
        """
        warmup = max(1, round(self.warmup_share * steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step + 1 - warmup) / max(1, steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Photographs:
    """What is learned from."""

    source: str
    """In words, for the card."""
    names: tuple[str, ...]
    train: tuple[Tensor, Tensor]
    """uint8 `[n, 3, 32, 32]` and int64 `[n]`, positions in `names`."""
    test: tuple[Tensor, Tensor]

    def of(self, classes: tuple[int, ...]) -> Photographs:
        """Those of some classes, numbered anew in that order."""
        new = torch.full((len(self.names),), -1)
        new[list(classes)] = torch.arange(len(classes))

        def some(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            mine = new[labels] >= 0
            return images[mine], new[labels[mine]]

        return Photographs(self.source, tuple(self.names[c] for c in classes), some(*self.train), some(*self.test))


def photographs(source: str) -> Photographs:
    """A prepared data set by its name, or the folder of CIFAR-10's published python files.

    Raises NotAvailable where neither is there, BadValue where images are not of 32 x 32 pixels or a file is damaged.
    """
    if source in CONTENTS:
        return _prepared(source)
    folder = Path(source).expanduser()
    missing = [name for name in (*CIFAR10, "test_batch", "batches.meta") if not (folder / name).is_file()]
    if missing:
        raise NotAvailable(
            f"'{source}' is neither a data set of 'clbench data list' nor a folder with CIFAR-10's python files; it "
            f"lacks {', '.join(missing)}."
        )
    names = cifar.load(folder / "batches.meta").get("label_names")
    if not isinstance(names, list):
        raise BadValue("'batches.meta' holds no list 'label_names'; fetch the archive again.")
    parts = [_batch(folder / name, len(names)) for name in CIFAR10]
    train = torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])
    return Photographs("CIFAR-10, as published", tuple(names), train, _batch(folder / "test_batch", len(names)))


def _prepared(name: str) -> Photographs:
    prepared = cache.open(name)
    pixels = prepared.images.uniform
    if pixels is None or pixels.shape[1:] != (3, SIDE, SIDE):
        raise BadValue(f"'{NAME}' learns from images of {SIDE} x {SIDE} pixels; those of '{name}' have other sizes.")
    targets, is_train = torch.from_numpy(np.array(prepared.targets)), np.array(prepared.is_train)

    def part(mine: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(pixels[mine]), targets[torch.from_numpy(mine)]

    return Photographs(f"{name}, sha256 {prepared.sha256}", prepared.class_names, part(is_train), part(~is_train))


def _batch(path: Path, classes: int) -> tuple[Tensor, Tensor]:
    """One of CIFAR-10's files: `data` uint8 [n, 3072] and `labels`."""
    content = cifar.load(path)
    images, labels = content.get("data"), content.get("labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3 * SIDE * SIDE,):
        raise BadValue(f"'{path.name}' holds no array 'data' of bytes, {3 * SIDE * SIDE} a row.")
    if not isinstance(labels, list) or len(labels) != len(images) or not set(labels) <= set(range(classes)):
        raise BadValue(f"'{path.name}' holds no list 'labels' with a number from 0 to {classes - 1} for each image.")
    return torch.from_numpy(images.reshape(-1, 3, SIDE, SIDE).copy()), torch.tensor(labels)


def chosen(word: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """Classes by number: `0-49`, `3,5,8`, both mixed, or '' for all. Raises BadValue for what is no such class.

    >>> chosen("0-2,7", tuple("abcdefgh"))
    (0, 1, 2, 7)
    """
    found: list[int] = []
    for part in filter(None, word.split(",")):
        ends = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if ends is None or int(ends[2] or ends[1]) >= len(names):
            most = len(names) - 1
            raise BadValue(f"--classes takes numbers from 0 to {most} and ranges such as 0-4; got '{word}'.")
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    if len(set(found)) != len(found):
        raise BadValue(f"--classes takes each of 0 to {len(names) - 1} once at most; got '{word}'.")
    if len(found) == 1:
        raise BadValue("one class cannot be told from another; name two or more with --classes.")
    return tuple(found) or tuple(range(len(names)))


def train(
    body: VisionTransformer, data: Photographs, recipe: VitRecipe, device: torch.device, report: Callable[[str], None]
) -> dict[str, Any]:
    """Train `body` in place; returns the facts for the model card."""
    torch.manual_seed(recipe.seed)
    head = nn.Linear(int(body.embed_dim), len(data.names)).to(device)
    body.to(device).train()
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    images, labels = (part.to(device) for part in data.train)
    steps, step, began = recipe.epochs * -(-len(labels) // recipe.batch_size), 0, time.monotonic()
    for epoch in range(recipe.epochs):
        total = torch.zeros((), device=device)
        for views, targets in _views(images, labels, recipe, epoch):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(step, steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = criterion(head(body(to_unit(views))), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            total += loss.detach() * len(targets)
            step += 1
        seconds = time.monotonic() - began
        speed = (epoch + 1) * len(labels) / seconds
        loss_now = float(total) / len(labels)
        report(f"epoch {epoch + 1}/{recipe.epochs}  loss {loss_now:.3f}  {speed:.0f} images/s  {seconds / 60:.1f} min")
    body.eval()
    return {
        "classes": len(data.names),
        "class_names": list(data.names),
        "images": len(labels),
        "steps": steps,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "accuracy": round(_accuracy(body, head, data.test, device), 4),
    }


def _views(images: Tensor, labels: Tensor, recipe: VitRecipe, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random views of every image once, in random order."""
    view, draws = transforms.named("crop32"), generator(recipe.seed, "pretrain", epoch)
    for places in torch.randperm(len(labels), generator=draws).to(labels.device).split(recipe.batch_size):
        yield view.train(images[places], draws), labels[places]


@torch.no_grad()
def _accuracy(body: nn.Module, head: nn.Module, test: tuple[Tensor, Tensor], device: torch.device) -> float:
    right = 0
    for images, labels in zip(*(part.split(EVAL_BATCH) for part in test), strict=True):
        right += int((head(body(to_unit(images.to(device)))).argmax(1).cpu() == labels).sum())
    return right / max(1, len(test[1]))


def pretrain_cifar_vit(
    source: str, classes: str, epochs: int, out: Path, report: Callable[[str], None], device: torch.device
) -> Path:
    """Make the weights from some classes of `source` and put them, with their card, into `out`; returns their path.

    Raises what `photographs` and `chosen` raise.
    """
    everything = photographs(source)
    data, recipe = everything.of(chosen(classes, everything.names)), VitRecipe(epochs=epochs)
    report(f"{len(data.train[1]):,} training images of {len(data.names)} classes; {data.source}")
    torch.manual_seed(recipe.seed)
    body = cifar_vit()
    facts = train(body, data, recipe, device, report)
    weights = save({name: value.cpu().contiguous() for name, value in body.state_dict().items()})
    path = out / f"{NAME}.safetensors"
    write_atomically(path, weights)
    card = {
        "name": NAME,
        "architecture": "timm VisionTransformer: 32x32 colour, patch 4, width 128, 6 blocks, 4 heads, class token",
        "input": "uint8 divided by 255",
        "data": data.source,
        "recipe": dataclasses.asdict(recipe),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        **facts,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    write_atomically(path.with_suffix(".json"), (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())
    report(f"wrote {path} and its card; {facts['accuracy']:.2%} of the test images of {facts['classes']} classes")
    return path
