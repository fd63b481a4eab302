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
TEN = {'apple': 'green', 'hamburger': 'blue', 'sunflower': 'purple', 'cat': 'yellow', 'fox': 'pink', 'rocket': 'gray',
       'house': 'orange', 'star': 'blue', 'heart': 'white', 'panda': 'red'}
LOOK, OTHER_LOOK = 'flat', 'illustration'
SETTINGS = {'num_inference_steps': 20, 'guidance_scale': 5.0, 'output_type': 'rgb'}
CELLS = 8
# What a floor lies below the measured value: shares by so many pictures' worth, distances by half.
MARGINS: dict[str, Callable[[float], float]] = {
    'concept': lambda share: share - 0.2, 'background': lambda share: share - 0.2, 'style': lambda share: share - 0.16,
    'seeds apart': lambda distance: distance / 2, 'prompt apart': lambda distance: distance / 2}
MARGIN_WORDS = {'concept': 'two pictures of ten', 'background': 'two pictures of ten',
                'style': 'two pictures of thirteen', 'seeds apart': 'half', 'prompt apart': 'half'}


def requests() -> list[dict[str, Any]]:
    """Ten concepts in one style, three of them in another, two more seeds of the first, and no words at all."""
    ten = [{'text': f'a picture of {"an" if word[0] in "a" else "a"} {word} on {"an" if ground[0] in "o" else "a"} '
                    f'{ground} background', 'style': LOOK, 'seed': seed} for seed, (word, ground) in enumerate(TEN.items())]
    others = [request | {'style': OTHER_LOOK} for request in ten[:3]]
    seeds = [ten[0] | {'seed': seed} for seed in (101, 102)]
    return ten + others + seeds + [{'text': '', 'seed': 0}]


def draw(pipe: Any) -> Array:
    drawn = pipe([request | SETTINGS for request in requests()], batch_size=8)
    return np.stack([picture['output_imgs'][0] for picture in drawn])


def measure(pictures: Array, reference: Any) -> dict[str, float]:
    """The short figures of sixteen pictures in the order of requests()."""
    ten, seeds = pictures[:10], pictures[[0, 13, 14]]
    apart = np.minimum(*(distances(vectors(some), reference['concepts'].astype(np.float32))
                         for some in (ten, mirrored(ten))))
    borders = distances(np.stack([border_colour(p) for p in ten]), reference['grounds'].astype(np.float32))
    colours = [str(name) for name in reference['colours']]
    styles = style_of(pictures[:13], reference)
    points = np.stack([pixels(picture) for picture in pictures])
    between = distances(points[[0, 13, 14]], points[[0, 13, 14]])
    return {'concept': float((apart.argmin(1) == np.arange(10)).mean()),
            'background': float(np.mean([colours[i] == c for i, c in zip(borders.argmin(1), TEN.values())])),
            'style': float(np.mean(styles == np.array([LOOK] * 10 + [OTHER_LOOK] * 3))),
            'seeds apart': float(between[np.triu_indices(len(seeds), 1)].min()),
            'prompt apart': float(distances(points[:1], points[15:])[0, 0])}


def vectors(pictures: Array) -> Array:
    return np.stack([hog_lab(picture, CELLS) for picture in pictures])


def style_of(pictures: Array, reference: Any) -> Array:
    """The stored five-way classifier's answer."""
    numbers = (np.stack([manner(picture) for picture in pictures]) - reference['style_mean']) / reference['style_spread']
    scores = np.clip(numbers, -6, 6) @ reference['style_weights'].T + reference['style_bias']
    return np.array(reference['looks'])[scores.argmax(1)]


def make_reference(judge: Any) -> dict[str, Array]:
    """Mean vectors of ten concepts and of nine grounds in LOOK, and the style classifier: some 20 kB."""
    gallery, style = judge.gallery, judge.style
    own = gallery.looks == LOOK
    concepts = [vectors(gallery.pictures[own & (gallery.concepts == word)]).mean(0) for word in TEN]
    grounds = {colour: np.median([border_colour(p) for p in gallery.pictures[own & (gallery.grounds == colour)][:40]], 0)
               for colour in dict.fromkeys(gallery.grounds[own])}
    return {'concepts': np.stack(concepts).astype(np.float16), 'grounds': np.stack(list(grounds.values())).astype(np.float16),
            'colours': np.array(list(grounds)), 'looks': np.array(style.classes),
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
