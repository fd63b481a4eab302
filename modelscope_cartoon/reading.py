"""A component's weight files as tensors in the wanted precision, never two copies of the weights in memory at once.

A tensor that is stored in that precision stays where it is, on disk, mapped into memory and read when it is used.
Others are converted a portion at a time; each portion has a mapping of its own, which goes with it (the pages of a
mapped file count as used memory until then).
"""
from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from modelscope_cartoon.folder import WeightFiles

PORTION = 256 * 2**20     # bytes


def state_dict(files: WeightFiles, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of `files` by name, floating ones in `dtype`, on the CPU. Pickles are read with weights_only=True."""
    state: dict[str, torch.Tensor] = {}
    for path in files.paths:
        opened = _safetensors if files.safe else _pickle
        with opened(path) as tensors:
            names = list(tensors.keys())
        while names:
            with opened(path) as tensors:
                state |= _portion(tensors, names, dtype)
            del tensors     # with the last of its tensors the mapping goes
    return state


def _portion(tensors: Any, names: list[str], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of `names`, which are taken off that list, until PORTION bytes were converted."""
    read: dict[str, torch.Tensor] = {}
    converted = 0
    while names and converted < PORTION:
        name = names.pop()
        stored = tensors[name]
        if not isinstance(stored, torch.Tensor):
            raise ValueError(f'{name} is a {type(stored).__name__}; accepted: tensors by name')
        read[name] = stored.to(dtype).contiguous() if stored.is_floating_point() else stored
        converted += stored.nbytes if read[name] is not stored else 0
    return read


class _Lazily(dict):
    """A safetensors file's tensors by name, each read when it is asked for."""

    def __init__(self, file: Any):
        super().__init__(dict.fromkeys(file.keys()))
        self._file = file

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)


@contextmanager
def _safetensors(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    with safe_open(path, framework='pt') as file:
        yield _Lazily(file)


@contextmanager
def _pickle(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    tensors = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(tensors, dict):
        raise ValueError(f'it holds a {type(tensors).__name__}; accepted: tensors by name')
    yield tensors
