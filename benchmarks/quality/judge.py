"""What a picture shows, said by measures that are fixed before the first picture is drawn."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import prompts
from benchmarks.quality.classifiers import Linear, learn_attributes, mixed_rows, portrait_rows
from benchmarks.quality.embeddings import EMBEDDINGS, Array
from benchmarks.quality.measures import ground, manner
from benchmarks.quality.pictures import FRESH, Pictures, kept, render, through
from benchmarks.quality.prompts import Ask
from benchmarks.quality.retrieval import Gallery
from mini_training.looks import COLOURS
from mini_training.subjects import LOOKS

HEADLINE = 'figure, HOG + Lab'
MIXED, PORTRAITS = FRESH + 1_000_000, FRESH + 2_000_000     # FRESH itself: the gallery


class Judge:
    """Gallery and classifiers, made from renderings numbered from FRESH and a third of them through `vae`.

    vae_key names the autoencoder's weights in what is kept in `folder`.
    """

    def __init__(self, npm: Path, folder: Path | None, vae: Any, vae_key: str, quick: bool) -> None:
        self.gallery = Gallery(npm, folder, grounds=2 if quick else len(COLOURS))
        self._npm, self._folder, self._vae, self._vae_key = npm, folder, vae, vae_key
        self._learn_manner(400 if quick else 1500)
        rows, pictures = self._taught('portraits', portrait_rows(800 if quick else 4000), PORTRAITS)
        self.attributes = learn_attributes(pictures, rows, epochs=6 if quick else 12)

    def _taught(self, name: str, sampled: list, first: int) -> tuple[list, Pictures]:
        """Renderings, then the round trips of every third of them; with the rows of both."""
        pictures = kept(self._folder, name, sampled, lambda: render(self._npm, sampled, first), prompts)
        back = kept(self._folder, f'{name} through the autoencoder', (sampled, self._vae_key),
                    lambda: through(self._vae, pictures[::3]), prompts)
        rows = [row for row, _ in sampled]
        return rows + rows[::3], np.concatenate([pictures, back])

    def _learn_manner(self, count: int) -> None:
        rows, pictures = self._taught('mixed', mixed_rows(count), MIXED)
        looks = [row['look'] for row in rows]
        self.style = Linear(manners(pictures), looks, tuple(LOOKS))
        self.ground = Linear(grounds(pictures, looks), [row['colour'] for row in rows], tuple(COLOURS))

    def style_of(self, pictures: Pictures) -> Array:
        return self.style(manners(pictures))

    def labels(self, asks: Sequence[Ask], pictures: Pictures) -> dict[str, Array]:
        """For each picture: 'style', 'background', the ATTRIBUTES, and 'concept, same look, by ...' and the like."""
        looks = np.array([ask.look for ask in asks])
        found = {'style': self.style_of(pictures), 'background': self.ground(grounds(pictures, looks)),
                 **self.attributes.label(pictures)}
        for name in EMBEDDINGS:
            found |= self.gallery.nearest(name, pictures, looks)
        return found


def manners(pictures: Pictures) -> Array:
    return np.stack([manner(picture) for picture in pictures])


def grounds(pictures: Pictures, looks: Sequence[str] | Array) -> Array:
    """A colour's shade depends on the look, which is known, as it was asked for."""
    asked = np.array(looks)[:, None] == np.array(tuple(LOOKS))[None]
    return np.hstack([np.stack([ground(picture) for picture in pictures]), asked])
