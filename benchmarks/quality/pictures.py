"""Pictures to compare: rendered as training's are, sent through the autoencoder, or drawn by the model."""
from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.prompts import Ask, Job
from mini_training import looks, portraits, subjects
from mini_training import render as renderer
from mini_training.render import draw_picture, portrait_svgs
from mini_training.subjects import Row

Pictures = NDArray[np.uint8]
RENDERING = (looks, portraits, subjects, renderer)
FRESH = 10_000_000     # training's pictures are numbered from 0; from here on nothing was trained on


def render(npm: Path, sampled: Sequence[tuple[Row, Job]], first: int) -> Pictures:
    """Picture i is rendered with the number first + i; `first` lies at or above FRESH."""
    svgs = portrait_svgs(npm, [job for _, job in sampled if job])
    return np.stack([draw_picture(npm, row, next(svgs) if job else None, number)
                     for number, (row, job) in enumerate(sampled, first)])


@torch.no_grad()
def through(vae: Any, pictures: Pictures) -> Pictures:
    """Encoded and decoded: what a perfect denoiser could draw at most."""
    done = []
    for start in range(0, len(pictures), 16):
        pixels = torch.from_numpy(pictures[start:start + 16]).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.float()
        done.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(done)


def draw(pipe: Any, asks: Sequence[Ask], steps: int, guidance: float | None) -> Pictures:
    """Through the package's own pipeline, a style at a time. guidance None: the model's own."""
    order = sorted(range(len(asks)), key=lambda i: (str(asks[i].style), not asks[i].trigger))
    settings = {'num_inference_steps': steps, 'output_type': 'rgb'} | ({'guidance_scale': guidance} if guidance else {})
    pictures: list[Any] = [None] * len(asks)
    started = time.perf_counter()
    for start in range(0, len(order), 40):
        some = order[start:start + 40]
        for i, drawn in zip(some, pipe([asks[i].request() | settings for i in some], batch_size=8)):
            pictures[i] = drawn['output_imgs'][0]
        done = start + len(some)
        say(f'drawn {done} of {len(asks)}, {(time.perf_counter() - started) / done:.2f} s each')
    return np.stack(pictures)


def kept(folder: Path | None, name: str, key: Any, make: Callable[[], Pictures], *modules: ModuleType) -> Pictures:
    """`make()`, or what an earlier run left in `folder` with an equal `key` and equal sources of `modules`."""
    started, path = time.perf_counter(), None
    if folder is not None:
        sources = [Path(module.__file__).read_bytes() for module in (*RENDERING, *modules)]
        digest = hashlib.sha256(repr((key, sources)).encode()).hexdigest()
        path = folder / f'{name}-{digest[:12]}.npy'
        if path.exists():
            return np.load(path)
    made = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, made)
    say(f'{name}: {len(made)} in {time.perf_counter() - started:.0f} s')
    return made


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
