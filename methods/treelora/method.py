"""TreeLoRA: a LoRA drawn towards the past task most like the current one, found by a bandit on a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from clbench.method import Resources, Workbench
from clbench.method import Search as Range
from clbench.methods._decomposition import TaskDecomposition, decomposition, repeated_classes, task_lora
from clbench.methods.treelora.bandit import ExplorationUnit, Search
from clbench.methods.treelora.guidance import Guidance
from clbench.methods.treelora.tree import Similarity, Split
from clbench.strategy import Plugin
from clbench.stream import Stream

PAPER_DEPTH = 5


class TreeLoRA(TaskDecomposition):
    """Qian et al., ICML 2025, arXiv 2506.10355, section 3 and appendix A.3.

    A task's signature is the mean over its steps of how far the LoRA's A has moved since the task's
    start; a tree splits the past tasks by their signatures, a level a layer; at each step a bandit
    pulls one past task a layer, and the penalty draws A's displacement towards the pulled ones.

    `decomposition="hide"` is the paper's form for images: hidelora's LoRA a task, router and aligned
    head, with the tree, the search and the penalty added and nothing else; text can be decomposed too,
    by hidelora's router for it. "none" is the plain form, the paper's for language models, with λ = 0.5:
    one LoRA carried through all tasks. Its layers are the LoRAs, two a block where Q and V are layers of
    their own, so that the paper's depth of 8 is a `depth` of 4 blocks. With `penalty_weight=0` the weights
    equal hidelora's, or in the plain form seqlora's, to the bit.

    Departures: the signature is the displacement everywhere (the released code keeps raw weights,
    which would favour the latest task of a carried adapter; `signature="reference"` does the same); a
    node's own mean takes part in its bound (`bandit`); the penalty is scaled so that its weight is in
    units of the loss (`penalty`), and acts on the displacement whatever the signature is; residuals lie
    in [0, 1], on which the paper's exploration of 2 plays nearly at random for hundreds of steps.
    `query="live"`, the paper's text, compares the running mean gradient with the batch's gradient at the
    pulled task's kept LoRA, residuals above 1 counting as 1; one more pass a step.

    The defaults follow from the suites treelora-ablation, -depth, -epochs and -sensitivity (three seeds,
    published, after one seed's screening of the whole product on validation examples, 49 combinations within
    1.2 points): on letters no search, split, signature or penalty can be told from another, nor from no
    penalty at all, so each is the paper's. Exploration is the one that is not: 0.1, for the reason above.
    """

    name = "treelora"
    paper = "Qian et al. 2025"

    decomposition: Literal["hide", "none"] = Field(default="hide", description="a LoRA a task, or one for all")
    signature: Literal["adapter", "gradient", "reference"] = Field(
        default="adapter", description="what tree and bandit compare; reference: the released code's"
    )
    similarity: Similarity = Field(default="l1", description="of a task to its group: paper or released code")
    split: Split = Field(default="radius", description="a node's rule: the paper's, or the principal direction")
    search: Search = Field(default="lcb", description="how a past task is chosen in each layer")
    query: Literal["stored", "live"] = Field(default="stored", description="compare with signatures, or with gradients")
    exploration: Annotated[float, Range(0.02, 2)] = Field(default=0.1, ge=0, description="c of the confidence bound")
    exploration_unit: ExplorationUnit = Field(default="residual", description="c as it is, or times the residuals' std")
    penalty: Literal["l1", "alignment", "none"] = Field(default="l1", description="equation 3, or the released code's")
    penalty_weight: Annotated[float, Range(0.01, 5)] = Field(default=0.1, ge=0, description="λ, in units of the loss")
    ramp: bool = Field(default=False, description="raise λ linearly within each epoch, as the released code does")
    reset: Literal["task", "epoch"] = Field(default="task", description="when the pulls are forgotten")
    budget_tasks: int | None = Field(default=None, ge=1, description="most signatures kept; the nearest are merged")
    depth: int | None = Field(
        default=None, ge=1, description="adapt the first so many blocks; decomposed 5, plain all when not given"
    )

    @model_validator(mode="after")
    def _fits(self) -> TreeLoRA:
        if self.signature == "reference" and self.search != "reference":
            raise ValueError(f"signature 'reference' needs search 'reference', not '{self.search}'")
        if self.query == "live" and self.signature != "gradient":
            raise ValueError(f"query 'live' compares gradients; it needs signature 'gradient', not '{self.signature}'")
        if self.query == "live" and self.search in ("exhaustive", "reference"):
            raise ValueError(f"query 'live' sees one past task a step; search '{self.search}' needs them all")
        return self

    def resources(self) -> Resources:
        """A signature a task (two where it is not the displacement); decomposed a LoRA and class statistics too.

        A signature is one average a task and layer, also where it is of gradients: `stored_gradients` counts
        gradients kept one by one.
        """
        decomposed = self.decomposition == "hide"
        covariance = decomposed and self.statistics == "covariance"
        return Resources(class_statistics=decomposed, stored_mib_per_task=512.0 if covariance else 64.0)

    def unsupported(self, stream: Stream) -> str | None:
        """Decomposed: a class in two tasks."""
        reason = repeated_classes(stream) if self.decomposition == "hide" else None
        return reason and f"{reason} (decomposition 'none' can)"

    def plugins(self, bench: Workbench) -> Sequence[Plugin]:
        """A LoRA and its guidance; the decomposition first, so that an adapter is kept before it is merged."""
        if self.decomposition == "none":
            return [Guidance(self, bench, bench.lora(self.depth))]
        lora = task_lora(bench, self.depth or PAPER_DEPTH)
        around = decomposition(self, bench, lora)
        return [around, Guidance(self, bench, lora, around)]
