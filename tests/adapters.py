"""A tiny adapter folder, as training leaves one."""
from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


def build_adapter(folder: Path, base: Path, base_model: str, preprocessor: dict, strength: float = 0.3) -> Path:
    """Rank 2 on the attention of the UNet and the text encoder of `base`; configuration.json names `base_model`."""
    pipe = StableDiffusionPipeline.from_pretrained(base)
    torch.manual_seed(1)
    states = {}
    for name, targets in (('unet', ['to_q', 'to_v']), ('text_encoder', ['q_proj', 'v_proj'])):
        module = getattr(pipe, name)
        module.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
        states[f'{name}_lora_layers'] = {key: value * strength for key, value in
                                         get_peft_model_state_dict(module).items()}
    StableDiffusionPipeline.save_lora_weights(folder, **states)
    (folder / 'configuration.json').write_text(json.dumps({
        'framework': 'pytorch', 'task': 'text-to-image-synthesis',
        'model': {'type': 'cartoon-stable-diffusion', 'base_model': base_model},
        'preprocessor': {'type': 'cartoon-style-prompt', **preprocessor},
        'pipeline': {'type': 'cartoon-stable-diffusion'}}))
    (folder / 'recipe.json').write_text(json.dumps({
        'recipe': {'rank': 2, 'data': '/home/somebody/drawings'},
        'pictures': [{'name': 'Anna.png', 'caption': 'my daughter Anna', 'sha256': 64 * '0'}]}))
    (folder / 'README.md').write_text('from training')
    (folder / 'samples').mkdir()
    (folder / 'samples' / '1.png').write_bytes(b'x')
    return folder
