"""The train command: settings from a recipe file and from options, then training.run."""
from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from modelscope_cartoon.errors import InvalidRequest, Stopped
from modelscope_cartoon.training.recipe import Recipe


def add_options(train: argparse.ArgumentParser) -> None:
    train.add_argument('pictures', metavar='PICTURES', help='a folder of 10 to 100 pictures; captions in NAME.txt, '
                                                            'metadata.csv or metadata.jsonl')
    train.add_argument('--output', '-o', required=True, metavar='DIR', help='where the trained model goes')
    train.add_argument('--resume', action='store_true', help='go on with the run in --output')
    train.add_argument('--plan', action='store_true', help='say steps, memory and time, and stop')
    train.add_argument('--recipe', metavar='FILE', help='settings from a recipe.json; options stand over it')
    train.add_argument('--device', default='gpu', help='gpu (the CPU where there is none), cpu')
    train.add_argument('--json', action='store_true', help='machine-readable output')
    for setting in fields(Recipe):
        _add_setting(train, setting.name, setting.metadata['kind'], setting.metadata['meaning'], setting.default)


def _add_setting(train: argparse.ArgumentParser, name: str, kind: type, meaning: str, default: Any) -> None:
    shown = meaning.replace('%', '%%') + (f' ({default})' if default not in (None, '', (), False) else '')
    options: dict[str, Any] = {'type': kind, 'metavar': {int: 'N', float: 'X'}.get(kind, 'TEXT')}
    if kind is bool:
        options = {'action': argparse.BooleanOptionalAction}
    elif kind is tuple:
        options = {'nargs': '+', 'metavar': 'TEXT'}
    train.add_argument('--' + name.replace('_', '-'), help=shown, default=None, **options)


def teach(arguments: argparse.Namespace) -> int:
    """Trains, and prints the folder; with --plan prints what it would take."""
    logger = logging.getLogger('modelscope_cartoon')
    logger.setLevel(logging.INFO)
    settings = _settings(arguments)
    Recipe.of(**settings)       # what is wrong with it is said before anything is loaded
    from modelscope_cartoon.training import run

    if arguments.plan:
        from modelscope_cartoon.training.plan import told
        plan = run.plan(arguments.pictures, arguments.output, arguments.device, **settings)
        print(json.dumps(plan, indent=2) if arguments.json else told(plan))
        return 0
    try:
        output = run.train(arguments.pictures, arguments.output, arguments.resume, arguments.device, **settings)
    except Stopped:
        raise
    except KeyboardInterrupt:
        raise Stopped('interrupted; where there is a checkpoint it is kept, and the same command with --resume goes '
                      'on from it.') from None
    if logger.level > logging.INFO:     # another process of several speaks
        return 0
    print(json.dumps({'output': str(output)}) if arguments.json else output)
    print(f'draw with it: modelscope-cartoon draw "a cat" --model {output}', file=sys.stderr)
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = _recipe_file(arguments.recipe) if arguments.recipe else {}
    given = {setting.name: getattr(arguments, setting.name) for setting in fields(Recipe)}
    return {**settings, **{key: value for key, value in given.items() if value is not None}}


def _recipe_file(name: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(name).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f'{name} is no recipe that can be read ({error}).') from error
    settings = content.get('recipe', content) if isinstance(content, dict) else content
    if not isinstance(settings, dict):
        raise InvalidRequest(f'{name} holds a {type(settings).__name__}; accepted: an object of settings.')
    return settings
