"""int8 on the CPU, by name only: the UNet's convolutions and linear layers multiply 8-bit numbers.

Int8.prepare calibrates the ranges of those numbers on the user's own weights: it draws a few pictures, takes some of
the UNet's real inputs from them, lets nncf measure, draws the pictures again, and shows how far they have moved.
Only what `Int8.accept` then says yes to is kept. The other networks, and pictures with LoRAs in the UNet, are drawn
as by the openvino backend.

    <openvino's folder of the model>/int8-<FORM>/unet.xml
"""
from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from modelscope_cartoon import cache
from modelscope_cartoon.backends import Report, conversion, graphs
from modelscope_cartoon.backends.graphs import Graph
from modelscope_cartoon.backends.openvino import Networks, OpenVINO
from modelscope_cartoon.errors import ModelError
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.log import logger
from modelscope_cartoon.lora_choice import LoraChoice
from modelscope_cartoon.request import Picture, parse_request
from modelscope_cartoon.sampling import decode, denoise, encode_all, initial_noise, session

FORM = 1
PROMPTS = ('sks style, a portrait painting of a woman with red hair', 'archer style, an old man in a blue coat',
           'a house by the sea, blurry')
STEPS, SEED = 10, 7
SAMPLES = 12            # UNet calls that nncf measures, spread over all pictures and steps
_SENSITIVE = ['.*conv_in/.*', '.*conv_out/.*', '.*time_emb.*']     # next to no arithmetic, and all of the picture


def ask(distance: str) -> bool:
    """A person's answer on the terminal; no where there is none."""
    if not sys.stdin.isatty():
        return False
    print(f'{distance}\nKeep it? [y/N] ', end='', file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ('y', 'yes')


class Int8(OpenVINO):
    """accept: whether a distance, told in a sentence, is worth it."""
    name = 'int8'
    by_name_only = True
    _said = False
    accept: ClassVar[Callable[[str], bool]] = staticmethod(ask)

    @classmethod
    def recommended(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> None:
        return None

    @classmethod
    def prepare(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype, report: Report) -> bool:
        """False where it was calibrated before, or was not accepted now; `report` has said which."""
        if importlib.util.find_spec('nncf') is None:
            raise ModelError("int8 is calibrated by nncf, which is not installed; pip install "
                             "'modelscope-cartoon[int8]'.")
        graphs.runtime()     # before nncf imports openvino's telemetry
        OpenVINO.prepare(folder, device, dtype, report)
        try:
            return cache.built(place(folder), lambda aside: _calibrate(cls, folder, dtype, aside, report))
        except _NotAccepted:
            report('not accepted, so nothing was kept; --accept keeps it without a question.')
            return False

    def _load_base(self) -> Networks:
        file = place(self.folder) / 'unet.xml'
        if not file.is_file():
            raise ModelError(f'{self.folder.root} is not calibrated for int8; run: modelscope-cartoon prepare '
                             f'{self.folder.root} --backend int8')
        return super()._load_base() | {'unet': self._graph(file)}

    def _with(self, loras: Sequence[LoraChoice]) -> Networks:
        networks = super()._with(loras)
        if networks['unet'] is not self._base['unet'] and not self._said:
            self._said = True
            logger.warning('LoRAs that change the UNet are not drawn in int8, but as by the openvino backend.')
        return networks


def place(folder: ModelFolder) -> Path:
    return conversion.place(folder) / f'int8-{FORM}'


class _NotAccepted(Exception):
    pass


class _Drawn(NamedTuple):
    latents: torch.Tensor
    images: np.ndarray
    seconds: float


class _Recorder:
    """In a graph's place: what it was called with."""

    def __init__(self, graph: Graph):
        self.graph, self.calls = graph, []

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        self.calls.append([tensor.float().numpy().copy() for tensor in tensors])
        return self.graph(*tensors)


def _calibrate(backend: type[Int8], folder: ModelFolder, dtype: torch.dtype, aside: Path, report: Report) -> None:
    plain = OpenVINO(folder, torch.device('cpu'), dtype, 'full')
    recorder = plain.pipe.unet.graph = _Recorder(plain.pipe.unet.graph)
    before = [_draw(plain.pipe, prompt) for prompt in PROMPTS]
    report(f'{len(before)} pictures drawn in {recorder.graph.precision}, {before[-1].seconds:.1f} s for the last')
    recorder.graph.forget()
    picked = np.linspace(0, len(recorder.calls) - 1, min(SAMPLES, len(recorder.calls))).astype(int)
    quantized = _quantized(recorder.graph.file, [recorder.calls[i] for i in picked])
    aside.mkdir(exist_ok=True)
    graphs.runtime().save_model(quantized, aside / 'unet.xml', compress_to_fp16=True)
    plain.pipe.unet.graph = Graph(aside / 'unet.xml', recorder.graph.precision)
    after = [_draw(plain.pipe, prompt) for prompt in PROMPTS]
    report(f'drawn again in int8, {after[-1].seconds:.1f} s for the last')
    distance = _distance(before, after)
    report(distance)
    if not backend.accept(distance):
        raise _NotAccepted


@torch.no_grad()
def _draw(pipe: Any, prompt: str) -> _Drawn:
    request = parse_request({'text': prompt, 'seed': SEED, 'num_inference_steps': STEPS})
    pipe = session(pipe, request)
    generator = [torch.Generator('cpu').manual_seed(SEED)]
    noise = initial_noise(pipe, request, 1, generator)
    encoded, = encode_all(pipe, request, [Picture(prompt, '', SEED)])
    started = time.perf_counter()
    latents = denoise(pipe, request, encoded, noise, generator)
    return _Drawn(latents, decode(pipe, latents), time.perf_counter() - started)


def _quantized(file: Path, calls: list[list[np.ndarray]]) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf.quantize(
        graphs.core().read_model(file), nncf.Dataset(calls), subset_size=len(calls),
        preset=nncf.QuantizationPreset.MIXED, model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(patterns=_SENSITIVE, validate=False))


def _distance(before: list[_Drawn], after: list[_Drawn]) -> str:
    latents = [float((b.latents - a.latents).norm() / b.latents.norm()) for b, a in zip(before, after)]
    pixels = [float(np.abs(b.images - a.images).mean()) * 255 for b, a in zip(before, after)]
    return (f'int8 moves the final latents by {_percent(latents)} of their size and a pixel by {_mean(pixels):.1f} of '
            f'255 on average ({len(before)} pictures of {STEPS} steps; worst {max(pixels):.1f}).')


def _percent(values: list[float]) -> str:
    return f'{100 * _mean(values):.1f} %'


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
