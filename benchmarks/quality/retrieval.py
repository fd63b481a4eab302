"""Which concept does a picture show? The nearest of many renderings of every concept answers."""
from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.quality import embeddings
from benchmarks.quality.embeddings import EMBEDDINGS, Array, distances, mirrored
from benchmarks.quality.pictures import FRESH, Pictures, kept, render
from benchmarks.quality.prompts import CONCEPTS, Job, concept_of, picture_of
from mini_training.looks import COLOURS
from mini_training.subjects import ICON_SETS, LOOKS, NOUNS, Row

COPIES = {'noun': 1, 'role': 2, 'portrait': 5}     # of each concept, look, ground (and hand, for a noun)


def gallery_rows(grounds: int) -> list[tuple[Row, Job]]:
    """Every concept in every look on `grounds` colours; a noun by both its hands."""
    rng, found = random.Random('gallery'), []
    for look in LOOKS:
        for word in CONCEPTS:
            for colour in rng.sample(tuple(COLOURS), grounds):
                kind = 'portrait' if word in ('woman', 'man') else 'noun' if word in NOUNS else 'role'
                hands = dict.fromkeys(ICON_SETS[look]) if kind == 'noun' else ('',)
                for hand in list(hands) * COPIES[kind]:
                    row, job = picture_of(word, look, colour, rng)
                    found.append((row | {'set': hand or row['set']}, job))
    return found


class Gallery:
    """Renderings of all concepts, numbered from FRESH, with their vectors."""

    def __init__(self, npm: Path, folder: Path | None, grounds: int) -> None:
        rows = gallery_rows(grounds)
        self.concepts = np.array([concept_of(row) for row, _ in rows])
        self.looks = np.array([row['look'] for row, _ in rows])
        self.grounds = np.array([row['colour'] for row, _ in rows])
        self.pictures = kept(folder, 'gallery', rows, lambda: render(npm, rows, FRESH))
        self.vectors = {name: kept(folder, f'gallery {name}', rows, partial(embed, self.pictures), embeddings)
                        for name, embed in EMBEDDINGS.items()}

    def nearest(self, name: str, pictures: Pictures, looks: Array) -> dict[str, Array]:
        """The concept of each picture's nearest rendering (or its mirror image) in its own look, and in the others."""
        embed, vectors = EMBEDDINGS[name], self.vectors[name]
        both = np.minimum(*(distances(embed(some), vectors) for some in (pictures, mirrored(pictures))))
        own = looks[:, None] == self.looks[None]
        return {f'concept, {where}, by {name}': self.concepts[np.where(allowed, both, np.inf).argmin(1)]
                for where, allowed in (('same look', own), ('other looks', ~own))}
