"""The finished model folder: weights, configuration.json, card, recipe, samples, and the sha256 of all of it.

manifest.json is written last, so a folder with one is whole.
"""
from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modelscope_cartoon import __version__, mini
from modelscope_cartoon.configuration import MODEL_TYPE, PIPELINE_TYPE, PREPROCESSOR_TYPE, TASK
from modelscope_cartoon.errors import NonFiniteError
from modelscope_cartoon.files import write_file, write_json
from modelscope_cartoon.folder import file_sha256
from modelscope_cartoon.hub import hub_model
from modelscope_cartoon.styles import style_of_path
from modelscope_cartoon.training.base import Base
from modelscope_cartoon.training.card import card
from modelscope_cartoon.training.lora_files import DIFFUSERS_NAME, diffusers_file, kohya_file, lora_layers
from modelscope_cartoon.training.pictures import Example
from modelscope_cartoon.training.sheet import loss_curve, png

WORK = '.training'          # checkpoints, class pictures, logs: beside the model, no part of it
MANIFEST = 'manifest.json'
_CARRIED = ('words.txt', 'NOTICE')     # of the base, where all its weights are in the folder


def write_output(folder: Path, base: Base, examples: Sequence[Example], history: torch.Tensor) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    name = style_name(folder, base)
    if base.recipe.method == 'lora':
        layers = lora_layers(base)
        write_file(folder / DIFFUSERS_NAME, diffusers_file(base, layers))
        write_file(folder / f'{name}.safetensors', kohya_file(base, layers, name))
    else:
        _write_full(folder, base)
    write_json(folder / 'configuration.json', configuration(base))
    write_json(folder / 'recipe.json', recipe_record(base, examples, history))
    write_file(folder / 'loss.png', png(loss_curve(history)))
    write_file(folder / 'README.md', card(name, base, examples, has_sheet(folder)).encode())
    write_manifest(folder)


def style_name(folder: Path, base: Base) -> str:
    name = base.recipe.name or folder.resolve().name
    return re.sub(r'[^\w.-]+', '-', name).strip('-.') or 'style'


def has_sheet(folder: Path) -> bool:
    return (folder / 'samples' / 'sheet.png').is_file()


def _write_full(folder: Path, base: Base) -> None:
    """All weights in float16, in diffusers' layout."""
    pipe = base.pipe.to(dtype=torch.float16)
    for part in ('unet', 'text_encoder'):
        if not all(torch.isfinite(p).all() for p in getattr(pipe, part).parameters()):
            raise NonFiniteError(f'the trained {part} does not fit into float16; use a lower learning_rate.')
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder / WORK) as aside:
        pipe.save_pretrained(aside, safe_serialization=True)
        for path in sorted(Path(aside).rglob('*')):
            if path.is_file():
                target = folder / path.relative_to(aside)
                target.parent.mkdir(exist_ok=True)
                os.replace(path, target)
    for name in _CARRIED:
        if (base.folder.root / name).is_file():
            shutil.copy(base.folder.root / name, folder / name)


def configuration(base: Base) -> dict[str, Any]:
    """What the host and our pipeline read."""
    recipe = base.recipe
    model = {'type': MODEL_TYPE} | ({'base_model': base_model(recipe.base)} if recipe.method == 'lora' else {})
    return {'framework': 'pytorch', 'task': TASK, 'model': model,
            'preprocessor': {'type': PREPROCESSOR_TYPE, 'trigger': recipe.trigger}, 'pipeline': {'type': PIPELINE_TYPE}}


def base_model(name: str) -> str:
    """mini, a hub id, or a whole path: what finds the base again from anywhere on this machine."""
    if not os.path.isdir(name):
        return name if name == mini.NAME else hub_model(name)[0]
    style = style_of_path(name)
    if style is not None:
        return style.model_id
    return mini.NAME if os.path.samefile(name, mini.path()) else os.path.abspath(name)


def recipe_record(base: Base, examples: Sequence[Example], history: torch.Tensor) -> dict[str, Any]:
    """Everything that decided the result; `train --recipe recipe.json` trains by it again."""
    import accelerate
    import diffusers
    import peft

    versions = {'modelscope_cartoon': __version__, 'torch': torch.__version__, 'diffusers': diffusers.__version__,
                'peft': peft.__version__, 'accelerate': accelerate.__version__}
    return {'recipe': base.recipe.settings(), 'base': base_digests(base), 'versions': versions,
            'resolution': base.resolution, 'device': str(base.device.type), 'precision': str(base.precision),
            'loss': round(float(history[-50:, 0].mean()), 6),
            'pictures': [{'name': e.name, 'sha256': e.sha256, 'caption': e.caption} for e in examples]}


def base_digests(base: Base) -> dict[str, str]:
    return {name: file_sha256(files.paths[0]) for name, files in base.folder.weights.items()}


def write_manifest(folder: Path) -> None:
    files = [path for path in sorted(folder.rglob('*'))
             if path.is_file() and path.relative_to(folder).parts[0] not in (WORK, MANIFEST)]
    digests = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    write_json(folder / MANIFEST, {'files': digests})
