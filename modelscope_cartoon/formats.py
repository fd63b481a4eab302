"""The output formats, one row each: from a float picture to what the caller asked for.

A picture comes as float32 [H, W, 3], RGB, 0..1. BGR, the byte order of OpenCV and so of ModelScope's outputs,
exists in this file alone. Files hold the picture's recipe and labels (modelscope_cartoon.metadata).
"""
from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelscope_cartoon import metadata
from modelscope_cartoon.names import look_up

Convert = Callable[..., Any]


@dataclass(frozen=True)
class Format:
    """convert(picture): what the caller gets. A file's takes `recipe` and `kinds` besides, as metadata.write does."""
    name: str
    convert: Convert
    suffixes: tuple[str, ...] = ()
    holds_metadata: bool = False


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Rounded as diffusers rounds, so that equal floats give equal bytes."""
    return (picture * 255).round().astype('uint8')


def _bgr(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(to_uint8(picture)[..., ::-1])


def _pil(picture: np.ndarray) -> Any:
    from PIL import Image
    return Image.fromarray(to_uint8(picture))


def _file(container: str) -> Convert:
    def encode(picture: np.ndarray, recipe: Mapping[str, Any] | None = None, kinds: tuple[str, ...] = ()) -> bytes:
        return metadata.write(_pil(picture), container, recipe, kinds)
    return encode


def _base64(picture: np.ndarray, recipe: Mapping[str, Any] | None = None, kinds: tuple[str, ...] = ()) -> str:
    return base64.b64encode(metadata.write(_pil(picture), 'PNG', recipe, kinds)).decode('ascii')


ROWS: tuple[Format, ...] = (
    Format('bgr', _bgr),
    Format('rgb', to_uint8),
    Format('pil', _pil),
    Format('np', lambda picture: picture),
    Format('png', _file('PNG'), ('.png',), True),
    Format('jpeg', _file('JPEG'), ('.jpg', '.jpeg'), True),
    Format('webp', _file('WEBP'), ('.webp',), True),
    Format('base64', _base64, (), True),
)


def get_format(name: object) -> Format:
    return look_up('output_type', name, {row.name: row for row in ROWS})


def format_of_suffix(suffix: str) -> Format:
    """The format that writes files ending in `suffix` ('.png')."""
    return look_up('file ending', suffix, {s: row for row in ROWS for s in row.suffixes})
