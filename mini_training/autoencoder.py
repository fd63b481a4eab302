"""Fits AutoencoderKL's two halves to the linear latents: `python -m mini_training.autoencoder decoder --work DIR`."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from mini_training.files import SIZE, open_pictures, save_whole
from mini_training.latents import CHANNELS, PATCH

CROP = 8  # latents a side: 64 pixels
# Up to this much, so that the decoder smooths over what a denoiser leaves.
LATENT_NOISE = 0.3
# exp(-8) is next to no variance: the encoder is a plain function.
LOG_VARIANCE = -8.0


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4,
        block_out_channels=(32, 32, 64, 96), layers_per_block=1, latent_channels=CHANNELS, norm_num_groups=8,
        sample_size=SIZE, scaling_factor=1.0, mid_block_add_attention=False, use_quant_conv=False,
        use_post_quant_conv=False,
    )


def to_pixels(pictures: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Crops:
    """Random 64-pixel crops of pictures with the latents that belong to them."""

    def __init__(self, work: Path, seed: int) -> None:
        self.pictures = open_pictures(work)
        self.latents = np.load(work / 'latents.npy', mmap_mode='r')
        self.rng = np.random.default_rng(seed)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, latents = [], []
        for index in self.rng.integers(len(self.pictures), size=count):
            y, x = self.rng.integers(0, SIZE // PATCH - CROP + 1, 2)
            latents.append(self.latents[index, :, y:y + CROP, x:x + CROP])
            y, x = y * PATCH, x * PATCH
            pixels.append(self.pictures[index, y:y + CROP * PATCH, x:x + CROP * PATCH])
        return to_pixels(np.stack(pixels)), torch.from_numpy(np.stack(latents)).float()


def half_loss(model: AutoencoderKL, half: str, pixels: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    if half == 'encoder':
        return (model.encoder(pixels)[:, :CHANNELS] - latents).square().mean()
    noise = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
    error = model.decoder(latents + noise) - pixels
    return error.abs().mean() + 2 * error.square().mean()


def train(model: AutoencoderKL, half: str, work: Path, minutes: float, rate: float, batch: int) -> None:
    """The learning rate falls to zero by the clock, so a busy machine cannot cut the decay off."""
    crops = Crops(work, time.time_ns())
    parameters = list(getattr(model, half).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
    start, steps, mean = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        optimizer.param_groups[0]['lr'] = rate * min(1.0, (steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * progress))
        loss = half_loss(model, half, *crops.draw(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        mean += (loss.item() - mean) / min(steps, 50)
        if steps % 100 == 0:
            print(f'{half} step {steps} {progress:.2f} loss {mean:.4f}', flush=True)
    print(f'{half}: {steps * batch} crops in {minutes} minutes')


@torch.no_grad()
def measure(model: AutoencoderKL, work: Path, count: int = 96) -> tuple[float, float]:
    """PSNR of whole pictures: decoder alone on their latents, and encoder and decoder together."""
    pictures = open_pictures(work)
    step = len(pictures) // count
    pixels = to_pixels(pictures[::step][:count])
    latents = torch.from_numpy(np.load(work / 'latents.npy')[::step][:count]).float()
    both = model.decoder(model.encoder(pixels)[:, :CHANNELS])
    return psnr(model.decoder(latents), pixels), psnr(both, pixels)


def psnr(drawn: torch.Tensor, pixels: torch.Tensor) -> float:
    error = (drawn.clamp(-1, 1) - pixels).square().mean((1, 2, 3)) / 4
    return float((-10 * torch.log10(error)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('half', choices=('encoder', 'decoder'))
    parser.add_argument('--work', type=Path, required=True)
    parser.add_argument('--minutes', type=float, default=11)
    parser.add_argument('--rate', type=float, default=2e-3)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    # The CPU kernels for small channel counts are a fifth faster in this layout.
    model, path = build().to(memory_format=torch.channels_last), args.work / 'vae.pt'
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    train(model, args.half, args.work, args.minutes, args.rate, args.batch)
    with torch.no_grad():
        model.encoder.conv_out.weight[CHANNELS:] = 0
        model.encoder.conv_out.bias[CHANNELS:] = LOG_VARIANCE
    save_whole(model.state_dict(), path)
    alone, both = measure(model, args.work)
    print(f'decoder {alone:.2f} dB, both halves {both:.2f} dB')


if __name__ == '__main__':
    main()
