"""Checkpoints: a folder written aside, flushed and renamed, so that it is whole or not there; the last two are kept.

    checkpoints/step-00000200/trained.safetensors, optimizer.safetensors, history.safetensors, ..., state.json

state.json is written last and has the sha256 of the others; a folder that doesn't agree with it is not used.
"""
from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from modelscope_cartoon.errors import NonFiniteError
from modelscope_cartoon.files import folder_aside, write_file
from modelscope_cartoon.folder import file_sha256
from modelscope_cartoon.log import logger

KEPT = 2
_STATE = 'state.json'
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """step: steps that are done. tensors: by file. about: what the run was started with."""
    step: int
    tensors: dict[str, Tensors]
    about: dict[str, Any]


def save_checkpoint(root: Path, checkpoint: Checkpoint) -> Path:
    """Writes it and removes all but the last two. OutputError or NonFiniteError leave the older ones as they were."""
    for name, tensor in checkpoint.tensors['trained'].items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(f'the trained tensor {name} is not finite after step {checkpoint.step}; it is not '
                                 'saved. Use a lower learning_rate.')
    path = root / f'step-{checkpoint.step:08}'
    if path.exists():
        shutil.rmtree(path)     # damaged, or we would not be at this step again
    with folder_aside(path) as aside:
        for name, tensors in checkpoint.tensors.items():
            write_file(aside / f'{name}.safetensors', save({k: v.contiguous() for k, v in tensors.items()}))
        digests = {file.name: file_sha256(file) for file in sorted(aside.iterdir())}
        state = {'step': checkpoint.step, 'sha256': digests, 'about': checkpoint.about}
        write_file(aside / _STATE, json.dumps(state, ensure_ascii=False, indent=1).encode())
    for old in _folders(root)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def last_checkpoint(root: Path) -> Checkpoint | None:
    """The newest whole one; what is not whole is named and passed over."""
    for path in _folders(root):
        try:
            return _read(path)
        except (OSError, ValueError, LookupError, TypeError) as error:
            logger.warning('%s is not whole (%s); using the one before.', path, error)
    return None


def _folders(root: Path) -> list[Path]:
    """Newest first."""
    return sorted((p for p in root.glob('step-*') if p.is_dir()), reverse=True)


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / _STATE).read_text(encoding='utf-8'))
    for name, digest in state['sha256'].items():
        if file_sha256(path / name) != digest:
            raise ValueError(f'{name} is damaged')
    tensors = {Path(name).stem: load_file(path / name) for name in state['sha256']}
    return Checkpoint(int(state['step']), tensors, state['about'])
