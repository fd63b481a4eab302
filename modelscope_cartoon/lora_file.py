"""A LoRA file, read: diffusers' form or kohya's, safetensors alone, every tensor accounted for and finite."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from diffusers.utils.state_dict_utils import StateDictType
from safetensors import SafetensorError, safe_open

from modelscope_cartoon.errors import BadConfiguration, DamagedWeights, ModelError
from modelscope_cartoon.folder import check_weight_file, file_sha256

_ROLES = {'.lora_down.weight': 'down', '.lora_up.weight': 'up', '.lora_A.weight': 'down', '.lora_B.weight': 'up',
          '.alpha': 'alpha'}
_PLAIN_PATTERN = frozenset('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.^')


class Delta(NamedTuple):
    """What a LoRA adds to one layer: up @ down * (scale * alpha / divisor)."""
    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    divisor: float


def read(file: Path) -> dict[str, Delta]:
    """The deltas of a kohya or diffusers LoRA file, by its own names of layers. CartoonError says what is wrong."""
    check_weight_file(file)
    _check_manifest(file)
    try:
        with safe_open(file, 'pt') as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}     # noqa: SIM118 (it is no dict)
            metadata = _diffusers_metadata(file, (opened.metadata() or {}).get('lora_adapter_metadata'))
    except SafetensorError as error:
        raise DamagedWeights(f'{file} can\'t be read as safetensors ({error}); download it again.') from error
    parts = _by_layer(file, _with_peft_names(tensors))
    return {name: _delta(f'{file}: {name}', name, part, metadata) for name, part in parts.items()}


def _check_manifest(file: Path) -> None:
    """A folder that training wrote says what its files are."""
    manifest = file.with_name('manifest.json')
    if not manifest.is_file():
        return
    try:
        sha256 = json.loads(manifest.read_text(encoding='utf-8'))['files'].get(file.name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadConfiguration(f'{manifest} can\'t be read ({error!r}); accepted: sha256 by name.') from error
    if sha256 not in (None, file_sha256(file)):
        raise DamagedWeights(f'{file} is not the file that manifest.json describes; copy or download it again.')


def _diffusers_metadata(file: Path, text: str | None) -> dict[str, Any]:
    try:
        metadata = json.loads(text or '{}')
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise DamagedWeights(f'{file}: its lora_adapter_metadata is no JSON object; download it again.')
    return metadata


def _with_peft_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' older names (`to_q_lora.down`, `lora_linear_layer.up`) as peft's; kohya's stay as they are."""
    text = {k: v for k, v in tensors.items() if k.startswith('text_encoder.')}
    rest = {k: v for k, v in tensors.items() if k not in text}
    return {**convert_unet_state_dict_to_peft(rest), **convert_state_dict_to_peft(text, StateDictType.DIFFUSERS_OLD)}


def _by_layer(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    layers: dict[str, dict[str, torch.Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        ending = next((ending for ending in _ROLES if key.endswith(ending)), None)
        if ending is None:
            strange.append(key)
        elif not bool(torch.isfinite(tensor.float()).all()):
            raise DamagedWeights(f'{file}: the tensor {key} holds NaN or infinite values; download it again.')
        else:
            layers.setdefault(key.removesuffix(ending), {})[_ROLES[ending]] = tensor
    strange += [name for name, part in layers.items() if not {'down', 'up'} <= set(part)]
    if strange or not layers:
        raise ModelError(f'{file} is no LoRA that can be read: {some(strange) or "it is empty"}; accepted: linear and '
                         'convolution LoRA in diffusers\' or kohya\'s form (not DoRA, LoHa or LoKr).')
    return layers


def _delta(shown: str, name: str, part: dict[str, torch.Tensor], metadata: dict[str, Any]) -> Delta:
    down, up = part['down'], part['up']
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or down.shape[0] != up.shape[1] or not down.shape[0]:
        raise ModelError(f'{shown}: down {tuple(down.shape)} and up {tuple(up.shape)} have no rank in common.')
    rank, network = down.shape[0], name.partition('.')[0]
    alpha = part['alpha'].flatten().tolist() if 'alpha' in part else [_configured_alpha(name, metadata, rank)]
    if len(alpha) != 1 or isinstance(alpha[0], bool) or not isinstance(alpha[0], (int, float)) or \
            not math.isfinite(alpha[0]):
        raise DamagedWeights(f'{shown}: its alpha is {alpha}; accepted: a finite number.')
    return Delta(down, up, alpha[0], math.sqrt(rank) if metadata.get(f'{network}.use_rslora') else rank)


def _configured_alpha(name: str, metadata: dict[str, Any], rank: int) -> Any:
    """The alpha that diffusers' metadata names for this layer; its rank (a factor of 1) where it is silent."""
    network, _, layer = name.partition('.')
    patterns = metadata.get(f'{network}.alpha_pattern') or {}
    if not isinstance(patterns, dict) or not set(''.join(patterns)) <= _PLAIN_PATTERN:
        raise ModelError(f'{name}: alpha_pattern is {patterns!r}; accepted: names of layers and their alphas.')
    for pattern, alpha in patterns.items():
        plain = pattern.removeprefix('^')
        if layer == plain or (pattern == plain and layer.endswith(f'.{plain}')):
            return alpha
    return metadata.get(f'{network}.lora_alpha', rank)


def some(names: list[str]) -> str:
    return ', '.join(sorted(names)[:10]) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
