"""The table and the plot of benchmarks.presets, from its JSON."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.render import replaced
from benchmarks.tables import table
from modelscope_cartoon.files import write_file

KINDS = {'concept': 'tab:blue', 'attributes': 'tab:orange', 'style': 'tab:green'}


def write(result: dict[str, Any], docs: Path, plot_file: Path) -> None:
    """The table into `docs`, between its two marks, and the plot; the table is printed too."""
    text = markdown(result)
    print(text)
    write_file(docs, replaced(docs.read_text(encoding='utf-8'), 'presets', text).encode())
    plot(result, plot_file)


def markdown(result: dict[str, Any]) -> str:
    heads = ['', 'UNet evaluations', 's a picture', 'faster', *(f'{kind}, %' for kind in KINDS),
             'judged as `exact` is, %', 'pixels apart, of 255', 'latents apart, %']
    exact = result['variants']['exact']['seconds']['median']
    rows = [[f'`{name}`' if name in ('exact', 'balanced', 'fast') else name, *cells(row, exact)]
            for name, row in result['variants'].items()]
    return (f'{table(heads, rows)}\n\n{result["date"]}, weights {result["model"]}, '
            f'{result["pictures"]} pictures with each, {result["machine"]}, {result["threads"]} threads, '
            f'torch {result["torch"]}. Judge: {result["judge"]}.')


def cells(row: dict[str, Any], exact: float) -> list[str]:
    made, seconds = row['evaluations'], row['seconds']
    evaluations = f'{made["whole"]:g}' + (f' + {made["shallow"]:g} shallow' if made['shallow'] else '')
    return [evaluations, f'{seconds["median"]:.2f} ({seconds["low"]:.2f}-{seconds["high"]:.2f})',
            f'{exact / seconds["median"]:.1f}x', *(cell(row['accuracy'].get(kind)) for kind in KINDS),
            cell(row['same answer as exact']), f'{row["pixel distance"]:.1f}', f'{100 * row["latent distance"]:.0f}']


def cell(value: dict[str, Any] | None) -> str:
    """'93 (88-96)'"""
    return f'{100 * value["share"]:.0f} ({100 * value["low"]:.0f}-{100 * value["high"]:.0f})' if value else ''


def apart(values: list[float], least: float = 1.06) -> list[float]:
    """Rising `values`, each moved to at least `least` times the one before it, so that labels can be read."""
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] * least) if places else value)
    return places


def plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy over seconds a picture, with 95 % intervals; a name over each variant's column."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot

    rows = sorted(result['variants'].items(), key=lambda row: row[1]['seconds']['median'])
    figure, axes = pyplot.subplots(figsize=(9, 5), layout='constrained')
    seconds = [row['seconds']['median'] for _, row in rows]
    for aside, (kind, colour) in zip((0.985, 1, 1.015), KINDS.items()):     # or equal values would hide each other
        values = [row['accuracy'][kind] for _, row in rows]
        shares = [100 * value['share'] for value in values]
        bars = [[100 * (value['share'] - value['low']) for value in values],
                [100 * (value['high'] - value['share']) for value in values]]
        places = [aside * value for value in seconds]
        axes.errorbar(places, shares, bars, marker='o', color=colour, capsize=3, linewidth=1, label=kind)
    axes.set(xscale='log', xlabel='seconds a picture', ylabel='right, % (95 % interval)', ylim=(0, 102))
    axes.set_xticks(apart(seconds), [f'{value:.2f}' for value in seconds], rotation=60)
    axes.minorticks_off()
    names = axes.secondary_xaxis('top')
    names.set_xticks(apart(seconds), [name for name, _ in rows], rotation=35, ha='left', fontsize=8)
    names.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
