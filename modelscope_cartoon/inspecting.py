"""The inspect command: what a picture's file says of itself, ours or A1111's."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from modelscope_cartoon import a1111
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.recorded import Recorded, document, each, flaw_of, plain, read

# what is shown of a recipe, and where in it that is
_ROWS = (
    ('prompt', ('request', 'text')), ('negative prompt', ('request', 'negative_prompt')),
    ('prompt as used', ('used', 'prompt')), ('negative as used', ('used', 'negative_prompt')),
    ('style', ('request', 'style')), ('seed', ('request', 'seed')), ('preset', ('request', 'preset')),
    ('steps', ('request', 'num_inference_steps')), ('guidance', ('request', 'guidance_scale')),
    ('guidance interval', ('request', 'guidance_interval')), ('guidance rescale', ('request', 'guidance_rescale')),
    ('clip skip', ('request', 'clip_skip')), ('eta', ('request', 'eta')),
    ('cache interval', ('request', 'cache_interval')), ('label', ('request', 'label')))
_AS_ASKED = {('used', 'prompt'): 'text', ('used', 'negative_prompt'): 'negative_prompt'}     # shown where they differ
_USUAL = {'guidance rescale': 0, 'eta': 0, 'cache interval': 1}     # not worth a line
_MACHINE = ('backend', 'dtype', 'device', 'processor', 'memory', 'threads', 'batch_size', 'noise')
_WIDE = 18


def add_options(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument('files', nargs='+', metavar='FILE', help='pictures: PNG, JPEG, WebP')
    inspect.add_argument('--json', action='store_true', help='machine-readable output')


def inspect(arguments: argparse.Namespace) -> int:
    """Prints what each file holds; exit code 2 where one is no picture or a damaged one, after the others."""
    def show(file: str) -> tuple[dict[str, Any], int]:
        recorded = read(file)
        flaw = flaw_of(recorded)
        if not arguments.json:
            print('\n'.join(_lines(recorded, flaw)), flush=True)
        return {**_entry(recorded), **({'damaged': flaw} if flaw else {})}, InvalidRequest.exit_code if flaw else 0
    entries, code = each(arguments.files, show, lambda words: print(f'modelscope-cartoon: {words}', file=sys.stderr))
    if arguments.json:
        print(document(entries))
    return code


def channels(recorded: Recorded) -> list[str]:
    found = recorded.metadata
    there = {'parameters': found.parameters, 'recipe': found.recipe, 'aigc': found.aigc, 'iptc': found.source_type}
    return [name for name, text in there.items() if text]


def _entry(recorded: Recorded) -> dict[str, Any]:
    found = recorded.metadata
    return {'file': recorded.file, 'container': found.container, 'width': found.size[0], 'height': found.size[1],
            'channels': channels(recorded), 'recipe': recorded.recipe, 'parameters': recorded.parameters,
            'labels': {'aigc': found.aigc, 'iptc': found.source_type}, 'faults': list(recorded.faults)}


def _lines(recorded: Recorded, flaw: str | None) -> Iterator[str]:
    found, held = recorded.metadata, channels(recorded)
    size = f'{found.container}, {found.size[0]} x {found.size[1]}'
    if not held:
        yield f'{plain(recorded.file)}: {size}; it holds no recipe, no parameters and no "made by AI" label'
    else:
        yield f'{plain(recorded.file)}: {size}'
    shown = _of_recipe(recorded) if recorded.recipe else _of_parameters(recorded.parameters or {})
    for name, value in [*shown, ('AIGC label', found.aigc), ('IPTC source type', found.source_type),
                        ('holds', ', '.join(held)), *(('can\'t be read', fault) for fault in recorded.faults),
                        ('damaged', flaw)]:
        if value is not None and value not in ('', []) and not (name in _USUAL and value == _USUAL[name]):
            yield f'  {plain(name, 80):<{_WIDE}}  {plain(value)}'


def _of_parameters(parameters: dict[str, str]) -> Iterator[tuple[str, Any]]:
    yield 'prompt', parameters.get('prompt')
    yield 'negative prompt', parameters.get('negative_prompt')
    yield from ((key, value) for key, value in parameters.items() if key not in ('prompt', 'negative_prompt'))


def _of_recipe(recorded: Recorded) -> Iterator[tuple[str, Any]]:
    for name, keys in _ROWS:
        value = recorded.of(*keys)
        if keys not in _AS_ASKED or value != recorded.of('request', _AS_ASKED[keys]):
            yield name, value
    yield 'LoRAs', _loras(recorded.of('used', 'loras'))
    yield 'scheduler', _scheduler(recorded)
    model = [recorded.of('model', key) for key in ('id', 'revision', 'weights_hash', 'adapter')]
    yield 'model', ' '.join(f'{name}{value}' for name, value in zip(('', '', 'weights ', 'with '), model) if value)
    yield 'drawn with', ', '.join(f'{key.replace("_", " ")} {value}' for key in _MACHINE
                                  if (value := recorded.of('machine', key)) is not None)
    yield 'versions', ', '.join(f'{name} {value}' for name, value in (recorded.of('versions') or {}).items())
    yield 'date', recorded.of('date')


def _loras(loras: Any) -> str:
    named = [one for one in loras if isinstance(one, dict)] if isinstance(loras, list) else []
    return ', '.join(f'{one.get("name")} x {one.get("scale")} ({str(one.get("sha256"))[:12]})' for one in named)


def _scheduler(recorded: Recorded) -> str | None:
    name, config = recorded.of('used', 'scheduler', 'class'), recorded.of('used', 'scheduler', 'config')
    if not isinstance(name, str) or not isinstance(config, dict):
        return None
    sampler, schedule = a1111.sampler_of({'class': name, 'config': config})
    return f'{sampler}{f", {schedule}" if schedule else ""} ({name})'
