"""Is it a copy? The nearest training picture of drawn pictures, against that of fresh renderings."""
from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.embeddings import Array, distances, each, hog_lab, mirrored, pixels
from benchmarks.quality.pictures import Pictures, render
from benchmarks.quality.prompts import Ask
from mini_training.captions import PER_PICTURE, caption
from mini_training.files import open_pictures
from mini_training.render import sample_row
from mini_training.subjects import LOOKS

GROUPS = ('concepts', 'portraits')


class Training:
    """Training pictures as 32 x 32 Lab vectors: all of a work folder's, else the first `again` rendered again."""

    def __init__(self, npm: Path, work: Path | None, again: int, shapes: int = 4000) -> None:
        self.all = work is not None
        if work is not None:
            self.pictures: Pictures = open_pictures(work)
        else:
            self.pictures = render(npm, [sample_row(number) for number in range(again)], 0)
        self.vectors = each(pixels)(self.pictures)
        some = self.pictures[:: max(1, len(self.pictures) // shapes)]
        self.shapes = each(hog_lab)(some)

    def nearest(self, pictures: Pictures, count: int) -> tuple[Array, Array]:
        """(distances, indices) of the `count` training pictures that are nearest by pixels; mirror images count."""
        apart = np.minimum(*(distances(each(pixels)(some), self.vectors) for some in (pictures, mirrored(pictures))))
        order = np.argsort(apart, 1)[:, :count]
        return np.take_along_axis(apart, order, 1), order

    def nearest_shape(self, pictures: Pictures) -> Array:
        apart = (distances(each(hog_lab)(some), self.shapes) for some in (pictures, mirrored(pictures)))
        return np.minimum(*apart).min(1)


def copies(asks: Sequence[Ask], pictures: dict[str, Pictures], training: Training) -> dict[str, Any]:
    """By group: the median distance to the nearest training picture, and how many of the drawn lie nearer to it than
    all but the nearest twentieth of fresh renderings (through the autoencoder) do. 0.05 is what no copying gives.
    """
    found: dict[str, Any] = {'training pictures': len(training.pictures), 'all of them': training.all}
    for group in GROUPS:
        places = [i for i, ask in enumerate(asks) if ask.group == group]
        for name, nearest in (('pixels', lambda some: training.nearest(some, 1)[0][:, 0]),
                              ('HOG + Lab', training.nearest_shape)):
            apart = {source: nearest(some[places]) for source, some in pictures.items()}
            limit = np.quantile(apart['through the autoencoder'], 0.05)
            found[f'{group}, {name}'] = {
                'median': {source: round(float(np.median(values)), 4) for source, values in apart.items()},
                'drawn nearer than 95 % of fresh': round(float((apart['drawn'] < limit).mean()), 4)}
    return found


def seen_prompts(asks: Sequence[Ask], work: Path) -> dict[str, int]:
    """How many of the prompts, with or without words of a look, are among training's captions (made again as they
    were: mini_training.captions with the same chance)."""
    rng = random.Random(0)
    rows = [json.loads(line) for line in (work / 'rows.jsonl').read_text().splitlines()]
    texts = {caption(row, rng) for row in rows for _ in range(PER_PICTURE)}
    prompts = {ask.text for ask in asks}
    forms = {text: [text, *(f'{words}, {text}' for words in LOOKS.values())] for text in prompts}
    return {'different captions': len(texts), 'different prompts': len(prompts),
            'prompts among the captions': sum(any(form in texts for form in some) for some in forms.values())}
