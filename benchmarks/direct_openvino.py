"""O, the peer to beat on a CPU: OpenVINO as its documentation uses it, without a line of ours in between.

UNet and VAE decoder are converted once into a folder beside the model's, then compiled for one fixed size with the
bf16 hint; the text encoder stays in torch, and a plain diffusers scheduler does the steps.
"""
from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models import config, has_bin
from benchmarks.sides import GUIDANCE, Ask
from benchmarks.watch import Watch


def converted(folder: Path) -> Path:
    """The IRs of `folder`, made if they aren't there; a killed conversion leaves nothing that counts."""
    from modelscope_cartoon import mini
    from modelscope_cartoon.cache import built

    where = Path(tempfile.gettempdir()) if folder == mini.path() else folder.parent     # not into the package itself
    cache = where / f'{folder.name}-openvino'
    built(cache, lambda aside: _convert(folder, aside))
    return cache


@torch.no_grad()
def _convert(folder: Path, target: Path) -> None:
    import openvino as ov
    from diffusers import AutoencoderKL, UNet2DConditionModel

    plain = {'use_safetensors': not has_bin(folder)}
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder='unet', **plain).eval()
    example = {'sample': torch.zeros(2, unet.config.in_channels, 64, 64), 'timestep': torch.tensor(1.0),
               'encoder_hidden_states': torch.zeros(2, 77, unet.config.cross_attention_dim)}
    ov.save_model(ov.convert_model(unet, example_input=example), target / 'unet.xml')
    del unet
    vae = AutoencoderKL.from_pretrained(folder, subfolder='vae', **plain).eval()
    vae.forward = lambda latents: vae.decode(latents, return_dict=False)[0]
    ov.save_model(ov.convert_model(vae, example_input=torch.zeros(1, vae.config.latent_channels, 64, 64)),
                  target / 'vae.xml')


class DirectOpenVINO:
    runs_as = 'OpenVINO, bf16 hint'

    def __init__(self, folder: Path, watch: Watch):
        from diffusers import StableDiffusionPipeline

        self.cache, self.watch = converted(folder), watch
        self.text = StableDiffusionPipeline.from_pretrained(
            folder, unet=None, vae=None, dtype=torch.bfloat16, use_safetensors=not has_bin(folder))
        self.scheduler = self.text.scheduler
        self.scaling = config(folder, 'vae').get('scaling_factor', 0.18215)
        self.networks: dict[int, tuple[Any, Any]] = {}

    def _compiled(self, latent: int, channels: int) -> tuple[Any, Any]:
        """UNet for two latents and VAE decoder for one, of this size alone."""
        import openvino as ov

        core = ov.Core()
        hints = {'INFERENCE_PRECISION_HINT': 'bf16', 'PERFORMANCE_HINT': 'LATENCY',
                 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
        width = self.text.text_encoder.config.hidden_size
        unet, vae = (core.read_model(self.cache / f'{name}.xml') for name in ('unet', 'vae'))
        unet.reshape({'sample': [2, channels, latent, latent], 'timestep': [],
                      'encoder_hidden_states': [2, self.text.tokenizer.model_max_length, width]})
        vae.reshape([1, channels, latent, latent])
        return core.compile_model(unet, 'CPU', hints), core.compile_model(vae, 'CPU', hints)

    @torch.no_grad()
    def draw(self, ask: Ask) -> np.ndarray:
        if len(ask.noise) != 1 or ask.options:
            raise ValueError('this side draws one picture, with the exact settings alone.')
        latent = ask.noise.shape[-1]
        if latent not in self.networks:
            self.networks[latent] = self._compiled(latent, ask.noise.shape[1])
        unet, vae = self.networks[latent]
        with self.watch.part('text'):
            prompt, negative = self.text.encode_prompt(ask.prompt, torch.device('cpu'), 1, True, '')
            embeddings = torch.cat([negative, prompt]).float().numpy()
        self.scheduler.set_timesteps(ask.steps)
        latents = ask.noise * self.scheduler.init_noise_sigma
        for timestep in self.scheduler.timesteps:
            both = self.scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
            noise = torch.from_numpy(unet([both.numpy(), np.float32(timestep), embeddings])[0])
            without, with_prompt = noise.chunk(2)
            latents = self.scheduler.step(without + GUIDANCE * (with_prompt - without), timestep, latents).prev_sample
            self.watch.step(latents)
        with self.watch.part('vae'):
            image = vae([(latents / self.scaling).numpy()])[0]
        return (np.clip(image / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)


if __name__ == '__main__':
    converted(Path(sys.argv[1]))
