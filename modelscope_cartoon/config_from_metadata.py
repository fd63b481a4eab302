"""draw -C FILE: everything that isn't given on the command line as a picture's file has it, ours or A1111's."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from modelscope_cartoon import a1111
from modelscope_cartoon.errors import InvalidRequest, UnknownOption
from modelscope_cartoon.lora_choice import LoraShelf
from modelscope_cartoon.presets import ROWS as PRESETS
from modelscope_cartoon.recorded import FIELDS, Recorded, flaw_of, model_of, plain, read, request_of
from modelscope_cartoon.schedulers import ROWS as SCHEDULERS

# what an option of draw holds where it wasn't given; the others hold None
_NOT_GIVEN: dict[str, Any] = {'style': [], 'lora': [], 'seed': [None], 'no_trigger': False}
# of A1111's text: the request's field, the setting, how it is read, and what to give where it can't be
_SETTINGS: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
    ('num_inference_steps', 'Steps', int, '--steps'), ('guidance_scale', 'CFG scale', float, '--guidance'),
    ('seed', 'Seed', int, '--seed'), ('width', 'Size', lambda size: int(size.split('x')[0]), '--width and --height'),
    ('height', 'Size', lambda size: int(size.split('x')[1]), '--width and --height'),
    ('clip_skip', 'Clip skip', lambda skip: int(skip) - 1, 'another picture'))
_NOT_SETTINGS = {'prompt', 'negative_prompt', 'Version', 'Hashes', 'Lora hashes', 'Model hash', 'Sampler',
                 'Schedule type', *(name for _, name, _, _ in _SETTINGS)}


def filled(arguments: argparse.Namespace) -> argparse.Namespace:
    """draw's arguments, what wasn't given as -C's file has it; says on stderr what can't be taken over."""
    recorded = read(arguments.config_from_metadata)
    given = _given(arguments)
    if flaw := flaw_of(recorded):
        print(f'{plain(recorded.file)} is damaged ({flaw}); what it says of its drawing is used.', file=sys.stderr)
    if recorded.recipe is not None:
        taken = _of_recipe(recorded, arguments)
    elif recorded.parameters and not recorded.faults:
        taken = _of_parameters(recorded, given, arguments.model is not None)
    else:
        faults = '; '.join(recorded.faults) or "it holds neither our recipe nor A1111's parameters"
        raise InvalidRequest(f'{recorded.file}: {faults}; -C needs a picture that says how it was drawn.')
    return argparse.Namespace(**{**vars(arguments), **_as_options(
        {field: value for field, value in taken.items() if field not in given})})


def _given(arguments: argparse.Namespace) -> set[str]:
    """The request's fields that the command line decides; a preset decides its own."""
    options = {'text': ('prompt', 'prompt_file'), 'trigger': ('no_trigger',)}
    given = {field for field in (*FIELDS, 'model') if any(
        getattr(arguments, option, None) != _NOT_GIVEN.get(option) for option in options.get(field, (field,)))}
    return given | ({field for row in PRESETS for field in row.fields} if 'preset' in given else set())


def _as_options(taken: dict[str, Any]) -> dict[str, Any]:
    """Fields of a request as draw's parsed options hold them."""
    options = {'prompt' if field == 'text' else field: value for field, value in taken.items() if field != 'trigger'}
    for several in ('style', 'seed'):
        if several in options:
            options[several] = [options[several]]
    if taken.get('trigger') is False:
        options['no_trigger'] = True
    return options


def _of_recipe(recorded: Recorded, arguments: argparse.Namespace) -> dict[str, Any]:
    taken = request_of(recorded)
    if 'lora' in taken and not arguments.lora:
        shelf = LoraShelf({}, arguments.lora_dir)
        taken['lora'] = [[_by_name(shelf, name), str(scale)] for name, scale in taken['lora']]
    return taken if arguments.model is not None else {**taken, 'model': model_of(recorded)}


def _by_name(shelf: LoraShelf, name: str) -> str:
    """The shelf's file called `name`, else the name, which may be one of the model's own; never a file of that name."""
    try:
        return shelf.named(name, 1.0).path
    except UnknownOption as error:
        if os.path.exists(name):
            raise InvalidRequest(f"the LoRA '{plain(name, 100)}' is not in --lora-dir, and what a picture names is not "
                                 'looked for elsewhere; give it with --lora.') from error
        return name


def _of_parameters(recorded: Recorded, given: set[str], model_given: bool) -> dict[str, Any]:
    settings = recorded.parameters or {}
    taken: dict[str, Any] = {'text': settings['prompt'], 'negative_prompt': settings['negative_prompt'] or None}
    left_out = [name for name in settings if name not in _NOT_SETTINGS and settings[name] != 'CPU'
                and not (name == 'Model' and model_given)]
    for field, name, convert, instead in _SETTINGS:
        if name in settings and field not in given:
            taken[field] = _converted(name, settings[name], convert, instead)
    if 'scheduler' not in given:
        taken['scheduler'], schedule = _scheduler(settings)
        left_out += [f'Schedule type {schedule}'] if schedule else []
    if left_out:
        print(f'{plain(recorded.file)}: not taken over: {plain(", ".join(left_out))}', file=sys.stderr)
    return taken


def _converted(name: str, text: str, convert: Callable[[str], Any], instead: str) -> Any:
    try:
        return convert(text)
    except (ValueError, IndexError):
        raise InvalidRequest(f"its {name} is '{plain(text, 60)}', which can't be read; give {instead}.") from None


def _scheduler(settings: dict[str, str]) -> tuple[str | None, str | None]:
    try:
        return a1111.scheduler_of(settings)
    except UnknownOption:
        raise InvalidRequest(f"its Sampler is '{plain(settings['Sampler'], 60)}', which is none of ours; choose one "
                             f'with --scheduler: {", ".join(row.label for row in SCHEDULERS)}.') from None
