"""What of a picture's recipe only the model knows: its weights, and how and with what they drew."""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modelscope_cartoon import mini, schedulers
from modelscope_cartoon.cache import known_sha256
from modelscope_cartoon.lora_choice import LoraChoice, weights_file
from modelscope_cartoon.request import GenerationRequest
from modelscope_cartoon.styles import style_of_path

if TYPE_CHECKING:
    from modelscope_cartoon.model import CartoonStableDiffusion

_SNAPSHOT = re.compile(r'([\w.-]+?)--([\w.-]+)/snapshots/([\w.-]+)$')      # the hub's cache: owner--name/snapshots/v1


def of(model: CartoonStableDiffusion, request: GenerationRequest, loras: Sequence[LoraChoice], batch_size: int,
       adapter: str | None = None) -> dict[str, Any]:
    """The parts `used` (less the prompts), `model` and `machine` of the recipes of a batch that was just drawn."""
    identity, revision = identify(model.model_dir)
    return {
        'used': {'loras': [_lora(choice) for choice in loras], 'scheduler': _scheduler(model, request)},
        'model': {'id': identity, 'revision': revision, 'weights_hash': model.weights_hash,
                  'adapter': identify(adapter)[0] if adapter else None},
        'machine': {'backend': model.backend, 'dtype': str(model.dtype).removeprefix('torch.'),
                    'memory': model.memory_mode, 'device': str(model.device), 'processor': _processor(model.device),
                    'threads': torch.get_num_threads(), 'batch_size': batch_size}}


def identify(folder: str) -> tuple[str, str | None]:
    """('mini', None), (hub id, revision) of a snapshot, or (a folder's own name, None); never a path, which would tell
    the world where somebody keeps things."""
    path = Path(folder).resolve()
    if path == mini.path().resolve():
        return mini.NAME, None
    snapshot = _SNAPSHOT.search(path.as_posix())
    if snapshot:
        return f'{snapshot[1]}/{snapshot[2]}', snapshot[3]
    style = style_of_path(folder)
    return (style.model_id, style.model_revision) if style else (path.name, None)


def _lora(choice: LoraChoice) -> dict[str, Any]:
    return {'name': choice.name, 'scale': choice.scale, 'sha256': known_sha256(weights_file(choice.path))}


def _scheduler(model: CartoonStableDiffusion, request: GenerationRequest) -> dict[str, Any]:
    own = model.diffusers_pipeline.scheduler
    scheduler = schedulers.build(request.scheduler, own.config) if request.scheduler else own
    return {'class': type(scheduler).__name__,
            'config': {key: value for key, value in scheduler.config.items() if not key.startswith('_')}}


def _processor(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else torch.backends.cpu.get_cpu_capability()
