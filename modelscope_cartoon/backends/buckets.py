"""Compiled calls of a network in fixed shapes: one graph a bucket, and never a second one for it.

    buckets = Buckets(device, sizes={(64, 64)}, scale=8, options={'mode': 'max-autotune'})
    noise = buckets.call(predict, unet, sample, timestep, text)      predict(unet, sample, timestep, text), compiled

A bucket is a function and its tensors' shapes. Rows (the first dimension) are filled up to 1, 2, 4, 8, ...; sizes (the
last two of the first tensor) outside `sizes` aren't compiled, since a picture is sooner drawn than a graph is built.
torch.compile's guards hold a graph to more than shapes, so tensors are brought into one form: copied anew, always in
the same memory layout. Models of one architecture share their graphs; weights are arguments to them.
"""
from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from modelscope_cartoon import cache, memory
from modelscope_cartoon.log import logger

Network = Callable[..., Any]     # of a module and tensors [rows, ...], to a tensor or a tuple of tensors like them
_MOST_BUCKETS = 256              # of one function, in one process: torch's own limit of 8 would end in an error


class Buckets:
    """sizes: (height, width) of what comes in, `scale` pixels each. options: torch.compile's.
    broken: a compilation has failed, and nothing is compiled any more.
    """

    def __init__(self, device: torch.device, sizes: set[tuple[int, int]], scale: int, options: dict[str, Any]):
        self.sizes, self.scale, self.options, self.broken = sizes, scale, options, False
        self._device = device
        self._compiled: dict[Network, Callable] = {}
        self._known: set[tuple] = set()     # buckets that are compiled, sizes that have been refused

    def call(self, function: Network, network: torch.nn.Module, *tensors: torch.Tensor) -> Any:
        """function(network, *tensors), compiled where their size is one of `sizes`. The result is the caller's own."""
        if self.broken or not self._has_size(tensors[0]):
            return function(network, *tensors)
        rows = len(tensors[0])
        ready = [in_one_form(tensor, rows_of_bucket(rows)) for tensor in tensors]
        bucket = (function, *(tuple(tensor.shape) for tensor in ready))
        if bucket in self._known:
            return self._run(function, network, ready, rows)
        logger.warning('compiling the %s for %s pixels, %d at once: minutes the first time on this machine, later '
                       'seconds once a process.', type(network).__name__, self._pixels(ready[0].shape[-2:]),
                       len(ready[0]))
        try:
            with kept_on_disk():
                result = self._run(function, network, ready, rows)
        except Exception as error:
            if memory.is_out_of_memory(error):
                raise
            self.broken = True
            logger.warning('compiling failed (%s: %s); drawing goes on without it.', type(error).__name__,
                           ' '.join(str(error).split())[:300])
            return function(network, *tensors)
        self._known.add(bucket)
        return result

    def _has_size(self, first: torch.Tensor) -> bool:
        size = tuple(first.shape[-2:])
        if size not in self.sizes and size not in self._known:
            self._known.add(size)
            logger.warning('%s pixels are drawn without compiling; compiled sizes are %s.', self._pixels(size),
                           ' and '.join(map(self._pixels, sorted(self.sizes))))
        return size in self.sizes

    def _pixels(self, size: tuple[int, int]) -> str:
        return f'{size[0] * self.scale} x {size[1] * self.scale}'

    def _run(self, function: Network, network: torch.nn.Module, tensors: list[torch.Tensor], rows: int) -> Any:
        if function not in self._compiled:
            self._compiled[function] = torch.compile(function, **{'dynamic': False, 'fullgraph': True, **self.options})
        compiled = self._compiled[function]
        if self._device.type != 'cuda':
            return _clones(compiled, network, tensors, rows)
        stream = torch.cuda.current_stream(self._device)

        def on_the_graphs_thread() -> Any:
            with torch.cuda.device(self._device), torch.cuda.stream(stream):
                torch.compiler.cudagraph_mark_step_begin()
                return _clones(compiled, network, tensors, rows)
        return _graphs_thread().submit(on_the_graphs_thread).result()


@functools.cache
def _graphs_thread() -> ThreadPoolExecutor:
    """CUDA graphs belong to the thread that recorded them; a server's threads would record one set each."""
    return ThreadPoolExecutor(1, 'cartoon-compiled')


@torch.no_grad()
def _clones(compiled: Callable, network: torch.nn.Module, tensors: list[torch.Tensor], rows: int) -> Any:
    """The first `rows` of what comes out, copied: the next call writes over a CUDA graph's own memory."""
    with torch._dynamo.config.patch(recompile_limit=_MOST_BUCKETS, accumulated_recompile_limit=4 * _MOST_BUCKETS):
        out = compiled(network, *tensors)
    return tuple(one[:rows].clone() for one in out) if isinstance(out, tuple) else out[:rows].clone()


def rows_of_bucket(rows: int) -> int:
    """The next power of two: 3 pictures with guidance (6 rows) are drawn as 8."""
    return 1 << (rows - 1).bit_length()


def in_one_form(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """A copy with `rows` rows, the last one repeated; images in channels_last, all else contiguous."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    form = torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device, memory_format=layout)
    form[:len(tensor)] = tensor
    form[len(tensor):] = tensor[-1:]
    return form


def folder() -> Path:
    """Where compiled code is kept between processes; torch checks there itself whether it fits torch and GPU."""
    return cache.root() / 'compiled' / 'code'


@contextlib.contextmanager
def kept_on_disk() -> Iterator[None]:
    """torch keeps what it compiles inside in folder(), unless the user has set TORCHINDUCTOR_CACHE_DIR.

    torch reads that variable at each compilation, and sets it to a temporary folder where it isn't set.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir
    before = os.environ.get('TORCHINDUCTOR_CACHE_DIR')
    if before not in (None, os.path.abspath(default_cache_dir())):
        yield
        return
    os.environ['TORCHINDUCTOR_CACHE_DIR'] = str(folder())
    try:
        yield
    finally:
        os.environ.pop('TORCHINDUCTOR_CACHE_DIR')
        if before is not None:
            os.environ['TORCHINDUCTOR_CACHE_DIR'] = before
