"""Teaching a base model a style from 10 to 100 pictures.

    from modelscope_cartoon.training import train
    train('my/pictures', 'my-style', base='mini', trigger='sks style')

recipe.py has every setting; run.py the steps in order; loop.py the loop itself.
"""
from __future__ import annotations

from typing import Any

__all__ = ['plan', 'train']


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from modelscope_cartoon.training import run
    return getattr(run, name)
