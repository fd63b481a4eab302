"""What a step trains on, as a function of (seed, step) alone: a resumed run, and one over several processes, draw what
one unbroken process would have drawn."""
from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple

import torch

from modelscope_cartoon.training.recipe import Recipe

_PRIOR_EMPTY = 0.1     # of the class pictures have no caption, so that the empty prompt stays the base's too


class Batch(NamedTuple):
    """A step's pictures [N]: rows of the material, their variants, times, noise [N, C, h, w], whether the caption is
    left out, and the weight of each one's error in the step's loss."""
    position: torch.Tensor
    variant: torch.Tensor
    time: torch.Tensor
    noise: torch.Tensor
    shift: torch.Tensor
    dropped: torch.Tensor
    weight: torch.Tensor

    def take(self, rows: slice) -> Batch:
        return Batch(*(tensor[rows] for tensor in self))


def seeded(*words: object) -> torch.Generator:
    """A generator for these words; torch's CPU generator knows 32 bits of a seed."""
    digest = hashlib.sha256(repr(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], 'big'))


class Draws:
    def __init__(self, recipe: Recipe, pictures: int, prior: int, shape: tuple[int, ...], times: int):
        self.recipe, self.pictures, self.prior, self.shape, self.times = recipe, pictures, prior, shape, times
        self.prior_in_batch = recipe.prior_in_batch if prior else 0
        self.pictures_in_batch = recipe.batch_size - self.prior_in_batch

    def batch(self, step: int) -> Batch:
        generator, size = seeded(self.recipe.seed, 'step', step), self.recipe.batch_size
        position = [self._position('pictures', self.pictures, step * self.pictures_in_batch + i)
                    for i in range(self.pictures_in_batch)]
        position += [self.pictures + self._position('prior', self.prior, step * self.prior_in_batch + i)
                     for i in range(self.prior_in_batch)]
        chance = torch.tensor([self.recipe.caption_dropout] * self.pictures_in_batch
                              + [_PRIOR_EMPTY] * self.prior_in_batch)
        return Batch(torch.tensor(position), torch.randint(0, 2**31, (size,), generator=generator),
                     self._times(generator), torch.randn((size, *self.shape), generator=generator),
                     torch.randn((size, self.shape[0], 1, 1), generator=generator),
                     torch.rand(size, generator=generator) < chance, self._weights())

    def _position(self, kind: str, count: int, drawn: int) -> int:
        """Every row once before any comes again, in a new order each time round."""
        return _order(self.recipe.seed, kind, count, drawn // count)[drawn % count]

    def _times(self, generator: torch.Generator) -> torch.Tensor:
        """Spread evenly over all times (Kingma et al. 2021, appendix I.1), which steadies a small batch."""
        size = self.recipe.batch_size
        start = torch.rand((), generator=generator, dtype=torch.float64)
        spread = (start + torch.randperm(size, generator=generator) / size) % 1
        return (spread * self.times).long().clamp(max=self.times - 1)

    def _weights(self) -> torch.Tensor:
        """The mean over the pictures, plus prior_weight times the mean over the class pictures (Ruiz et al. 2023)."""
        weights = torch.full((self.recipe.batch_size,), 1 / self.pictures_in_batch)
        if self.prior_in_batch:
            weights[self.pictures_in_batch:] = self.recipe.prior_weight / self.prior_in_batch
        return weights


@functools.lru_cache(maxsize=8)
def _order(seed: int, kind: str, count: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=seeded(seed, kind, epoch)).tolist()
