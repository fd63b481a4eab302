"""Several models at once hold what is the same in them only once: the five styles' VAE, say, or text encoder.

Numbers are shared, networks are not: each model has layers of its own, so its LoRAs, its precision and its place are
its own business, and two models draw in two threads. What counts as the same is the numbers themselves, whatever the
files were. Whoever writes into a shared weight (a LoRA merged in place) gets a copy of it first: torch's copy-on-write.

Weights that are mapped from a file are left alone: the system itself keeps one copy of a file's pages, and prepare
makes equal files the same file.
"""
from __future__ import annotations

import threading
from weakref import WeakSet

import torch

from modelscope_cartoon.resting import resting_tensors, tensors

_lock = threading.Lock()
_networks: WeakSet[torch.nn.Module] = WeakSet()


def share(network: torch.nn.Module) -> bool:
    """Gives `network` the numbers of another model's where every one is equal, in the same precision, layout and place;
    True where there was such a model."""
    with _lock:
        twins = [other for other in _networks if other is not network and type(other) is type(network)]
        _networks.add(network)
    mine = tensors(network)
    if not mine:     # OpenVINO's stand-ins
        return False
    for twin in twins:
        theirs = resting_tensors(twin)
        if _equal(mine, theirs):
            return sum([_adopt(tensor, data) for tensor, data in zip(mine, theirs)]) > 0
    return False


def _equal(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """Stops at the first difference: another fine-tune's text encoder differs in its first matrix. (torch.equal asks
    for the tensors' data_ptr, which ends their part in the sharing; == and drawing do not.)"""
    return len(mine) == len(theirs) and all(
        (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device) and bool((a == b).all())
        for a, b in zip(mine, theirs))


def _adopt(tensor: torch.Tensor, data: torch.Tensor) -> bool:
    try:
        tensor.data = torch._lazy_clone(data)
    except RuntimeError:     # mapped
        return False
    return True
