"""Ways to run a model's networks, one file each. A Backend is one of them at work on one loaded model.

    chosen = choose('auto', folder, device, dtype)            a class, and says at INFO what and why
    backend = chosen(folder, device, dtype, memory_mode)
    with backend.drawing(loras):
        sample(backend.pipe, request, pictures)
"""
from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch

from modelscope_cartoon.errors import ModelError
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.log import logger
from modelscope_cartoon.lora_choice import LoraChoice
from modelscope_cartoon.names import look_up

Report = Callable[[str], None]     # takes one line of what was just done


class Backend(ABC):
    """pipe: the diffusers pipeline that draws, on its device. The user may replace it, or parts of it."""

    name: ClassVar[str]
    by_name_only: ClassVar[bool] = False     # True: neither drawn with nor prepared unless asked for
    pipe: Any

    @abstractmethod
    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype, memory_mode: str): ...

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        """What this machine lacks (a package, a GPU) and how to get it, as a sentence; None where it runs."""
        return None

    @classmethod
    def obstacle(cls, folder: ModelFolder) -> str | None:
        """Why it can't draw this model, as a sentence; None where it can."""
        return None

    @classmethod
    def recommended(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why `auto` should take it here (it is prepared, and faster); None where it shouldn't."""
        return None

    @classmethod
    def prepare(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype, report: Report) -> bool:
        """Builds what makes the next start warm and reports each thing done. False where there was nothing to do."""
        return False

    @abstractmethod
    def drawing(self, loras: Sequence[LoraChoice]) -> AbstractContextManager[None]:
        """`pipe` draws with `loras` inside the block, and is as it was after it."""

    @abstractmethod
    def check_lora(self, choice: LoraChoice) -> None:
        """CartoonError where `choice` can't be read or was made for another model."""

    @abstractmethod
    def to_fp32(self) -> None:
        """Computes in float32 from now on, after numbers have overflowed."""

    @abstractmethod
    def set_memory(self, mode: str) -> None:
        """Goes to another memory mode (modelscope_cartoon.memory)."""

    @abstractmethod
    def compile(self, **options: Any) -> None:
        """The host's compile=True, with torch.compile's options."""

    @abstractmethod
    def save_networks(self, folder: str) -> None:
        """A diffusers folder of the model as it draws without LoRAs."""


# in the order in which `auto` asks; a new backend is one file and one row here
_MODULES = {'compile': 'compiled.Compiled', 'openvino': 'openvino.OpenVINO', 'torch': 'eager.Eager',
            'int8': 'int8.Int8'}
NAMES = ('auto', *_MODULES)


def get_backend(name: str) -> type[Backend]:
    module, _, attribute = _MODULES[name].partition('.')
    return getattr(importlib.import_module(f'modelscope_cartoon.backends.{module}'), attribute)


def parse_backend(value: object) -> str:
    return look_up('backend', value, {name: name for name in NAMES})


def choose(name: str, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> type[Backend]:
    """The backend called `name`, or for auto the first that is recommended.

    ModelError where it lacks a package or a device; torch, with a warning, where it can't draw this model.
    """
    if name == 'auto':
        return _recommended(folder, device, dtype)
    backend = get_backend(name)
    missing = backend.missing(device)
    if missing:
        raise ModelError(f'backend {name!r} can\'t run here: {missing}')
    obstacle = backend.obstacle(folder)
    if obstacle:
        logger.warning("backend %r can't draw %s: %s Drawing with torch instead.", name, folder.root, obstacle)
        return get_backend('torch')
    return backend


def _recommended(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> type[Backend]:
    for name in _MODULES:
        backend = get_backend(name)
        if backend.by_name_only or backend.missing(device) or backend.obstacle(folder):
            continue
        reason = backend.recommended(folder, device, dtype)
        if reason:
            logger.info('backend %r: %s', name, reason)
            return backend
    raise AssertionError('torch runs everywhere')
