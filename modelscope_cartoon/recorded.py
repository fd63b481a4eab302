"""What a picture's file says of itself, made safe to use and to print: it may come from a stranger.

    recorded = read('cat.png')          its texts, parsed; what can't be read is one of its faults
    request_of(recorded)                what pipeline() takes, with LoRAs by name alone
    model_of(recorded)                  the model to load, never a path and never a surprising download
    scheduler_of(recorded)              the scheduler it was drawn with

Nothing in a file is run, and no path in it is opened.
"""
from __future__ import annotations

import copy
import inspect
import json
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_cartoon import a1111, metadata, mini, picture_recipe
from modelscope_cartoon.errors import CartoonError, InvalidRequest
from modelscope_cartoon.lora_choice import check_lora
from modelscope_cartoon.names import refuse_unknown
from modelscope_cartoon.request import PIXEL_BUDGET, parse_request
from modelscope_cartoon.schedulers import ROWS

FIELDS = ('text', 'negative_prompt', 'style', 'trigger', 'lora', 'seed', 'height', 'width', 'preset',
          'num_inference_steps', 'guidance_scale', 'guidance_interval', 'guidance_rescale', 'clip_skip', 'eta',
          'scheduler', 'cache_interval', 'label')
_SHOWN = 2000                    # characters of one value on a terminal
_DEEPEST = 20                    # of a recipe's nesting; ours have 5 levels
_LARGEST_NUMBER = 10_000         # in a scheduler's config, where some size a table
_CONSTANTS = ('Infinity', '-Infinity', 'NaN')     # as a recipe has them, since JSON has no such numbers
_NAME = re.compile(r'(?!\.+$)[\w.-]{1,200}')


@dataclass(frozen=True)
class Recorded:
    """recipe, parameters: None where the file has none, or one that can't be read; faults says why."""
    file: str
    metadata: metadata.Metadata
    recipe: dict[str, Any] | None
    parameters: dict[str, str] | None
    faults: tuple[str, ...]

    def of(self, *keys: str) -> Any:
        """The recipe's value at `keys`, None where it isn't there, whatever shape the recipe has."""
        value: Any = self.recipe
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read(file: str) -> Recorded:
    """InvalidRequest where `file` is no picture that can hold metadata."""
    from PIL import Image

    path = Path(file)
    if path.is_dir():
        raise InvalidRequest(f'{file} is a folder; give the pictures in it, {path / "*.png"}.')
    if not path.is_file():
        raise InvalidRequest(f'{file}: there is no such file.')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')     # Pillow's, on damaged EXIF; nothing of it is lost here
        warnings.simplefilter('error', Image.DecompressionBombWarning)
        found = metadata.read(path)
    faults: list[str] = []

    def parsed(kind: str, text: str | None, parse: Callable[[str], Any]) -> Any:
        try:
            return parse(text) if text else None
        except InvalidRequest as error:
            faults.append(f'{kind}: {plain(error, 300)}')
            return None
    return Recorded(file, found, parsed('recipe', found.recipe, _recipe),
                    parsed('parameters', found.parameters, a1111.parse), tuple(faults))


def flaw_of(recorded: Recorded) -> str | None:
    """What is wrong with the pixels: a file that was cut off still has its metadata, which are in front."""
    from PIL import Image

    width, height = recorded.metadata.size
    if width * height > PIXEL_BUDGET:
        return None
    try:
        with Image.open(recorded.file) as image:
            image.load()
    except Exception as error:     # Pillow raises of all kinds on damaged files
        return plain(error, 200)
    return None


def _recipe(text: str) -> dict[str, Any]:
    recipe, level = picture_recipe.parse(text), 0
    values: list[Any] = [recipe]
    while values:
        values = [child for value in values if isinstance(value, (dict, list))
                  for child in (value.values() if isinstance(value, dict) else value)]
        level += 1
        if level > _DEEPEST:
            raise InvalidRequest(f'it is nested more than {_DEEPEST} levels deep, which no recipe is.')
    return recipe


def each(files: Iterable[str], work: Callable[[str], tuple[dict[str, Any], int]], say: Callable[[str], None],
         ) -> tuple[list[dict[str, Any]], int]:
    """What `work` gives for each file, and the highest exit code; a file's fault doesn't keep the others from it."""
    entries, code = [], 0
    for file in files:
        try:
            entry, own = work(file)
        except CartoonError as error:
            words = plain(error, 600)
            words = words if words.startswith(plain(file)) else f'{plain(file)}: {words}'
            say(words)
            entry, own = {'file': file, 'error': words}, error.exit_code
        entries.append(entry)
        code = max(code, own)
    return entries, code


def recipe_of(recorded: Recorded) -> dict[str, Any]:
    if recorded.recipe is None:
        raise InvalidRequest('; '.join(recorded.faults) or f'{recorded.file} holds no recipe of ours.')
    return recorded.recipe


def request_of(recorded: Recorded) -> dict[str, Any]:
    """One picture's request, checked. `lora` holds names alone, whatever paths its maker drew with."""
    asked = picture_recipe.request_of(recipe_of(recorded))
    refuse_unknown('key of a request in the recipe', asked, FIELDS)
    for key, kind in (('text', str), ('negative_prompt', str), ('seed', int)):
        if key in asked and not isinstance(asked[key], kind):
            raise InvalidRequest(f"the recipe's {key} is a {type(asked[key]).__name__}; needed: {kind.__name__}.")
    if 'lora' in asked:
        asked['lora'] = [(re.split(r'[\\/]', name)[-1].removesuffix('.safetensors'), scale)
                         for name, scale in check_lora('lora', asked['lora'])]
    parse_request(asked)
    return asked


def model_of(recorded: Recorded) -> str:
    """mini's folder, a folder of the hub's cache, or one of the five styles' ids; InvalidRequest asks for --model."""
    from modelscope_cartoon.hub import cached_snapshot, hub_model

    recipe_of(recorded)
    adapter = recorded.of('model', 'adapter')
    name, revision = adapter or recorded.of('model', 'id'), None if adapter else recorded.of('model', 'revision')
    if name == mini.NAME:
        return str(mini.path())
    parts = name.split('/') if isinstance(name, str) else []
    if len(parts) == 1 and name:
        raise InvalidRequest(f"it was drawn with a model folder called '{plain(name, 200)}'; say where that is, "
                             '--model FOLDER.')
    if len(parts) != 2 or not all(map(_NAME.fullmatch, parts)) or not _is_revision(revision):
        raise InvalidRequest(f"its recipe names the model '{plain(name, 200)}', which is no hub id; say what to draw "
                             'with, --model MODEL.')
    cached = cached_snapshot(name, revision)
    if cached:
        return str(cached)
    if revision in (None, hub_model(name)[1]) and hub_model(name)[1]:     # a revision of its own: one of the five
        return name
    raise InvalidRequest(f'it was drawn with {name}{f" {revision}" if revision else ""}, which is not on this machine; '
                         f'where you trust it, --model {name} downloads it.')


def _is_revision(revision: Any) -> bool:
    return revision is None or (isinstance(revision, str) and _NAME.fullmatch(revision) is not None)


def scheduler_of(recorded: Recorded, steps: int) -> Any:
    """A diffusers scheduler of the recorded class, one of schedulers.ROWS, and its config; tried out on `steps`."""
    import diffusers

    name, config = recorded.of('used', 'scheduler', 'class'), recorded.of('used', 'scheduler', 'config')
    known = {row.diffusers_class for row in ROWS}
    if not isinstance(name, str) or name not in known or not isinstance(config, dict):
        raise InvalidRequest(f"its recipe names the scheduler '{plain(name, 100)}', which is none of ours: "
                             f'{", ".join(sorted(known))}.')
    scheduler = getattr(diffusers, name)
    options = {key: float(value) if value in _CONSTANTS else value for key, value in config.items()
               if key in inspect.signature(scheduler).parameters}
    if any(_LARGEST_NUMBER < abs(number) < math.inf for number in _numbers(options)):
        raise InvalidRequest(f"its recipe's scheduler has a number beyond {_LARGEST_NUMBER:,}, which no real one has.")
    try:
        built = scheduler.from_config(options)
        _try(copy.deepcopy(built), steps)
    except Exception as error:     # a stranger's values, and diffusers raises whatever they lead to
        raise InvalidRequest(f"its recipe's {name} can't be used ({plain(error, 200)}).") from error
    return built


def _try(scheduler: Any, steps: int) -> None:
    import torch

    scheduler.set_timesteps(steps)
    sample = torch.zeros(1, 4, 8, 8)
    for timestep in scheduler.timesteps:
        sample = scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(torch.zeros_like(sample), timestep, sample).prev_sample


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (dict, list)):
        return [n for one in (value.values() if isinstance(value, dict) else value) for n in _numbers(one)]
    return [value] if isinstance(value, (int, float)) else []


def plain(value: Any, most: int = _SHOWN) -> str:
    """`value` as one line for a terminal: control characters and what turns writing around are escapes."""
    text = value if isinstance(value, str) else str(value)
    shown = ''.join(c if c.isprintable() or unicodedata.category(c) == 'Zs' else c.encode('unicode_escape').decode()
                    for c in text[:most])
    return shown if len(text) <= most else f'{shown} ... ({len(text):,} characters)'


def document(entries: list[dict[str, Any]]) -> str:
    """The one JSON document of --json, without a character that a terminal would obey."""
    text = json.dumps({'pictures': entries}, ensure_ascii=False, indent=2)
    return ''.join(c if c.isprintable() or c == '\n' else json.dumps(c)[1:-1] for c in text)
