"""The output formats, one row each: from a float picture to what the caller asked for.

A picture comes as float32 [H, W, 3], RGB, 0..1. BGR, the byte order of OpenCV and so of ModelScope's outputs,
exists in this file alone.
"""
from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelscope_cartoon.names import look_up


@dataclass(frozen=True)
class Format:
    name: str
    convert: Callable[[np.ndarray], Any]
    suffixes: tuple[str, ...] = ()


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """Rounded as diffusers rounds, so that equal floats give equal bytes."""
    return (picture * 255).round().astype('uint8')


def _bgr(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(to_uint8(picture)[..., ::-1])


def _pil(picture: np.ndarray) -> Any:
    from PIL import Image
    return Image.fromarray(to_uint8(picture))


def _encoded(kind: str, **options: Any) -> Callable[[np.ndarray], bytes]:
    def encode(picture: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        _pil(picture).save(buffer, kind, **options)
        return buffer.getvalue()
    return encode


_png = _encoded('PNG')

ROWS: tuple[Format, ...] = (
    Format('bgr', _bgr),
    Format('rgb', to_uint8),
    Format('pil', _pil),
    Format('np', lambda picture: picture),
    Format('png', _png, ('.png',)),
    Format('jpeg', _encoded('JPEG', quality=95, subsampling=0), ('.jpg', '.jpeg')),
    Format('webp', _encoded('WEBP', quality=95, method=4), ('.webp',)),
    Format('base64', lambda picture: base64.b64encode(_png(picture)).decode('ascii')),
)


def get_format(name: object) -> Format:
    return look_up('output_type', name, {row.name: row for row in ROWS})


def format_of_suffix(suffix: str) -> Format:
    """The format that writes files ending in `suffix` ('.png')."""
    return look_up('file ending', suffix, {s: row for row in ROWS for s in row.suffixes})
