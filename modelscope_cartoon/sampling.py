"""From prompts to pictures in a handful of plain steps, on a diffusers pipeline; one step's result fits the next.

    pipe = session(pipe, request)                             the request's own scheduler
    noise = initial_noise(pipe, request, generator, ...)      [N, C, h, w]
    encoded = encode_all(pipe, request, pictures)             grouped by prompt length
    latents = denoise(pipe, request, encoded, noise, ...)     [N, C, h, w]
    images = decode(pipe, latents)                            float32 [N, H, W, 3], RGB, 0..1

Overflow is raised at the first stage whose numbers are not finite.
"""
from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor

from modelscope_cartoon import deepcache, guidance
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.request import GenerationRequest, Picture
from modelscope_cartoon.schedulers import build, check_eta, check_steps
from modelscope_cartoon.text_encoding import encode


class Overflow(Exception):
    """Numbers that are not finite, or the black picture that they leave; says at which stage."""


class Encoded(NamedTuple):
    """Embeddings [N, tokens, width] of the pictures at `positions`, which share their number of tokens."""
    positions: list[int]
    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor


def sample(pipe: Any, request: GenerationRequest, pictures: Sequence[Picture]) -> np.ndarray:
    """`pictures` with the request's settings, float32 [N, H, W, 3], RGB, 0..1."""
    pipe = session(pipe, request)     # refuses before any work is done
    generator = request.generator if request.generator is not None else [
        torch.Generator('cpu').manual_seed(picture.seed) for picture in pictures]
    noise = initial_noise(pipe, request, len(pictures), generator)
    images: list[Any] = [None] * len(pictures)
    for encoded in encode_all(pipe, request, pictures):
        latents = denoise(pipe, request, encoded, noise, generator)
        for position, image in zip(encoded.positions, decode(pipe, latents)):
            images[position] = image
    return np.stack(images)


def default_size(pipe: Any) -> tuple[int, int]:
    """(height, width) in pixels that the UNet was trained at."""
    size = pipe.unet.config.sample_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def session(pipe: Any, request: GenerationRequest) -> Any:
    """`pipe` with a scheduler of this request's own, so that no scheduler state is ever shared."""
    pipe = copy.copy(pipe)
    pipe.scheduler = (build(request.scheduler, pipe.scheduler.config) if request.scheduler
                      else copy.deepcopy(pipe.scheduler))
    check_steps(pipe.scheduler, request.num_inference_steps)
    check_eta(pipe.scheduler, request.eta)
    guidance.check(pipe, request)
    deepcache.check(pipe.unet, request.cache_interval)
    pipe.scheduler.step = _checked(pipe.scheduler.step)
    if not hasattr(pipe, '_progress_bar_config'):
        pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipe


def _checked(step: Callable) -> Callable:
    """A scheduler's step that refuses an infinite prediction, which one that clips would make into a picture."""
    @functools.wraps(step)
    def checked(prediction: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return step(finite('denoising', prediction), *arguments, **options)
    return checked


def initial_noise(pipe: Any, request: GenerationRequest, count: int, generator: Any) -> torch.Tensor:
    """Unit noise, drawn in fp32 so that a seed means the same in every precision; or the request's own latents."""
    height, width = _size(pipe, request)
    shape = (count, pipe.unet.config.in_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
    device, dtype = pipe._execution_device, pipe.unet.dtype
    if request.latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)
    try:
        latents = torch.as_tensor(request.latents)
    except (TypeError, ValueError, RuntimeError):
        latents = torch.tensor(torch.nan)
    if tuple(latents.shape) != shape or not torch.isfinite(latents).all():
        raise InvalidRequest(f'latents have the shape {tuple(latents.shape)}; accepted: finite numbers of the shape '
                             f'{shape} for {count} pictures of {height} x {width}.')
    return latents.to(device, dtype)


def encode_all(pipe: Any, request: GenerationRequest, pictures: Sequence[Picture]) -> list[Encoded]:
    """Each different pair of prompts encoded once. Pictures are grouped by length and never padded to a longer
    neighbour, which would change them."""
    pairs = {(p.prompt, p.negative_prompt): None for p in pictures}
    for pair in pairs:
        pairs[pair] = encode(pipe, *pair, clip_skip=request.clip_skip)
    groups: dict[int, list[int]] = {}
    for position, p in enumerate(pictures):
        groups.setdefault(pairs[p.prompt, p.negative_prompt][0].shape[1], []).append(position)
    return [Encoded(positions, *(
        finite('text encoding', torch.cat([pairs[pictures[i].prompt, pictures[i].negative_prompt][side]
                                           for i in positions])) for side in (0, 1)))
            for positions in groups.values()]


def denoise(pipe: Any, request: GenerationRequest, encoded: Encoded, noise: torch.Tensor, generator: Any,
            ) -> torch.Tensor:
    height, width = _size(pipe, request)
    if isinstance(generator, (list, tuple)):
        generator = [generator[i] for i in encoded.positions]
    latents = deepcache.reusing(pipe, request.cache_interval)(
        prompt_embeds=encoded.prompt_embeds, negative_prompt_embeds=encoded.negative_prompt_embeds,
        latents=noise[encoded.positions], generator=generator, height=height, width=width,
        num_inference_steps=request.num_inference_steps, guidance_rescale=request.guidance_rescale, eta=request.eta,
        output_type='latent', **guidance.options(request, encoded.negative_prompt_embeds,
                                                 _returning_a_dict(request.callback_on_step_end))).images
    return finite('denoising', latents)


def _returning_a_dict(callback: Any) -> Any:
    """diffusers wants a dict from its callback; a function that returns nothing changes nothing."""
    if callback is None or isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        return callback
    return lambda *step: callback(*step) or {}


def decode(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    images = pipe.image_processor.postprocess(finite('decoding', image), output_type='np')
    if image.dtype != torch.float32 and not images.reshape(len(images), -1).any(axis=1).all():
        raise Overflow('decoding gave a black picture')
    return images


def finite(stage: str, tensor: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(tensor).all():
        raise Overflow(f'{stage} gave numbers that are not finite')
    return tensor


def _size(pipe: Any, request: GenerationRequest) -> tuple[int, int]:
    height, width = default_size(pipe)
    return request.height or height, request.width or width
