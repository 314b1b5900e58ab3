"""Vision transformers from timm, the embedded one among them."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer


def glyph_vit() -> VisionTransformer:
    """The architecture of `glyph-vit`: 32x32 grey images, patch 8, width 128, 6 blocks, 4 heads."""
    return VisionTransformer(
        img_size=32, patch_size=8, in_chans=1, num_classes=0, embed_dim=128, depth=6, num_heads=4, global_pool="token"
    )


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to floats in [0, 1]."""
    return images.float() / 255
