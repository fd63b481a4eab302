"""Cartoon text-to-image for ModelScope. Importing this registers the plugin: rows in the host's index, which imports
the engine when a pipeline is first built.
"""
from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__version__ = '0.1.0'
__all__ = ['__version__', 'load_pipeline', 'parse_request']

_TASK = 'text-to-image-synthesis'
_INDEX = {
    ('PIPELINES', _TASK, 'cartoon-stable-diffusion'): 'modelscope_cartoon.pipeline',
    ('MODELS', _TASK, 'cartoon-stable-diffusion'): 'modelscope_cartoon.model',
    ('PREPROCESSORS', 'multi-modal', 'cartoon-style-prompt'): 'modelscope_cartoon.preprocessor',
    ('TRAINERS', 'default', 'cartoon-stable-diffusion'): 'modelscope_cartoon.training.trainer',
    ('PIPELINES', _TASK, 'diffusers-stable-diffusion'): 'modelscope_cartoon.legacy',
}
_LAZY = {'load_pipeline': 'modelscope_cartoon.pipeline', 'parse_request': 'modelscope_cartoon.request'}


def _register() -> None:
    from modelscope.utils.import_utils import LazyImportModule

    index = LazyImportModule.get_ast_index()['index']
    for signature, module in _INDEX.items():
        index[signature] = {'filepath': '', 'imports': [], 'module': module}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    with _no_garbage_collection():
        module = import_module(_LAZY[name])
    return getattr(module, name)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """While torch, transformers and diffusers are imported the collector runs through all their objects hundreds of
    times and frees nothing, in a seventh of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


_register()
