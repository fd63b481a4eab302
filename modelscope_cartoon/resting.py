"""Networks whose numbers come to a GPU only when it is their turn, and the way back to where they rest.

    rest = Rest(network)         where its tensors are now; nothing is copied back to there
    offload(network, device)     layer by layer on `device`, the next one copied while one works
    let_rest(network)            undoes that, and whatever else was put into rest.stops
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import HookRegistry, apply_group_offloading

# of diffusers.hooks.group_offloading, the last put on first
_OFFLOADING = ('lazy_prefetch_group_offloading', 'layer_execution_tracker', 'group_offloading')


class Rest:
    """Where a network's tensors rest while a memory mode has others in their place. The network itself keeps it."""

    def __init__(self, network: torch.nn.Module):
        let_rest(network)
        self.stops: list[Callable[[], None]] = []
        self.note(network)
        network._resting = self

    def note(self, network: torch.nn.Module) -> None:
        self.tensors = [(tensor, tensor.data) for tensor in tensors(network)]


def offload(network: torch.nn.Module, device: torch.device) -> None:
    rest = Rest(network)
    rest.stops.append(lambda: _remove_hooks(network))
    apply_group_offloading(network, onload_device=device, offload_type='leaf_level', use_stream=device.type == 'cuda')
    rest.note(network)     # for a GPU the tensors were copied to pinned memory; one copy is enough


def let_rest(network: Any) -> None:
    rest = network.__dict__.pop('_resting', None)
    if rest is not None:
        for stop in rest.stops:
            stop()
        for tensor, data in rest.tensors:
            tensor.data = data


def resting_tensors(network: torch.nn.Module) -> list[torch.Tensor]:
    """Its parameters' and buffers' numbers, where they rest."""
    rest = network.__dict__.get('_resting')
    return [tensor.data for tensor in tensors(network)] if rest is None else [data for _, data in rest.tensors]


def tensors(network: torch.nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]


def _remove_hooks(network: torch.nn.Module) -> None:
    for layer in network.modules():
        registry: HookRegistry | None = layer.__dict__.get('_diffusers_hook')
        if registry is None:
            continue
        for name in _OFFLOADING:
            registry.remove_hook(name, recurse=False)
        if not registry.hooks:     # diffusers leaves the layer's own forward behind as an attribute
            del layer._diffusers_hook
            layer.__dict__.pop('forward', None)
