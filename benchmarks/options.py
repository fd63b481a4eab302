"""What both commands share: their options, the start of a result, and its end."""
from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine, models
from benchmarks.goals import goals
from benchmarks.runner import Bench, say
from benchmarks.serve import PROMPT
from benchmarks.sides import SIDES

SCHEMA = 1
RESULTS = Path(__file__).parent / 'results'


def parser(text: str, kind: str, steps: int) -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parsed.add_argument('--folder', default=str(models.RANDOM),
                        help="a model folder, or 'mini'; Stable Diffusion 2.1 with random weights is built there if "
                             'there is none (5 GB; default: %(default)s)')
    parsed.add_argument('--steps', type=int, default=steps)
    parsed.add_argument('--repeats', type=int, default=5, help='rounds after the warm-up')
    parsed.add_argument('--fast-repeats', type=int, default=1, help='whole pictures with each fast preset')
    parsed.add_argument('--cold-repeats', type=int, default=3, help='cold starts of each side; 0: none')
    parsed.add_argument('--sides', nargs='+', choices=SIDES, metavar='SIDE',
                        help=f'only these, of {", ".join(SIDES)}; D32 draws the reference in any case')
    parsed.add_argument('--memory', type=float, metavar='GIB',
                        help='what the sides may use together; default: 0.9 of what is free')
    parsed.add_argument('--seed', type=int, default=0)
    parsed.add_argument('--section', help='a section of its own in docs/performance.md (benchmarks.render)')
    date = datetime.datetime.now(datetime.timezone.utc).date()
    parsed.add_argument('--out', type=Path, default=RESULTS / f'{kind}_{date}.json')
    return parsed


def sides(arguments: argparse.Namespace, device: str) -> list[str]:
    """Those that are measured in rounds. D32 isn't: it is upstream's arithmetic, and draws the reference alone."""
    chosen = arguments.sides or [name for name, side in SIDES.items() if side.standard]
    return [name for name in chosen if name != 'D32' and device in SIDES[name].devices]


@contextlib.contextmanager
def bench(arguments: argparse.Namespace, kind: str, device: str, size: int) -> Iterator[Bench]:
    """The run as a whole: the model is there, what we keep on disk lies beside it, and the result is written at the
    end. A run that broke off is written too: what was measured by then was measured."""
    from modelscope_cartoon.files import write_json

    model = models.resolve(arguments.folder, size)
    os.environ['MODELSCOPE_CARTOON_CACHE'] = str(cache_of(model))
    settings: dict[str, Any] = {'size': model.size, 'steps': arguments.steps, 'repeats': arguments.repeats,
                                'seed': arguments.seed, 'prompt': PROMPT, 'device': device}
    result: dict[str, Any] = {
        'schema': SCHEMA, 'kind': kind, 'finished': False, 'command': machine.command(),
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'machine': machine.describe(), 'versions': machine.versions(), 'model': model.describe(), 'settings': settings,
        **({'section': arguments.section} if arguments.section else {})}
    with tempfile.TemporaryDirectory(prefix='benchmark-') as work:
        running = Bench(model, device, Path(work), result)
        try:
            yield running
            result['finished'] = True
        finally:
            running.compare()
            result['machine']['load_after'] = machine.load_average()
            result['goals'] = goals(result)
            say(f'written: {write_json(arguments.out, result)}')


def cache_of(model: models.Model) -> Path:
    """Beside the model, not the user's own cache; the embedded model's goes to the temporary folder."""
    where = Path(tempfile.gettempdir()) if model.name == 'mini' else model.folder.parent
    return where / f'{model.folder.name}-cartoon-cache'


def wants_prepared(names: list[str], arguments: argparse.Namespace) -> bool:
    """Where a backend that is built once is measured, or starts are."""
    ours = {name for name in names if SIDES[name].ours}
    return bool(ours - {'torch'} or (ours and arguments.cold_repeats))


def budget_gib(arguments: argparse.Namespace, available: float) -> float:
    return arguments.memory or 0.9 * available


def reference(running: Bench, sizes: list[int], steps: int) -> None:
    """D32 draws each exact setting once, after the rounds: what the others' distance is measured against."""
    say('reference, in float32')
    with running.opened(['D32']) as processes:
        for size in sizes:
            running.run(processes, 'exact', size, steps, repeats=1, warm=0)
