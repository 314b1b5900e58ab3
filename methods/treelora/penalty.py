"""The pull of the live adapter towards the chosen past tasks: the penalty terms that join the task's loss.

Source: TreeLoRA (Qian et al., ICML 2025, arXiv 2506.10355), section 3.3 and equation 3, and its released code.
``u_d`` is the live displacement of layer ``d``'s A from the task's start, ``v_d`` the signature of the task chosen
there. Both come stacked as one tensor [D, P], or as a list of D tensors of equal shapes pair by pair, so that
layers may differ in size. Every function adds to the loss: ``loss + weight * ramp * penalty``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def l1_scale(signatures: Tensor) -> Tensor:
    """Return 1 over the mean L1 length of the past tasks' signatures [N, D, P], a scalar; 0 where all are 0.

    Constant within a task: computed once when the signatures change.
    """
    length = torch.linalg.vector_norm(signatures.detach(), 1, dim=(1, 2)).mean()
    return torch.where(length > 0, 1 / length, 0.0)


def l1_penalty(displacement: Tensor | Sequence[Tensor], chosen: Tensor | Sequence[Tensor], scale: Tensor) -> Tensor:
    """Return ``scale * sum_d |u_d - v_d|`` in L1 norms, a scalar (paper, equation 3; the scale is ours).

    With ``scale = l1_scale(past signatures)`` it is a pure number: 0 on the chosen signatures, 1 for an adapter that
    has not moved when the chosen ones are as long as the past ones are on average. So the weight is in units of the
    task's loss: 0.1 (ViT) says that moving all the way to a past task's displacement is worth 0.1 nats, 0.5 (LLM)
    half a nat, whatever the number of layers, the rank, the width or the learning rate (which sets how far an
    adapter moves). The bare sum of equation 3 does not say that: its gradient is a sign vector of length
    ``sqrt(D P)``, which grows with the model, as that of a mean over the numbers, ``1 / sqrt(D P)``, shrinks. The
    gradient here has length ``sqrt(D P) * scale``, about ``1.25 / |v|_2`` for bell-shaped signatures; that of
    ``alignment_penalty`` is ``1 / |v|_2`` times the loss at ``u = v``, so one weight suits both.

    >>> past = torch.tensor([[[2.0, -2.0]]])
    >>> l1_penalty(torch.tensor([[0.0, 0.0]]), past[0], l1_scale(past)).item()
    1.0
    """
    return scale * _total([(u - v).abs().sum() for u, v in _pairs(displacement, chosen)])


def alignment_penalty(
    displacement: Tensor | Sequence[Tensor], chosen: Tensor | Sequence[Tensor], task_loss: Tensor
) -> Tensor:
    """Return ``-loss.detach() * a / a.detach()`` with ``a = sum_d <u_d, v_d>``, a scalar (released code).

    Its value is minus the loss whatever ``a`` is; its gradient is ``-loss * grad(a) / a``, that of
    ``-loss * log |a|``. A descent step therefore moves ``a`` away from zero in whichever sign it has, the harder
    the smaller it is: it strengthens an alignment and an opposition alike. The released code adds 1e-5 to ``a`` in
    the denominator; here ``a == 0`` (no displacement yet) gives value and gradient 0 [ours].
    """
    alignment = _total([(u * v).sum() for u, v in _pairs(displacement, chosen)])
    known = alignment.detach()
    inverse = torch.where(known == 0, 0.0, 1 / known)
    return -task_loss.detach() * inverse * alignment


def ramp(step: int, steps: int) -> float:
    """Return ``step / steps``: the share of the epoch that is done before ``step``, counted from 0 (released code).

    >>> ramp(0, 4), ramp(3, 4)
    (0.0, 0.75)
    """
    return step / steps


def _pairs(displacement: Tensor | Sequence[Tensor], chosen: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    us = [displacement] if isinstance(displacement, Tensor) else list(displacement)
    vs = [chosen] if isinstance(chosen, Tensor) else list(chosen)
    if [u.shape for u in us] != [v.shape for v in vs]:
        shapes = [[tuple(part.shape) for part in parts] for parts in (us, vs)]
        raise ValueError(f"displacement has shapes {shapes[0]}, the chosen signatures {shapes[1]}")
    return [(u, v.detach()) for u, v in zip(us, vs, strict=True)]


def _total(terms: list[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum()
