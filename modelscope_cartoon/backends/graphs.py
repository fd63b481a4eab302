"""A network in OpenVINO's form: its file, and what OpenVINO compiles from it for the sizes at hand."""
from __future__ import annotations

import ctypes
import functools
import importlib.util
import mmap
import sys
from pathlib import Path
from typing import Any

import torch

KEPT = 2     # compiled sizes of one network: a picture with guidance in a part of its steps has two


def is_installed() -> bool:
    return importlib.util.find_spec('openvino') is not None


@functools.cache
def runtime() -> Any:
    """The openvino package. Where nobody imported it before us, without its telemetry: `openvino_telemetry` reports
    imports and conversions to Google Analytics, and openvino does without it where it can't be imported."""
    if 'openvino' not in sys.modules:
        sys.modules.setdefault('openvino_telemetry', None)
    import openvino
    return openvino


@functools.cache
def core() -> Any:
    return runtime().Core()


class Graph:
    """`file` (an IR's .xml), compiled for each set of input shapes at its first call and called like a function.

    precision: 'f32', or 'bf16' for what the processor multiplies in it. fixed: compiled for exact shapes, and KEPT of
    those are held, the oldest given up first; else one compilation serves all, and a UNet's calls are a little slower.
    RuntimeError where the file is damaged.
    """

    def __init__(self, file: Path, precision: str, fixed: bool = True):
        self.file, self.precision, self.fixed = file, precision, fixed
        self._model = core().read_model(file)     # maps the weights, reads none
        self._compiled: dict[Any, Any] = {}
        self._is_new = False
        self.makes_room: list[Graph] = []     # what forgets while this is compiled, the moment that needs most memory

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """The outputs in the file's order, float32."""
        arrays = [_plain(tensor).numpy() for tensor in tensors]
        results = self._compiled_for([array.shape for array in arrays])(arrays)     # shares inputs, copies outputs
        if self._is_new:     # without fixed shapes it was this call that rearranged the weights
            self._is_new = False
            _give_pages_back(self.file.with_suffix('.bin'))
        return [torch.from_numpy(array) for array in results.to_tuple()]

    def _compiled_for(self, shapes: list[tuple[int, ...]]) -> Any:
        key = tuple(shapes) if self.fixed else None
        compiled = self._compiled.pop(key, None)
        while compiled is None and len(self._compiled) >= KEPT:     # before the new one needs memory
            del self._compiled[next(iter(self._compiled))]
        self._compiled[key] = compiled or self._compile(shapes)
        return self._compiled[key]

    def _compile(self, shapes: list[tuple[int, ...]]) -> Any:
        model = self._model.clone()
        if self.fixed:
            model.reshape(dict(enumerate(map(list, shapes))))
        for other in self.makes_room:
            other.forget()
        compiled = core().compile_model(model, 'CPU', {
            'INFERENCE_PRECISION_HINT': self.precision, 'PERFORMANCE_HINT': 'LATENCY', 'NUM_STREAMS': 1,
            'INFERENCE_NUM_THREADS': torch.get_num_threads()})
        _give_pages_back(self.file.with_suffix('.bin'))
        self._is_new = True
        return compiled

    def forget(self) -> None:
        """Gives the compiled memory back; the next call compiles again."""
        self._compiled.clear()


def _give_pages_back(file: Path) -> None:
    """The weights were rearranged into memory of their own; the file's pages, still mapped, count as ours until then.

    What reads them again gets them from the file. On Linux alone; elsewhere the system takes them when it needs them.
    """
    if sys.platform != 'linux':
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path('/proc/self/maps').read_text().splitlines():
        if line.endswith(str(file.resolve())):
            start, end = (int(side, 16) for side in line.split()[0].split('-'))
            advise(start, end - start, mmap.MADV_DONTNEED)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().contiguous()
    return tensor.float() if tensor.is_floating_point() else tensor
