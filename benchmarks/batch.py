"""What a batch costs beyond the drawing: rows a second, against the bare model, memory for many rows.

    python -m benchmarks.batch [--rows 3000] [--rounds 7] [--many 10000] [--out benchmarks/results/batch_<date>.json]
    python -m benchmarks.batch_report benchmarks/results/batch_<date>.json      # into docs/batches.md

- ledger: an artist that returns a ready picture at once, so that what is left is reading the file, queueing, leasing,
  writing, flushing, renaming, recording, and the manifest. With one worker in the process, by batch size.
- mini: the embedded model, its bare pipeline and a batch in turn, over the same requests at the same batch size.
- memory: peak of the process for few rows and for many, with the artist of the first part.
"""
from __future__ import annotations

import argparse
import datetime
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

SCHEMA = 1
RESULTS = Path(__file__).parent / 'results'
FEW = 10
TEXT = 'a painting of a fox on a blue background'


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.memory_of:
        print(json.dumps(_memory(arguments.memory_of)))
        return
    result: dict[str, Any] = {
        'schema': SCHEMA, 'kind': 'batch', 'date': datetime.datetime.now().isoformat(timespec='minutes'),
        'command': machine.command(), 'machine': machine.describe(), 'versions': machine.versions()}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result['ledger'] = [ledger_rate(Path(folder), arguments.rows, size, run)
                            for run in range(arguments.repeats) for size in arguments.batch_sizes]
        result['mini'] = against_bare(Path(folder), arguments.rounds, arguments.steps)
    result['memory'] = [_in_a_process(count) for count in (FEW, arguments.many)]
    result['machine']['load_after'] = machine.load_average()
    from modelscope_cartoon.files import write_json
    print(write_json(arguments.out, result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, default=3000, help='through the ledger, in each run')
    parser.add_argument('--repeats', type=int, default=3, help='runs of that, for each batch size')
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[1, 4, 16])
    parser.add_argument('--rounds', type=int, default=7, help='of bare model and batch in turn')
    parser.add_argument('--steps', type=int, default=20, help='of the embedded model')
    parser.add_argument('--many', type=int, default=10_000, help='rows for the memory')
    parser.add_argument('--memory-of', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--folder', help="on the disk to measure; default: the system's temporary folder")
    date = datetime.datetime.now(datetime.timezone.utc).date()
    parser.add_argument('--out', type=Path, default=RESULTS / f'batch_{date}.json')
    return parser


class Ready:
    """An artist that has the picture already: noise, whose PNG is as large as one can be (128 px, 49 kB), and a recipe
    of the usual size."""

    def __init__(self) -> None:
        import numpy as np
        from PIL import Image

        self.options: dict[str, Any] = {}
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(buffer, 'PNG')
        self._image = buffer.getvalue()
        self._recipe = {'used': {'scheduler': {'config': {str(i): i for i in range(150)}}}}

    def draw(self, requests: Sequence[dict[str, Any]]) -> list[Any]:
        from modelscope_cartoon.batch.artist import Drawn
        return [Drawn([self._image], [{**self._recipe, 'request': request}], 0.0) for request in requests]


def write_jobs(path: Path, count: int, **more: Any) -> Path:
    with path.open('w', encoding='utf-8') as file:
        for i in range(count):
            file.write(json.dumps({'text': TEXT, 'client': i, **more}) + '\n')
    return path


def run_batch(artist: Any, jobs: Path, output: Path, batch_size: int) -> float:
    """Seconds of the command itself, with `artist` for its own."""
    from modelscope_cartoon import batching, cli
    from modelscope_cartoon.batch.crews import Alone

    usual, batching.crew = batching.crew, lambda *_: Alone(artist)
    started = time.perf_counter()
    try:
        code = cli.main(['batch', str(jobs), '-o', str(output), '--batch-size', str(batch_size), '--json'])
    finally:
        batching.crew = usual
    assert code == 0, 'every row is drawn'
    return time.perf_counter() - started


def ledger_rate(folder: Path, rows: int, batch_size: int, run: int) -> dict[str, Any]:
    output = folder / f'ledger-{batch_size}-{run}'
    seconds = run_batch(Ready(), write_jobs(folder / 'ledger.jsonl', rows), output, batch_size)
    files = len(list(output.glob('*.png')))
    shutil.rmtree(output)
    return {'batch_size': batch_size, 'rows': rows, 'files': files, 'seconds': seconds,
            'rows_per_second': rows / seconds}


def against_bare(folder: Path, rounds: int, steps: int, batch_size: int = 4, rows: int = 16) -> dict[str, Any]:
    """Seconds of each round of both, over the same requests, with one loaded model; both encode PNGs with metadata."""
    from modelscope_cartoon.batch.artist import Artist

    artist = Artist('mini', batch_size, {'output_type': 'png'}, device='cpu', backend='torch')
    requests = [{'text': TEXT, 'seed': i, 'num_inference_steps': steps, 'output_type': 'png'} for i in range(rows)]
    jobs = folder / 'mini.jsonl'
    jobs.write_text(''.join(json.dumps({'text': TEXT, 'seed': i, 'num_inference_steps': steps}) + '\n'
                            for i in range(rows)))
    pipe = artist.load(requests[0])
    pipe(requests[:batch_size], batch_size=batch_size)     # what only a first call does is nobody's
    samples: dict[str, list[float]] = {'bare': [], 'batch': []}
    for number in range(rounds):
        for side in ('bare', 'batch') if number % 2 else ('batch', 'bare'):
            started = time.perf_counter()
            if side == 'bare':
                pipe(requests, batch_size=batch_size)
                samples[side].append(time.perf_counter() - started)
            else:
                samples[side].append(run_batch(artist, jobs, folder / f'mini-{number}', batch_size))
    return {'rows': rows, 'steps': steps, 'batch_size': batch_size, 'samples': samples}


def _in_a_process(rows: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, '-m', 'benchmarks.batch', '--memory-of', str(rows)], check=True, text=True,
                          capture_output=True)
    return json.loads(done.stdout.splitlines()[-1])


def _memory(rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        jobs = write_jobs(Path(folder, 'jobs.jsonl'), rows)
        artist = Ready()
        run_batch(artist, write_jobs(Path(folder, 'first.jsonl'), 1), Path(folder, 'first'), 4)     # imports
        before = _resident('VmRSS')
        Path('/proc/self/clear_refs').write_text('5')      # the peak starts from here (Linux)
        run_batch(artist, jobs, Path(folder, 'out'), 4)
        return {'rows': rows, 'peak_mib': _resident('VmHWM'), 'before_mib': before}


def _resident(what: str) -> float:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


if __name__ == '__main__':
    main()
