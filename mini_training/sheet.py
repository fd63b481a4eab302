"""Draws prompts (rows) in the five styles (columns): `python -m mini_training.sheet --model DIR --to sheet.png`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mini_training.subjects import LOOKS
from modelscope_cartoon import load_pipeline

PROMPTS = (
    'a portrait painting of a woman with red hair', 'a painting of a fox on a blue background',
    'a painting of a hamburger on a yellow background', 'a portrait painting of an old man with glasses',
)


def draw(pipe: Any, prompts: list[str], seed: int, **settings: Any) -> Image.Image:
    """One try each, nothing selected."""
    asked = [{'text': prompt, 'style': look} for prompt in prompts for look in LOOKS]
    outputs = pipe(asked, batch_size=8, seed=seed, output_type='rgb', **settings)
    pictures = [output['output_imgs'][0] for output in outputs]
    rows = [np.hstack(pictures[i:i + len(LOOKS)]) for i in range(0, len(pictures), len(LOOKS))]
    return Image.fromarray(np.vstack(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', default='mini')
    parser.add_argument('--to', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--guidance', type=float, help="default: the model's own")
    parser.add_argument('--seed', type=int, default=7)
    parser.add_argument('--prompts', nargs='+', default=PROMPTS)
    args = parser.parse_args()
    pipe = load_pipeline(args.model, device='cpu')
    start = time.perf_counter()
    page = draw(pipe, list(args.prompts), args.seed, num_inference_steps=args.steps, guidance_scale=args.guidance)
    page.save(args.to)
    seconds = (time.perf_counter() - start) / (len(args.prompts) * len(LOOKS))
    print(f'{args.to}: {seconds:.2f} s a picture, rows: {list(args.prompts)}')


if __name__ == '__main__':
    main()
