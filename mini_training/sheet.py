"""Draws prompts (rows) in the five looks (columns): `python -m mini_training.sheet --model DIR --to sheet.png`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from mini_training.subjects import LOOKS

PROMPTS = (
    'a cat', 'a painting of a fox on a blue background', 'a rocket', 'a house on a green background', 'a pizza',
    'a sunflower', 'a robot on a yellow background', 'a sailboat', 'a penguin on a red background',
    'a portrait painting of a woman with red hair and glasses', 'a portrait painting of a man with a beard',
    'a portrait painting of a smiling girl with long blond hair on a blue background',
    'a portrait painting of a woman firefighter', 'a man astronaut', 'a portrait painting of johnny smith',
)


def draw(pipeline: StableDiffusionPipeline, prompt: str, seed: int, steps: int, guidance: float) -> Image.Image:
    prompts = [f'{look}, {prompt}' for look in LOOKS.values()]
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    images = pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images
    return Image.fromarray(np.hstack([np.asarray(image) for image in images]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', type=Path, required=True)
    parser.add_argument('--to', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--guidance', type=float, default=5.0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--prompts', nargs='+', default=PROMPTS)
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    start = time.perf_counter()
    rows = [np.asarray(draw(pipeline, p, args.seed, args.steps, args.guidance)) for p in args.prompts]
    seconds = (time.perf_counter() - start) / (len(rows) * len(LOOKS))
    Image.fromarray(np.vstack(rows)).save(args.to)
    print(f'{args.to}: {seconds:.2f} s a picture, rows: {list(args.prompts)}')


if __name__ == '__main__':
    main()
