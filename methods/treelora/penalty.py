"""The pull of the live adapter towards the chosen past tasks, as gradients that join the task's after backward.

Source: TreeLoRA (Qian et al., ICML 2025, arXiv 2506.10355), section 3.3 and equation 3, and its released code.
``u_d`` is the live displacement of layer ``d``'s A from the task's start, ``v_d`` that of the task chosen there; both
come as [D, P], layers of fewer numbers padded with zeros (which get the gradient 0).

A penalty is a term that is added to the loss, ``loss + weight * ramp * term``, so what is added to A's gradient is
``weight * ramp * gradient`` and the optimiser descends on it. It is given as the gradient in closed form and not as
the term [ours, same update]: no graph is built and no second backward pass runs through it, and the task's own
gradient stays apart until the two are added, so that a signature of true gradients holds nothing of the penalty and
their ratio can be measured. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def l1_scale(signatures: Tensor) -> Tensor:
    """Return 1 over the mean L1 length of the past tasks' signatures [N, D, P], a scalar; 0 where all are 0.

    Constant within a task: computed once when the signatures change.
    """
    length = torch.linalg.vector_norm(signatures.detach(), 1, dim=(1, 2)).mean()
    return torch.where(length > 0, 1 / length, 0.0)


@torch.no_grad()
def l1_gradient(displacement: Tensor, chosen: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient in ``u`` of ``scale * sum_d |u_d - v_d|`` in L1 norms: ``scale * sign(u - v)``, [D, P].

    The term is the paper's equation 3; the scale is ours. With ``scale = l1_scale(past signatures)`` the term is a
    pure number: 0 on the chosen signatures, 1 for an adapter that has not moved when the chosen ones are as long as
    the past ones are on average. So the weight is in units of the task's loss: 0.1 (ViT) says that moving all the
    way to a past task's displacement is worth 0.1 nats, 0.5 (LLM) half a nat, whatever the number of layers, the
    rank, the width or the learning rate (which sets how far an adapter moves). The bare sum of equation 3 does not
    say that: its gradient is a sign vector of length ``sqrt(D P)``, which grows with the model, as that of a mean
    over the numbers, ``1 / sqrt(D P)``, shrinks. The gradient here has length ``sqrt(D P) * scale``, about
    ``1.25 / |v|_2`` for bell-shaped signatures; that of ``alignment_gradient`` is ``1 / |v|_2`` times the loss at
    ``u = v``, so one weight suits both. Where ``u == v`` the gradient is 0, as autograd's is.

    >>> past = torch.tensor([[[3.0, -1.0]]])
    >>> l1_gradient(torch.tensor([[0.0, -1.0]]), past[0], l1_scale(past))
    tensor([[-0.2500,  0.0000]])
    """
    _same_shape(displacement, chosen)
    return (displacement - chosen).sign_().mul_(scale)


@torch.no_grad()
def alignment_gradient(displacement: Tensor, chosen: Tensor, task_loss: Tensor) -> Tensor:
    """Return the gradient in ``u`` of the released code's term: ``-loss * v / a``, [D, P].

    ``a = sum_d <u_d, v_d>``; ``task_loss``: a scalar, taken as a constant. The released term is
    ``-loss * a / a.detach()``: its value is minus the loss whatever ``a`` is, its gradient that of
    ``-loss * log |a|``. A descent step therefore moves ``a`` away from zero in whichever sign it has, the harder the
    smaller it is: it strengthens an alignment and an opposition alike. The released code adds 1e-5 to the
    denominator; here ``a == 0`` (no displacement yet) gives 0 [ours].

    >>> alignment_gradient(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 3.0]]), torch.tensor(4.0))
    tensor([[-2., -6.]])
    """
    _same_shape(displacement, chosen)
    alignment = (displacement * chosen).sum()
    return chosen * torch.where(alignment == 0, 0.0, -task_loss / alignment)


@torch.no_grad()
def gradient_ratio(penalty_gradient: Tensor, task_gradient: Tensor) -> Tensor:
    """Return the L2 length of the penalty's gradient over that of the task's, a scalar; 0 where the latter is 0.

    Both over all layers at once, of any equal shape. The first holds weight and ramp: it is what is added.

    >>> gradient_ratio(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    tensor(0.7500)
    """
    _same_shape(penalty_gradient, task_gradient)
    length = torch.linalg.vector_norm(task_gradient)
    return torch.where(length == 0, 0.0, torch.linalg.vector_norm(penalty_gradient) / length)


def ramp(step: int, steps: int) -> float:
    """Return ``step / steps``: the share of the epoch that is done before ``step``, counted from 0 (released code).

    >>> ramp(0, 4), ramp(3, 4)
    (0.0, 0.75)
    """
    return step / steps


def _same_shape(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(f"the shapes differ: {list(one.shape)} and {list(other.shape)}")
