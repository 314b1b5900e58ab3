"""vision: CIFAR-100, ImageNet-R, CUB-200, ImageNet-A, Tiny ImageNet and PACS for every method alike.

Sources and licences: `clbench data list`; prepare a set by `clbench data prepare NAME`. Command:
`clbench run cifar100`, with `--method NAME` for one method; a GPU is needed but for cifar100-subset. No minutes and no
figure of ours are known yet; published ones are in `_references`, and the recipes they were made with in
`vision_parity`: there papers are held against, here methods are compared.

The recipe is the same for all methods (`equal`): Adam, batches of 128, 20 epochs a task, 50 where a task has few
images, a LoRA of rank 10 on queries and values. What a method does besides is its own: kept samples in a batch, a
Fisher pass, the router of hide-prompt, hidelora and treelora, the alignment of their heads and of slca's. Training
seconds hold it; the epochs and steps of a record do not count it. Step sizes are the papers' where these scale them.
Images are in [0, 1] without normalisation, as nearly all published runs have them, although the weights were made with
another. A tenth of the training images is held out for tuning.

Otherwise, here as in `vision_parity`: `--set suite.order=seed1993` (natural, coda, or every class once: 3,0,1,2,…),
`--set suite.sizes=50,25,25` (the classes of each task; 20: so many in every one), `--set suite.transform=coda` (pilot,
hide-cifar, plain; pilot@384 for a backbone of 384 pixels), `--set suite.normalisation=imagenet` (none, 0.5),
`--set suite.short_side=256` (the copy that `clbench data prepare NAME --short-side 256` made). The protocol card holds
what was chosen.

cifar100-subset is 100 training and 30 test images a class at their own 32 pixels, for a small backbone that
`clbench pretrain cifar-vit` makes (`--backbone cifar-vit@PATH`); it runs on a CPU. Weights that were pre-trained on its
first fifty classes are for cifar100-subset-b50, whose first task those are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clbench.recipe import Recipe
from clbench.suite import Suite
from clbench.suites._contenders import EVERY
from clbench.suites._images import of_images

BATCH = 128
RECIPE = Recipe(
    epochs=20,  # CODA-Prompt, InfLoRA, SD-LoRA, SLCA and TreeLoRA on CIFAR-100
    batch_size=BATCH,
    learning_rate=5e-4,  # InfLoRA's, the only Adam among the LoRA papers; it stands for every LoRA here
    lora_rank=10,  # SD-LoRA, InfLoRA
    lora_alpha=10,
    lora_sites=("q", "v"),
    precision="bfloat16",
)
LONG = RECIPE.model_copy(update={"epochs": 50})
"""ImageNet-R and CUB-200: L2P, CODA-Prompt, InfLoRA, SLCA, TreeLoRA."""
KEPT_PER_CLASS = 10
"""Samples that a method with a buffer may keep of each class; as many for all of them."""


def settings(kept: int, batch: int = BATCH, dual_rate: float = 0.03, prompt: int = 5) -> dict[str, Mapping[str, Any]]:
    """What the papers set otherwise; `kept` samples in a buffer, `prompt` the length of per-task prefixes."""
    replayed = {"buffer_samples": kept, "replay_batch": batch}  # as many past samples as new ones (mammoth)
    return {
        "finetune": {"learning_rate": 5e-5},  # CODA-Prompt's FT with Adam
        "slca": {"learning_rate": 1e-3},  # so that the backbone's, a hundredth of it, is 1e-5, Adam's usual one
        "replay": replayed,
        "er-ace": replayed,
        "derpp": replayed,
        "gem": {"buffer_samples": kept, "reference_batch": batch},
        "agem": {"buffer_samples": kept, "reference_batch": batch},
        "sapt": {"exemplars": kept},
        "l2p": {"learning_rate": 0.03 * batch / 256},  # L2P's code: 0.03 for a batch of 256
        "l2pp": {"learning_rate": 1e-3},  # CODA-Prompt's own form, taught as CODA-Prompt
        # DualPrompt's code: 0.03 for a batch of 256, for ImageNet-R 0.005; prefixes of 5, for ImageNet-R of 20.
        "dualprompt": {"learning_rate": dual_rate * batch / 256, "expert_length": prompt},
        "coda-prompt": {"learning_rate": 1e-3},  # its code, for a batch of 128
        "hide-prompt": {"learning_rate": 0.03 * 24 / 256, "length": prompt},  # its code scales by one device's batch
        "hidelora": {"learning_rate": 0.03 * 24 / 256},  # the same code
        "treelora": {"learning_rate": 5e-3},  # the paper, appendix A.3
    }


_CIFAR = settings(100 * KEPT_PER_CLASS)
_LONG = settings(200 * KEPT_PER_CLASS, dual_rate=0.005, prompt=20)


def _equal(name: str, recipe: Recipe, tuned: Mapping[str, Mapping[str, Any]]) -> Suite:
    return of_images(
        name,
        name,
        backbone="vit-b16-in21k",
        normalisation="none",
        recipe=recipe,
        contenders=EVERY,
        settings=tuned,
    )


cifar100 = _equal("cifar100", RECIPE, _CIFAR)
cifar100_20x5 = _equal("cifar100-20x5", RECIPE, _CIFAR)
cifar100_5x20 = _equal("cifar100-5x20", RECIPE, _CIFAR)
cifar100_b50 = _equal("cifar100-b50", RECIPE, _CIFAR)
imagenet_r = _equal("imagenet-r", LONG, _LONG)
imagenet_r_5 = _equal("imagenet-r-5", LONG, _LONG)
imagenet_r_20 = _equal("imagenet-r-20", LONG, _LONG)
cub200 = _equal("cub200", LONG, _LONG)
imagenet_a = _equal("imagenet-a", LONG, _LONG)
tiny_imagenet = _equal("tiny-imagenet", RECIPE, settings(200 * KEPT_PER_CLASS))
pacs = _equal("pacs", RECIPE, settings(7 * 4 * KEPT_PER_CLASS))

_SMALL = Recipe(epochs=3, batch_size=32, learning_rate=1e-3)
"""Short and small, for a CPU: no paper's, but that of the embedded suites."""


def _subset(name: str) -> Suite:
    tuned = settings(100 * KEPT_PER_CLASS, _SMALL.batch_size)
    return of_images(
        name,
        name,
        transform="crop32",
        backbone="cifar-vit",
        normalisation="none",
        recipe=_SMALL,
        contenders=EVERY,
        settings={**tuned, "ranpac": {"expansion": 2000}},  # 10,000 take minutes a task on a CPU
    )


cifar100_subset = _subset("cifar100-subset")
cifar100_subset_b50 = _subset("cifar100-subset-b50")
