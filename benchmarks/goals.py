"""Goals P1 to P8 held against a result's samples: target, measured value, met or not. None: not measured."""
from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks import stats
from benchmarks.stats import Result, median, ratio, whole

ERROR_GATE = 2.0      # ours may be as far from fp32 as twice what diffusers' own bf16 is

Goal = dict[str, Any]


def goals(result: Result) -> list[Goal]:
    """Those that the result's kind can show. They are about Stable Diffusion 2.1, on a CPU at 512 px: another model or
    size has none."""
    if not result['model']['sd21'] or (result['kind'] == 'cpu' and result['model']['size'] != 512):
        return []
    found = [*(_cpu(result) if result['kind'] == 'cpu' else _gpu(result)), *_gate(result), *_cold(result)]
    return found


def goal(name: str, what: str, target: float, measured: float | None, least: bool = True) -> Goal:
    met = None if measured is None else measured >= target if least else measured <= target
    return {'goal': name, 'what': what, 'target': f'{">=" if least else "<="} {target:g}', 'measured': measured,
            'met': met}


def _cpu(result: Result) -> Iterator[Goal]:
    run = stats.find(result, 'exact')
    if run is None:
        return
    upstream, best = whole(run, 'U'), stats.best_of_ours(result, run)
    for side, target in (('openvino', 2.4), ('torch', 1.6)):
        yield goal('P1', f'50 exact steps, upstream / {side}', target, ratio(upstream, whole(run, side)))
    floor = stats.floor(result, 'bf16')
    call = median(run, best, 'step') if best else None
    yield goal('P2', f'UNet call, {best or "ours"} / bf16 floor of this machine', 1.35,
               ratio(call, floor and floor['best']), least=False)
    for side in (best or 'ours', *(['int8'] if 'int8' in result['sides'] else [])):
        for kind, target in (('fast', 7.0), ('fast, cache_interval=2', 12.0)):
            yield goal('P3', f'end to end, upstream with 50 exact steps / ours ({side}) with {kind}', target,
                       ratio(upstream, fast_seconds(result, kind, side)))
    yield goal('P4', 'UNet call, own bf16 / int8', 1.4, ratio(median(run, 'openvino', 'step'),
                                                             median(run, 'int8', 'step')))
    for side in ('openvino', 'torch'):
        yield goal('P7', f'peak memory of the process, {side} / upstream', 0.7,
                   ratio(most(run, side, 'peak_gib'), most(run, 'U', 'peak_gib')), least=False)


def fast_seconds(result: Result, kind: str, side: str) -> float | None:
    """Of whole pictures, drawn by `side`."""
    run = stats.find(result, kind)
    return median(run, side, 'seconds') if run and side in run['samples'] else None


def gains(result: Result) -> list[tuple[str, float | None, float | None]]:
    """(what, seconds, times faster than upstream's 50 steps): engine and number of steps on lines of their own."""
    exact, sampler = stats.find(result, 'exact'), stats.find(result, 'same sampler')
    if exact is None:
        return []
    best, steps = stats.best_of_ours(result, exact) or 'ours', result.get('preset', {}).get('num_inference_steps', 20)
    lines = [('upstream, 50 exact steps', whole(exact, 'U')),
             (f'engine alone: ours ({best}), 50 exact steps', whole(exact, best)),
             (f'steps alone: diffusers bf16, the preset\'s sampler, {steps} steps',
              whole(sampler, 'D16', steps)),
             (f'both: ours ({best}), the preset\'s sampler, {steps} steps', whole(sampler, best, steps)),
             *((f"ours ({side}), preset='fast'" + more, fast_seconds(result, kind, side))
               for side in (best, *(['int8'] if 'int8' in result['sides'] else []))
               for kind, more in (('fast', ''), ('fast, cache_interval=2', ', cache_interval=2')))]
    return [(what, seconds, ratio(whole(exact, 'U'), seconds)) for what, seconds in lines]


def _gpu(result: Result) -> Iterator[Goal]:
    for size, least in ((512, 3.0), (768, 4.0)):
        run = stats.find(result, 'exact', size)
        best = stats.best_of_ours(result, run) if run else None
        ours = whole(run, best) if best else None
        rivals = [time for side in ('C', 'T') if (time := whole(run, side)) is not None]
        yield goal('P5', f'{size} px, 50 steps, upstream / ours', least, ratio(whole(run, 'U'), ours))
        yield goal('P5', f'{size} px, 50 steps, diffusers bf16 / ours', 1.5, ratio(whole(run, 'D16'), ours))
        yield goal('P5', f'{size} px, 50 steps, best of torch.compile and TensorRT / ours', 1.0,
                   ratio(min(rivals, default=None), ours))
        yield goal('P5', f"{size} px, 50 steps, share of the machine's best bf16 rate", 0.25,
                   rate_share(result, size, ours and 1 / ours))
    yield from _throughput(result)
    for size, full, low in ((512, 3.0, 1.5), (768, 3.5, 1.8)):
        run = stats.find(result, 'exact', size)
        yield goal('P7', f'{size} px, GPU memory, GiB', full, most(run, 'torch', 'gpu_gib'), least=False)
        yield goal('P7', f"{size} px, GPU memory, memory='low', GiB", low, most(run, 'low', 'gpu_gib'), least=False)
        yield goal('P7', f"{size} px, time, memory='low' / full", 1.4, ratio(whole(run, 'low'), whole(run, 'torch')),
                   least=False)


def _throughput(result: Result) -> Iterator[Goal]:
    ours = best_rate(result, [name for name, side in result['sides'].items() if side['ours']])
    upstream = whole(stats.find(result, 'exact', 512), 'U')
    same = [run for run in result['runs'] if ours and run['size'] == 512 and run['batch'] == ours['batch']
            and run['kind'] in ('exact', 'throughput')]
    rival = whole(same[0], 'D16') if same else None
    yield goal('P6', '512 px, pictures per second at the best batch, ours / upstream one by one', 6.0,
               ratio(upstream, ours and 1 / ours['rate']))
    yield goal('P6', 'the same, ours / diffusers bf16 at that batch', 1.4,
               ratio(rival and rival / ours['batch'], ours and 1 / ours['rate']))
    yield goal('P6', "the same, share of the machine's best bf16 rate", 0.45,
               rate_share(result, 512, ours and ours['rate']))


def rate_share(result: Result, size: int, pictures_per_second: float | None) -> float | None:
    flop, best = stats.image_flops(result, size), stats.best_peak(result, 'bf16')
    return pictures_per_second * flop / best if pictures_per_second and flop and best else None


def best_rate(result: Result, sides: list[str], size: int = 512) -> dict[str, Any] | None:
    """{'side', 'batch', 'rate'} of the most pictures per second that one of `sides` drew."""
    rates = [{'side': side, 'batch': run['batch'], 'rate': run['batch'] / seconds} for run in result['runs']
             if run['size'] == size and run['kind'] in ('exact', 'throughput')
             for side in sides if (seconds := whole(run, side))]
    return max(rates, key=lambda row: row['rate'], default=None)


def _gate(result: Result) -> Iterator[Goal]:
    for run in result['runs']:
        own = run['errors'].get('D16')
        for side, error in run['errors'].items():
            if own and result['sides'][side]['ours'] and side != 'int8':
                yield goal('exact', f"{run['size']} px, distance from fp32, {side} / diffusers bf16's own", ERROR_GATE,
                           error / own, least=False)


def _cold(result: Result) -> Iterator[Goal]:
    upstream = cold_overhead(result, 'upstream')
    for title, target in (('ours, prepared', 0.5), (HOST, 0.75)):
        yield goal('P8', f'cold start without the step itself, {title} / upstream', target,
                   ratio(cold_overhead(result, title), upstream), least=False)
    imports = result.get('imports')
    if imports:
        both = [statistics.median(imports[name]) for name in ('modelscope', 'modelscope_cartoon')]
        yield goal('P8', 'import modelscope_cartoon beyond import modelscope, s', 0.15, both[1] - both[0], least=False)


HOST = "ours, prepared, through the host's pipeline()"
COLD = {'upstream': 'U', 'ours, plain folder': 'torch', 'ours, prepared': 'auto', HOST: 'host'}


def cold_overhead(result: Result, title: str) -> float | None:
    """Seconds from the process's start to the end of the first step, less an ordinary step of the same side, so that
    a fast step isn't counted for a fast start."""
    samples, run = result.get('cold', {}).get(title), stats.find(result, 'exact')
    side = COLD[title] if COLD[title] in ('U', 'torch') else run and stats.best_of_ours(result, run)
    step = median(run, side, 'step') if run and side else None
    return None if not samples or step is None else statistics.median(samples) - step


def most(run: stats.Run | None, side: str, what: str) -> float | None:
    samples = stats.values(run, side, what) if run else []
    return max(samples, default=None)
