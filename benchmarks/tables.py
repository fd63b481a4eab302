"""A result as Markdown. Every number comes from the JSON; what was not measured is a dash."""
from __future__ import annotations

import statistics

from benchmarks import goals, stats
from benchmarks.stats import FULL_STEPS, Result, Run, Spread, median, spread, values, whole

Row = list[str]
_SHOWN = 90     # characters of a package's complaint


def section(result: Result) -> str:
    """All that docs/performance.md shows of one result."""
    parts = [_heading(result), *(_sides(result, run) for run in result['runs'] if run['kind'] == 'exact'),
             _memory(result) if result['kind'] == 'gpu' else '', _throughput(result), _floor(result), _gains(result),
             _cold(result), _goals(result), _left_out(result)]
    return '\n\n'.join(part for part in parts if part)


def table(head: Row, rows: list[Row]) -> str:
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [head, ['---'] * len(head), *rows])


def _heading(result: Result) -> str:
    machine, versions = result['machine'], result['versions']
    gpu = machine.get('gpu')
    where = f'{gpu["name"]} ({gpu["memory_gib"]} GiB), ' if gpu else ''
    fast = [name for name in machine['capabilities'] if 'bf16' in name or 'vnni' in name or 'amx' in name]
    words = (f'{result["date"][:10]}, {where}{machine["processor"]}, {machine["cores"]} cores '
             f'({", ".join(fast) or "no bf16"}), {machine["memory_gib"]} GiB; '
             f'torch {versions["torch"]}, diffusers {versions["diffusers"]}'
             + (f', openvino {versions["openvino"]}' if 'openvino' in versions else '')
             + f'; {result["model"]["name"]}, {result["settings"]["steps"]} steps.\n\n`{result["command"]}`')
    if stats.was_shared(result):
        load = machine.get('load_before') or ['?']
        words += (f'\n\n**The machine was shared:** load average {load[0]} before the run'
                  + _share(result) + '. Compare the ratios; the seconds say little.')
    return words if result['finished'] else words + '\n\n**The run broke off;** this is what it had measured by then.'


def _share(result: Result) -> str:
    share = stats.share_of_machine(result)
    return f', and the sides got {share:.0%} of the processor time that their threads asked for' if share else ''


def _sides(result: Result, run: Run) -> str:
    whole_ones = {name: whole(run, name) for name in run['samples']}
    upstream, own = whole_ones.get('U'), run['errors'].get('D16')
    measured = not stats.extrapolated(run)
    rows = [[side['title'], side['runs_as'], _seconds(run, name, 'step'), _seconds(run, name, 'text'),
             _seconds(run, name, 'vae'), number(whole_ones[name]), times(stats.ratio(upstream, whole_ones[name])),
             number(goals.most(run, name, 'gpu_gib' if result['kind'] == 'gpu' else 'peak_gib')),
             _error(run['errors'].get(name), own)]
            for name, side in result['sides'].items() if name in whole_ones]
    head = ['side', 'runs as', 'UNet call, s', 'text, s', 'VAE, s',
            f'{FULL_STEPS} steps, s' + ('' if measured else ' (extrapolated)'), 'times upstream',
            'peak, GiB', 'distance from fp32']
    return (f'**{run["size"]} px, the same steps, scheduler and guidance.** Median (lowest to highest) of all samples; '
            f'distance: of the final latents, relative, and in units of plain diffusers\' own in bf16.\n\n'
            + table(head, rows))


def _seconds(run: Run, name: str, what: str) -> str:
    samples = values(run, name, what)
    return shown(spread(samples)) if samples else '-'


def shown(found: Spread) -> str:
    if found.count == 1:
        return f'{number(found.median)} (1 sample)'
    return f'{number(found.median)} ({number(found.low)} to {number(found.high)}, {found.count})'


def number(value: float | None) -> str:
    """Three digits that mean something, whatever the size."""
    if value is None:
        return '-'
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.1f}' if abs(value) >= 10 else f'{value:.2g}' if abs(
        value) < 0.1 else f'{value:.2f}'


def times(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}x'


def _error(error: float | None, own: float | None) -> str:
    if error is None:
        return '-'
    return f'{error:.2%}' + (f' ({error / own:.2f})' if own else '')


def _memory(result: Result) -> str:
    rows = [[f'{run["size"]} px', result['sides'][name]['title'], number(goals.most(run, name, 'gpu_gib')),
             number(whole(run, name))]
            for run in result['runs'] if run['kind'] == 'exact'
            for name in ('U', 'D16', 'torch', 'compile', 'low', 'min') if stats.drawn(run, name)]
    return '**Memory on the GPU**\n\n' + table(['size', 'side', 'peak, GiB', 'picture, s'], rows) if rows else ''


def _throughput(result: Result) -> str:
    runs = [run for run in result['runs'] if run['kind'] == 'throughput' and run['samples']]
    if not runs:
        return ''
    names = [name for name in result['sides'] if any(stats.drawn(run, name) for run in runs)]
    rows = [[str(run['batch']), *(number(stats.ratio(run['batch'], whole(run, name))) for name in names)]
            for run in runs]
    return '**Pictures per second in a batch**\n\n' + table(['batch', *names], rows)


def _floor(result: Result) -> str:
    if not result.get('peaks'):
        return ''
    rates = [[kind, number(stats.peak(result, kind) / 1e9), *(number(value / 1e9) for value in (
        min(samples), max(samples)))] for kind, samples in result['peaks'].items()]
    rows = []
    for run in (run for run in result['runs'] if run['kind'] == 'exact'):
        floors = stats.floor(result, 'bf16', run['size']) or {}
        for name in run['samples']:
            call = median(run, name, 'step')
            rows += [[f'{run["size"]} px', result['sides'][name]['title'], number(call),
                      *(times(stats.ratio(call, floors.get(kind))) for kind in ('best', 'by kind'))]]
    flops = ', '.join(f'{size} px {sum(each["unet"].values()) / 1e12:.4g}' for size, each in result['flops'].items())
    return ('**What the machine can do,** measured in the process that draws with ours, in GFLOP/s:\n\n'
            + table(['work', 'median', 'lowest', 'highest'], rates)
            + f'\n\nA UNet call with guidance takes (TFLOP): {flops}. Over the least time that takes in bf16, at '
            'the best of these rates for everything, and at each kind of layer\'s own:\n\n'
            + table(['size', 'side', 'UNet call, s', 'times floor', 'times floor, by kind'], rows))


def _gains(result: Result) -> str:
    lines = goals.gains(result) if result['kind'] == 'cpu' and result.get('preset') else []
    if not lines:
        return ''
    rows = [[what, _evaluations(result, what), number(seconds), times(faster)] for what, seconds, faster in lines]
    return ('**Fewer evaluations, opt-in:** another picture than the exact one. What the engine gains and what fewer '
            'steps gain, on lines of their own:\n\n' + table(['', 'UNet evaluations', 's', 'times upstream'], rows))


def _evaluations(result: Result, what: str) -> str:
    if "preset='fast'" in what:
        return stats.evaluations(result, 'fast, cache_interval=2' if 'cache_interval' in what else 'fast')
    return '100' if '50 exact' in what else str(2 * result['preset']['num_inference_steps'])


def _cold(result: Result) -> str:
    rows = [[title, *_stages(result, title), shown(spread(samples)), number(goals.cold_overhead(result, title))]
            for title, samples in result.get('cold', {}).items()]
    text = [] if not rows else ['**Cold start,** page cache warm: seconds from the start of the process to the end of '
                                'the first denoising step, and the same without the time of an ordinary step.\n\n'
                                + table(['', 'imports, loading', 'text', 'first step', 'all', 'without a step'],
                                        rows)]
    text += [f'`prepare --backend {backend}` took {number(done["seconds"])} s (little, where it had been run before).'
             for backend, done in result.get('prepare', {}).items()]
    if result.get('imports'):
        text.append('; '.join(f'`import {name}` {shown(spread(samples))} s'
                              for name, samples in result['imports'].items()) + '.')
    return '\n\n'.join(text)


def _stages(result: Result, title: str) -> Row:
    """Of a cold start, each with what is compiled or read from the files in it."""
    parts = result.get('cold parts', {}).get(title)
    return [number(statistics.median(part[name] for part in parts)) if parts else '-'
            for name in ('load', 'text', 'step')]


def _goals(result: Result) -> str:
    words = {True: 'yes', False: '**no**', None: 'not measured'}
    rows = [[row['goal'], row['what'], row['target'], number(row['measured']), words[row['met']]]
            for row in result.get('goals', [])]
    return '**Goals**\n\n' + table(['', 'what', 'goal', 'measured', 'met'], rows) if rows else ''


def _left_out(result: Result) -> str:
    rows = [f'- {what}: {words if len(words) <= _SHOWN else words[:_SHOWN] + "..."}'
            for what, words in result['left out'].items()]
    return 'Left out:\n' + '\n'.join(rows) if rows else ''
