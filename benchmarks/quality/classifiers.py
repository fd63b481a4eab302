"""Small classifiers trained on renderings, and on their round trips, so that the autoencoder's blur is no fault."""
from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.quality.embeddings import Array
from benchmarks.quality.pictures import Pictures, say
from benchmarks.quality.prompts import CONCEPTS, Job, hair_is_seen, picture_of
from mini_training.looks import COLOURS
from mini_training.portraits import CLOTHES, HAIR, HANDS_OF_LOOK, SKIN
from mini_training.subjects import LOOKS, Row

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    'who': ('woman', 'man'), 'hair': tuple(HAIR), 'skin': tuple(SKIN), 'glasses': ('no', 'yes'), 'beard': ('no', 'yes'),
    'hat': ('no', 'yes'), 'clothes': tuple(CLOTHES), 'mood': ('smiling', 'sad'),
}
SMALL = 48                  # side of the whole picture, for colours
FACE = slice(24, 104)       # rows and columns that hold a face, at full size, for glasses, beards and mouths


def portrait_rows(count: int) -> list[tuple[Row, Job]]:
    """Portraits of all kinds, held-out pairs among them; hair and clothes evenly, so that no colour is a safe guess."""
    rng, found = random.Random('portraits to learn from'), []
    for i in range(count):
        look = tuple(LOOKS)[i % len(LOOKS)]
        hat = rng.random() < 0.15 and 'personas' in HANDS_OF_LOOK[look]
        wanted: dict[str, Any] = {'hat': True} if hat else {'hair': rng.choice(tuple(HAIR))} if i % 3 else {}
        wanted |= {'clothes': rng.choice(tuple(CLOTHES))} if rng.random() < 0.9 else {}
        wanted |= {'mood': rng.choice(('smiling', 'smiling', 'sad', 'sad', ''))}
        found.append(picture_of(rng.choice(('woman', 'man')), look, rng.choice(tuple(COLOURS)), rng, **wanted))
    return found


def mixed_rows(count: int) -> list[tuple[Row, Job]]:
    """Concepts of all kinds in every look, for style and ground."""
    rng = random.Random('manners to learn from')
    return [picture_of(rng.choice(CONCEPTS), tuple(LOOKS)[i % len(LOOKS)], rng.choice(tuple(COLOURS)), rng)
            for i in range(count)]


def seen_in(row: Row) -> dict[str, str]:
    """The attributes that a portrait shows. A mouth without a mood may smile, so it is left out."""
    seen = {'who': row['who'], 'skin': row['skin']}
    seen |= {name: 'yes' if row[name] else 'no' for name in ('glasses', 'beard', 'hat')}
    seen |= {'hair': row['hair']} if hair_is_seen(row) else {}
    return seen | {name: row[name] for name in ('clothes', 'mood') if row[name]}


class Linear:
    """Multinomial logistic regression on standardised numbers."""

    def __init__(self, numbers: Array, labels: Array, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.mean, self.spread = numbers.mean(0), numbers.std(0) + 1e-6
        torch.manual_seed(0)
        self.net = nn.Linear(numbers.shape[1], len(classes))
        self._fit(self._standard(numbers), torch.tensor([self.classes.index(label) for label in labels]))

    def _standard(self, numbers: Array) -> torch.Tensor:
        return torch.from_numpy(((numbers - self.mean) / self.spread).astype(np.float32)).clamp(-6, 6)

    def _fit(self, numbers: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer = torch.optim.LBFGS(self.net.parameters(), max_iter=300, line_search_fn='strong_wolfe')

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            weights = sum(p.square().sum() for p in self.net.parameters())
            total = functional.cross_entropy(self.net(numbers), labels) + 3e-4 * weights
            total.backward()
            return total
        optimizer.step(loss)

    @torch.no_grad()
    def __call__(self, numbers: Array) -> Array:
        return np.array(self.classes)[self.net(self._standard(numbers)).argmax(1).numpy()]


class Attributes(nn.Module):
    """Two small convolutional networks, for the whole and for the face; pictures -> a label for each attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.face = trunk(SMALL), trunk(FACE.stop - FACE.start)
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        whole = functional.interpolate(pixels, size=(SMALL, SMALL), mode='area')
        found = torch.cat([self.whole(whole), self.face(pixels[:, :, FACE, FACE])], 1)
        return {name: head(found) for name, head in self.heads.items()}

    @torch.no_grad()
    def label(self, pictures: Pictures) -> dict[str, Array]:
        self.eval()
        parts = [self(to_pixels(part)) for part in np.array_split(pictures, len(pictures) // 64 + 1)]
        return {name: np.array(values)[torch.cat([part[name] for part in parts]).argmax(1).numpy()]
                for name, values in ATTRIBUTES.items()}


def trunk(side: int) -> nn.Sequential:
    """Four halvings, then 128 numbers."""
    layers: list[nn.Module] = []
    for before, after in pairwise((3, 16, 32, 64, 96)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * (side // 16) ** 2, 128), nn.ReLU())


def to_pixels(pictures: Pictures) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def learn_attributes(pictures: Pictures, rows: Sequence[Row], epochs: int) -> Attributes:
    """What a row doesn't show (hair under a hat) isn't learned from it."""
    torch.manual_seed(0)
    net = Attributes()
    seen = [seen_in(row) for row in rows]
    labels = torch.tensor([[values.index(s[name]) if name in s else -1 for name, values in ATTRIBUTES.items()]
                           for s in seen])
    batch, count = 64, len(pictures)
    steps = epochs * (count // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        if step % (count // batch) == 0:
            order = torch.randperm(count)
        some = order[step % (count // batch) * batch:][:batch]
        loss = attribute_loss(net, varied(to_pixels(pictures[some.numpy()])), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            say(f'attributes: step {step} of {steps}, loss {loss.item():.2f}')
    return net


def attribute_loss(net: Attributes, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    net.train()
    found = net(pixels)
    losses = [functional.cross_entropy(found[name], labels[:, i], ignore_index=-1, reduction='sum')
              for i, name in enumerate(ATTRIBUTES)]
    return torch.stack(losses).sum() / len(labels)


def varied(pixels: torch.Tensor) -> torch.Tensor:
    """Mirrored and moved by chance, with a little noise; colours stay."""
    pixels = torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, pixels.flip(3), pixels)
    dy, dx = torch.randint(-3, 4, (2,)).tolist()
    side = pixels.shape[3]
    moved = functional.pad(pixels, (3, 3, 3, 3), 'replicate')[:, :, 3 + dy:3 + dy + side, 3 + dx:3 + dx + side]
    return moved + 0.03 * torch.randn_like(moved)
