"""A row -> a job: the request, checked; the columns that are none of its fields, as tags; and what identifies it.

The id comes from the content alone, and so does the seed of a row without one: the same row is the same job, and the
same picture, in every run. Equal rows are told apart by their occurrence, the first, the second, ...
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from modelscope_cartoon.batch.sources import Row, Unreadable
from modelscope_cartoon.checks import SEED_LIMIT
from modelscope_cartoon.drawing import model_of
from modelscope_cartoon.errors import CartoonError, InvalidRequest
from modelscope_cartoon.prompt import take_loras
from modelscope_cartoon.request import FIELD_NAMES, RENAMED, GenerationRequest, parse_request

COLUMNS = tuple(name for name in FIELD_NAMES if name not in (
    'generator', 'latents', 'output_type', 'callback_on_step_end', 'callback', 'callback_steps'))
_DIGITS = 16                # of the id in hex; 64 bits, so that a million rows don't meet


class Job(NamedTuple):
    """content: what identifies it. request: as given. group: equal where pictures can share a batch. fault: why it
    can't be drawn, or None.
    """
    content: str
    request: dict[str, Any]
    tags: dict[str, Any]
    group: str
    pictures: int
    fault: str | None = None


def job_of(row: Row, model: str) -> Job:
    if isinstance(row, Unreadable):
        return _faulty({'line': row.line}, {}, row.reason)
    given = {key: value for key, value in row.items() if value is not None}
    request = {key: value for key, value in given.items() if key in FIELD_NAMES or key in RENAMED}
    tags = {key: value for key, value in given.items() if key not in request}
    try:
        parsed = _parsed(request)
        group = _group(model_of(model, parsed.style), request, parsed)
    except CartoonError as error:
        return _faulty(request, tags, str(error))
    return Job(canonical([request, tags]), request, tags, group, parsed.num_pictures)


def _group(model: str, request: Mapping[str, Any], parsed: GenerationRequest) -> str:
    """What decides with whom a row can be drawn. What isn't given the model may decide, so it counts which are."""
    given = sorted(set(request) - {'text', 'negative_prompt', 'seed', 'num_images_per_prompt', 'metadata', 'label'})
    loras = [take_loras(text)[1] for text in dict.fromkeys(parsed.text) if '<' in text]
    return canonical([model, given, parsed.style, parsed.lora, loras, parsed.settings()])


def _parsed(request: Mapping[str, Any]) -> GenerationRequest:
    for key in set(request) - set(COLUMNS) - set(RENAMED):
        raise InvalidRequest(f'{key} can\'t be given in a row' +
                             ('; --format says it for all rows.' if key == 'output_type' else '.'))
    if set(request) & set(RENAMED):
        request = {'text': '', **request}      # 'prompt' is what is wrong, not that 'text' is missing
    return parse_request(request)


def _faulty(request: dict[str, Any], tags: dict[str, Any], reason: str) -> Job:
    return Job(canonical([request, tags]), request, tags, '', 0, reason)


def canonical(value: Any) -> str:
    """One text for equal values; what JSON doesn't know (a date of a Parquet file) as it prints."""
    return json.dumps(value, sort_keys=True, separators=(',', ':'), default=str)


def id_of(content: str, occurrence: int) -> str:
    return hashlib.sha256(f'{content}#{occurrence}'.encode()).hexdigest()[:_DIGITS]


def seeded(request: dict[str, Any], job_id: str) -> dict[str, Any]:
    return {'seed': int(job_id, 16) % SEED_LIMIT, **request}
