"""The sample pictures of a card, drawn by the folder that is to be published: what can't draw isn't published."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modelscope_cartoon import metadata
from modelscope_cartoon.errors import PublishError
from modelscope_cartoon.files import write_file
from modelscope_cartoon.pipeline import CartoonPipeline, load_pipeline
from modelscope_cartoon.publish.card import Card, Sample

FOLDER = 'description'
STEPS, SEED = 25, 7
_SUBJECTS = (('a portrait painting of {}', 'a woman with red hair'), ('a portrait painting of {}', 'an old man'),
             ('a painting of {}', 'a cat'), ('a painting of {}', 'a house'))


def draw_samples(folder: Path, card: Card, device: str) -> Card:
    """`card` with the pictures that `folder` drew into its description/. PublishError, or the error of drawing."""
    pipe = load_pipeline(str(folder), device=device)
    height, width = pipe.model.default_size
    scheduler = {'scheduler': card.style.scheduler} if card.style and card.origin == 'cartoon' else {}
    samples = [_draw(pipe, folder, card, number, request | scheduler)
               for number, request in enumerate(_requests(card), 1)]
    used = scheduler.get('scheduler') or type(pipe.pipeline.scheduler).__name__
    return replace(card, samples=tuple(samples), size=width, settings=f'{width} x {height}, {used}, {STEPS} steps')


def _requests(card: Card) -> list[Mapping[str, Any]]:
    """Each subject, or the first one in each of several styles."""
    if card.styles:
        template, subject = _SUBJECTS[0]
        return [{'text': template.format(subject), 'style': name} for name in card.styles]
    return [{'text': template.format(subject)} for template, subject in _SUBJECTS]


def _draw(pipe: CartoonPipeline, folder: Path, card: Card, number: int, request: Mapping[str, Any]) -> Sample:
    output = pipe({**request, 'seed': SEED, 'num_inference_steps': STEPS, 'output_type': 'pil'})
    [picture], [recipe] = output['output_imgs'], output['recipes']
    if np.asarray(picture).std() == 0:
        raise PublishError(f'the model drew one even colour for {request["text"]!r}; its weights are broken, and '
                           'nothing was sent.')
    name = f'{FOLDER}/{number}.png'
    write_file(folder / name, metadata.write(picture, 'PNG', _as_published(recipe, card)))
    return Sample(name, output['revised_prompt'], SEED)


def _as_published(recipe: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """With the hub's names instead of this build's folder, and without a date: two builds are the same bytes."""
    model, used = recipe['model'], recipe['used']
    if model['adapter'] is None:
        return {**recipe, 'date': '', 'model': {**model, 'id': card.model_id, 'revision': card.revision}}
    own, *others = used['loras']
    loras = [{**own, 'name': card.model_id.rpartition('/')[2]}, *others]
    return {**recipe, 'date': '', 'model': {**model, 'adapter': card.model_id}, 'used': {**used, 'loras': loras}}
