"""A trained LoRA as files: diffusers' own form, and the form that kohya's sd-scripts made usual elsewhere."""
from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save

from modelscope_cartoon.errors import NonFiniteError
from modelscope_cartoon.training.base import Base
from modelscope_cartoon.training.recipe import Recipe

DIFFUSERS_NAME = 'pytorch_lora_weights.safetensors'
_ARCHITECTURES = {(1024, 'v_prediction'): 'stable-diffusion-v2-768-v', (1024, 'epsilon'): 'stable-diffusion-v2-512',
                  (768, 'epsilon'): 'stable-diffusion-v1'}
_KOHYA_BASES = {'stable-diffusion-v2-768-v': 'sd_v2_v', 'stable-diffusion-v2-512': 'sd_v2',
                'stable-diffusion-v1': 'sd_v1'}
Layers = dict[str, dict[str, torch.Tensor]]


def lora_layers(base: Base) -> Layers:
    """{'unet': {'down_blocks....to_q.lora_A.weight': tensor}, 'text_encoder': ...} in float16, on the CPU."""
    from peft import get_peft_model_state_dict

    layers = {}
    for name in ('unet', 'text_encoder'):
        module = getattr(base.pipe, name)
        if getattr(module, 'peft_config', None):
            state = get_peft_model_state_dict(module, adapter_name='default')
            layers[name] = {key: tensor.detach().to('cpu', torch.float16).contiguous()
                            for key, tensor in state.items()}
    if not all(torch.isfinite(tensor).all() for part in layers.values() for tensor in part.values()):
        raise NonFiniteError('the trained LoRA does not fit into float16; use a lower learning_rate.')
    return layers


def diffusers_file(base: Base, layers: Layers) -> bytes:
    """With the LoRA's configuration (rank, alpha, targets) in the header, where diffusers and peft look for it."""
    metadata = {f'{name}_lora_adapter_metadata': _in_order(getattr(base.pipe, name).peft_config['default'].to_dict())
                for name in layers}
    tensors = {f'{name}_lora_layers': part for name, part in layers.items()}
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(folder, weight_name=DIFFUSERS_NAME, **tensors, **metadata)
        return _steady(Path(folder, DIFFUSERS_NAME).read_bytes())


def _in_order(configuration: dict[str, Any]) -> dict[str, Any]:
    """Sets as sorted lists, so that the same training gives the same bytes."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in configuration.items()}


def _steady(data: bytes) -> bytes:
    """The same safetensors file with its header's entries in order; safetensors writes them in any."""
    (length,) = struct.unpack('<Q', data[:8])
    header = json.loads(data[8:8 + length])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    return struct.pack('<Q', len(text)) + text + data[8 + length:]


def kohya_file(base: Base, layers: Layers, title: str) -> bytes:
    """`lora_unet_<module>.lora_down.weight`, `.lora_up.weight`, `.alpha`, with kohya's and modelspec's header."""
    tensors = {}
    for part, state in layers.items():
        for key, tensor in state.items():
            module, _, end = key.removeprefix('text_model.').rpartition('.lora_')
            name = {'unet': 'lora_unet_', 'text_encoder': 'lora_te_text_model_'}[part] + module.replace('.', '_')
            tensors[f'{name}.lora_{"down" if end.startswith("A") else "up"}.weight'] = tensor
            tensors[f'{name}.alpha'] = torch.tensor(float(base.recipe.alpha))
    return _steady(save(tensors, header(base, title)))


def header(base: Base, title: str) -> dict[str, str]:
    """kohya's least and modelspec 1.0.1. A base that is no Stable Diffusion is called by its own name."""
    recipe: Recipe = base.recipe
    width = base.pipe.unet.config.cross_attention_dim
    architecture = _ARCHITECTURES.get((width, base.prediction), f'modelscope-cartoon-{Path(recipe.base).name}')
    arguments: dict[str, Any] = {'conv_dim': str(recipe.rank), 'conv_alpha': str(recipe.alpha)
                                 } if 'resnets' in recipe.lora_targets else {}
    hint = f'Put "{recipe.trigger}" in front of the prompt.' if recipe.trigger else 'No trigger is needed.'
    return {
        'ss_v2': str(width == 1024), 'ss_base_model_version': _KOHYA_BASES.get(architecture, architecture),
        'ss_network_module': 'networks.lora', 'ss_network_dim': str(recipe.rank),
        'ss_network_alpha': str(recipe.alpha), 'ss_network_args': json.dumps(arguments),
        'modelspec.sai_model_spec': '1.0.1', 'modelspec.architecture': f'{architecture}/lora',
        'modelspec.implementation': 'diffusers', 'modelspec.title': title,
        'modelspec.resolution': f'{base.resolution}x{base.resolution}',
        'modelspec.prediction_type': 'v' if base.prediction == 'v_prediction' else base.prediction,
        'modelspec.trigger_phrase': recipe.trigger, 'modelspec.usage_hint': hint,
    }
