"""torch.compile with CUDA graphs: for NVIDIA GPUs, and for people who draw many pictures.

The whole UNet and the VAE's decoder, one graph each for a shape (buckets.py). Not diffusers' regional compilation
(`compile_repeated_blocks`), which shortens the first build where a network is one block many times over: this UNet's
16 transformer blocks come in four sizes and hold half of the arithmetic, the convolutions between them the other half,
and a CUDA graph pays by having the whole step in it. What is compiled stays on disk, so the long build comes once.
"""
from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from modelscope_cartoon import cache, deepcache
from modelscope_cartoon.backends import Report
from modelscope_cartoon.backends.buckets import Buckets
from modelscope_cartoon.backends.buckets import folder as code_folder
from modelscope_cartoon.backends.eager import Eager, to_channels_last
from modelscope_cartoon.backends.merged_loras import MergedLoras
from modelscope_cartoon.errors import InvalidRequest, ModelError
from modelscope_cartoon.files import write_json
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.log import logger
from modelscope_cartoon.lora_choice import LoraChoice
from modelscope_cartoon.sampling import default_size

SIZES = ((512, 512),)          # pixels, beside the model's own
_PREPARED_ROWS = (2, 1)        # one picture with guidance, and without
_TOKENS = 77
_OLDEST_GPU = (7, 0)           # triton's


class Compiled(Eager):
    """Memory mode 'full' alone; in a lower one it draws as torch does."""

    name = 'compile'

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype, memory_mode: str):
        super().__init__(folder, device, dtype, memory_mode)
        to_channels_last(self.pipe.unet)
        to_channels_last(self.pipe.vae)
        self._merged = MergedLoras()
        self._options = {'mode': 'max-autotune'} if device.type == 'cuda' else {}
        self._start_anew()

    @classmethod
    def missing(cls, device: torch.device) -> str | None:
        if device.type not in ('cuda', 'cpu'):
            return f'it needs an NVIDIA GPU, or a CPU, and not {device}.'
        if not any(map(shutil.which, ('c++', 'g++', 'clang++', 'cl'))):
            return 'it needs a C++ compiler; on Debian or Ubuntu: apt-get install g++.'
        if device.type == 'cuda' and importlib.util.find_spec('triton') is None:
            return 'it needs triton; pip install triton (on Windows: triton-windows).'
        if device.type == 'cuda' and torch.cuda.get_device_capability(device) < _OLDEST_GPU:
            return f'it needs a GPU from the year 2017 or later, and {torch.cuda.get_device_name(device)} is older.'
        return None

    @classmethod
    def recommended(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> str | None:
        """On a GPU, once `prepare` has been there: a first picture that takes minutes is nobody's default."""
        if device.type != 'cuda' or not (_prepared(folder, device, dtype).is_dir() and code_folder().is_dir()):
            return None
        return f'prepared for {torch.cuda.get_device_name(device)}, and the fastest there.'

    @classmethod
    def prepare(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype, report: Report) -> bool:
        """On a GPU; a CPU's minutes of compiling come back after several pictures only."""
        if device.type != 'cuda' or cls.missing(device):
            return False

        def build(aside: Path) -> None:
            backend = cls(folder, device, dtype, 'full')
            backend.set_memory('full')
            seconds = backend.warm_up(report)
            if backend._buckets.broken:
                raise ModelError('compiling failed, as the warning above says; nothing was prepared.')
            write_json(aside / 'built.json', seconds)
        return cache.built(_prepared(folder, device, dtype), build)

    def warm_up(self, report: Report) -> dict[str, float]:
        """Compiles for one picture in each size, and reports each with its seconds."""
        seconds = {}
        scale, unet, vae = self.pipe.vae_scale_factor, self.pipe.unet, self.pipe.vae
        for height, width in sorted(self._buckets.sizes):
            started = time.perf_counter()
            with torch.no_grad(), self.drawing(()):
                for rows in _PREPARED_ROWS:
                    latents = torch.zeros((rows, unet.config.in_channels, height, width), dtype=unet.dtype,
                                          device=self.device)
                    text = latents.new_zeros((rows, _TOKENS, unet.config.cross_attention_dim))
                    unet(latents, 500, text, return_dict=False)
                vae.decode(latents, return_dict=False)
            name = f'{height * scale} x {width * scale}'
            seconds[name] = round(time.perf_counter() - started, 1)
            report(f'compiled for {name} pixels: {seconds[name]} s')
        return seconds

    @contextmanager
    def drawing(self, loras: Sequence[LoraChoice]) -> Iterator[None]:
        if self.memory_mode != 'full' or self._buckets.broken:
            with super().drawing(loras):
                yield
            return
        with self._merged.on(self.pipe, loras), compiled_calls(self.pipe, self._buckets):
            yield

    def set_memory(self, mode: str) -> None:
        super().set_memory(mode)
        if mode != 'full':
            logger.warning("backend 'compile' needs memory mode 'full'; in %r it draws without compiling, as torch "
                           'does.', mode)

    def to_fp32(self) -> None:
        super().to_fp32()
        self._start_anew()

    def compile(self, **options: Any) -> None:
        """torch.compile's options, where there are any, instead of 'max-autotune' on a GPU."""
        self._options = options or self._options
        self._start_anew()

    def _start_anew(self) -> None:
        scale = self.pipe.vae_scale_factor
        sizes = {(height // scale, width // scale) for height, width in (default_size(self.pipe), *SIZES)}
        self._buckets = Buckets(self.device, sizes, scale, self._options)


@contextmanager
def compiled_calls(pipe: Any, buckets: Buckets) -> Iterator[None]:
    """The UNet and the VAE's decoder of `pipe` (diffusers) answer through `buckets` inside the block.

    A network that isn't diffusers' own, or has a forward of its own (hooks, a block around this one), stays as it is.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(pipe.unet, UNet2DConditionModel) and 'forward' not in vars(pipe.unet):
            stack.enter_context(_having(pipe.unet, forward=_unet_forward(pipe.unet, buckets),
                                        **_feature_calls(pipe.unet, buckets)))
        if isinstance(pipe.vae, AutoencoderKL) and 'forward' not in vars(pipe.vae.decoder):
            stack.enter_context(_having(pipe.vae.decoder, forward=_decoder_forward(pipe.vae.decoder, buckets)))
        yield


@contextmanager
def _having(network: torch.nn.Module, **attributes: Any) -> Iterator[None]:
    try:
        for name, value in attributes.items():
            setattr(network, name, value)
        yield
    finally:
        for name in attributes:
            vars(network).pop(name, None)


def predict(unet: Any, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor,
            ) -> torch.Tensor:
    return UNet2DConditionModel.forward(unet, sample, timestep, encoder_hidden_states, return_dict=False)[0]


def decode(decoder: Any, latents: torch.Tensor) -> torch.Tensor:
    return type(decoder).forward(decoder, latents)


def _unet_forward(unet: UNet2DConditionModel, buckets: Buckets) -> Any:
    plain = unet.forward

    def forward(sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, *conditions: Any,
                return_dict: bool = True, **named: Any) -> Any:
        if conditions or any(value is not None for value in named.values()):
            return plain(sample, timestep, encoder_hidden_states, *conditions, return_dict=return_dict, **named)
        noise = buckets.call(predict, unet, sample, each_rows(timestep, sample), encoder_hidden_states)
        return UNet2DConditionOutput(sample=noise) if return_dict else (noise,)
    return forward


def _feature_calls(unet: UNet2DConditionModel, buckets: Buckets) -> dict[str, Any]:
    """What modelscope_cartoon.deepcache looks for, where this UNet's features can be reused at all."""
    try:
        deepcache.check(unet, 2)
    except InvalidRequest:
        return {}

    def whole(sample: torch.Tensor, timestep: Any, text: torch.Tensor) -> Any:
        return buckets.call(deepcache.whole, unet, sample, each_rows(timestep, sample), text)

    def shallow(sample: torch.Tensor, timestep: Any, text: torch.Tensor, feature: torch.Tensor) -> Any:
        return buckets.call(deepcache.shallow, unet, sample, each_rows(timestep, sample), text, feature)
    return {'feature_calls': (whole, shallow)}


def _decoder_forward(decoder: torch.nn.Module, buckets: Buckets) -> Any:
    plain = decoder.forward

    def forward(latents: torch.Tensor, latent_embeds: Any = None) -> torch.Tensor:
        return plain(latents, latent_embeds) if latent_embeds is not None else buckets.call(decode, decoder, latents)
    return forward


def each_rows(timestep: Any, sample: torch.Tensor) -> torch.Tensor:
    """`timestep` as float32 [rows]: as a Python number each would be a graph of its own, and schedulers have whole and
    broken ones. diffusers computes with it in float32 anyway."""
    return torch.as_tensor(timestep).to(sample.device, torch.float32).expand(len(sample))


def _prepared(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> Path:
    """Where `prepare` notes that it was here. Weights don't matter: models of one architecture share their graphs."""
    made_for = [(folder.root / name / 'config.json').read_bytes() for name in ('unet', 'vae')]
    gpu = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'
    versions = [importlib.metadata.version(name) for name in ('torch', 'diffusers')]
    made_for += [str(one).encode() for one in (dtype, gpu, *versions)]
    return cache.root() / 'compiled' / hashlib.sha256(b'\n'.join(made_for)).hexdigest()[:16]
