"""Everything that performance goals P1 to P4, P7 and P8 need on a processor, side by side in one run.

    python -m benchmarks.cpu [--folder DIR] [--steps 3] [--size 512] [--repeats 5] [--int8] [--compile] [--out FILE]
    python -m benchmarks.cpu --folder mini
    python -m benchmarks.cpu --quick

Sides are loaded in groups that fit into memory, each with upstream's own class, each side in a process of its own, and
draw in turn with the same latents, prompt and steps. A 50-step picture is extrapolated: 50 UNet calls, one text
encoding, one VAE decode. --quick: three rounds of two steps, three sides, no presets, no cold starts. Afterwards:

    python -m benchmarks.render FILE
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from benchmarks import cold, options, stats
from benchmarks.flops import picture_flops
from benchmarks.runner import ROOT, Bench, Process, plan, say

QUICK = ['U', 'openvino', 'D16']
FAST = {'fast': {'preset': 'fast'}, 'fast, cache_interval=2': {'preset': 'fast', 'cache_interval': 2}}


def main(argv: list[str] | None = None) -> None:
    arguments = _parsed(argv)
    with options.bench(arguments, 'cpu', 'cpu', arguments.size) as running:
        size = running.model.size
        names = _names(arguments)
        if 'O' in names:
            _convert(running)
        prepared = options.wants_prepared(names, arguments) and cold.prepare(running)
        if 'int8' in names:
            cold.prepare(running, 'int8')
        running.result['flops'] = {str(size): picture_flops(running.model.folder, size)}
        budget = options.budget_gib(arguments, running.result['machine']['available_gib'])
        for i, group in enumerate(groups := plan(names, budget, running.model.fp32_gib)):
            say(f'group {i + 1} of {len(groups)}: {", ".join(group)}')
            with running.opened(group) as processes:
                _measure(running, processes, arguments, first=i == 0, last=i == len(groups) - 1)
        options.reference(running, [size], arguments.steps)
        if arguments.cold_repeats:
            cold.measure(running, size, arguments.cold_repeats, prepared)


def _convert(running: Bench) -> None:
    """For the side that uses OpenVINO directly, in a process of its own, so that the side's peak memory isn't that of
    converting. Where it fails, the side says so itself when it is loaded."""
    say('converting for OpenVINO used directly')
    subprocess.run([sys.executable, '-m', 'benchmarks.direct_openvino', str(running.model.folder)], cwd=ROOT,
                   env={**os.environ, 'PYTHONPATH': str(ROOT)})


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = options.parser(__doc__, 'cpu', steps=3)
    parser.add_argument('--size', type=int, default=512, help='pixels; at most the model\'s own')
    parser.add_argument('--int8', action='store_true', help='our int8 backend too')
    parser.add_argument('--compile', action='store_true', help='diffusers with torch.compile too (141 s to compile)')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.sides, arguments.steps, arguments.repeats = arguments.sides or QUICK, 2, 3
        arguments.fast_repeats, arguments.cold_repeats = 0, 0
    return arguments


def _names(arguments: argparse.Namespace) -> list[str]:
    names = options.sides(arguments, 'cpu')
    if not arguments.sides and not arguments.compile:
        names.remove('C')
    if arguments.int8 and 'int8' not in names:
        names.insert(1 + names.index('openvino') if 'openvino' in names else len(names), 'int8')
    return names


def _measure(running: Bench, processes: dict[str, Process], arguments: argparse.Namespace, first: bool, last: bool,
             ) -> None:
    """The exact rounds; upstream draws in every other round only once an earlier group has all of its samples."""
    size, steps = running.model.size, arguments.steps
    running.run(processes, 'exact', size, steps, arguments.repeats, rarely=() if first else ('U',))
    best = stats.best_of_ours(running.result, stats.find(running.result, 'exact'))
    if 'peaks' not in running.result and best in processes:
        running.result['peaks'] = processes[best].ask('peaks', **running.peak_sizes())
    preset = _preset(running)
    if not arguments.fast_repeats or not preset:
        return
    same = {name: processes[name] for name in ('D16', best) if name in processes}
    running.run(same, 'same sampler', size, max(3, steps), 1, options={'scheduler': preset['scheduler']}, warm=0)
    if best in processes and (best == 'openvino' or last):
        quickest = {name: processes[name] for name in (best, 'int8') if name in processes}
        for kind, wanted in FAST.items():
            running.run(quickest, kind, size, 0, arguments.fast_repeats, options=wanted)


def _preset(running: Bench) -> dict[str, Any]:
    """What `fast` sets, from the package's own table."""
    from modelscope_cartoon.presets import get_preset

    running.result['preset'] = dict(get_preset('fast').fields)
    return running.result['preset']


if __name__ == '__main__':
    main()
