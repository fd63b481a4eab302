"""A network's matrices kept in eight bits a number with a scale for each few, and in full only while their layer works.

Half the memory of 16 bits. The nearest of 255 steps up to the largest of 32 neighbours is several times as near as
what diffusers' layerwise casting to float8_e4m3fn keeps: three bits of mantissa and, unscaled, too few exponents for
weights as small as a UNet's (figures: docs/memory.md).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

LARGEST = 127
GROUP = 32                                # neighbours in a row with one scale; costs 1/16 of the memory saved
_WORTH = 2**12                            # numbers in a matrix; smaller ones stay as they are
_AS_THEY_ARE = ('conv_in', 'conv_out')    # small, and all of the picture passes through them


def pack(network: torch.nn.Module, device: torch.device, stops: list[Callable[[], None]]) -> None:
    """Moves `network` to `device`, its large matrices as bytes, and adds to `stops` what ends that.

    The numbers themselves come back only from where somebody kept them (modelscope_cartoon.resting).
    """
    for layer in _layers(network):
        packed = Packed(layer.weight.data.to(device))
        stops += [layer.register_forward_pre_hook(packed.open).remove,
                  layer.register_forward_hook(packed.close, always_call=True).remove]
        packed.close(layer)
    network.to(device)


class Packed:
    """A matrix [rows, ...] as bytes; two forward hooks put it into its layer and take it out again."""

    def __init__(self, weight: torch.Tensor):
        last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        self._back = (0, 3, 1, 2) if last else tuple(range(weight.ndim))     # the order that its memory has is kept
        rows = weight.permute(0, 2, 3, 1) if last else weight
        self._shape, row = rows.shape, weight[0].numel()
        groups = rows.float().reshape(len(weight), -1, GROUP if row % GROUP == 0 else row)
        largest = groups.abs().amax(dim=-1, keepdim=True)
        self.scale = (largest / LARGEST).clamp_min(torch.finfo(weight.dtype).tiny).to(weight.dtype)
        self.bytes = (groups / self.scale.float()).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
        self._nothing = weight.new_zeros(1).expand(weight.shape)     # of the same shape and type, and of no size

    def open(self, layer: torch.nn.Module, *_: Any) -> None:
        whole = self.bytes * self.scale     # one kernel, in the scale's type
        layer.weight.data = whole.view(self._shape).permute(self._back)

    def close(self, layer: torch.nn.Module, *_: Any) -> None:
        layer.weight.data = self._nothing


def _layers(network: torch.nn.Module) -> Iterator[Any]:
    for name, layer in network.named_modules():
        if (isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and layer.weight.numel() >= _WORTH
                and name not in _AS_THEY_ARE):
            yield layer
