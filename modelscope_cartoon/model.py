"""CartoonStableDiffusion: the registered model. It loads a folder, keeps it on its device, and draws requests;
where numbers overflow or memory runs out it falls back once, says so, and still works afterwards.
"""
from __future__ import annotations

import functools
import shutil
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from modelscope.models.base import Model
from modelscope.models.builder import MODELS
from modelscope.utils.constant import Tasks
from modelscope.utils.device import create_device

from modelscope_cartoon import backends, cache, weights
from modelscope_cartoon import memory as memory_modes
from modelscope_cartoon.configuration import MODEL_TYPE, configuration
from modelscope_cartoon.errors import InvalidRequest, NonFiniteError, OutOfMemory
from modelscope_cartoon.files import folder_aside, write_json
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.log import logger
from modelscope_cartoon.lora_choice import LoraChoice
from modelscope_cartoon.names import refuse_unknown
from modelscope_cartoon.precision import best_dtype, one_dtype
from modelscope_cartoon.request import GenerationRequest, Picture
from modelscope_cartoon.sampling import Overflow, default_size, sample

# What the host or upstream's own class pass along, and what has no bearing on a picture here.
HOST_OPTIONS = ('trust_remote_code', 'model_prefetched', 'invoked_by', 'use_safetensors', 'compile',
                 'compile_options', 'task', 'hubs', 'external_engine_for_llm')
OPTIONS = ('dtype', 'torch_dtype', 'torch_type', 'memory', 'backend', 'device')


@MODELS.register_module(Tasks.text_to_image_synthesis, module_name=MODEL_TYPE)
class CartoonStableDiffusion(Model):
    """A Stable Diffusion folder, ready to draw.

    Not a torch module, so that the host's `prepare_model` can't move it off its place.
    dtype (or torch_dtype, torch_type): a torch dtype or its name; None chooses by device.
    memory: 'auto', 'full', 'low' or 'min' (modelscope_cartoon.memory).
    backend: 'auto', or one of modelscope_cartoon.backends.
    """

    def __init__(self, model_dir: str, device: str = 'gpu', dtype: object = None, torch_dtype: object = None,
                 torch_type: object = None, memory: str = 'auto', backend: str = 'auto', **host_options: Any):
        refuse_unknown('option', [k for k in host_options if k not in HOST_OPTIONS], OPTIONS)
        super().__init__(str(model_dir), device=device, trust_remote_code=host_options.get('trust_remote_code'))
        self.device = create_device(device)
        self._lock = threading.RLock()
        mode, name = memory_modes.parse_mode(memory), backends.parse_backend(backend)
        self._load(ModelFolder(model_dir), one_dtype(dtype=dtype, torch_dtype=torch_dtype, torch_type=torch_type),
                   mode, name)

    def _load(self, folder: ModelFolder, dtype: torch.dtype | None, mode: str, backend: str) -> None:
        self.dtype = dtype or best_dtype(self.device, weights.parameter_bytes(folder, torch.float32))
        self.memory_mode = memory_modes.choose(mode, self.device, weights.parameter_bytes(folder, self.dtype))
        self._folder = folder
        chosen = backends.choose(backend, folder, self.device, self.dtype)
        self._backend = chosen(folder, self.device, self.dtype, self.memory_mode)
        try:
            self._backend.set_memory(self.memory_mode)
        except Exception as error:
            self._lower_memory(error, 'placing the model')

    @property
    def backend(self) -> str:
        """The name of what runs the networks."""
        return self._backend.name

    @property
    def diffusers_pipeline(self) -> DiffusionPipeline:
        """The diffusers pipeline that draws. Its scheduler, or all of it, may be replaced."""
        return self._backend.pipe

    @diffusers_pipeline.setter
    def diffusers_pipeline(self, pipe: DiffusionPipeline) -> None:
        if not isinstance(pipe, DiffusionPipeline):
            raise InvalidRequest(f'pipeline is a {type(pipe).__name__}; accepted: a diffusers pipeline.')
        self._backend.pipe = pipe
        self._folder = None

    @functools.cached_property
    def weights_hash(self) -> str | None:
        """Which weights they are (modelscope_cartoon.cache); None where the whole pipeline was replaced.

        Costs a reading of all weight files at the first picture on a machine; it is remembered from then on.
        """
        return cache.weights_hash(self._folder) if self._folder else None

    @property
    def default_size(self) -> tuple[int, int]:
        return default_size(self._backend.pipe)

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """{'request', 'pictures'} -> the same with 'images', float32 [N, H, W, 3], RGB, 0..1."""
        return {**inputs, 'images': self.draw(inputs['request'], inputs['pictures'])}

    @torch.no_grad()
    def draw(self, request: GenerationRequest, pictures: Sequence[Picture]) -> np.ndarray:
        """`pictures` in one batch with the request's settings and their LoRAs: float32 [N, H, W, 3], RGB, 0..1.

        One thread draws at a time, others wait. NonFiniteError where numbers overflow even in fp32; OutOfMemory
        where the next lower memory mode isn't enough either.
        """
        if len({picture.loras for picture in pictures}) > 1:
            raise InvalidRequest('the pictures of one request with a generator, latents or a callback of its own must '
                                 'have the same LoRAs; split the request.')
        with self._lock:
            rewind = _rewinder(request.generator)
            try:
                return self._draw_in_range(request, pictures)
            except Exception as error:
                self._lower_memory(error, 'drawing')
            rewind()
            try:
                return self._draw_in_range(request, pictures)
            except Exception as error:
                if memory_modes.is_out_of_memory(error):
                    raise self._out_of_memory('drawing') from error
                raise

    def _draw_in_range(self, request: GenerationRequest, pictures: Sequence[Picture]) -> np.ndarray:
        rewind = _rewinder(request.generator)
        try:
            return self._sample(request, pictures)
        except Overflow as overflow:
            if self._backend.pipe.unet.dtype == self.dtype == torch.float32:
                raise _non_finite(overflow) from overflow
            self._to_fp32(overflow)
        rewind()
        try:
            return self._sample(request, pictures)
        except Overflow as overflow:
            raise _non_finite(overflow) from overflow

    def _sample(self, request: GenerationRequest, pictures: Sequence[Picture]) -> np.ndarray:
        with self._backend.drawing(pictures[0].loras):
            return sample(self._backend.pipe, request, pictures)

    def check_loras(self, choices: Iterable[LoraChoice]) -> None:
        """CartoonError where one of `choices` can't be read or was made for another model."""
        with self._lock:
            for choice in choices:
                self._backend.check_lora(choice)

    def _to_fp32(self, overflow: Overflow) -> None:
        logger.warning('%s in %s; the picture is drawn again in float32, and so are all later ones '
                       '(slower, twice the memory).', overflow, self.dtype)
        self._backend.to_fp32()
        self.dtype = torch.float32

    def _lower_memory(self, error: Exception, doing: str) -> None:
        """Goes one memory mode down for an out-of-memory error; raises any other error, or when there is none."""
        if not memory_modes.is_out_of_memory(error):
            raise error
        lower = memory_modes.lower(self.memory_mode)
        if lower is None:
            raise self._out_of_memory(doing) from error
        logger.warning('not enough memory for %s in memory mode %r; trying %r, which is slower.',
                       doing, self.memory_mode, lower)
        self.memory_mode = lower
        traceback.clear_frames(error.__traceback__)     # they hold what took the memory
        self._backend.set_memory(lower)

    def _out_of_memory(self, doing: str) -> OutOfMemory:
        return OutOfMemory(f'not enough memory for {doing}, in memory mode {self.memory_mode!r} too; use a smaller '
                           'height and width, or fewer pictures at once.')

    def compile(self, **options: Any) -> CartoonStableDiffusion:
        """The host's compile=True."""
        try:
            self._backend.compile(**options)
        except Exception as error:     # raised, it would leave the host's lock locked, and the next call hang
            logger.warning('the model could not be compiled (%s); it draws without that.', error)
        return self

    def save_pretrained(self, target_folder: str, *_: Any, **__: Any) -> None:
        """The folder as safetensors in the present dtype, which pipeline() and diffusers load; whole or not at all.

        OutputError where `target_folder` can't be written, or already holds something.
        """
        with folder_aside(Path(target_folder)) as folder:
            self._backend.save_networks(folder)
            own = configuration(self.model_dir)
            for relative in (own['preprocessor'].get('loras') or {}).values():
                shutil.copytree(Path(self.model_dir, relative), folder / relative, dirs_exist_ok=True)
            write_json(folder / 'configuration.json', own)


def _rewinder(generator: Any) -> Callable[[], None]:
    """Puts the caller's own generators back to where they are now, so that a second try draws the same picture."""
    many = generator if isinstance(generator, (list, tuple)) else [generator] if generator is not None else []
    states = [(one, one.get_state()) for one in many]

    def rewind() -> None:
        for one, state in states:
            one.set_state(state)
    return rewind


def _non_finite(overflow: Overflow) -> NonFiniteError:
    return NonFiniteError(f'{overflow}, in float32 too: the weights or the settings are broken; try another '
                          'scheduler or a lower guidance_scale, or download the model again.')
