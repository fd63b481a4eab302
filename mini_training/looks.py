"""The five looks, derived over transparent drawings. Pictures are float32 RGB in [0, 1], alpha is H x W x 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]

COLOURS: dict[str, tuple[float, float, float]] = {
    'white': (0.97, 0.97, 0.97), 'gray': (0.55, 0.56, 0.58), 'red': (0.86, 0.20, 0.20), 'orange': (0.95, 0.55, 0.15),
    'yellow': (0.98, 0.82, 0.20), 'green': (0.28, 0.68, 0.32), 'blue': (0.22, 0.48, 0.88), 'purple': (0.52, 0.30, 0.74),
    'pink': (0.96, 0.55, 0.72),
}


def _rgb(colour: str) -> Image:
    return np.asarray(COLOURS[colour], np.float32)


def _mix(a: Image, b: Image | float, amount: Image | float) -> Image:
    return np.asarray(a + (b - a) * amount, np.float32)


def _blur(image: Image, sigma: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma)).reshape(image.shape)


def _shift(image: Image, dx: int, dy: int) -> Image:
    return np.pad(image, ((dy, 0), (dx, 0), (0, 0)))[: image.shape[0], : image.shape[1]]


def _grow(alpha: Image, radius: int) -> Image:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(alpha, kernel)[..., None]


def _noise(size: int, cell: int, rng: np.random.Generator, channels: int = 1) -> Image:
    """Smooth noise of about unit variance whose blobs are `cell` pixels wide."""
    coarse = rng.standard_normal((size // cell + 3, size // cell + 3, channels)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).reshape(size, size, channels)


def _saturate(image: Image, factor: float) -> Image:
    grey = image.mean(axis=2, keepdims=True)
    return np.clip(_mix(grey, image, factor), 0, 1)


def _edges(image: Image, alpha: Image) -> Image:
    """Where an illustrator would draw a line inside the shape: steps between its fills."""
    smooth = cv2.bilateralFilter(image, 5, 0.15, 3)
    dx, dy = cv2.Sobel(smooth, -1, 1, 0), cv2.Sobel(smooth, -1, 0, 1)
    strength = np.sqrt((dx ** 2 + dy ** 2).sum(axis=2, keepdims=True))
    return np.clip(_blur(strength.astype(np.float32), 0.6) * 0.9 - 0.35, 0, 1) * alpha


def _ramp(size: int) -> Image:
    return np.linspace(0, 1, size, dtype=np.float32)[:, None, None]


def flat(image: Image, alpha: Image, colour: str, rng: np.random.Generator) -> Image:
    """Two-tone fills on a plain pastel ground, a long shadow at 45 degrees, no lines."""
    ground = np.broadcast_to(_mix(_rgb(colour), 1.0, 0.3), image.shape).astype(np.float32)
    shadow = alpha
    for step in (1, 2, 4, 8, 16, 32, 64):
        shadow = np.maximum(shadow, _shift(shadow, step, step))
    ground = _mix(ground, ground * 0.78, shadow)
    fills = cv2.bilateralFilter(image, 5, 0.2, 4)
    return _mix(ground, fills, alpha)


def design(image: Image, alpha: Image, colour: str, rng: np.random.Generator) -> Image:
    """Airbrushed volume over a muted gradient ground with a soft shadow."""
    size = len(image)
    base = _mix(_saturate(_rgb(colour)[None, None], 0.65), 0.45, 0.15)
    ground = _mix(base * 1.25 + 0.06, base * 0.65, _ramp(size))
    ground = _mix(ground, ground * 0.55, _shift(_blur(alpha, 6.0), 3, 5) * 0.8)
    inside = _blur(alpha, 7.0) * alpha
    light = 0.74 + 0.42 * inside - 0.16 * _ramp(size) + 0.1 * (1 - _ramp(size).transpose(1, 0, 2))
    soft = _blur(cv2.bilateralFilter(image, 7, 0.25, 5), 0.6)
    return np.clip(_mix(ground, np.clip(_saturate(soft, 0.9) * light, 0, 1), _blur(alpha, 0.6)), 0, 1)


def clipart(image: Image, alpha: Image, colour: str, rng: np.random.Generator) -> Image:
    """A die-cut sticker: saturated fills, a thick dark contour, a white border, a plain ground."""
    ground = np.broadcast_to(_rgb(colour) * (0.88 if colour == 'white' else 1.0), image.shape).astype(np.float32)
    solid = (alpha > 0.5).astype(np.float32)
    contour, border = _blur(_grow(solid, 3), 0.6), _blur(_grow(solid, 8), 0.7)
    ground = _mix(ground, ground * 0.7, _shift(_blur(border, 1.5), 2, 3))
    fills = np.round(_saturate(cv2.bilateralFilter(image, 7, 0.3, 5), 1.35) * 6) / 6
    picture = _mix(_mix(ground, 1.0, border), 0.1, contour)
    return _mix(picture, fills.astype(np.float32), alpha)


def illustration(image: Image, alpha: Image, colour: str, rng: np.random.Generator) -> Image:
    """Ink lines around and inside, saturated fills, a ground of halftone dots."""
    size = len(image)
    base = _saturate(_rgb(colour)[None, None], 1.15)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    dots = (np.cos((x + y) * np.pi / 8) * np.cos((x - y) * np.pi / 8))[..., None]
    ground = _mix(base, base * 0.72, np.clip((dots + 1.3 * _ramp(size) - 0.85) * 4, 0, 1))
    fills = _saturate(cv2.bilateralFilter(image, 5, 0.2, 4), 1.2)
    fills = np.clip((fills - 0.5) * 1.15 + 0.5, 0, 1)
    inked = _mix(_mix(ground, 0.04, _blur(_grow(alpha, 2), 0.5)), fills.astype(np.float32), alpha)
    return _mix(inked, 0.04, _edges(image, alpha) * 0.9)


def watercolor(image: Image, alpha: Image, colour: str, rng: np.random.Generator) -> Image:
    """Pigment that pools at its edges, over a wash that leaves paper at the border."""
    size = len(image)
    paper = np.asarray((0.97, 0.955, 0.925), np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    warp = _noise(size, 14, rng, 2) * 1.4
    both = cv2.remap(np.concatenate([image, alpha], 2), x + warp[..., 0], y + warp[..., 1], cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REPLICATE)
    image, alpha = _blur(both[..., :3], 0.7), _blur(both[..., 3:], 0.7)
    frame = np.minimum(np.minimum(x, size - 1 - x), np.minimum(y, size - 1 - y))[..., None]
    wash = np.clip((frame - 9 + 4 * _noise(size, 16, rng)) / 5, 0, 1)
    pigment = 0.72 + 0.13 * _noise(size, 24, rng) + 0.5 * (wash * (1 - wash))
    ground = _mix(paper, _rgb(colour), np.clip(wash * pigment * 0.75, 0, 1))
    rim = np.clip(alpha - _blur(alpha, 2.5), 0, 1) * 1.6
    strength = np.clip(0.82 + 0.1 * _noise(size, 20, rng) + rim, 0, 1)
    painted = _mix(paper, image, strength) * (1 - 0.35 * rim)
    grain = 1 + 0.012 * _noise(size, 2, rng)
    return np.clip(_mix(ground, painted, np.clip(alpha * 1.05, 0, 1)) * grain, 0, 1)


DRAW: dict[str, Callable[[Image, Image, str, np.random.Generator], Image]] = {
    'design': design, 'watercolor': watercolor, 'illustration': illustration, 'clipart': clipart, 'flat': flat,
}


def place(drawing: NDArray[np.uint8], look: str, bust: bool, rng: np.random.Generator) -> tuple[Image, Image]:
    """RGBA moved, scaled and mirrored by chance; busts stand on the lower edge, but a sticker is cut out whole."""
    size = len(drawing)
    rgba = drawing.astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    if rng.random() < 0.5:
        rgba = rgba[:, ::-1].copy()
    rows = np.flatnonzero(rgba[..., 3].max(1) > 0.3)
    flush = bust and look != 'clipart'
    scale = rng.uniform(0.86, 0.98) if flush else rng.uniform(0.70, 0.84)
    dx = size * (1 - scale) / 2 + rng.uniform(-5, 5)
    dy = size + 1 - scale * (rows[-1] + 1) if flush else (size - scale * (rows[0] + rows[-1])) / 2 + rng.uniform(-4, 4)
    matrix = np.array([[scale, 0, dx], [0, scale, dy]], np.float32)
    moved = cv2.warpAffine(rgba, matrix, (size, size), flags=cv2.INTER_AREA)
    alpha = np.clip(moved[..., 3:], 0, 1)
    return np.clip(moved[..., :3] / np.maximum(alpha, 1e-3), 0, 1), alpha
