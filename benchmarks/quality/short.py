"""The short form of the evaluation, for the tests: sixteen pictures, measured against a small stored reference.

The floors in mini_reference.json are what the benchmark measured on this very model, less MARGINS.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.embeddings import Array, distances, hog_lab, mirrored, pixels
from benchmarks.quality.measures import border_colour, manner

# Each with a ground that training drew it on.
TEN = {'an apple': 'a green', 'a hamburger': 'a blue', 'a sunflower': 'a purple', 'a cat': 'a yellow',
       'a fox': 'a pink', 'a rocket': 'a gray', 'a house': 'an orange', 'a star': 'a blue', 'a heart': 'a white',
       'a panda': 'a red'}
LOOK, OTHER_LOOK = 'flat', 'illustration'
SETTINGS = {'num_inference_steps': 20, 'output_type': 'rgb'}
CELLS = 8
# What a floor lies below the measured value: shares by so many pictures' worth, distances by half.
MARGINS: dict[str, Callable[[float], float]] = {
    'concept': lambda share: share - 0.2, 'background': lambda share: share - 0.2, 'style': lambda share: share - 0.16,
    'seeds apart': lambda distance: distance / 2, 'prompt apart': lambda distance: distance / 2}
MARGIN_WORDS = {'concept': 'two pictures of ten', 'background': 'two pictures of ten',
                'style': 'two pictures of thirteen', 'seeds apart': 'half', 'prompt apart': 'half'}


def requests() -> list[dict[str, Any]]:
    """Ten concepts in one style, three of them in another, two more seeds of the first, and no words at all."""
    texts = [f'a picture of {word} on {ground} background' for word, ground in TEN.items()]
    ten = [{'text': text, 'style': LOOK, 'seed': seed} for seed, text in enumerate(texts)]
    others = [request | {'style': OTHER_LOOK} for request in ten[:3]]
    seeds = [ten[0] | {'seed': seed} for seed in (101, 102)]
    return ten + others + seeds + [{'text': '', 'seed': 0}]


def draw(pipe: Any) -> Array:
    drawn = pipe([request | SETTINGS for request in requests()], batch_size=8)
    return np.stack([picture['output_imgs'][0] for picture in drawn])


def measure(pictures: Array, reference: Any) -> dict[str, float]:
    """The short figures of sixteen pictures in the order of requests()."""
    ten = pictures[:10]
    apart = np.minimum(*(distances(vectors(some), reference['concepts'].astype(np.float32))
                         for some in (ten, mirrored(ten))))
    borders = distances(np.stack([border_colour(p) for p in ten]), reference['grounds'].astype(np.float32))
    colours = [str(name) for name in reference['colours']]
    styles = style_of(pictures[:13], reference)
    points = np.stack([pixels(picture) for picture in pictures])
    seeds = points[[0, 13, 14]]
    grounds = [ground.split()[1] for ground in TEN.values()]
    return {'concept': float((apart.argmin(1) == np.arange(10)).mean()),
            'background': float(np.mean([colours[i] == ground for i, ground in zip(borders.argmin(1), grounds)])),
            'style': float(np.mean(styles == np.array([LOOK] * 10 + [OTHER_LOOK] * 3))),
            'seeds apart': float(distances(seeds, seeds)[np.triu_indices(3, 1)].min()),
            'prompt apart': float(distances(points[:1], points[15:])[0, 0])}


def vectors(pictures: Array) -> Array:
    return np.stack([hog_lab(picture, CELLS) for picture in pictures])


def style_of(pictures: Array, reference: Any) -> Array:
    """The stored five-way classifier's answer."""
    numbers = np.stack([manner(picture) for picture in pictures]) - reference['style_mean']
    scores = np.clip(numbers / reference['style_spread'], -6, 6) @ reference['style_weights'].T
    return np.array(reference['looks'])[(scores + reference['style_bias']).argmax(1)]


def make_reference(judge: Any) -> dict[str, Array]:
    """Mean vectors of ten concepts and of nine grounds in LOOK, and the style classifier: some 20 kB."""
    gallery, style = judge.gallery, judge.style
    own = gallery.looks == LOOK
    shown = [gallery.pictures[own & (gallery.concepts == word.split()[1])] for word in TEN]
    colours = list(dict.fromkeys(gallery.grounds[own]))
    behind = [gallery.pictures[own & (gallery.grounds == colour)][:40] for colour in colours]
    return {'concepts': np.stack([vectors(some).mean(0) for some in shown]).astype(np.float16),
            'grounds': np.stack([np.median([border_colour(p) for p in some], 0) for some in behind]).astype(np.float16),
            'colours': np.array(colours), 'looks': np.array(style.classes),
            'style_mean': style.mean.astype(np.float32), 'style_spread': style.spread.astype(np.float32),
            'style_weights': style.net.weight.detach().numpy().astype(np.float32),
            'style_bias': style.net.bias.detach().numpy().astype(np.float32)}


def write_reference(path: Path, judge: Any, pipe: Any, model: str) -> dict[str, Any]:
    """The reference and, beside it, what `pipe` reaches on it with the floors that follow."""
    reference = make_reference(judge)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **reference)
    measured = measure(draw(pipe), np.load(path))
    floors = {name: round(max(0.0, MARGINS[name](value)), 4) for name, value in measured.items()}
    state = {'model': model, 'measured': {name: round(value, 4) for name, value in measured.items()},
             'margin': MARGIN_WORDS, 'floor': floors}
    path.with_suffix('.json').write_text(json.dumps(state, indent=2) + '\n', encoding='utf-8')
    return state
