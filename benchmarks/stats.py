"""What a result says: medians and spreads of its samples, and the times that follow from them."""
from __future__ import annotations

import statistics
from typing import Any, NamedTuple

FULL_STEPS = 50

Result = dict[str, Any]
Run = dict[str, Any]


class Spread(NamedTuple):
    median: float
    low: float
    high: float
    count: int


def spread(samples: list[float]) -> Spread:
    return Spread(statistics.median(samples), min(samples), max(samples), len(samples))


def find(result: Result, kind: str, size: int | None = None, batch: int = 1) -> Run | None:
    """The run of this kind; size None: the first size that was measured."""
    for run in result['runs']:
        if run['kind'] == kind and size in (None, run['size']) and run['batch'] == batch:
            return run
    return None


def drawn(run: Run | None, side: str) -> bool:
    return bool(run and run['samples'].get(side))


def values(run: Run, side: str, what: str) -> list[float]:
    """Every sample of `what` (step, text, vae, seconds, peak_gib, gpu_gib); each pace between two steps is one."""
    found = [sample.get(what) for sample in run['samples'].get(side, [])]
    return [x for value in found if value is not None for x in (value if isinstance(value, list) else [value])]


def median(run: Run, side: str, what: str) -> float | None:
    samples = values(run, side, what)
    return statistics.median(samples) if samples else None


def whole(run: Run | None, side: str, steps: int = FULL_STEPS) -> float | None:
    """Seconds of a picture of `steps` steps: measured where the run has them, else steps x UNet call + text + VAE."""
    if not drawn(run, side):
        return None
    if run['steps'] == steps:
        return median(run, side, 'seconds')
    parts = [median(run, side, what) for what in ('step', 'text', 'vae')]
    return None if None in parts else steps * parts[0] + parts[1] + parts[2]


def extrapolated(run: Run, steps: int = FULL_STEPS) -> bool:
    return run['steps'] != steps


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def peak(result: Result, kind: str) -> float | None:
    """The median rate of 'gemm bf16', 'conv fp32', ...; FLOP per second."""
    samples = result.get('peaks', {}).get(kind)
    return statistics.median(samples) if samples else None


def best_peak(result: Result, dtype: str) -> float | None:
    rates = [rate for kind in ('gemm', 'conv') if (rate := peak(result, f'{kind} {dtype}'))]
    return max(rates, default=None)


def floor(result: Result, dtype: str, size: int | None = None) -> dict[str, float] | None:
    """Least seconds of a UNet call with guidance: 'best' at the machine's best rate for everything (the harder one),
    'by kind' with convolutions at the convolution's rate and all else at the matrix product's."""
    flops = result.get('flops', {}).get(str(size or result['model']['size']))
    best, conv, gemm = best_peak(result, dtype), peak(result, f'conv {dtype}'), peak(result, f'gemm {dtype}')
    if not flops or not best:
        return None
    unet = flops['unet']
    floors = {'best': sum(unet.values()) / best}
    if conv and gemm:
        floors['by kind'] = sum(count / (conv if kind == 'conv' else gemm) for kind, count in unet.items())
    return floors


def best_of_ours(result: Result, run: Run) -> str | None:
    """The fastest exact side of ours that was drawn; int8 is not exact."""
    ours = {name: time for name, side in result['sides'].items()
            if side['ours'] and name not in ('int8', 'low', 'min') and (time := whole(run, name)) is not None}
    return min(ours, key=ours.get, default=None)


def share_of_machine(result: Result) -> float | None:
    """CPU seconds per wall second and thread of the denoising sides: near 1 where nothing else was running."""
    threads = result['machine'].get('threads') or 1
    samples = [one['cpu_seconds'] / one['seconds'] / threads for run in result['runs']
               for many in run['samples'].values() for one in many if 'cpu_seconds' in one]
    return statistics.median(samples) if samples else None


def was_shared(result: Result) -> bool:
    """Somebody else was at work when the run began, or its sides didn't get their threads."""
    load = result['machine'].get('load_before')
    share = share_of_machine(result)
    return bool(load and load[0] > 0.5) or (result['kind'] == 'cpu' and share is not None and share < 0.85)


def image_flops(result: Result, size: int, steps: int = FULL_STEPS) -> float | None:
    """FLOP of a picture: its UNet calls with guidance and the VAE's decoding (text encoding is 0.1 %)."""
    flops = result.get('flops', {}).get(str(size))
    return flops and steps * sum(flops['unet'].values()) + sum(flops['vae'].values())


def evaluations(result: Result, kind: str) -> str:
    """How often a fast preset evaluates the UNet, one latent being one evaluation (a step with guidance has two)."""
    preset = result.get('preset', {})
    steps, (start, stop) = preset.get('num_inference_steps', 0), preset.get('guidance_interval', (0, 1))
    guided = sum(start <= i / steps < stop for i in range(steps))
    every = next((run['options'].get('cache_interval', 1) for run in result['runs'] if run['kind'] == kind), 1)
    whole_ones = sum(2 if start <= i / steps < stop else 1 for i in range(0, steps, every))
    total = steps + guided
    return f'{total}' if every == 1 else f'{total}, {total - whole_ones} of them shallow'
