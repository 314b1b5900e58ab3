"""SeqLoRA: one LoRA trained through all tasks and never reset, the baseline of every overhead."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.method import Method, Workbench
from clbench.strategy import Plugin


class SeqLoRA(Method):
    """One LoRA (Hu et al., ICLR 2022) carried from task to task; the backbone stays frozen.

    `head_masking="current"` takes only the current task's logits into the loss, as most published
    code does; "seen" is the unmasked variant, which forgets nearly everything.
    """

    name = "seqlora"
    paper = "Hu et al. 2022 (LoRA)"

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """No behaviour: the adapter is all there is."""
        bench.lora()
        return []
