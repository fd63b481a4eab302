"""A model's networks from torch into OpenVINO's files: once for its weights, once more for each set of LoRAs.

    <cache>/openvino/<hash of the weights>-<openvino's version>-<FORM>/
        unet/           unet.xml, shallow.xml (what modelscope_cartoon.deepcache reuses features with)
        text_encoder/   text_encoder.xml
        vae/            vae.xml, the decoder alone
        lora-<hash>/    unet/, text_encoder/: with LoRAs merged in
"""
from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from modelscope_cartoon import cache, deepcache, weights
from modelscope_cartoon.backends import graphs
from modelscope_cartoon.files import write_json
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.lora import Loras
from modelscope_cartoon.lora_choice import LoraChoice, weights_file
from modelscope_cartoon.precision import is_small

FORM = 1             # of the files; another form is another folder
KEPT_MERGES = 8      # sets of LoRAs on disk, 1.7 GB each for Stable Diffusion 2.1; the one unused longest goes first
NETWORKS = ('text_encoder', 'unet', 'vae')
_Call = Callable[..., Any]


def place(folder: ModelFolder) -> Path:
    return _place(cache.weights_hash(folder))


def _place(weights_hash: str) -> Path:
    return cache.root() / 'openvino' / f'{weights_hash}-{importlib.metadata.version("openvino")}-{FORM}'


def is_here(folder: ModelFolder) -> bool:
    """Whether all of it was converted before. Reads no weights: ones that were have been read for their hash."""
    known = cache.remembered_hash(folder)
    return known is not None and all((_place(known) / network).is_dir() for network in NETWORKS)


def convert(folder: ModelFolder, network: str, target: Path, loras: Sequence[LoraChoice] = ()) -> bool:
    """Writes `network`'s graphs into `target`/`network`, once for all processes; True where this call did it."""
    built = cache.built(target / network, lambda aside: _write(folder, network, aside, loras))
    if built:
        write_json(target / 'manifest.json', {'source': str(folder.root), 'loras': [list(lora) for lora in loras]})
    return built


def _write(folder: ModelFolder, network: str, aside: Path, loras: Sequence[LoraChoice]) -> None:
    module = weights.load_component(folder, network, torch.float32)
    if loras:
        Loras().merge(SimpleNamespace(**{**vars(skeleton(folder)), network: module}), loras)
    aside.mkdir(exist_ok=True)
    half = not is_small(folder_bytes(folder))
    for name, (call, example) in _CALLS[network](module).items():
        _save(_Traced(module, call), example, aside / f'{name}.xml', half)


def folder_bytes(folder: ModelFolder) -> int:
    return weights.parameter_bytes(folder, torch.float32)


def skeleton(folder: ModelFolder) -> SimpleNamespace:
    """The UNet and the text encoder without any weights: the names and shapes of their layers."""
    with torch.device('meta'), weights.quiet():
        return SimpleNamespace(
            unet=UNet2DConditionModel.from_config(folder.configs['unet']),
            text_encoder=CLIPTextModel(CLIPTextConfig.from_dict(dict(folder.configs['text_encoder']))))


class _Traced(torch.nn.Module):
    def __init__(self, network: torch.nn.Module, call: _Call):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.call(self.network, *tensors)


def _save(traced: torch.nn.Module, example: tuple[torch.Tensor, ...], file: Path, half: bool) -> None:
    openvino = graphs.runtime()
    with torch.no_grad(), weights.quiet(), _root_logger_kept(), warnings.catch_warnings():
        warnings.simplefilter('ignore')     # the tracer's, of decisions that hold for every size here
        model = openvino.convert_model(traced, example_input=example)
    openvino.save_model(model, file, compress_to_fp16=half)


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """convert_model sets the application's own root logger to ERROR, and leaves it so where it raises."""
    root = logging.getLogger()
    level, filters, handlers = root.level, [*root.filters], [*root.handlers]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def _unet_calls(unet: Any) -> dict[str, tuple[_Call, tuple]]:
    """Odd sizes on purpose: traced with them the UNet asks each skip for its size, which is right for all others too.

    The sinusoids of the time come from outside: in bfloat16 step 981 would be step 980, 3 % of the prediction.
    """
    config = unet.config
    side = 2 ** len(config.block_out_channels) + 1
    sample = torch.zeros(2, config.in_channels, side, side)
    time = torch.zeros(2, config.block_out_channels[0])
    text = torch.zeros(2, 77, config.cross_attention_dim)
    feature = torch.zeros(2, feature_channels(config), side, side)
    return {'unet': (_with_time(deepcache.whole), (sample, time, text)),
            'shallow': (_with_time(deepcache.shallow), (sample, time, text, feature))}


def feature_channels(config: Any) -> int:
    """Of what enters the last layer of the last block."""
    return config.block_out_channels[0]


def _with_time(call: _Call) -> _Call:
    def called(unet: Any, sample: torch.Tensor, time: torch.Tensor, *rest: torch.Tensor) -> Any:
        with _given_time(unet):
            return call(unet, sample, time, *rest)
    return called


@contextmanager
def _given_time(unet: Any) -> Iterator[None]:
    unet.get_time_embed = lambda sample, timestep: timestep
    try:
        yield
    finally:
        del unet.get_time_embed


def _text_calls(encoder: Any) -> dict[str, tuple[_Call, tuple]]:
    """Every layer's output through the last norm, [layers + 1, N, tokens, width]: clip_skip takes one of them."""
    def layers(encoder: Any, ids: torch.Tensor) -> torch.Tensor:
        norm = getattr(encoder, 'text_model', encoder).final_layer_norm
        return torch.stack([norm(one) for one in encoder(ids, output_hidden_states=True).hidden_states])
    return {'text_encoder': (layers, (torch.zeros(2, encoder.config.max_position_embeddings, dtype=torch.int64),))}


def _vae_calls(vae: Any) -> dict[str, tuple[_Call, tuple]]:
    def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        return vae._decode(latents, return_dict=False)[0]
    return {'vae': (decode, (torch.zeros(2, vae.config.latent_channels, 8, 8),))}


_CALLS = {'unet': _unet_calls, 'text_encoder': _text_calls, 'vae': _vae_calls}


def lora_key(loras: Sequence[LoraChoice]) -> str:
    """By the files' contents and scales; their order makes no difference."""
    parts = sorted((cache.known_sha256(weights_file(choice.path)), choice.scale) for choice in loras)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def keep_young(merge: Path) -> None:
    """Of the sets of LoRAs merged for one model the KEPT_MERGES used last are kept, `merge` the youngest of them."""
    os.utime(merge)
    sets = sorted(merge.parent.glob('lora-*'), key=lambda path: path.stat().st_mtime)
    for old in sets[:-KEPT_MERGES]:
        shutil.rmtree(old, ignore_errors=True)     # Windows keeps what another process has open
