"""What the loop reads from memory: latents and texts of all pictures, encoded once before training."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

from modelscope_cartoon.log import logger
from modelscope_cartoon.training.base import Base
from modelscope_cartoon.training.pictures import Example

_AT_ONCE = 8
_ZOOM = 1.15      # how much closer the nearest crop is


@dataclass
class Material:
    """names, captions: one a row, `pictures` of them to learn, the rest class pictures. latents: [variants, C, h, w]
    each. texts: {caption: row of ids and embeddings}, '' among them.
    """
    names: list[str]
    captions: list[str]
    latents: list[torch.Tensor]
    pictures: int
    texts: dict[str, int]
    ids: torch.Tensor
    embeddings: torch.Tensor

    def text_rows(self, positions: Sequence[int], dropped: Sequence[bool]) -> torch.Tensor:
        return torch.tensor([self.texts['' if drop else self.captions[p]] for p, drop in zip(positions, dropped)])


def prepare(base: Base, examples: Sequence[Example], prior: Sequence[tuple[str, torch.Tensor]]) -> Material:
    """prior: captions and latents [1, C, h, w] of the class pictures."""
    latents = [encode_pictures(base, variants(example.image, base)) for example in examples]
    captions = [example.caption for example in examples] + [caption for caption, _ in prior]
    texts = {text: row for row, text in enumerate(dict.fromkeys(['', *captions]))}
    ids, embeddings = encode_texts(base, list(texts))
    return Material([example.name for example in examples] + [f'class picture {caption!r}' for caption, _ in prior],
                    captions, latents + [latent for _, latent in prior], len(examples), texts, ids, embeddings)


def variants(image: Image.Image, base: Base) -> list[Image.Image]:
    """Squares of the resolution: the middle, then crops here and there and a little closer, then all of it mirrored."""
    size, recipe = base.resolution, base.recipe
    rng = random.Random(recipe.seed)
    squares = [ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)]
    for _ in range(recipe.crops - 1):
        side = min(image.size) / rng.uniform(1, _ZOOM)
        left, top = (rng.uniform(0, length - side) for length in image.size)
        squares.append(image.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side)))
    return squares + [ImageOps.mirror(square) for square in squares] if recipe.flip else squares


@torch.no_grad()
def encode_pictures(base: Base, images: Sequence[Image.Image]) -> torch.Tensor:
    """[N, C, h, w], float32 on the CPU: the mean that the VAE gives, in the scale that the UNet knows."""
    vae, pixels = base.pipe.vae, VaeImageProcessor().preprocess(list(images))
    encoded = [vae.encode(part.to(base.device, vae.dtype)).latent_dist.mode() for part in pixels.split(_AT_ONCE)]
    return torch.cat(encoded).float().cpu() * vae.config.scaling_factor


@torch.no_grad()
def encode_texts(base: Base, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [N, L] and embeddings [N, L, D], as diffusers' pipelines encode a prompt."""
    tokenizer, encoder = base.pipe.tokenizer, base.pipe.text_encoder
    longest = tokenizer.model_max_length
    cut = [text for text in texts if len(tokenizer(text).input_ids) > longest]
    if cut:
        logger.warning('%d captions are longer than the %d tokens that the text encoder reads; their ends are cut: '
                       '%s', len(cut), longest, '; '.join(cut[:3])[:300])
    ids = tokenizer(list(texts), padding='max_length', max_length=longest, truncation=True,
                    return_tensors='pt').input_ids.to(base.device)
    embeddings = torch.cat([encoder(part)[0] for part in ids.split(_AT_ONCE)])
    return ids, embeddings
