"""16-bit copies of models' weights: at the next start half the bytes are read, nothing is converted or checked again.

    <cache>/prepared/<weights_hash>-<dtype>/{unet,vae,text_encoder}.safetensors, manifest.json

Only the weights are copied; all else is read from the model's own folder. A component that another model's copy has
too (the five styles may share their VAE and text encoder) is the same file on disk, by a hard link.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import save_file

from modelscope_cartoon import cache, weights
from modelscope_cartoon.backends import Report
from modelscope_cartoon.errors import DamagedWeights
from modelscope_cartoon.files import write_json
from modelscope_cartoon.folder import ModelFolder, WeightFiles, check_weight_file, file_sha256
from modelscope_cartoon.log import logger
from modelscope_cartoon.memory import gib

DTYPES = (torch.bfloat16, torch.float16)
KIND = 'prepared'     # of cache entry
_MANIFEST = 'manifest.json'
_FORMAT = 1     # of the folder; part of its name, so that an older version's copies are simply not seen


def load(folder: ModelFolder, dtype: torch.dtype) -> StableDiffusionPipeline:
    """weights.load, from the copy in `dtype` where there is one: mapped into memory, read when it is used."""
    copy = find(folder, dtype)
    if copy is None:
        return weights.load(folder, dtype)
    logger.info('using the prepared %s copy of the weights at %s.', _name(dtype), copy)
    return weights.load(folder, dtype, _files(copy, folder))


def find(folder: ModelFolder, dtype: torch.dtype) -> Path | None:
    """The copy of `folder`'s weights in `dtype`, its files whole; None where there is none. Reads no weights."""
    known = cache.remembered_hash(folder) if dtype in DTYPES else None
    path = _path(known, dtype) if known else None
    if path is None or not path.is_dir():
        return None
    try:
        for files in _files(path, folder).values():
            check_weight_file(files.paths[0])
    except (DamagedWeights, OSError) as error:
        logger.warning('the prepared copy at %s is not used: %s Delete it and prepare the model again.', path, error)
        return None
    return path


def prepare(folder: ModelFolder, dtype: torch.dtype, report: Report) -> bool:
    """Makes the copy; False where it is there, or where `dtype` has no copies.

    CartoonError where a tensor can't be used, or the disk is full; nothing half is left.
    """
    if dtype not in DTYPES:
        return False
    path = _path(cache.weights_hash(folder), dtype)
    if path.is_dir() and find(folder, dtype) is None:
        cache.remove(path)     # damaged since
    return cache.built(path, lambda aside: _fill(aside, folder, dtype, report))


def damage(path: Path) -> str | None:
    """What differs in the copy at `path` from what was written there; reads it all."""
    for name, entry in _components(path).items():
        file = path / f'{name}.safetensors'
        if not file.is_file() or file_sha256(file) != entry['sha256']:
            return f'{file} is not what was written; delete it with: modelscope-cartoon prepare --remove {path.name}'
    return None


def _fill(aside: Path, folder: ModelFolder, dtype: torch.dtype, report: Report) -> None:
    _check_space(aside, weights.parameter_bytes(folder, dtype))
    made = {name: _copy(aside, folder, name, dtype, report) for name in sorted(folder.weights)}
    write_json(aside / _MANIFEST, {'source': str(folder.root), 'dtype': _name(dtype), 'torch': torch.__version__,
                                   'components': made})


def _check_space(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(f'{gib(needed)} are needed and {gib(free)} free')


def _copy(aside: Path, folder: ModelFolder, name: str, dtype: torch.dtype, report: Report) -> dict[str, Any]:
    """One component into `aside`; what its manifest says of it."""
    source = _source(folder, name)
    target = aside / f'{name}.safetensors'
    twin, entry = _twin(aside, name, source, dtype)
    if twin is not None:
        with contextlib.suppress(OSError):     # a file system without links
            os.link(twin, target)
            report(f'{name}: the same as in {twin.parent.name}, shared with it')
            return entry
    _write(target, weights.load_component(folder, name, dtype).state_dict())
    report(f'{name}: {gib(target.stat().st_size)} as {_name(dtype)}')
    return {'source': source, 'sha256': file_sha256(target), 'bytes': target.stat().st_size}


def _write(target: Path, state: dict[str, torch.Tensor]) -> None:
    try:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, target, metadata={'format': 'pt'})
        with target.open('rb') as file:
            os.fsync(file.fileno())
    except SafetensorError as error:     # its word for a full disk
        raise OSError(str(error)) from error


def _twin(aside: Path, name: str, source: str, dtype: torch.dtype) -> tuple[Path | None, dict[str, Any]]:
    """The same component in another model's copy, and its manifest's entry."""
    for other in cache.entries():
        entry = _components(other).get(name) if other.parent == aside.parent else None
        if entry and entry['source'] == source and other.name.endswith(_name(dtype)):
            return other / f'{name}.safetensors', entry
    return None, {}


def _source(folder: ModelFolder, name: str) -> str:
    total = hashlib.sha256((folder.root / name / 'config.json').read_bytes())
    for path in folder.weights[name].paths:
        total.update(cache.known_sha256(path).encode())
    return total.hexdigest()


def _components(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / _MANIFEST).read_text(encoding='utf-8'))['components']
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _files(path: Path, folder: ModelFolder) -> dict[str, WeightFiles]:
    return {name: WeightFiles(name, (path / f'{name}.safetensors',), safe=True, variant=None)
            for name in folder.weights}


def _path(weights_hash: str, dtype: torch.dtype) -> Path:
    return cache.root() / KIND / f'{weights_hash}-v{_FORMAT}-{_name(dtype)}'


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')
