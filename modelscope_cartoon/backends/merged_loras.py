"""LoRAs written into the UNet's weights for the time of a batch, so that a compiled UNet stays the module it was.

A compiled graph takes the weights as they are in memory, at fixed addresses; wrappers around its layers would be
another graph. What is written over is kept and put back to the bit. The text encoder isn't compiled: there LoRAs go on
as everywhere (modelscope_cartoon.lora).
"""
from __future__ import annotations

import torch

from modelscope_cartoon.lora import Layer, LoraLayer, Loras
from modelscope_cartoon.lora_file import Delta


class MergedLoras(Loras):
    """The UNet's memory must belong to one model alone, and one thread at a time draws with it."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []     # a weight, and what was in it

    def _put_on(self, wrappers: list[tuple[Layer, LoraLayer]]) -> None:
        for layer, wrapper in wrappers:
            if layer.network == 'unet':
                self._on.append((layer, wrapper))
                self._merge(layer.module.weight.data, wrapper)
            else:
                super()._put_on([(layer, wrapper)])

    def _merge(self, weight: torch.Tensor, wrapper: LoraLayer) -> None:
        """Summed in float32 and rounded once."""
        total = weight.float()
        for delta, scale in wrapper.terms:
            total = total + difference(delta, scale, weight)
        self._kept.append((weight, weight.clone()))     # first, so that an interruption finds it
        weight.copy_(total)

    def _take_off(self) -> list[tuple[Layer, LoraLayer]]:
        while self._kept:
            weight, before = self._kept[-1]
            weight.copy_(before)
            self._kept.pop()
        return super()._take_off()


def difference(delta: Delta, scale: float, weight: torch.Tensor) -> torch.Tensor:
    """What `delta` adds to `weight`, in float32 on its device. A convolution's kernel is in `down`, `up` is 1 x 1."""
    down, up = (tensor.to(weight.device, torch.float32).flatten(1) for tensor in (delta.down, delta.up))
    return (up @ down).view(weight.shape) * (scale * delta.alpha / delta.divisor)
