"""The model that is trained: its networks, what of them learns, and the small facts that the loss needs."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import cast_training_params

from modelscope_cartoon import weights
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.hub import local_model
from modelscope_cartoon.precision import best_dtype, parse_dtype
from modelscope_cartoon.sampling import default_size
from modelscope_cartoon.training.presets import LORA_TARGETS, preset_of
from modelscope_cartoon.training.recipe import Recipe

_TEXT_TARGETS = ('q_proj', 'k_proj', 'v_proj', 'out_proj')


class Student(torch.nn.Module):
    """UNet and, where it learns too, the text encoder, as one module: what several processes keep equal.

    forward: noisy latents [N, C, h, w], times [N], and embeddings [N, L, D], or token ids [N, L] where the text
    encoder learns.
    """

    def __init__(self, unet: torch.nn.Module, text_encoder: torch.nn.Module | None):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        if self.text_encoder is not None:
            context = self.text_encoder(context)[0]
        return self.unet(noisy, times, context, return_dict=False)[0]


class Base:
    """A loaded model folder. recipe: completed with the preset for its size."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.folder = ModelFolder(local_model(recipe.base))
        self.device = device
        self.precision = training_dtype(recipe.precision, device)
        self.dtype = torch.float32 if recipe.method == 'full' else self.precision
        self.pipe = weights.load(self.folder, self.dtype)
        self.unet_parameters = sum(p.numel() for p in self.pipe.unet.parameters())
        self.recipe = recipe.completed(preset_of(self.unet_parameters))
        self.resolution = recipe.resolution or default_size(self.pipe)[0]
        self.prediction = self.pipe.scheduler.config.get('prediction_type', 'epsilon')
        with weights.quiet():
            self.alphas = DDPMScheduler.from_config(self.pipe.scheduler.config).alphas_cumprod
        with weights.quiet():
            self.pipe.to(device)
            self.pipe.vae.to(torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        for part in (self.pipe.unet, self.pipe.text_encoder, self.pipe.vae):
            part.requires_grad_(False)

    def student(self) -> Student:
        """With LoRA layers in it, or with all weights set to learn; the same start for the same seed."""
        recipe, unet, text_encoder = self.recipe, self.pipe.unet, self.pipe.text_encoder
        torch.manual_seed(recipe.seed)
        if recipe.method == 'lora':
            unet.add_adapter(_lora(recipe, LORA_TARGETS[recipe.lora_targets]))
            if recipe.train_text_encoder:
                text_encoder.add_adapter(_lora(recipe, _TEXT_TARGETS))
            cast_training_params([unet, text_encoder], dtype=torch.float32)
        else:
            unet.requires_grad_(True)
            text_encoder.requires_grad_(recipe.train_text_encoder)
        if recipe.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            if recipe.train_text_encoder:
                text_encoder.gradient_checkpointing_enable()
        return Student(unet, text_encoder if recipe.train_text_encoder else None)


def training_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: float32 on a CPU, where attention's backward pass in bfloat16 is many times slower."""
    if name == 'float16' and device.type == 'cpu':
        raise InvalidRequest('precision float16 needs a GPU; on a CPU: float32, or bfloat16.')
    if name == 'auto':
        return torch.float32 if device.type == 'cpu' else best_dtype(device, 0)
    return parse_dtype(name)


def _lora(recipe: Recipe, targets: tuple[str, ...]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.lora_dropout,
                      target_modules=list(targets))


@contextmanager
def without_lora(model: torch.nn.Module) -> Iterator[None]:
    """The base as it was. Not model.disable_adapters(), which also changes what requires a gradient, and so what
    several processes exchange."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
