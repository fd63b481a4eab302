"""Numbers of a picture: the manner in which it is made, and the colour of its ground; and the interval of a share."""
from __future__ import annotations

import cv2
import numpy as np

from benchmarks.quality.embeddings import Array, gradients, to_lab

Z = 1.96


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, Wilson 1927."""
    if not count:
        return 0.0, 1.0
    share, spread = hits / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * np.sqrt(share * (1 - share) / count + spread / 4 / count) / (1 + spread)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def manner(picture: Array) -> Array:
    """Some fifty numbers of how a picture is made, whatever it shows: border, colours, edges, texture."""
    lab = to_lab(picture).astype(np.float32)
    value = picture.max(2) / 255
    chroma = np.linalg.norm(lab[..., 1:], axis=2)
    strength, angle = gradients(lab)
    rings = [ring(lab, a, b) for a, b in ((0, 4), (6, 12), (14, 20))]
    numbers = [np.concatenate([r.mean(0), r.std(0)]) for r in rings]
    numbers += [lab[:12, 20:-20].mean((0, 1)) - lab[-12:, :20].mean((0, 1))]
    numbers += [share(x, edges) for x, edges in ((value, (.15, .35, .55, .75, .93)), (chroma, (.05, .15, .3, .45)),
                                                 (strength, (.03, .1, .3, .8, 1.6)))]
    numbers += [[texture(lab[..., 0], sigma).mean(), np.median(texture(lab[..., 0], sigma)),
                 ring(texture(lab[..., 0], sigma)[..., None], 6, 16).mean()] for sigma in (0.8, 2.0, 5.0)]
    diagonal = np.histogram(angle, 8, (0, np.pi), weights=strength)[0]
    numbers += [diagonal / (diagonal.sum() + 1e-6)]
    return np.concatenate(numbers).astype(np.float32)


def ring(lab: Array, start: int, stop: int) -> Array:
    """The pixels between two distances from the border, in a row."""
    side = np.arange(len(lab))
    depth = np.minimum(side, side[::-1])
    frame = np.minimum(depth[:, None], depth[None])
    return lab[(frame >= start) & (frame < stop)]


def share(values: Array, edges: tuple[float, ...]) -> Array:
    return np.histogram(values, (-np.inf, *edges, np.inf))[0] / values.size


def texture(light: Array, sigma: float) -> Array:
    return np.abs(light - cv2.GaussianBlur(light, (0, 0), sigma))


def ground(picture: Array) -> Array:
    """Medians of the frame at four depths, upper half and whole, and of the two upper corners: 30 numbers."""
    lab = to_lab(picture)
    depths = ((0, 4), (5, 10), (11, 18), (19, 26))
    upper = lab.copy()
    upper[len(lab) // 2:] = np.nan
    numbers = [np.median(ring(lab, a, b), 0) for a, b in depths]
    numbers += [np.nanmedian(ring(upper, a, b), 0) for a, b in depths]
    numbers += [np.median(lab[14:26, part], (0, 1)) for part in (slice(12, 26), slice(-26, -12))]
    return np.concatenate(numbers).astype(np.float32)


def border_colour(picture: Array, start: int = 0, stop: int = 4) -> Array:
    """The median Lab colour of the frame between two distances from the border."""
    return np.median(ring(to_lab(picture), start, stop), 0)
