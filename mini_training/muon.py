"""Muon: momentum whose matrices are made orthogonal, Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

MOMENTUM = 0.95
# The quintic whose five rounds bring every singular value close to 1; from the source above.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(matrix: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """About U V^T of `matrix` = U S V^T, by Newton-Schulz steps in bfloat16."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """For weights of two dimensions and more; a convolution counts as a matrix of its outputs by the rest."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], rate: float, weight_decay: float = 0.01) -> None:
        super().__init__(parameters, {'lr': rate, 'weight_decay': weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group['params']:
                self._move(weight, group['lr'], group['weight_decay'])

    def _move(self, weight: torch.nn.Parameter, rate: float, weight_decay: float) -> None:
        momentum = self.state[weight].setdefault('momentum', torch.zeros_like(weight))
        momentum.lerp_(weight.grad, 1 - MOMENTUM)
        update = orthogonal(torch.lerp(weight.grad, momentum, MOMENTUM).flatten(1))
        scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        weight.mul_(1 - rate * weight_decay).add_(update.view_as(weight), alpha=-rate * scale)
