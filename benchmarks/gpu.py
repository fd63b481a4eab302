"""Everything that performance goals P5 to P8 need on an NVIDIA GPU, side by side in one run.

    python -m benchmarks.gpu [--folder DIR] [--steps 50] [--sizes 512 768] [--batches 2 4 8 16] [--repeats 5]

Whole pictures of 50 exact steps, one at a time, in turn, at each size; then batches at the first size; then our memory
modes and cold starts. Peak memory is torch.cuda.max_memory_allocated. Then: python -m benchmarks.render FILE
"""
from __future__ import annotations

import argparse
import importlib.util

import torch

from benchmarks import cold, options, stats
from benchmarks.flops import picture_flops
from benchmarks.runner import Bench, plan, say

NO_GPU = 'this benchmark needs an NVIDIA GPU, and torch sees none here (torch.cuda.is_available() is False).'
MEMORY = ('low', 'min')
WARM = 3     # compiling, recording a CUDA graph, replaying it


def main(argv: list[str] | None = None) -> None:
    arguments = _parsed(argv)
    if arguments.device == 'cuda' and not torch.cuda.is_available():
        raise SystemExit(NO_GPU)
    with options.bench(arguments, 'gpu', arguments.device, max(arguments.sizes)) as running:
        sizes = sorted({min(size, running.model.size) for size in arguments.sizes})
        names = _names(arguments, running)
        running.result['flops'] = {str(size): picture_flops(running.model.folder, size) for size in sizes}
        prepared = options.wants_prepared(names, arguments) and cold.prepare(running)
        for group in plan(names, options.budget_gib(arguments, _free_gib(arguments, running)), running.model.fp32_gib):
            say(f'group: {", ".join(group)}')
            _measure(running, group, sizes, arguments)
        options.reference(running, sizes, arguments.steps)
        if arguments.cold_repeats:
            cold.measure(running, sizes[0], arguments.cold_repeats, prepared)


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = options.parser(__doc__, 'gpu', steps=50)
    parser.add_argument('--sizes', type=int, nargs='+', default=[512, 768])
    parser.add_argument('--batches', type=int, nargs='*', default=[2, 4, 8, 16])
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help=argparse.SUPPRESS)     # cpu: a test
    return parser.parse_args(argv)


def _names(arguments: argparse.Namespace, running: Bench) -> list[str]:
    names = [name for name in options.sides(arguments, 'cuda') if name != 'T']
    if importlib.util.find_spec('torch_tensorrt') is None:
        running.failed('T', {'error': 'torch_tensorrt is not installed.'})
        return names
    return [*names, 'T']


def _free_gib(arguments: argparse.Namespace, running: Bench) -> float:
    """The GPU's free memory, or the host's where that is less: weights pass through it."""
    host = running.result['machine']['available_gib']
    return host if arguments.device == 'cpu' else min(host, torch.cuda.mem_get_info()[0] / 2**30)


def _measure(running: Bench, group: list[str], sizes: list[int], arguments: argparse.Namespace) -> None:
    with running.opened(group) as processes:
        for size in sizes:
            running.run(processes, 'exact', size, arguments.steps, arguments.repeats, warm=WARM)
        quick = {name: process for name, process in processes.items() if name not in ('U', *MEMORY)}
        for batch in arguments.batches:
            running.run(quick, 'throughput', sizes[0], arguments.steps, max(1, arguments.repeats // 2), batch,
                        warm=WARM)
        best = stats.best_of_ours(running.result, stats.find(running.result, 'exact'))
        if 'peaks' not in running.result and best in processes:
            running.result['peaks'] = processes[best].ask('peaks', **running.peak_sizes())


if __name__ == '__main__':
    main()
