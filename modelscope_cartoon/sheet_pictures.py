"""The pictures of a sheet: each under the hash of what decides it, so that a sheet that was cut off goes on."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelscope_cartoon import metadata, picture_recipe
from modelscope_cartoon.cache import known_sha256, weights_hash
from modelscope_cartoon.candidates import free
from modelscope_cartoon.configuration import configuration, lora_folders
from modelscope_cartoon.errors import InvalidRequest, UnknownOption, words_of
from modelscope_cartoon.files import write_file
from modelscope_cartoon.folder import ModelFolder, file_sha256
from modelscope_cartoon.hub import base_folder, local_model
from modelscope_cartoon.lora_choice import LoraShelf, weights_file
from modelscope_cartoon.request import parse_request
from modelscope_cartoon.sheet_axes import Cell

_DECIDE_NOTHING = ('output_type', 'metadata', 'generator', 'latents', 'callback_on_step_end')


def place(cells: Iterable[Cell], folder: Path, model: str, lora_dir: str | None, *how: str) -> None:
    """Says where each cell's picture is kept: <folder>/<id>.png. The id is a hash of its request, of the weights that
    `model` has now, and of `how` it is drawn: another setting, a model trained further, and it is another picture.
    """
    given = local_model(model)
    base = base_folder(given)
    own = lora_folders(base, configuration(base)['preprocessor'].get('loras'))
    weights = _fingerprint(given, base, own.values())
    shelf = LoraShelf(own, lora_dir)
    for cell in cells:
        request = asdict(parse_request(cell.request))
        kept = {key: value for key, value in request.items() if key not in _DECIDE_NOTHING}
        loras = [known_sha256(weights_file(shelf.find(*lora).path)) for lora in request['lora']]
        decides = json.dumps([kept, loras, weights, *how], sort_keys=True, default=str)
        cell.picture = folder / f'{hashlib.sha256(decides.encode()).hexdigest()[:20]}.png'


def _fingerprint(folder: str, base: str, own_loras: Iterable[str]) -> list[Any]:
    """What a model is at present: hashes of all its weights, its LoRAs among them, and what it says about drawing.

    folder: the model's; base: that of the model that draws, another one where `folder` is a LoRA's.
    """
    loras = [*own_loras, *([folder] if folder != base else [])]
    scheduler = Path(base, 'scheduler', 'scheduler_config.json')
    return [weights_hash(ModelFolder(base)), *(known_sha256(weights_file(lora)) for lora in loras),
            file_sha256(scheduler) if scheduler.is_file() else None,
            *(configuration(one)['preprocessor'] for one in dict.fromkeys([folder, base]))]


def missing(cells: Iterable[Cell]) -> list[Cell]:
    """Those whose picture isn't kept, or is no longer what its own recipe says. The others get their recipe."""
    return [cell for cell in cells if not (cell.fault or _is_kept(cell))]


def _is_kept(cell: Cell) -> bool:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(cell.picture) as picture:
            pixels = hashlib.sha256(np.asarray(picture.convert('RGB'))).hexdigest()
        recipe = picture_recipe.parse(metadata.read(cell.picture).recipe or '')
    except (OSError, SyntaxError, ValueError):     # not there, or damaged in one of Pillow's ways, or no recipe
        return False
    cell.recipe = recipe
    return recipe['pixels_sha256'] == pixels


def draw(cells: list[Cell], load: Callable[[], Any], at_once: int) -> Iterator[int]:
    """Draws and keeps the pictures of `cells`, which one model draws, `at_once` together; yields how many each time.

    What can't be drawn has its reason in `fault`, the others are drawn all the same.
    """
    try:
        pipe = load()
    except (InvalidRequest, UnknownOption):     # the same for every model: an option that can't be used
        raise
    except Exception as error:
        fail(cells, error)
        return
    for batch in _batches(cells, at_once):
        _draw(pipe, batch)
        yield len(batch)
    del pipe
    free()     # before the next model is loaded


def _batches(cells: list[Cell], at_once: int) -> Iterator[list[Cell]]:
    """Equal settings together; prompts and seeds may differ within a batch."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        request = parse_request(cell.request)
        groups.setdefault((request.settings(), request.style, request.lora), []).append(cell)
    for group in groups.values():
        for start in range(0, len(group), at_once):
            yield group[start:start + at_once]


def _draw(pipe: Any, cells: list[Cell]) -> None:
    try:
        outputs = pipe([cell.request for cell in cells], batch_size=len(cells), output_type='png')
    except Exception as error:
        if len(cells) == 1:
            return fail(cells, error)
        for cell in cells:
            _draw(pipe, [cell])
        return None
    for cell, output in zip(cells, outputs):
        write_file(cell.picture, output['output_imgs'][0])
        cell.recipe = output['recipes'][0]


def fail(cells: Iterable[Cell], error: Exception) -> None:
    for cell in cells:
        cell.fault = words_of(error)
