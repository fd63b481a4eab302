"""torch, as diffusers runs it: everywhere, no preparation, LoRAs and every scheduler at once.

bf16 or fp16 where the hardware multiplies in it (modelscope_cartoon.precision), diffusers' fused attention. 16-bit
networks are in channels_last, the layout of the fastest convolutions: on a GPU all, on a CPU the VAE, which gains most.
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from modelscope_cartoon import memory, prepared
from modelscope_cartoon.backends import Backend, Report
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.lora import Loras
from modelscope_cartoon.lora_choice import LoraChoice


class Eager(Backend):
    name = 'torch'

    def __init__(self, folder: ModelFolder, device: torch.device, dtype: torch.dtype, memory_mode: str):
        self.device, self.memory_mode = device, memory_mode
        self._loras = Loras()
        self.pipe = prepared.load(folder, dtype)
        if dtype != torch.float32:
            to_channels_last(self.pipe.vae)
        if dtype != torch.float32 and device.type != 'cpu':     # a CPU gains little, and would copy mapped weights
            to_channels_last(self.pipe.unet)

    @classmethod
    def recommended(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> str | None:
        return f'runs everywhere, here on {device} in {str(dtype).removeprefix("torch.")}.'

    @classmethod
    def prepare(cls, folder: ModelFolder, device: torch.device, dtype: torch.dtype, report: Report) -> bool:
        """A 16-bit copy of the weights."""
        return prepared.prepare(folder, dtype, report)

    def drawing(self, loras: Sequence[LoraChoice]) -> AbstractContextManager[None]:
        return self._loras.on(self.pipe, loras)

    def check_lora(self, choice: LoraChoice) -> None:
        self._loras.check(self.pipe, choice)

    def to_fp32(self) -> None:
        memory.undo(self.pipe)
        self.pipe.to(dtype=torch.float32)
        self.set_memory(self.memory_mode)

    def set_memory(self, mode: str) -> None:
        self.memory_mode = mode
        memory.apply(self.pipe, mode, self.device)

    def compile(self, **options: Any) -> None:
        """The UNet alone; the loop around it stays plain Python."""
        self.pipe.unet.compile(**options)

    def save_networks(self, folder: str) -> None:
        memory.undo(self.pipe)
        try:
            self.pipe.save_pretrained(folder, safe_serialization=True)
        finally:
            self.set_memory(self.memory_mode)


def to_channels_last(network: torch.nn.Module) -> None:
    """The kernels of its convolutions; the pictures that pass through them follow."""
    network.to(memory_format=torch.channels_last)
