"""Memory modes: what each does to a diffusers pipeline, and how `auto` chooses from what is free.

      everywhere                             on a GPU, beside that
full  everything on the device
low   the VAE decodes a picture at a time    and in tiles; the UNet's weights are kept in 8 bits, each layer of the
                                             text encoder comes when it is its turn
min   and in tiles                           the UNet's layers do so too, in 16 bits (slow)

What is the same in several models is shared (modelscope_cartoon.sharing).
"""
from __future__ import annotations

import itertools
from typing import Any

import psutil
import torch

from modelscope_cartoon import eight_bits, resting
from modelscope_cartoon.errors import OutOfMemory
from modelscope_cartoon.log import logger
from modelscope_cartoon.names import look_up
from modelscope_cartoon.sharing import share

MODES = ('full', 'low', 'min')
_ACTIVATIONS = 1.5 * 2**30     # bytes beside the weights for one 768-pixel picture, VAE decode included
# torch's words on Linux and macOS, on Windows; OpenVINO's
_CPU_OUT_OF_MEMORY = ("can't allocate memory", 'not enough memory', 'bad_alloc')
_TILE = 512                    # pixels; the VAE's own default of 768 makes tiling do nothing at 768


def parse_mode(value: object) -> str:
    return look_up('memory mode', value, {name: name for name in ('auto', *MODES)})


def choose(mode: str, device: torch.device, weight_bytes: int) -> str:
    """`mode`, or for auto the first that fits what is free on `device`; OutOfMemory where the weights never fit."""
    available = psutil.virtual_memory().available
    if weight_bytes > available:
        raise OutOfMemory(f'the model needs about {gib(weight_bytes)} of memory and {gib(available)} is free; '
                          'close something, or use dtype="bfloat16".')
    if mode != 'auto':
        return mode
    free = free_bytes(device)
    need = weight_bytes + min(_ACTIVATIONS, 4 * weight_bytes)
    if need <= free:
        return 'full'
    chosen = 'low' if weight_bytes * 0.7 <= free else 'min'
    logger.warning('memory mode %r: about %s would be needed for everything at once and %s is free.',
                   chosen, gib(need), gib(free))
    return chosen


def free_bytes(device: torch.device) -> int:
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def lower(mode: str) -> str | None:
    """The next lower mode, None below min."""
    return dict(itertools.pairwise(MODES)).get(mode)


def apply(pipe: Any, mode: str, device: torch.device) -> None:
    """Puts `pipe` (diffusers) on `device` in the memory mode `mode`."""
    undo(pipe)
    on_gpu = device.type != 'cpu'
    if mode != 'full':
        pipe.vae.enable_slicing()
    if mode == 'min' or (mode == 'low' and on_gpu):
        pipe.vae.enable_tiling()
        pipe.vae.tile_sample_min_size = min(_TILE, pipe.vae.tile_sample_min_size)
        pipe.vae.tile_latent_min_size = pipe.vae.tile_sample_min_size // pipe.vae_scale_factor
    if on_gpu and mode != 'full':
        lend(pipe, mode, device)
    else:
        pipe.to(device)
        share_parts(pipe)


def lend(pipe: Any, mode: str, device: torch.device) -> None:
    """'low' or 'min' on a GPU: the networks rest in the computer's memory, what is needed goes to `device`."""
    pipe.vae.to(device)
    for network in (pipe.unet, pipe.text_encoder):
        network.to('cpu')
    share_parts(pipe)
    resting.offload(pipe.text_encoder, device)
    if mode == 'min':
        resting.offload(pipe.unet, device)
    else:
        eight_bits.pack(pipe.unet, device, resting.Rest(pipe.unet).stops)
        logger.warning("memory mode 'low' keeps the UNet's weights in 8 bits: pictures differ a little from those of "
                       "'full' (docs/memory.md).")


def share_parts(pipe: Any) -> None:
    shared = [name for name in ('vae', 'text_encoder') if share(getattr(pipe, name))]     # models differ in the UNet
    if shared:
        logger.info('shared with another model that is loaded: %s.', ', '.join(shared))


def undo(pipe: Any) -> None:
    """As it was loaded, but for where it is."""
    pipe.remove_all_hooks()     # accelerate's, of a user's own
    for network in (pipe.unet, pipe.text_encoder):
        resting.let_rest(network)
    pipe.vae.disable_slicing()
    pipe.vae.disable_tiling()


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_OUT_OF_MEMORY))


def gib(count: float) -> str:
    return f'{count / 2**30:.1f} GiB'
