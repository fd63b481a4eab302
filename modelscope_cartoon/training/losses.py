"""What the network shall predict, and how much each picture's error counts.

Notation: x the latents, e the noise, a the scheduler's alphas_cumprod at the picture's time;
noisy = sqrt(a) x + sqrt(1 - a) e (Ho et al. 2020, equation 4), SNR = a / (1 - a). Tensors are [N, C, h, w], a is [N].
"""
from __future__ import annotations

import torch

PREDICTIONS = ('epsilon', 'v_prediction', 'sample')


def _wide(a: torch.Tensor) -> torch.Tensor:
    return a[:, None, None, None]


def add_noise(x: torch.Tensor, e: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return _wide(a).sqrt() * x + (1 - _wide(a)).sqrt() * e


def target(prediction: str, x: torch.Tensor, e: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """e (Ho et al. 2020, equation 14), x, or v = sqrt(a) e - sqrt(1 - a) x (Salimans & Ho 2022, section 4)."""
    if prediction == 'epsilon':
        return e
    return x if prediction == 'sample' else _wide(a).sqrt() * e - (1 - _wide(a)).sqrt() * x


def snr_weights(prediction: str, a: torch.Tensor, gamma: float) -> torch.Tensor:
    """Hang et al. 2023, section 3.4: min(SNR, gamma) on the error of x, which is min(SNR, gamma) / SNR on that of e
    and min(SNR, gamma) / (SNR + 1) on that of v. gamma 0: all ones.
    """
    if not gamma:
        return torch.ones_like(a)
    if prediction == 'epsilon':
        return (gamma * (1 - a) / a).clamp(max=1)
    snr = (a / (1 - a)).clamp(max=1e9)
    return snr.clamp(max=gamma) / (snr + 1 if prediction == 'v_prediction' else 1)


def offset(e: torch.Tensor, shift: torch.Tensor, strength: float) -> torch.Tensor:
    """Noise whose mean is free: `shift` [N, C, 1, 1] on each channel (Guttenberg 2023, Diffusion with offset noise)."""
    return e + strength * shift if strength else e


def errors(prediction: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each picture, float32 [N]."""
    return (prediction.float() - wanted.float()).square().flatten(1).mean(1)
