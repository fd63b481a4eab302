"""Whom we measure: ours, and the peers. A side is loaded in a process of its own and draws what it is asked to.

Adding one is a class with `draw`, and a row in SIDES. Nothing heavy is imported here before a side is loaded.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from benchmarks.models import has_bin
from benchmarks.watch import Watch

GUIDANCE = 7.5


class Ask(NamedTuple):
    """noise: float32 [batch, 4, h, w], the same for every side. options: a scheduler's label, or ours (preset, ...)."""
    prompt: str
    size: int
    steps: int
    noise: Any
    options: dict[str, Any]


class Upstream:
    """The host's own class as shipped: fp32. It chooses the device itself; it imports torchvision and uses nothing of
    it, so it is given an empty stand-in. Safetensors only where the folder has nothing else."""

    def __init__(self, folder: Path, device: str, watch: Watch):
        from diffusers import StableDiffusionPipeline as _  # noqa: F401  (before: transformers would use the stand-in)
        _stand_in_for_torchvision()
        from modelscope.pipelines.multi_modal.diffusers_wrapped.stable_diffusion.stable_diffusion_pipeline import (
            StableDiffusionPipeline,
        )
        self.pipe = StableDiffusionPipeline(str(folder), **({} if has_bin(folder) else {'use_safetensors': True}))
        self.runs_as = 'diffusers float32'
        watch.follow(self.pipe.pipeline)
        self.watch = watch

    def draw(self, ask: Ask) -> None:
        self.pipe({'text': ask.prompt, 'height': ask.size, 'width': ask.size, 'num_inference_steps': ask.steps,
                   'num_images_per_prompt': len(ask.noise), 'latents': ask.noise.to(self.pipe.device),
                   'callback': lambda step, timestep, latents: self.watch.step(latents), 'callback_steps': 1})


def _stand_in_for_torchvision() -> None:
    for name in ('torchvision', 'torchvision.transforms'):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None, is_package=True)
    sys.modules['torchvision'].transforms = sys.modules['torchvision.transforms']


class Diffusers:
    """Plain diffusers. compiled: torch.compile of UNet and VAE decoder in channels_last, as its docs say; on a GPU with
    max-autotune. tensorrt: torch_tensorrt compiles the UNet."""

    def __init__(self, folder: Path, device: str, watch: Watch, dtype: str = 'bfloat16', compiled: bool = False,
                 tensorrt: bool = False):
        import torch
        from diffusers import StableDiffusionPipeline

        self.device, self.dtype, self.watch = device, getattr(torch, dtype), watch
        pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=self.dtype, use_safetensors=not has_bin(folder))
        self.pipe = pipe.to(device)
        self.runs_as = f'diffusers {dtype}' + (', torch.compile' if compiled else ', TensorRT' if tensorrt else '')
        if compiled:
            mode = {'mode': 'max-autotune', 'fullgraph': True} if device != 'cpu' else {'options': {'freezing': True}}
            pipe.unet.to(memory_format=torch.channels_last).compile(**mode)
            pipe.vae.to(memory_format=torch.channels_last)
            if device != 'cpu':
                pipe.vae.decoder.compile(**mode)
        if tensorrt:
            import torch_tensorrt  # noqa: F401  (registers the backend; ImportError says that it isn't installed)
            pipe.unet.compile(backend='tensorrt')
        watch.follow(pipe)

    def draw(self, ask: Ask) -> None:
        from modelscope_cartoon.schedulers import build

        pipe, own = self.pipe, self.pipe.scheduler
        if 'scheduler' in ask.options:
            pipe.scheduler = build(ask.options['scheduler'], own.config)
        try:
            pipe(ask.prompt, height=ask.size, width=ask.size, num_inference_steps=ask.steps, guidance_scale=GUIDANCE,
                 num_images_per_prompt=len(ask.noise), latents=ask.noise.to(self.device, self.dtype), output_type='np',
                 callback_on_step_end=lambda _, step, timestep, tensors: self.watch.step(tensors['latents']) or {})
        finally:
            pipe.scheduler = own


class Ours:
    """load_pipeline with the options of a row, or the host's pipeline(); a fallback of ours counts as an error here."""

    def __init__(self, folder: Path, device: str, watch: Watch, backend: str = 'auto', host: bool = False,
                 **options: Any):
        load = _through_the_host if host else _load_pipeline
        self.pipe = load(str(folder), device='gpu' if device == 'cuda' else device, backend=backend, **options)
        model = self.pipe.model
        if backend not in ('auto', model.backend):
            raise RuntimeError(f'backend {backend!r} was asked for and {model.backend!r} draws.')
        self.runs_as = f'{model.backend} {str(model.dtype).removeprefix("torch.")}, memory {model.memory_mode}'
        watch.follow(self.pipe.pipeline)
        self.watch = watch

    def draw(self, ask: Ask) -> None:
        steps = {'num_inference_steps': ask.steps} if ask.steps else {}     # 0: as many as the preset says
        self.pipe({'text': ask.prompt, 'trigger': False, 'height': ask.size, 'width': ask.size, **steps,
                   'guidance_scale': GUIDANCE, 'num_images_per_prompt': len(ask.noise), 'latents': ask.noise,
                   'callback': lambda step, timestep, latents: self.watch.step(latents), **ask.options})


def _load_pipeline(folder: str, **options: Any) -> Any:
    from modelscope_cartoon import load_pipeline
    return load_pipeline(folder, **options)


def _through_the_host(folder: str, **options: Any) -> Any:
    from modelscope.pipelines import pipeline

    import modelscope_cartoon  # noqa: F401  (registers ours)
    return pipeline('text-to-image-synthesis', model=folder, pipeline_name='cartoon-stable-diffusion', **options)


def _openvino(folder: Path, device: str, watch: Watch) -> Any:
    from benchmarks.direct_openvino import DirectOpenVINO
    return DirectOpenVINO(folder, watch)


@dataclass(frozen=True)
class Side:
    """need: memory at its peak as a multiple of Model.fp32_gib, a first guess by which groups are planned."""
    title: str
    load: Callable[[Path, str, Watch], Any]
    need: float
    devices: tuple[str, ...] = ('cpu', 'cuda')
    ours: bool = False
    standard: bool = True     # False: only where --sides names it


def _row(backend: str, title: str, need: float, **row: Any) -> Side:
    options = row.pop('options', {})
    return Side(f'ours, {title}', partial(Ours, backend=backend, **options), need, ours=True, **row)


SIDES: dict[str, Side] = {
    'U': Side('upstream, as shipped (fp32)', Upstream, 1.13),
    'D32': Side('diffusers, fp32', partial(Diffusers, dtype='float32'), 1.13),
    'O': Side('OpenVINO used directly, bf16', _openvino, 0.7, ('cpu',)),
    'openvino': _row('openvino', 'backend openvino', 0.7, devices=('cpu',)),
    'int8': _row('int8', 'backend int8', 0.7, devices=('cpu',), standard=False),
    'D16': Side('diffusers, bf16', Diffusers, 0.83),
    'torch': _row('torch', 'backend torch', 0.83),
    'C': Side('diffusers, bf16, torch.compile', partial(Diffusers, compiled=True), 0.95),
    'T': Side('diffusers, bf16, TensorRT', partial(Diffusers, tensorrt=True), 0.95, ('cuda',)),
    'compile': _row('compile', 'backend compile', 0.95, devices=('cuda',)),
    'auto': _row('auto', 'backend auto', 0.95, standard=False),
    'host': _row('auto', "backend auto, through the host's pipeline()", 0.95, standard=False, options={'host': True}),
    'low': _row('torch', "memory='low'", 0.83, devices=('cuda',), options={'memory': 'low'}),
    'min': _row('torch', "memory='min'", 0.83, devices=('cuda',), options={'memory': 'min'}),
}
