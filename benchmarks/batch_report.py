"""The figures of docs/batches.md, from the results of benchmarks.batch and benchmarks.kills.

    python -m benchmarks.batch_report benchmarks/results/batch_<date>.json ... [--into docs/batches.md]
"""
from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.render import DOCS, link, read, replaced
from benchmarks.stats import spread
from benchmarks.tables import table
from modelscope_cartoon.files import write_file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', type=Path, nargs='+')
    parser.add_argument('--into', type=Path, default=DOCS / 'batches.md')
    arguments = parser.parse_args(argv)
    text = arguments.into.read_text(encoding='utf-8')
    for path in arguments.results:
        result = read(path)
        told = _SECTIONS[result['kind']](result)
        text = replaced(text, result['kind'], f'{told}\n\nEvery sample: [{path.name}]({link(path, arguments.into)}).')
    write_file(arguments.into, text.encode())


def batch(result: dict[str, Any]) -> str:
    return '\n\n'.join([_heading(result), _ledger(result['ledger']), _mini(result['mini']), _memory(result['memory'])])


def _heading(result: dict[str, Any]) -> str:
    where, load = result['machine'], result['machine'].get('load_before') or ['?']
    words = (f'{result["date"][:10]}, {where["processor"]}, {where["cores"]} cores, {where["threads"]} threads; torch '
             f'{result["versions"]["torch"]}. Load average {load[0]} before the run.\n\n`{result["command"]}`')
    shared = isinstance(load[0], (int, float)) and load[0] > 0.5
    return words + ('\n\n**The machine was shared:** compare the ratios; the rates say little.' if shared else '')


def _ledger(runs: list[dict[str, Any]]) -> str:
    rows = []
    for size in dict.fromkeys(run['batch_size'] for run in runs):
        found = spread([run['rows_per_second'] for run in runs if run['batch_size'] == size])
        rows.append([str(size), f'{found.median:.0f}', f'{found.low:.0f} to {found.high:.0f}',
                     'yes' if found.median >= 300 else 'no'])
    return (f'**Through the ledger,** the drawing replaced by a ready picture, {runs[0]["rows"]:,} rows a run; files '
            f'are flushed before they are recorded. Median of {len(runs) // len(rows)} runs:\n\n'
            + table(['batch size', 'rows/s', 'lowest to highest', '300 or more'], rows))


def _mini(result: dict[str, Any]) -> str:
    bare, whole = (spread(result['samples'][side]) for side in ('bare', 'batch'))
    ratios = [b / a for a, b in zip(result['samples']['bare'], result['samples']['batch'])]
    return (f'**Against the bare model:** {result["rows"]} rows of {result["steps"]} steps, batch size '
            f'{result["batch_size"]}, {len(ratios)} rounds in turn. The pipeline alone {bare.median:.2f} s '
            f'({bare.low:.2f} to {bare.high:.2f}), the command {whole.median:.2f} s ({whole.low:.2f} to '
            f'{whole.high:.2f}); in the same round the command takes {100 * (median(ratios) - 1):+.1f} % (median; '
            f'{100 * (min(ratios) - 1):+.1f} to {100 * (max(ratios) - 1):+.1f} %).')


def _memory(runs: list[dict[str, Any]]) -> str:
    told = ', '.join(f'{run["rows"]:,} rows {run["peak_mib"]:.0f} MiB ({run["peak_mib"] - run["before_mib"]:+.1f})'
                     for run in runs)
    return f'**Peak memory** of the process, libraries included, without a model (beyond what it had before): {told}.'


def kills(result: dict[str, Any]) -> str:
    done, rows = result['done_at_a_kill'], result['rows']
    amid = sum(0 < one < rows for one in done)
    return (f'{result["date"][:10]}: `{result["command"]}`\n\n{result["kills"]} kills over {result["folders"]} folders '
            f'of {rows} rows ({result["files"]} files each, model {result["model"]}); {amid} of them came when some '
            'rows were done and some were not. Lost: 0. Recorded, and drawn again: 0. Half files: 0. Files that differ '
            'from those of the unbroken run: 0. Rows that were drawn, but not yet recorded when the kill came, and so '
            f'drawn again: {result["drawn_again_in_flight"]}.')


_SECTIONS = {'batch': batch, 'batch-kills': kills}


if __name__ == '__main__':
    main()
