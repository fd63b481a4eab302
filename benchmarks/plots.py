"""One picture of a result: seconds of a 50-step picture, side by side, with the floor of the machine."""
from __future__ import annotations

from pathlib import Path

from benchmarks import stats
from benchmarks.stats import FULL_STEPS, Result

_OURS, _PEER = '#2a6fbb', '#b0b0b0'


def bars(result: Result, path: Path) -> Path | None:
    """None where nothing was drawn. ImportError without matplotlib (benchmarks/requirements.txt)."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    run = stats.find(result, 'exact')
    times = {name: time for name in (run or {}).get('samples', {}) if (time := stats.whole(run, name)) is not None}
    if not times:
        return None
    names = sorted(times, key=times.get)
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.42 * len(names)), layout='constrained')
    drawn = axes.barh([result['sides'][name]['title'] for name in names], [times[name] for name in names],
                      color=[_OURS if result['sides'][name]['ours'] else _PEER for name in names])
    axes.bar_label(drawn, fmt='%.3g', padding=3)
    floors = stats.floor(result, 'bf16', run['size'])
    if floors:
        axes.axvline(FULL_STEPS * floors['best'], color='black', linestyle=':',
                     label='the UNet calls alone, at the best bf16 rate of this machine')
        axes.legend(loc='upper right', frameon=False, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f'seconds for {FULL_STEPS} steps, {run["size"]} px'
                    + (', extrapolated' if stats.extrapolated(run) else ''))
    axes.spines[['top', 'right']].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={'Software': None})
    pyplot.close(figure)
    return path
