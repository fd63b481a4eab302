"""Class pictures (Ruiz et al. 2023, section 3.3): what the base draws without the trigger, so that it goes on to."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from modelscope_cartoon import sampling
from modelscope_cartoon.errors import BadPictures
from modelscope_cartoon.files import write_file
from modelscope_cartoon.folder import file_sha256
from modelscope_cartoon.request import Picture, parse_request
from modelscope_cartoon.training.base import Base
from modelscope_cartoon.training.material import encode_pictures
from modelscope_cartoon.training.pictures import Example, read_examples
from modelscope_cartoon.training.progress import bar
from modelscope_cartoon.training.recipe import Recipe

_AT_ONCE = 8
Prior = list[tuple[str, torch.Tensor]]


def prepare_prior(base: Base, examples: list[Example], cache: Path) -> Prior:
    """(caption, latents [1, C, h, w]) of each class picture: from a folder, from `cache`, or drawn by the base."""
    recipe = base.recipe
    if not recipe.prior_share:
        return []
    if recipe.prior_pictures:
        return _from_folder(base, recipe)
    prompts = prior_prompts(recipe, [example.caption for example in examples])
    wanted = [prompts[i % len(prompts)] for i in range(recipe.prior_count)]
    key = _key(base, wanted)
    latents = _cached(cache, key)
    if latents is None:
        latents = draw(base, wanted)
        write_file(cache, save({'latents': latents}, {'key': key}))
    return [(prompt, latent[None]) for prompt, latent in zip(wanted, latents)]


def prior_prompts(recipe: Recipe, captions: list[str]) -> list[str]:
    """The recipe's own, or the captions without the trigger: the nearest to the style that must not take it on."""
    prompts = recipe.prior_prompts or tuple(recipe.without_trigger(caption) for caption in captions)
    return list(dict.fromkeys(prompts))


def _from_folder(base: Base, recipe: Recipe) -> Prior:
    plain = Recipe.of(trigger='', caption=recipe.without_trigger(recipe.caption.format(trigger=recipe.trigger)))
    examples = read_examples(recipe.prior_pictures, plain, base.resolution)
    if not examples:
        raise BadPictures(f'{recipe.prior_pictures} has no class pictures in it.')
    middle = [example.image.crop(_middle(example.image.size)) for example in examples]
    latents = encode_pictures(base, [image.resize((base.resolution,) * 2) for image in middle])
    return [(example.caption, latent[None]) for example, latent in zip(examples, latents)]


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


@torch.no_grad()
def draw(base: Base, prompts: list[str]) -> torch.Tensor:
    """[N, C, h, w], float32 on the CPU, one seed after the other; not decoded, so the VAE costs them nothing."""
    drawn = []
    with bar(len(prompts), 'class pictures') as progress:
        for start in range(0, len(prompts), _AT_ONCE):
            some = prompts[start:start + _AT_ONCE]
            seeds = [base.recipe.seed + start + i for i in range(len(some))]
            drawn.append(_draw_some(base, some, [seed % 2**32 for seed in seeds]).float().cpu())
            progress.update(len(some))
    return torch.cat(drawn)


def _draw_some(base: Base, prompts: list[str], seeds: list[int]) -> torch.Tensor:
    request = parse_request(prompts, seed=seeds, **drawing(base))
    pipe = sampling.session(base.pipe, request)
    pictures = [Picture(prompt, '', seed) for prompt, seed in zip(prompts, seeds)]
    generators: list[Any] = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = sampling.initial_noise(pipe, request, len(pictures), generators)
    latents = torch.empty_like(noise)
    for encoded in sampling.encode_all(pipe, request, pictures):
        latents[encoded.positions] = sampling.denoise(pipe, request, encoded, noise, generators)
    return latents


def drawing(base: Base) -> dict[str, Any]:
    """The request fields of class pictures and samples."""
    return {'num_inference_steps': base.recipe.sample_steps, 'guidance_scale': base.recipe.sample_guidance,
            'height': base.resolution, 'width': base.resolution}


def _key(base: Base, prompts: list[str]) -> str:
    weights = [file_sha256(path) for path in base.folder.weights['unet'].paths]
    return json.dumps([weights, prompts, base.recipe.seed, drawing(base), str(base.dtype)])


def _cached(path: Path, key: str) -> torch.Tensor | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, 'pt') as file:
            return file.get_tensor('latents') if (file.metadata() or {}).get('key') == key else None
    except Exception:     # damaged: drawn again
        return None
