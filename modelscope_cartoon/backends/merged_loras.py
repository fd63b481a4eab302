"""LoRAs as part of the UNet's weights for the time of a batch, so that a compiled UNet stays the module it was.

A compiled graph takes the weights as arguments; wrappers around its layers would be another graph. So each weight that
a LoRA changes points to a merged copy meanwhile, and to its own memory again after it. Own memory is never written to:
it may be a file's, or another model's too. The copies stay, since CUDA graphs know weights by their addresses. The text
encoder isn't compiled: there LoRAs go on as everywhere (modelscope_cartoon.lora).
"""
from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from modelscope_cartoon.lora import Layer, LoraLayer, Loras, difference


class MergedLoras(Loras):
    """As Loras, for one model whose UNet is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self._copies = WeakTensorKeyDictionary()                      # of weights that a LoRA has changed
        self._pointed: list[tuple[torch.Tensor, torch.Tensor]] = []   # a weight, and its own memory

    def _put_on(self, wrappers: list[tuple[Layer, LoraLayer]]) -> None:
        for layer, wrapper in wrappers:
            if layer.network == 'unet':
                self._on.append((layer, wrapper))
                self._point(layer.module.weight, wrapper)
            else:
                super()._put_on([(layer, wrapper)])

    def _point(self, weight: torch.Tensor, wrapper: LoraLayer) -> None:
        """Summed in float32 and rounded once."""
        total = weight.data.float()
        for delta, scale in wrapper.terms:
            total = total + difference(delta, scale, weight)
        copy = self._copies.get(weight)
        if copy is None or (copy.dtype, copy.device) != (weight.dtype, weight.device):
            copy = self._copies[weight] = torch.empty_like(weight.data)
        copy.copy_(total)
        self._pointed.append((weight, weight.data))     # first, so that an interruption finds it
        weight.data = copy

    def _take_off(self) -> list[tuple[Layer, LoraLayer]]:
        while self._pointed:
            weight, own = self._pointed[-1]
            weight.data = own
            self._pointed.pop()
        return super()._take_off()
