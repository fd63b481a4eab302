"""The recipe of one picture: everything needed to draw it again, as plain JSON. It travels inside the picture's file.

    build(request, picture, position, drawn, pixels)     from what was asked for and how it was drawn
    parse(text)                                          from a file, which may come from a stranger
    request_of(recipe)                                   what pipeline() takes to draw it again

Its parts: `request` (what was asked for, as given), `used` (what became of it: prompts with trigger, LoRAs, the
scheduler's configuration), `model`, `machine`, `versions`, and `pixels_sha256`, over the RGB bytes before any label or
lossy coding. docs/metadata.md lists every key.
"""
from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from modelscope_cartoon import __version__
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.lora_choice import name_of
from modelscope_cartoon.request import GenerationRequest, Picture

SCHEMA = 1
_LARGEST = 2**20      # characters; two prompts of 10,000 that are all escapes take a quarter of it
PACKAGES = ('torch', 'diffusers', 'transformers', 'modelscope')
# what a request has besides its own prompts, seed and size; a picture's share of it is the same
_SHARED = ('style', 'trigger', 'preset', 'num_inference_steps', 'guidance_scale', 'guidance_interval',
           'guidance_rescale', 'clip_skip', 'eta', 'scheduler', 'cache_interval', 'label')
_PARTS = {'request': dict, 'used': dict, 'model': dict, 'machine': dict, 'versions': dict, 'made_by': str,
          'date': str, 'pixels_sha256': str}


def build(request: GenerationRequest, picture: Picture, position: int, drawn: Mapping[str, Any],
          pixels: np.ndarray) -> dict[str, Any]:
    """position: of the picture in the request. drawn: provenance.of. pixels: uint8 [H, W, 3], RGB."""
    prompt = position // request.num_images_per_prompt
    height, width = pixels.shape[:2]
    asked = {'text': request.text[prompt], 'negative_prompt': request.negative_prompt[prompt], 'seed': picture.seed,
             'height': height, 'width': width,
             'lora': [(name_of(path), scale) for path, scale in request.lora],     # never where somebody keeps it
             **{name: getattr(request, name) for name in _SHARED}}
    return _plain({
        'schema': SCHEMA, 'made_by': f'modelscope-cartoon {__version__}',
        'date': _date(),
        'request': asked,
        'used': {'prompt': picture.prompt, 'negative_prompt': picture.negative_prompt, **drawn['used']},
        'model': drawn['model'],
        'machine': {**drawn['machine'], 'noise': _noise(request)},
        'versions': versions(),
        'pixels_sha256': hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()})


def _date() -> str:
    """Now, or what SOURCE_DATE_EPOCH says (reproducible-builds.org), with which equal pictures are equal files."""
    now = float(os.environ.get('SOURCE_DATE_EPOCH') or time.time())
    return datetime.fromtimestamp(now, timezone.utc).isoformat(timespec='seconds').replace('+00:00', 'Z')


def _noise(request: GenerationRequest) -> str:
    """Where the noise came from. Only 'cpu' can be drawn again from the seed."""
    return 'latents' if request.latents is not None else 'generator' if request.generator is not None else 'cpu'


@cache
def versions() -> Mapping[str, str]:
    return {'modelscope-cartoon': __version__, **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:     # a checkout on the path has none
        return 'unknown'


def _plain(value: Any) -> Any:
    """Lists and dicts of JSON's own kinds alone; what a scheduler's configuration may hold besides becomes text, and so
    does its -Infinity, which strict readers of JSON refuse."""
    return json.loads(json.dumps(value, default=str), parse_constant=str)


def parse(text: str | bytes) -> dict[str, Any]:
    """The recipe in `text`. InvalidRequest where it is none, or of a schema that this version doesn't know."""
    if len(text) > _LARGEST:
        raise InvalidRequest(f'the recipe has {len(text):,} characters; at most {_LARGEST:,} are read.')
    try:
        recipe = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f'the recipe is no JSON that can be read ({error}).') from error
    schema = recipe.get('schema') if isinstance(recipe, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise InvalidRequest(f'the recipe has the schema {schema!r}; this version reads schema {SCHEMA}; '
                             'a later version of modelscope-cartoon may have written it.')
    for key, kind in _PARTS.items():
        if not isinstance(recipe.get(key), kind):
            raise InvalidRequest(f'the recipe is damaged: its {key!r} is {type(recipe.get(key)).__name__}; '
                                 f'needed: {kind.__name__}.')
    return recipe


def request_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What pipeline() takes to draw the picture again; its own checks say what is wrong with a value."""
    return {key: value for key, value in recipe['request'].items() if value is not None and value != []}
