"""Linear latents: 16 principal components of 8 x 8 patches. `python -m mini_training.latents --work DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mini_training.files import SIZE, open_pictures

PATCH, CHANNELS = 8, 16
# 1 would whiten fully. At one half the coarse components stay stronger than the fine ones, as in pictures themselves,
# so that noise hides detail first and the loss weighs what the eye sees.
WHITENING = 0.5
PROJECTION = 'projection.npz'


def to_patches(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """N x 128 x 128 x 3 bytes to N x 16 x 16 x 192 in [-1, 1]."""
    side = SIZE // PATCH
    split = pictures.reshape(-1, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    return split.reshape(-1, side, side, 3 * PATCH * PATCH).astype(np.float32) / 127.5 - 1


def fit(pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean patch and the 16 x 192 projection whose outputs have unit variance on average."""
    patches = to_patches(pictures).reshape(-1, 3 * PATCH * PATCH)
    mean = patches.mean(0)
    variance, vectors = np.linalg.eigh(np.cov((patches - mean).T))
    spread = np.sqrt(variance[::-1][:CHANNELS])
    kept = spread ** (1 - WHITENING)
    gain = kept / np.sqrt((kept ** 2).mean()) / spread
    explained = float((spread ** 2).sum() / variance.sum())
    print(f'explained {explained:.4f}, latent spread {np.round(gain * spread, 2)}')
    return mean, (vectors[:, ::-1][:, :CHANNELS] * gain).T.astype(np.float32)


def project(pictures: NDArray[np.uint8], mean: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float16]:
    return ((to_patches(pictures) - mean) @ matrix.T).transpose(0, 3, 1, 2).astype(np.float16)


def project_tensor(pixels: torch.Tensor, mean: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The same as a convolution, for pixels N x 3 x H x W."""
    kernel = matrix.reshape(CHANNELS, 3, PATCH, PATCH)
    return functional.conv2d(pixels, kernel, -(matrix @ mean), stride=PATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work', type=Path, required=True)
    work = parser.parse_args().work
    pictures = open_pictures(work)
    if (work / PROJECTION).exists():        # an autoencoder was fitted to it; new pictures must not move it
        mean, matrix = np.load(work / PROJECTION).values()
    else:
        mean, matrix = fit(pictures[:: max(1, len(pictures) // 2000)])
        np.savez(work / PROJECTION, mean=mean, matrix=matrix)
    chunks = [project(pictures[start:start + 500], mean, matrix) for start in range(0, len(pictures), 500)]
    np.save(work / 'latents.npy', np.concatenate(chunks))


if __name__ == '__main__':
    main()
