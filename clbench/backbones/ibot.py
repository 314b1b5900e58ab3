"""The checkpoints of iBOT, and how their weights come into a vision transformer of timm.

Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022. Two kinds of file are published: the
whole state of the training, with a student and a teacher, and the backbone of one of them alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clbench.backbones.vision import fill, readable
from clbench.errors import NotAvailable

NETWORKS = ("teacher", "student")
"""Of a whole state the teacher is taken: the ViT results of HiDe-Prompt and of what builds on its code are from it."""
NOT_BACKBONE = ("head.", "masked_embed", "mask_token")
"""What only pre-training needs: the projection head, and what stands in for masked patches."""

_SCALAR = np.float64(1).__reduce__()[0]
HELD: list[Any] = [
    *(argparse.Namespace, np.dtype, type(np.dtype(np.float64))),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What a whole state holds besides tensors and plain values: the training's arguments, and step sizes and weight decays
as numbers of NumPy, of its first version or a later one."""


def load(body: VisionTransformer, path: Path) -> None:
    """Put the weights of the checkpoint at `path` into `body`.

    Nothing but tensors, plain values and NumPy's single numbers is unpickled. Raises NotAvailable where the file
    cannot be read, and for every key that `body` lacks or waits for in vain. (HiDe-Prompt's code passes over both in
    silence.)
    """
    with readable(path):
        with torch.serialization.safe_globals(HELD):
            held = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(held, Mapping):
            raise NotAvailable(f"'{path}' holds a {type(held).__name__}; an iBOT checkpoint holds named weights.")
        named = backbone(held)
    fill(body, named, path)


def backbone(held: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the backbone alone, under timm's names: iBOT's are the same behind their prefixes.

    >>> backbone({"teacher": {"module.backbone.norm.bias": torch.zeros(1), "module.head.last": torch.ones(1)}})
    {'norm.bias': tensor([0.])}
    """
    network = next((held[name] for name in (*NETWORKS, "state_dict") if name in held), held)
    named = {key.removeprefix("module.").removeprefix("backbone."): value for key, value in network.items()}
    return {key: value for key, value in named.items() if not key.startswith(NOT_BACKBONE)}
