"""A visible label in a picture's lower right corner, on a dark plate so that it reads on every ground."""
from __future__ import annotations

import numpy as np

from modelscope_cartoon import lettering

_SHARE = 0.05      # of the shorter side: the least height of the letters that GB 45438-2025 is said to ask for
_LEAST = 10        # pixels; smaller letters can't be read
_PLATE = 0.55      # how dark the plate is


def labelled(picture: np.ndarray, text: str) -> np.ndarray:
    """A copy of `picture`, float32 [H, W, 3], RGB, 0..1, with `text`, cut where it is wider than the picture."""
    height, width = picture.shape[:2]
    size = max(_LEAST, -(-min(height, width) * 5 // 100))
    pad = size // 3
    text = lettering.fitting(text, width - 4 * pad, size)
    left, top = width - lettering.text_width(text, size) - 3 * pad, height - size - 3 * pad
    plate = np.round(picture[top:, left:] * (255 * (1 - _PLATE))).astype(np.uint8)
    lettering.write(plate, text, (pad, size + pad // 2), size, (255, 255, 255))
    picture = picture.copy()
    picture[top:height - pad, left:width - pad] = plate[:-pad, :-pad].astype(np.float32) / 255
    return picture
