"""What this machine multiplies at best, measured in the process that draws: FLOP per second."""
from __future__ import annotations

import time
from collections.abc import Callable

import torch

SAMPLES = 5


@torch.no_grad()
def measure(device: str, edge: int | None = None, channels: int = 320, pixels: int = 64) -> dict[str, list[float]]:
    """Samples of each: a matrix product and a 3x3 convolution (channels_last) in bf16 and fp32, an int8 product."""
    edge = edge or (4096 if device == 'cpu' else 8192)     # a GPU isn't busy with less
    peaks = {}
    for name, dtype in (('bf16', torch.bfloat16), ('fp32', torch.float32)):
        a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
        peaks[f'gemm {name}'] = _rates(lambda a=a, b=b: a @ b, 2 * edge**3, device)
        peaks[f'conv {name}'] = _rates(*_conv(device, dtype, channels, pixels), device)
    a, b = (torch.randint(-128, 127, (edge, edge), device=device, dtype=torch.int8) for _ in range(2))
    peaks['gemm int8'] = _rates(lambda: torch._int_mm(a, b), 2 * edge**3, device)
    return peaks


def _conv(device: str, dtype: torch.dtype, channels: int, pixels: int) -> tuple[Callable, float]:
    batch = 2 if device == 'cpu' else 16
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    picture = torch.randn(batch, channels, pixels, pixels, device=device, dtype=dtype).to(
        memory_format=torch.channels_last)
    return lambda: layer(picture), 2 * batch * pixels**2 * channels**2 * 9


def _rates(work: Callable, flop: float, device: str, enough: float = 0.3) -> list[float]:
    """Each sample repeats `work` for about `enough` seconds; short work alone would time the clock."""
    _synchronize(device)
    work()
    once = _seconds(work, 1, device)
    times = max(1, min(1000, round(enough / max(once, 1e-6))))
    return [flop * times / _seconds(work, times, device) for _ in range(SAMPLES)]


def _seconds(work: Callable, times: int, device: str) -> float:
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str) -> None:
    if device != 'cpu':
        torch.cuda.synchronize()
