"""The figures: of how many pictures is it true? Each is taken on renderings of what was asked, too: the ceiling."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import Any

import numpy as np

from benchmarks.quality.classifiers import ATTRIBUTES
from benchmarks.quality.embeddings import EMBEDDINGS, Array, distances, each, hog_lab, pixels
from benchmarks.quality.judge import HEADLINE
from benchmarks.quality.measures import wilson
from benchmarks.quality.pictures import Pictures
from benchmarks.quality.prompts import EXTRAS, Ask
from mini_training.subjects import LOOKS

JUDGED = ('concepts', 'base_concepts', 'held_out_nouns', 'portraits', 'held_out_portraits', 'sheet')
FACES = ('portraits', 'held_out_portraits')
STYLED = ('concepts', 'held_out_nouns', 'portraits', 'held_out_portraits', 'sheet')
SAME, OTHER = 'concept, same look, by {}', 'concept, other looks, by {}'
AIMS = {SAME.format(HEADLINE): 0.85, 'attributes of portraits, all': 0.85, 'held-out noun and background, both': 0.75,
        'held-out hair and clothes, both': 0.75, 'style, by its trigger': 0.95,
        **{f'portrait: {name}': 0.85 for name in (*ATTRIBUTES, 'background')}}


def true_of(asks: Sequence[Ask], labels: dict[str, Array]) -> Iterator[tuple[str, list[bool]]]:
    """(figure, for each of its pictures whether it is right)."""
    def right(names: Sequence[str], groups: Sequence[str], kind: str = '') -> list[bool]:
        return [all(labels[name][i] == ask.asked[name.split(',')[0]] for name in names) for i, ask in enumerate(asks)
                if ask.group in groups and kind in ('', ask.row['kind'])
                and all(name.split(',')[0] in ask.asked for name in names)]

    for name in (pattern.format(embedding) for pattern in (SAME, OTHER) for embedding in EMBEDDINGS):
        yield name, right([name], ['concepts'])
    headline = SAME.format(HEADLINE)
    yield 'concept, by the look\'s words without a LoRA', right([headline], ['base_concepts'])
    yield 'background of nouns', right(['background'], ['concepts'], 'noun')
    yield 'trained noun and background, both', right([headline, 'background'], ['concepts'], 'noun')
    yield 'held-out noun and background, both', right([headline, 'background'], ['held_out_nouns'])
    faces = {name: right([name], FACES) for name in (*ATTRIBUTES, 'background')}
    yield from ((f'portrait: {name}', truth) for name, truth in faces.items())
    yield 'attributes of portraits, all', list(chain.from_iterable(faces.values()))
    yield 'trained hair and clothes, both', right(['hair', 'clothes'], ['portraits'])
    yield 'held-out hair and clothes, both', right(['hair', 'clothes'], ['held_out_portraits'])
    styled = [(ask.look, labels['style'][i] == ask.look) for i, ask in enumerate(asks) if ask.group in STYLED]
    yield 'style, by its trigger', [hit for _, hit in styled]
    yield from ((f'style: {look}', [hit for asked, hit in styled if asked == look]) for look in LOOKS)
    yield 'style, by the look\'s words without a LoRA', [
        labels['style'][i] == ask.look for i, ask in enumerate(asks) if ask.group == 'base_concepts']


def counted(truth: Sequence[bool]) -> dict[str, Any]:
    hits, count = int(sum(truth)), len(truth)
    low, high = wilson(hits, count)
    return {'hits': hits, 'count': count, 'share': round(hits / max(count, 1), 4), 'low': round(low, 4),
            'high': round(high, 4)}


def figures(asks: Sequence[Ask], labels: dict[str, dict[str, Array]]) -> list[dict[str, Any]]:
    """A row for each figure; `labels` by source: rendered, through the autoencoder, drawn."""
    found: dict[str, dict[str, Any]] = {}
    for source, some in labels.items():
        for name, truth in true_of(asks, some):
            found.setdefault(name, {'figure': name, 'aim': AIMS.get(name)})[source] = counted(truth)
    return list(found.values())


def unasked(asks: Sequence[Ask], labels: dict[str, dict[str, Array]]) -> dict[str, dict[str, Any]]:
    """How often glasses, a beard or a hat are there though nobody asked; in renderings chance puts some there, too."""
    return {name: {source: counted([some[name][i] == 'yes' for i, ask in enumerate(asks)
                                    if ask.group in FACES and name not in ask.asked])
                   for source, some in labels.items()} for name in EXTRAS}


def confusion(asks: Sequence[Ask], styles: Array) -> dict[str, dict[str, int]]:
    """Asked look -> the look that the classifier sees -> pictures."""
    return {look: {seen: sum(1 for i, ask in enumerate(asks) if ask.group in STYLED and ask.look == look
                             and styles[i] == seen) for seen in LOOKS} for look in LOOKS}


def without_trigger(asks: Sequence[Ask], styles: Array, pictures: Pictures) -> dict[str, Any]:
    """A style's LoRA on, its trigger left out: is it the style's picture more often than the base's own is?"""
    off = [i for i, ask in enumerate(asks) if ask.group == 'untriggered']
    base = [i for i, ask in enumerate(asks) if ask.group == 'base']
    looks = [asks[i].look for i in off]
    change = [float(np.abs(pictures[a].astype(int) - pictures[b]).mean()) for a, b in zip(off, base)]
    return {'classified as the style': counted([styles[i] == look for i, look in zip(off, looks)]),
            'the base, same prompts and seeds': counted([styles[i] == look for i, look in zip(base, looks)]),
            'same class as the base': counted([styles[a] == styles[b] for a, b in zip(off, base)]),
            'mean change of a pixel (of 255)': round(float(np.mean(change)), 2),
            'base seen as': {look: int(sum(styles[i] == look for i in base)) for look in LOOKS},
            'untriggered seen as': {look: int(sum(styles[i] == look for i in off)) for look in LOOKS}}


def seed_distances(asks: Sequence[Ask], pictures: dict[str, Pictures]) -> dict[str, Any]:
    """Mean distance of two pictures of one prompt: drawn from different seeds, or rendered from the same words."""
    prompts: dict[str, list[int]] = {}
    for i, ask in enumerate(asks):
        if ask.group == 'seeds':
            prompts.setdefault(f'{ask.style}, {ask.text}', []).append(i)
    found: dict[str, Any] = {'prompts': len(prompts), 'seeds': 8}
    for name, measure in (('pixels', each(pixels)), ('HOG + Lab', each(hog_lab))):
        rows = {source: [spread(measure(some[places])) for places in prompts.values()]
                for source, some in pictures.items()}
        found[name] = {source: {'mean': round(float(np.mean(values)), 4), 'least': round(float(np.min(values)), 4)}
                       for source, values in rows.items()}
    return found


def spread(vectors: Array) -> float:
    apart = distances(vectors, vectors)
    return float(np.mean([apart[i, j] for i, j in combinations(range(len(vectors)), 2)]))
