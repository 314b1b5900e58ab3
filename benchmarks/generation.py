"""How much faster answers come in batches than one at a time.

The same questions, of a hundred letters or so, are answered with 32 tokens each by the same code: in batches of 32,
longest together, as a scoring pass does, and in batches of one. No answer may end early, so that both say equally
much, and the answers must be equal: a difference is allowed only where the two best logits lie within 1e-5. Read the
column `ratio`: the median over the blocks of (in batches / one at a time) in time; the target is an eighth. A block
is 64 questions; `--steps` is not used.

    python benchmarks/generation.py --threads 2 --blocks 5
    CLBENCH_TEST_DATA=FOLDER python benchmarks/generation.py    # with stories260k, which lies in FOLDER
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _language import built, lessons, models
from _paired import Comparison, arguments, compare
from torch import Tensor

from clbench.backbones.language import LanguageModel
from clbench.recipe import Recipe

CPU = torch.device("cpu")
BATCH, TOKENS, CLOSE = 32, 32, 1e-5
QUESTIONS = 2 * BATCH


class Endless:
    """A tokenizer's end that is never said."""

    def __init__(self, tokenizer: object) -> None:
        self.tokenizer, self.end = tokenizer, -1

    def __getattr__(self, name: str) -> object:
        return getattr(self.tokenizer, name)


class Answering:
    """One model with its questions, longest together."""

    def __init__(self, name: str) -> None:
        self.model: LanguageModel = built(name).eval()
        self.questions = lessons(self.model, Recipe(), QUESTIONS, TOKENS).test
        widths = [self.questions.batch(torch.tensor([place]), CPU)[0].shape[-1] for place in range(QUESTIONS)]
        self.order = torch.tensor(widths).argsort(descending=True)
        self.model.tokenizer = Endless(self.model.tokenizer)  # type: ignore[assignment]

    def answer(self, size: int) -> tuple[Tensor, Tensor]:
        """All answers `[questions, tokens]`, asked in batches of `size`, and their margins."""
        found = [self.model.reply(*self.questions.batch(places, CPU)) for places in self.order.split(size)]
        return torch.cat([answers for answers, _ in found]), torch.cat([margins for _, margins in found])

    def check(self) -> None:
        """Stop where the answers differ by more than rounding."""
        (together, margins), (alone, _) = self.answer(BATCH), self.answer(1)
        differ = (together != alone).any(1) & (margins > CLOSE)
        assert not differ.any(), f"{int(differ.sum())} answers differ"


def show(name: str, result: Comparison, chosen: argparse.Namespace) -> None:
    """Print one model's answers a second, both ways, and the ratio with its spread."""
    each = [QUESTIONS / float(np.median(times)) for times in (result.mine, result.reference)]
    terms = f"{chosen.threads} threads, {chosen.blocks} paired blocks of {QUESTIONS} answers of {TOKENS} tokens"
    print(f"\n{name}; {terms}")
    print(f"answers a second: {each[0]:.1f} in batches of {BATCH}, {each[1]:.1f} one at a time")
    print(f"{'':<22}{'ms/answer':>9}{'ratio':>9}   {'quartiles':<13}{'min-max':<11}{'target':>9}")
    print(result.row(QUESTIONS))


def main() -> None:
    chosen = arguments(__doc__)
    for name, backbone in models().items():
        answering = Answering(backbone)
        answering.check()
        ways = {"in batches": (lambda a=answering: a.answer(BATCH), 1 / 8)}
        (result,) = compare(lambda a=answering: a.answer(1), ways, chosen.blocks)
        show(name, result, chosen)


if __name__ == "__main__":
    main()
