"""A diffusers model folder, looked at before anything of it is built: is every file there, inside, and what it says?

Nothing here imports torch or runs what a folder holds. Keys that would run code or install packages
(`plugins`, `allow_remote`) are not obeyed.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_cartoon.errors import BadConfiguration, DamagedWeights, ModelError

WEIGHT_STEMS = {'unet': 'diffusion_pytorch_model', 'vae': 'diffusion_pytorch_model', 'text_encoder': 'model'}
_BIN_STEMS = {**WEIGHT_STEMS, 'text_encoder': 'pytorch_model'}
_LARGEST_JSON = 32 * 2**20        # tokenizer.json of CLIP has 2 MB
_LARGEST_NUMBER = 10**7           # above any number in a Stable Diffusion's configurations
_LARGEST_COUNT = {                # whole numbers that decide how much is built; well above any Stable Diffusion's
    'layers_per_block': 32, 'num_hidden_layers': 128, 'sample_size': 2048, 'in_channels': 1024, 'out_channels': 1024,
    'latent_channels': 1024, 'block_out_channels': 2**14, 'attention_head_dim': 2**14, 'hidden_size': 2**14,
    'intermediate_size': 2**16, 'vocab_size': 10**6, 'max_position_embeddings': 2**16, 'num_train_timesteps': 10**5}


@dataclass(frozen=True)
class WeightFiles:
    """The files of one component's weights. safe: safetensors. variant: 'fp16' where only such files are there."""
    component: str
    paths: tuple[Path, ...]
    safe: bool
    variant: str | None

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)


class ModelFolder:
    """A checked model folder. BadConfiguration, DamagedWeights or ModelError names the file that is wrong."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not os.path.isdir(self.root):     # not Path.is_dir, which raises for a name that is too long
            raise ModelError(f'no model folder at {str(root)!r}; give a folder with model_index.json in it, '
                             'a hub id such as damo/cv_cartoon_stable_diffusion_design, or mini.')
        self.index = self.read_json('model_index.json')
        if self.index.get('_class_name') != 'StableDiffusionPipeline':
            raise BadConfiguration(f'{self.root / "model_index.json"} says _class_name '
                                   f'{self.index.get("_class_name")!r}; accepted: StableDiffusionPipeline.')
        self.configs = {name: self.read_json(f'{name}/config.json') for name in WEIGHT_STEMS}
        self.scheduler_config = self.read_json('scheduler/scheduler_config.json')
        check_fit(self.configs, self.scheduler_config, self.root)
        self._check_inside()
        self._check_tokenizer()
        self.weights = {name: self._find_weights(name) for name in WEIGHT_STEMS}
        self.check_manifest()

    def path(self, relative: str) -> Path:
        """`relative` inside the folder; ModelError where it is missing or leads out of it."""
        if re.search(r'[\x00-\x1f]', relative) or len(relative) > 250:
            raise ModelError(f'{self.root}: the file name {relative[:80]!r} is not accepted.')
        path = self.root / relative
        if not os.path.isfile(path):
            raise ModelError(f'{path} is missing; download the model again, or give another folder.')
        if self.root.resolve() not in path.resolve().parents:
            raise ModelError(f'{path} leads out of the model folder, which is not accepted; copy the file into it.')
        return path

    def read_json(self, relative: str) -> dict[str, Any]:
        path = self.path(relative)
        try:
            if path.stat().st_size > _LARGEST_JSON:
                raise ValueError(f'{path.stat().st_size:,} bytes are too many for a configuration')
            value = json.loads(path.read_text(encoding='utf-8'))
        except (OSError, ValueError, RecursionError) as error:
            raise BadConfiguration(f'{path} is not a JSON file that can be read ({error}); '
                                   'download the model again.') from error
        if not isinstance(value, dict):
            raise BadConfiguration(f'{path} holds a {type(value).__name__}; accepted: a JSON object.')
        return value

    def check_manifest(self) -> None:
        """Every file that manifest.json names (we write one beside what we ship) has the sha256 it says."""
        if not (self.root / 'manifest.json').is_file():
            return
        files = self.read_json('manifest.json').get('files')
        if not isinstance(files, dict):
            raise BadConfiguration(f'{self.root / "manifest.json"} has no files; accepted: sha256 by name.')
        for name, sha256 in files.items():
            if file_sha256(self.path(name)) != sha256:
                raise DamagedWeights(f'{self.root / name} is not the file that manifest.json describes; '
                                     'install the package again, or download the model again.')

    def _find_weights(self, name: str) -> WeightFiles:
        for suffix, stem in (('safetensors', WEIGHT_STEMS[name]), ('bin', _BIN_STEMS[name])):
            for variant in (None, 'fp16'):
                middle = f'.{variant}' if variant else ''
                single, index = f'{name}/{stem}{middle}.{suffix}', f'{name}/{stem}.{suffix}.index{middle}.json'
                found = [file for file in (single, index) if os.path.lexists(self.root / file)]
                if len(found) == 2:     # diffusers would read the one and transformers the other
                    raise DamagedWeights(f'{self.root / single} is there whole and, by {Path(index).name}, in parts; '
                                         'delete one of the two.')
                if found:
                    files = self._shards(name, index) if found == [index] else (single,)
                    return self._checked(name, files, suffix, variant)
        raise DamagedWeights(f'{self.root / name} has no weights; accepted: {WEIGHT_STEMS[name]}.safetensors '
                             f'or {_BIN_STEMS[name]}.bin.')

    def _shards(self, name: str, index: str) -> tuple[str, ...]:
        weight_map = self.read_json(index).get('weight_map')
        if not isinstance(weight_map, dict) or not weight_map:
            raise BadConfiguration(f'{self.root / index} has no weight_map.')
        names = sorted({str(shard) for shard in weight_map.values()})
        for shard in names:
            if re.search(r'[\\/]', shard) or shard.startswith('.'):
                raise DamagedWeights(f'{self.root / index} names the file {shard!r}, which is not beside it.')
        return tuple(f'{name}/{shard}' for shard in names)

    def _checked(self, name: str, files: tuple[str, ...], suffix: str, variant: str | None) -> WeightFiles:
        paths = tuple(self.path(file) for file in files)
        for path in paths:
            check_weight_file(path)
        return WeightFiles(name, paths, suffix == 'safetensors', variant)

    def _check_inside(self) -> None:
        """Nothing that the libraries pick up by themselves leads out of the folder, or to another model."""
        for part in ('tokenizer', 'scheduler', *WEIGHT_STEMS):
            for path in (self.root / part).iterdir() if (self.root / part).is_dir() else ():
                if path.is_file() or path.is_symlink():
                    self.path(f'{part}/{path.name}')
                if path.name == 'adapter_config.json':
                    raise BadConfiguration(f'{path} names another model to load, which is not accepted; delete it.')

    def _check_tokenizer(self) -> None:
        folder = self.root / 'tokenizer'
        if not (folder / 'tokenizer.json').is_file() and not (
                (folder / 'vocab.json').is_file() and (folder / 'merges.txt').is_file()):
            raise ModelError(f'{folder} has no vocabulary; needed: vocab.json and merges.txt, or tokenizer.json. '
                             'Download the model again.')
        for name in ('vocab.json', 'tokenizer.json', 'tokenizer_config.json'):
            if (folder / name).exists():
                self.read_json(f'tokenizer/{name}')


def check_weight_file(path: Path) -> None:
    """DamagedWeights where `path` is empty, cut short, a web page, or a pointer instead of the weights."""
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(512)
        if head.startswith(b'version https://git-lfs'):
            raise DamagedWeights(f'{path} is a git-lfs pointer, not the weights; fetch them with `git lfs pull`.')
        if head.lstrip()[:5].lower() in (b'<html', b'<!doc'):
            raise DamagedWeights(f'{path} is a web page, not weights; download it again.')
        if path.suffix == '.safetensors':
            _check_safetensors(path, file, size)
        elif size < 100 or not (head.startswith(b'PK\x03\x04') or head[:1] == b'\x80'):
            raise DamagedWeights(f'{path} ({size:,} bytes) is no PyTorch weight file; download it again.')


def _check_safetensors(path: Path, file: Any, size: int) -> None:
    file.seek(0)
    try:
        length = struct.unpack('<Q', file.read(8))[0]
        if length > min(size - 8, 100 * 2**20):
            raise ValueError('the header is longer than the file')
        header = json.loads(file.read(length))
        header.pop('__metadata__', None)
        end = max(int(entry['data_offsets'][1]) for entry in header.values())
    except (ValueError, LookupError, TypeError, struct.error, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedWeights(f'{path} is no safetensors file ({error}); download it again.') from error
    if end + 8 + length != size:
        raise DamagedWeights(f'{path} has {size:,} bytes where its header says {end + 8 + length:,}; '
                             'download it again.')


def check_fit(configs: dict[str, dict], scheduler: dict[str, Any], root: Path) -> None:
    """BadConfiguration where the components' numbers are absurd or can't belong to one model."""
    for name, config in (*configs.items(), ('scheduler', scheduler)):
        _check_numbers(f'{root / name}', config)
        _check_counts(f'{root / name}', config)
        if config.get('quantization_config'):
            raise BadConfiguration(f'{root / name} is quantised, which is not accepted; give the plain weights.')
    unet, vae, text = configs['unet'], configs['vae'], configs['text_encoder']
    pairs = (('unet cross_attention_dim', unet.get('cross_attention_dim', 1280),
              'text_encoder hidden_size', text.get('hidden_size', 512)),
             ('unet in_channels', unet.get('in_channels', 4), 'vae latent_channels', vae.get('latent_channels', 4)))
    for left, a, right, b in pairs:
        if a != b:
            raise BadConfiguration(f'{root}: {left} is {a} and {right} is {b}; they must be equal: '
                                   'the folder mixes parts of different models.')
    scaling = vae.get('scaling_factor', 0.18215)
    if isinstance(scaling, bool) or not isinstance(scaling, (int, float)) or not math.isfinite(scaling) or scaling <= 0:
        raise BadConfiguration(f'{root / "vae"}: scaling_factor is {scaling!r}; accepted: a positive number.')
    prediction = scheduler.get('prediction_type', 'epsilon')
    if prediction not in ('epsilon', 'v_prediction', 'sample'):
        raise BadConfiguration(f'{root / "scheduler"}: prediction_type is {prediction!r}; '
                               'accepted: epsilon, v_prediction, sample.')
    if unet.get('sample_size') is None:
        raise BadConfiguration(f'{root / "unet"} has no sample_size; accepted: a whole number, 96 for 768 pixels.')
    _check_heads(unet, root)


def _check_heads(unet: dict[str, Any], root: Path) -> None:
    channels = unet.get('block_out_channels')
    heads = unet.get('attention_head_dim', 8)
    if not isinstance(channels, list) or not channels:
        raise BadConfiguration(f'{root / "unet"}: block_out_channels is {channels!r}; accepted: a list of numbers.')
    heads = heads if isinstance(heads, list) else [heads] * len(channels)
    blocks = unet.get('down_block_types')
    blocks = blocks if isinstance(blocks, list) and len(blocks) == len(channels) else ['CrossAttn'] * len(channels)
    if len(heads) != len(channels) or any('Attn' in str(block) and (h is None or c % h)
                                          for block, c, h in zip(blocks, channels, heads)):
        raise BadConfiguration(f'{root / "unet"}: attention_head_dim {heads} does not divide '
                               f'block_out_channels {channels}.')


def _check_numbers(where: str, value: Any, depth: int = 0) -> None:
    if depth > 8:
        raise BadConfiguration(f'{where} is nested too deep for a configuration.')
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(f'{where}: {key}', item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_numbers(where, item, depth + 1)
    elif isinstance(value, (int, float)) and not abs(value) <= _LARGEST_NUMBER:     # NaN is not, either
        raise BadConfiguration(f'{where} is {str(value)[:40]}, which no Stable Diffusion has.')


def _check_counts(where: str, config: dict[str, Any]) -> None:
    for key, most in _LARGEST_COUNT.items():
        value = config.get(key)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int) or not 1 <= one <= most):
                raise BadConfiguration(f'{where}: {key} is {value!r}; accepted: whole numbers from 1 to {most}.')


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
