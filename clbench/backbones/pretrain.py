"""How the shipped backbones are made: recipes that anyone can run again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from clbench import glyphs
from clbench.backbones.vision import GLYPH_VIT, to_unit
from clbench.errors import BadValue, UnknownName
from clbench.files import write_atomically

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of pre-training under one strength of jitter."""

    fraction: float
    jitter: glyphs.Jitter


_LIGHT = glyphs.Jitter(rotation_rad=0.15, scale=(0.9, 1.15), shear=0.1, shift=0.1, noise=0.05, contrast=(0.6, 1.0))
_STRONG = glyphs.Jitter(rotation_rad=0.3, scale=(0.7, 1.2), shear=0.25, shift=0.15, noise=0.08, contrast=(0.5, 1.0))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass of the learning rate from warm-up to zero, with a fresh head and optimiser."""

    steps: int
    phases: tuple[Phase, ...]
    warmup_steps: int = 200

    def jitter_at(self, step: int) -> glyphs.Jitter:
        """The jitter in force at `step`."""
        passed = 0.0
        for phase in self.phases:
            passed += phase.fraction
            if step < passed * self.steps:
                return phase.jitter
        return self.phases[-1].jitter

    def rate_at(self, step: int) -> float:
        """Share of the highest learning rate: linear warm-up, then a cosine to zero."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class GlyphRecipe:
    """Supervised classification of drawn characters with AdamW and warm restarts.

    The first stage begins with light jitter because under strong jitter the loss stays on a plateau
    for its first 1,500 steps or so; strong jitter later makes the features robust.
    """

    batch_size: int = 192
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.05
    seed: int = 0
    stages: tuple[Stage, ...] = (
        Stage(
            steps=4_000,
            phases=(
                Phase(fraction=0.4, jitter=_LIGHT),
                Phase(fraction=0.3, jitter=_STRONG),
                Phase(fraction=0.3, jitter=_LIGHT),
            ),
        ),
        Stage(steps=3_400, phases=(Phase(fraction=0.45, jitter=_STRONG), Phase(fraction=0.55, jitter=_LIGHT))),
    )


class GlyphSampler:
    """Draws batches: a class uniformly, then one of the faces that have it uniformly, then a jitter."""

    def __init__(self, characters: tuple[str, ...], seed: int) -> None:
        drawn = [[glyphs.plate(c, face) for face in glyphs.faces_of(c)] for c in characters]
        self._plates = torch.from_numpy(np.stack([plate for row in drawn for plate in row]))
        counts = torch.tensor([len(row) for row in drawn])
        self._counts, self._starts = counts, torch.cumsum(counts, 0) - counts
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, size: int, jitter: glyphs.Jitter) -> tuple[torch.Tensor, torch.Tensor]:
        """`[size, 1, 32, 32]` uint8 images and `[size]` labels."""
        labels = torch.randint(len(self._counts), (size,), generator=self._generator)
        picks = torch.rand(size, generator=self._generator) * self._counts[labels]
        chosen = self._plates[self._starts[labels] + picks.long()]
        return jitter(chosen, self._generator), labels


def pretrain_glyphs(
    body: nn.Module, width: int, recipe: GlyphRecipe, normalise: Callable[[torch.Tensor], torch.Tensor], report: Report
) -> dict[str, Any]:
    """Train `body` (images -> features `[n, width]`) on `glyphs.pretraining_characters()` in place.

    Returns the facts for the model card: characters, steps, minutes, accuracy under the last jitter.
    """
    began = time.monotonic()
    characters = glyphs.pretraining_characters()
    report(f"{len(characters)} classes; drawing their plates")
    accuracy = 0.0
    for number, stage in enumerate(recipe.stages):
        accuracy = _run_stage(body, width, recipe, number, stage, characters, normalise, report)
    return {
        "classes": len(characters),
        "characters": "".join(characters),
        "steps": sum(stage.steps for stage in recipe.stages),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "accuracy": round(accuracy, 4),
    }


def _run_stage(
    body: nn.Module,
    width: int,
    recipe: GlyphRecipe,
    number: int,
    stage: Stage,
    characters: tuple[str, ...],
    normalise: Callable[[torch.Tensor], torch.Tensor],
    report: Report,
) -> float:
    """One stage; returns the accuracy under its last jitter."""
    torch.manual_seed(recipe.seed + number)
    sample = GlyphSampler(characters, recipe.seed + number)
    head = nn.Linear(width, len(characters))
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )
    body.train()
    began, right, seen, losses = time.monotonic(), 0, 0, 0.0
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * stage.rate_at(step)
        images, labels = sample(recipe.batch_size, stage.jitter_at(step))
        logits = head(body(normalise(images)))
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right += int((logits.argmax(1) == labels).sum())
        seen, losses = seen + len(labels), losses + float(loss.detach())
        if (step + 1) % 500 == 0 or step + 1 == stage.steps:
            place = f"stage {number + 1}/{len(recipe.stages)}  step {step + 1}/{stage.steps}"
            loss_now, minutes = losses / (step % 500 + 1), (time.monotonic() - began) / 60
            report(f"{place}  loss {loss_now:.3f}  accuracy {right / seen:.3f}  {minutes:.1f} min")
            right, seen, losses = 0, 0, 0.0
    body.eval()
    with torch.no_grad():
        hits = [
            (head(body(normalise(images))).argmax(1) == labels).float().mean()
            for images, labels in (sample(512, stage.phases[-1].jitter) for _ in range(20))
        ]
    return float(torch.stack(hits).mean())


PRETRAINABLE = ("glyph-vit", "tiny-lm", "cifar-vit")


@dataclass(frozen=True, kw_only=True)
class Brought:
    """What a person brings where a backbone is made of data that is not shipped."""

    source: str = ""
    """A prepared data set's name, or a folder."""
    classes: str = ""
    """Numbers and ranges; '': all."""
    epochs: int = 0
    """Passes over the images; 0: not said."""


NOTHING = Brought()


def pretrain(name: str, out: Path | None, report: Report, brought: Brought = NOTHING) -> Path:
    """Make the weights of backbone `name` and their model card; returns the path of the weights.

    They go to folder `out`, or to where the shipped ones lie. Takes about 40 minutes on a CPU.
    Raises UnknownName for a backbone that is not made here, BadValue where what it needs is not said, or what it does
    not take is.
    """
    if name not in PRETRAINABLE:
        raise UnknownName("backbone to pre-train", name, PRETRAINABLE)
    if name == "cifar-vit":
        return _of_photographs(out, report, brought)
    if brought != NOTHING:
        raise BadValue(f"'{name}' is made of what is generated here; leave out --from, --classes and --epochs.")
    if name == "tiny-lm":
        from clbench.backbones.pretrain_lm import pretrain_tiny_lm  # loads transformers, which pictures do not need

        return pretrain_tiny_lm(report, out)
    recipe = GlyphRecipe()
    torch.manual_seed(recipe.seed)
    body = GLYPH_VIT.architecture()
    facts = pretrain_glyphs(body, int(body.embed_dim), recipe, to_unit, report)
    weights = save(body.state_dict())
    path = GLYPH_VIT.weights_path if out is None else out / GLYPH_VIT.weights_path.name
    write_atomically(path, weights)
    card = {**glyph_card(facts, recipe), "sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path.with_suffix(".json"), text.encode())
    report(f"wrote {path} and its card; accuracy {facts['accuracy']:.2%} over {facts['classes']} classes")
    return path


def _of_photographs(out: Path | None, report: Report, brought: Brought) -> Path:
    from clbench.backbones.pretrain_vit import pretrain_cifar_vit

    if out is None or not brought.source or not brought.epochs:
        raise BadValue(
            "'cifar-vit' is made of images that are brought, and is not shipped; pass --from a data set's name or "
            "CIFAR-10's folder, --epochs N and --out DIR."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return pretrain_cifar_vit(brought.source, brought.classes, brought.epochs, out, report, device)


def glyph_card(facts: dict[str, Any], recipe: GlyphRecipe) -> dict[str, Any]:
    """The model card of `glyph-vit`, without the hash of its weights."""
    return {
        "name": "glyph-vit",
        "architecture": "timm VisionTransformer: 32x32 grey, patch 8, width 128, 6 blocks, 4 heads, class token",
        "input": "uint8 divided by 255",
        "licence": "Apache-2.0; drawn from the DejaVu fonts (Bitstream Vera licence)",
        "data": (
            "characters of the 12 DejaVu text faces that ship with matplotlib, centred and scaled to one size; "
            "left out: Greek, Cyrillic, Armenian, Georgian and Coptic, every form of a digit or number, "
            "and near-duplicates of a downstream letter or a digit 0-9 in any face, or of each other. "
            "Letters that only resemble a digit remain."
        ),
        "recipe": dataclasses.asdict(recipe),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        **facts,
    }
