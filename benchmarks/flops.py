"""How much arithmetic a picture takes, counted on tensors without data: 2 FLOP for a product with its sum."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import config

# `bmm` is attention: without data it is spelled out as two batched products.
_KINDS = {'convolution': 'conv', 'addmm': 'linear', 'mm': 'linear', 'bmm': 'attention', 'baddbmm': 'attention'}


def picture_flops(folder: Path, size: int) -> dict[str, dict[str, float]]:
    """Of one UNet call with guidance (two latents) and of one VAE decode: FLOP by kind (conv, linear, attention)."""
    tokens = config(folder, 'text_encoder').get('max_position_embeddings', 77)
    return {'unet': unet_flops(config(folder, 'unet'), size // _scale(folder), tokens), 'vae': vae_flops(folder, size)}


@torch.no_grad()
def unet_flops(unet_config: dict[str, Any], latent_size: int, tokens: int = 77, batch: int = 2) -> dict[str, float]:
    from diffusers import UNet2DConditionModel

    with torch.device('meta'):
        unet = UNet2DConditionModel.from_config(unet_config).eval()
        sample = torch.empty(batch, unet.config.in_channels, latent_size, latent_size)
        embeddings = torch.empty(batch, tokens, unet.config.cross_attention_dim)
        return _counted(lambda: unet(sample, torch.empty(()), embeddings))


@torch.no_grad()
def vae_flops(folder: Path, size: int) -> dict[str, float]:
    from diffusers import AutoencoderKL

    with torch.device('meta'):
        vae = AutoencoderKL.from_config(config(folder, 'vae')).eval()
        latents = torch.empty(1, vae.config.latent_channels, size // _scale(folder), size // _scale(folder))
        return _counted(lambda: vae.decode(latents))


def _scale(folder: Path) -> int:
    return 2 ** (len(config(folder, 'vae')['block_out_channels']) - 1)


def _counted(call: Callable[[], Any]) -> dict[str, float]:
    with FlopCounterMode(display=False) as counter:
        call()
    flops = {'conv': 0.0, 'linear': 0.0, 'attention': 0.0}
    for operator, count in counter.get_flop_counts()['Global'].items():
        name = str(operator).removeprefix('aten.')
        flops[_KINDS.get(name, 'attention' if 'attention' in name else name)] += count     # an unknown one is an error
    return flops
