"""Several models at once hold what is the same in them only once: the five styles' VAE, say, or text encoder.

Tensors are shared, networks are not: each model has layers of its own, so its LoRAs, its precision and its place are
its own business, and two models draw in two threads. What counts as the same is the numbers themselves, whatever the
files were. Only writing into a weight in place, which nothing here does, would be seen by the other models too.
"""
from __future__ import annotations

import threading
from weakref import WeakSet

import torch

from modelscope_cartoon.resting import resting_tensors

_lock = threading.Lock()
_networks: WeakSet[torch.nn.Module] = WeakSet()


def share(network: torch.nn.Module) -> bool:
    """Gives `network` the tensors of another model's where every number is equal, in the same precision, layout and
    place; True where there was one."""
    with _lock:
        twins = [other for other in _networks if other is not network and type(other) is type(network)]
        _networks.add(network)
    mine = [*network.parameters(), *network.buffers()]
    if not mine:     # OpenVINO's stand-ins
        return False
    for twin in twins:
        theirs = resting_tensors(twin)
        if _equal(mine, theirs):
            for tensor, data in zip(mine, theirs):
                tensor.data = data
            return True
    return False


def _equal(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """Stops at the first difference: another fine-tune's text encoder differs in its first matrix."""
    return len(mine) == len(theirs) and all(
        (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device) and _same_numbers(a, b)
        for a, b in zip(mine, theirs))


def _same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)
