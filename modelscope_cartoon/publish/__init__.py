"""A model of yours on the hub, so that the card's snippet draws with it.

    from modelscope_cartoon.publish import build_repository, publish, upload
    publish('my-style', 'owner/my-style')          # builds, checks by drawing, sends, checks by a fresh download

repository.py builds the folder; upload.py sends it; card.py writes its README from what is known of the model.
"""
from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {'build_repository': 'repository', 'publish': 'upload', 'upload': 'upload'}
__all__ = ['build_repository', 'publish', 'upload']


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)
