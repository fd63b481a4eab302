"""kill -9 of the batch command at random points, again and again; then the folder is held against an unbroken run's.

    python -m benchmarks.kills [--kills 200] [--rows 24] [--out benchmarks/results/batch_kills_<date>.json]
    python -m benchmarks.batch_report benchmarks/results/batch_kills_<date>.json      # into docs/batches.md

Each run is a fork of this process, which has imported everything, so that a kill hits the work and not the imports.
A folder that is finished is compared, and the next one begun, until all kills are spent.
"""
from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULTS = Path(__file__).parent / 'results'


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='mini')
    parser.add_argument('--kills', type=int, default=200)
    parser.add_argument('--rows', type=int, default=24)
    parser.add_argument('--steps', type=int, default=2)
    parser.add_argument('--seed', type=int, default=0, help='of the random points')
    date = datetime.datetime.now(datetime.timezone.utc).date()
    parser.add_argument('--out', type=Path, default=RESULTS / f'batch_kills_{date}.json')
    arguments = parser.parse_args(argv)
    import torch
    torch.set_num_threads(1)     # a pool of threads would not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        result = kill_and_compare(arguments.model, Path(folder), arguments.kills, arguments.rows, arguments.steps,
                                  arguments.seed)
    result |= {'schema': 1, 'kind': 'batch-kills', 'date': datetime.datetime.now().isoformat(timespec='minutes'),
               'command': machine.command()}
    from modelscope_cartoon.files import write_json
    print(write_json(arguments.out, result))


def kill_and_compare(model: str, folder: Path, kills: int, rows: int, steps: int = 2, seed: int = 0) -> dict[str, Any]:
    """What was counted; AssertionError where a row is lost, drawn twice, half written, or not the unbroken run's."""
    import modelscope_cartoon.pipeline  # noqa: F401     # once, and not in every fork
    from modelscope_cartoon import batching, cli  # noqa: F401

    jobs = write_jobs(folder / 'jobs.jsonl', rows, steps)
    started = time.monotonic()
    assert wait(start(model, jobs, folder / 'unbroken')) == 1, 'one row is bad, and the others are drawn'
    seconds, unbroken = time.monotonic() - started, contents(folder / 'unbroken')
    chance, counted = random.Random(seed), {'kills': 0, 'folders': 0, 'done_at_a_kill': [], 'drawn_again_in_flight': 0}
    while counted['kills'] < kills:
        output = folder / f'killed-{counted["folders"]}'
        _kill_until_done(model, jobs, output, seconds, kills, chance, counted)
        found = contents(output)
        assert found.keys() == unbroken.keys(), 'the same files, and no others'
        assert found == unbroken, 'the same bytes'
        counted['folders'] += 1
        shutil.rmtree(output)
    return {**counted, 'rows': rows, 'files': len(unbroken), 'steps': steps, 'model': Path(model).name,
            'unbroken_seconds': round(seconds, 3)}


def _kill_until_done(model: str, jobs: Path, output: Path, seconds: float, kills: int, chance: random.Random,
                     counted: dict[str, Any]) -> None:
    """Kills until the command ends by itself or all kills are spent; then it is given once more."""
    log = output.with_suffix('.txt')
    done: set[str] = set()
    while counted['kills'] < kills:
        before = len(draws(log))
        child = start(model, jobs, output, log)
        time.sleep(chance.uniform(0, seconds))
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 1, 'it ended before the kill, and not well'
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        counted['kills'] += 1
        again = done & set(draws(log)[before:])
        assert not again, f'recorded as done, and drawn again: {again}'
        done = recorded(output)
        counted['done_at_a_kill'].append(len(done))
    before = len(draws(log))
    code = wait(start(model, jobs, output, log))
    assert code == 1, f'exit code {code}: {output.with_suffix(".said").read_text(errors="replace")[-3000:]}'
    assert not done & set(draws(log)[before:]), 'recorded as done, and drawn again'
    counted['drawn_again_in_flight'] += len(draws(log)) - len(set(draws(log)))


def write_jobs(path: Path, rows: int, steps: int) -> Path:
    """Rows of three kinds of settings in turn, some without a seed, one with three pictures, one that can't be."""
    with path.open('w', encoding='utf-8') as file:
        for i in range(rows):
            row = {'text': f'a cat {i}', 'num_inference_steps': steps, 'guidance_scale': [7.5, 5.0, 1.0][i % 3]}
            row |= {'seed': i} if i % 2 else {}
            row |= {'num_images_per_prompt': 3} if i == 4 else {}
            file.write(json.dumps({**row, 'client': i}) + '\n')
        file.write(json.dumps({'text': 'bad', 'width': 100}) + '\n')
    return path


def start(model: str, jobs: Path, output: Path, log: Path | None = None, *options: str) -> int:
    """The process id of a fork that runs the command. Its pictures' metadata has one date, so that equal pictures are
    equal files."""
    def work() -> int:
        os.environ['SOURCE_DATE_EPOCH'] = '0'
        from modelscope_cartoon.cli import main
        if log:
            log_draws(log)
        silence(output.with_suffix('.said'))
        return main(['batch', str(jobs), '-o', str(output), '--model', model, '--device', 'cpu', *options])
    return fork(work)


def fork(work: Callable[[], int]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = work()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def silence(into: Path) -> None:
    """From now on what this process says is in the file `into`."""
    handle = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def log_draws(log: Path) -> None:
    """From now on, in this process, an artist notes what it has drawn, before anybody hears of it."""
    from modelscope_cartoon.batch.artist import Artist
    draw = Artist.draw

    def noted(self: Artist, requests: list[dict[str, Any]]) -> list[Any]:
        outcomes = draw(self, requests)
        with log.open('a', encoding='utf-8') as file:
            file.write(''.join(f'{request["text"]}\n' for request in requests))
        return outcomes
    Artist.draw = noted     # type: ignore[method-assign]


def draws(log: Path) -> list[str]:
    return log.read_text(encoding='utf-8').splitlines() if log.exists() else []


def recorded(output: Path) -> set[str]:
    """The prompts of the rows that the ledger calls done. Each has its files, which are whole."""
    if not (output / 'ledger.sqlite').exists():
        return set()
    with sqlite3.connect(output / 'ledger.sqlite') as db:
        try:
            rows = db.execute("SELECT request, pictures FROM jobs WHERE state = 'done'").fetchall()
        except sqlite3.OperationalError:     # killed before there were tables
            rows = []
    db.close()
    for _, pictures in rows:
        for picture in json.loads(pictures):
            check_whole(output / picture['file'], picture['sha256'])
    return {json.loads(request)['text'] for request, _ in rows}


def check_whole(path: Path, sha256: str) -> None:
    import hashlib
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256, f'{path.name} is not what was recorded'


def contents(output: Path) -> dict[str, Any]:
    """Every file by name; of the manifest what doesn't depend on the clock, of the ledger that it is there."""
    found: dict[str, Any] = {path.relative_to(output).as_posix(): path.read_bytes()
                             for path in sorted(output.rglob('*')) if path.is_file()}
    assert not [path for path in output.rglob('*') if path.is_dir()], 'a folder was left behind'
    found['manifest.jsonl'] = list(_without_times(found['manifest.jsonl']))
    found['ledger.sqlite'] = True
    return found


def _without_times(manifest: bytes) -> Iterator[dict[str, Any]]:
    for line in manifest.splitlines():
        entry = json.loads(line)
        entry.pop('seconds', None)
        yield entry


if __name__ == '__main__':
    main()
