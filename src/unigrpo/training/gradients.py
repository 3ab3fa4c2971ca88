"""From the losses of a micro-batch to gradients: which loss goes back where, and whether it has arrived."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from unigrpo.objectives.method import Losses, Method
from unigrpo.policy import Policy, Replayed
from unigrpo.training.optimizer import NotFinite

CONSTANTS = ("reasoning", "denoising")
"""The groups of parameters that are constants to the image loss, and to the text loss."""


def backward(policy: Policy, method: Method, losses: Losses, count: int) -> None:
    """Add the gradient of one micro-batch, its losses divided by the ``count`` trajectories of the minibatch.

    With ``image_grad_through_context`` one backward of the sum. Without, the image loss sees the reasoning weights as
    constants, though not the activations, and the text loss the denoising weights, by which pictures before it are
    read: each goes back into all other groups alone (docs/math.md#joint).
    """
    text, image = _means(losses, count)
    if method.image_grad_through_context:
        if text is not None or image is not None:
            sum_of(text, image).backward()
        return
    groups = policy.parameter_groups()
    for constant, loss, other in zip(CONSTANTS, (image, text), (text, None), strict=True):
        if loss is not None:
            inputs = [p for name, named in groups.items() if name != constant for p in named.values()]
            loss.backward(inputs=inputs, retain_graph=other is not None)


def backward_sharded(policy: Policy, method: Method, losses: Losses, count: int) -> None:
    """The same where weights are shared out: the graph's leaves are then gathered copies, and ``inputs`` names none.

    So each loss goes back everywhere, and what it gives to weights that are constants to it is thrown away.
    """
    text, image = _means(losses, count)
    if method.image_grad_through_context:
        if text is not None or image is not None:
            sum_of(text, image).backward()
        return
    for constant, loss, other in zip(CONSTANTS, (image, text), (text, None), strict=True):
        if loss is None:
            continue
        constants = list(policy.parameter_groups().get(constant, {}).values())
        kept = [parameter.grad for parameter in constants]
        for parameter in constants:
            parameter.grad = None
        loss.backward(retain_graph=other is not None)
        for parameter, gradient in zip(constants, kept, strict=True):
            parameter.grad = gradient


def _means(losses: Losses, count: int) -> tuple[Tensor | None, Tensor | None]:
    """The text and the image loss of a micro-batch, as its share of the minibatch's means; finite, or TrainingFault."""
    text = None if losses.text_loss is None else losses.text_loss.sum() / count
    image = None if losses.image_loss is None else losses.image_loss.sum() / count
    for name, loss in (("text", text), ("image", image)):
        if loss is not None and not bool(torch.isfinite(loss.detach())):
            raise NotFinite(f"the {name} loss is {float(loss.detach())}; nothing was updated")
    # a loss without a gradient is one whose expert has no weights to train (an adapter on the other one)
    text, image = (loss if loss is not None and loss.requires_grad else None for loss in (text, image))
    return text, image


def sum_of(*losses: Tensor | None) -> Tensor:
    """The sum of the losses that exist."""
    return torch.stack([loss for loss in losses if loss is not None]).sum()


class Reached:
    """Which experts' answers a gradient has reached: what must then also arrive in their weights."""

    SMALLEST = 1e-30  # below it the products with activations are 0 in fp32

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, Tensor]]] = {}
        self.watched = 0
        self.known: frozenset[str] = frozenset()

    @classmethod
    def of(cls, experts: Sequence[frozenset[str]]) -> Reached:
        """What several ranks have seen."""
        made = cls()
        made.known = frozenset().union(*experts)
        return made

    def watch(self, answers: Sequence[Replayed]) -> None:
        """Look at the gradients that arrive at some answers (more rows), without changing them."""
        for row, answer in enumerate(answers, start=self.watched):
            for expert, tensors in (("reasoning", (answer.log_probs,)), ("denoising", answer.velocities)):
                for tensor in tensors:
                    if tensor.requires_grad and tensor.numel():
                        tensor.register_hook(partial(self._note, expert, row))
        self.watched += len(answers)

    def _note(self, expert: str, row: int, gradient: Tensor | None) -> None:
        if gradient is not None:  # autograd's word for 0
            self.seen.setdefault(expert, []).append((row, gradient.detach()))

    def experts(self) -> frozenset[str]:
        """Their names."""
        found = {
            expert
            for expert, seen in self.seen.items()
            if bool((torch.cat([gradient.flatten() for _, gradient in seen]).abs() > self.SMALLEST).any())
        }
        return self.known | found

    def not_finite(self) -> set[int]:
        """The rows, counted over all that was watched, at whose answers a gradient arrived that is not finite."""
        return {row for seen in self.seen.values() for row, said in seen if not bool(said.isfinite().all())}
