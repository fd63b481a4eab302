"""AUTOMATIC1111's `parameters` text, which nearly every tool for such pictures reads: a recipe as that text, and back.

    a cat
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 768x768, RNG: CPU, ...

Form: stable-diffusion-webui, modules/infotext_utils.py (reading, quoting) and modules/processing.py (writing). The text
has no escape for its own markers, so `write` keeps prompts from looking like them: a prompt is one line, the settings
are always the last one, and `Negative prompt:` or `Steps:` inside a prompt gets a space before its colon, which CLIP
reads as the same words. The recipe has the prompt unchanged.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.schedulers import ROWS, SchedulerRow, get_row

MAX_CHARACTERS = 1_000_000      # of a text to read; A1111's own are a few thousand
_MAX_PAIRS = 200                # on the line of settings; A1111 with many extensions writes 80
_NEGATIVE = 'Negative prompt:'
_MARKERS = re.compile(r'(negative prompt|steps)(?=:)', re.IGNORECASE)
_KEY = re.compile(r'\s*(\w[\w \-/]{1,80}):\s*')
_ENOUGH = 3                     # pairs that make a line one of settings, as in A1111
_USUAL = {'Steps', 'Sampler', 'CFG scale', 'Seed', 'Size', 'Model'}
_KARRAS = 'Karras'
_SCHEDULES = {'use_karras_sigmas': _KARRAS, 'use_exponential_sigmas': 'Exponential', 'use_beta_sigmas': 'Beta'}
_PLAIN = 'Uniform'
# What `Schedule type: Automatic`, or none in a text that is pasted, means for a sampler there (samplers_k_diffusion)
_AUTOMATIC = {'DPM2': _KARRAS, 'DPM2 a': _KARRAS, 'DPM++ 2M': _KARRAS, 'DPM++ SDE': _KARRAS,
              'DPM++ 2M SDE': 'Exponential'}


def write(recipe: Mapping[str, Any]) -> str:
    """The text of a recipe. LoRAs are tags behind the prompt, as A1111 has them; Clip skip counts from 1 as there."""
    request, used, model = recipe['request'], recipe['used'], recipe['model']
    sampler, schedule = sampler_of(used['scheduler'])
    prompt = ' '.join([_line(used['prompt']), *filter(None, map(_tag, used.get('loras') or []))]).strip()
    settings = {
        'Steps': request['num_inference_steps'], 'Sampler': sampler, 'Schedule type': schedule,
        'CFG scale': _number(request['guidance_scale']), 'Seed': request.get('seed'),
        'Size': f'{request["width"]}x{request["height"]}',
        'Model hash': (model.get('weights_hash') or '')[:10] or None, 'Model': model.get('id'),
        'Clip skip': request['clip_skip'] + 1 if request.get('clip_skip') else None,
        'Lora hashes': ', '.join(filter(None, map(_hash, used.get('loras') or []))) or None,
        'RNG': 'CPU' if recipe['machine'].get('noise') == 'cpu' else None,
        'Version': recipe['made_by']}
    negative = _line(used.get('negative_prompt') or '')
    return '\n'.join([prompt, *([f'{_NEGATIVE} {negative}'] if negative else []), ', '.join(
        f'{key}: {_quoted(str(value))}' for key, value in settings.items() if value is not None)])


def _line(prompt: str) -> str:
    return _MARKERS.sub(r'\1 ', ' '.join(prompt.splitlines())).strip()


def _tag(lora: Mapping[str, Any]) -> str | None:
    """None for a name that a tag can't hold."""
    return None if set('<>:,\n') & set(lora['name']) else f'<lora:{lora["name"]}:{_number(lora["scale"])}>'


def _hash(lora: Mapping[str, Any]) -> str | None:
    name = ' '.join(re.sub('[:,]', '', lora['name']).split())
    return f'{name}: {lora["sha256"][:12]}' if lora.get('sha256') else None


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _quoted(value: str) -> str:
    """As A1111 quotes, and for a quotation mark too, which would otherwise reach over the next comma."""
    return json.dumps(value, ensure_ascii=False) if set(',:\n\r"') & set(value) else value


def sampler_of(scheduler: Mapping[str, Any]) -> tuple[str, str | None]:
    """(Sampler, Schedule type or None) of {'class': diffusers' class, 'config': its config}."""
    config = scheduler.get('config') or {}
    row = _row_of(scheduler['class'], config)
    label = row.label.removesuffix(f' {_KARRAS}') if row else str(scheduler['class']).removesuffix('Scheduler')
    schedule = next((name for key, name in _SCHEDULES.items() if config.get(key)), None)
    return label, schedule or (_PLAIN if label in _AUTOMATIC else None)


def _row_of(diffusers_class: str, config: Mapping[str, Any]) -> SchedulerRow | None:
    """The row of that class with the most options as in `config`."""
    rows = [row for row in ROWS if row.diffusers_class == diffusers_class]
    return max(rows, key=lambda row: sum(config.get(k) == v for k, v in row.options.items()), default=None)


def scheduler_of(settings: Mapping[str, str]) -> tuple[str | None, str | None]:
    """(our scheduler's label, the Schedule type that it can't have) of read settings; None where there is none.

    UnknownOption where the sampler isn't one of ours.
    """
    if 'Sampler' not in settings:
        return None, None
    label, schedule = get_row(settings['Sampler']).label, settings.get('Schedule type', _PLAIN)
    if schedule == 'Automatic':
        schedule = _AUTOMATIC.get(label, _PLAIN)
    if schedule == _PLAIN or label.endswith(f' {schedule}'):
        return label, None
    known = {row.label for row in ROWS}
    return (f'{label} {schedule}', None) if f'{label} {schedule}' in known else (label, schedule)


def parse(text: object) -> dict[str, str]:
    """{'prompt', 'negative_prompt', and the settings by their names}, all strings; what isn't there is ''.

    Reads what A1111, Forge and others write. Only InvalidRequest is raised, where `text` is no text or far too long.
    """
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f'the parameters are {len(text):,} characters; at most {MAX_CHARACTERS:,} are read.'
                             if isinstance(text, str) else f'the parameters are a {type(text).__name__}; accepted: '
                             'text.')
    lines = [line.strip() for line in re.split('\r\n|\n|\r', text.strip(' \t\r\n\0'))]
    place = _settings_line(lines)
    below = dict(filter(None, map(_whole_line, lines[place + 1:])))     # Dynamic Prompts writes its templates there
    settings = {**below, **dict(_pairs(''.join(lines[place:place + 1])))}
    prompts: dict[str, list[str]] = {'prompt': [], 'negative_prompt': []}
    key = 'prompt'
    for line in lines[:place]:
        if line.startswith(_NEGATIVE):
            key, line = 'negative_prompt', line.removeprefix(_NEGATIVE).strip()
        prompts[key].append(line)
    return {**settings, **{key: '\n'.join(parts).strip() for key, parts in prompts.items()}}


def _settings_line(lines: list[str]) -> int:
    """The place of the last line that holds settings; behind all of them where none does."""
    for place in range(len(lines) - 1, -1, -1):
        last = place == len(lines) - 1
        if lines[place].startswith('Steps:') or (last and ':' in lines[place]):
            found = [key for key, _ in _pairs(lines[place])]
            if len(found) >= _ENOUGH and _USUAL & set(found):
                return place
    return len(lines)


def _whole_line(line: str) -> tuple[str, str] | None:
    match = _KEY.match(line)
    return (match.group(1), line[match.end():]) if match else None


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """`key: value` between commas; a value may be JSON (a string, an object, a list), commas and all."""
    position = 0
    for _ in range(_MAX_PAIRS):
        if position >= len(line):
            return
        match = _KEY.match(line, position)
        if match:
            value, position = _value(line, match.end())
            yield match.group(1), value
        else:
            position = _comma(line, position) + 1


def _value(line: str, start: int) -> tuple[str, int]:
    """The value that begins at `start`, and where the next pair does."""
    if line[start:start + 1] in ('"', '{', '['):
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(line, start)
        except (ValueError, RecursionError):
            end = None
        if end is not None and line[end:].lstrip()[:1] in ('', ','):
            return value if isinstance(value, str) else line[start:end], _comma(line, end) + 1
    end = _comma(line, start)
    return line[start:end].strip(), end + 1


def _comma(line: str, start: int) -> int:
    found = line.find(',', start)
    return len(line) if found < 0 else found
