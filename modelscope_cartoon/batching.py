"""The batch command: a file of rows -> a folder of pictures, through a ledger that survives whatever ends the process.

The same command goes on where it was: nothing that is recorded is drawn twice, and nothing is left out.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from modelscope_cartoon import mini
from modelscope_cartoon.batch import cluster
from modelscope_cartoon.batch.actors import Actors
from modelscope_cartoon.batch.artist import Artist
from modelscope_cartoon.batch.crews import ANY_GPU, Alone, Processes
from modelscope_cartoon.batch.driver import Crew, Heartbeat, draw_all, reclaim
from modelscope_cartoon.batch.jobs import COLUMNS, Job, job_of
from modelscope_cartoon.batch.keeping import Keeper
from modelscope_cartoon.batch.ledger import Ledger
from modelscope_cartoon.batch.manifest import NAME as MANIFEST
from modelscope_cartoon.batch.manifest import write_manifest
from modelscope_cartoon.batch.presence import Presence
from modelscope_cartoon.batch.progress import Progress
from modelscope_cartoon.batch.queueing import belonging, missing, queue
from modelscope_cartoon.batch.sources import rows
from modelscope_cartoon.batch.status import failures, rows_of, summary, told
from modelscope_cartoon.drawing import tell_default
from modelscope_cartoon.errors import CartoonError, InvalidRequest, Stopped
from modelscope_cartoon.formats import ROWS, Format
from modelscope_cartoon.names import did_you_mean, look_up
from modelscope_cartoon.request import parse_request

_FORMATS = {row.name: row for row in ROWS if row.suffixes}
_NOTED = ('batch_size', 'dtype', 'backend', 'lora_dir', 'metadata', 'label')
_TAGS = 50                       # names of tags that are told; a file may have another in each row
_FIRM = ('model', 'format')      # with another of these the pictures in the folder would be others


def add_options(batch: argparse.ArgumentParser) -> None:
    batch.add_argument('jobs', nargs='?', metavar='FILE', help='.jsonl, .csv or .parquet; a row is a request, '
                                                               'and columns that are no fields of one are kept as tags')
    batch.add_argument('--output', '-o', metavar='DIR', help='where the pictures, the ledger and the manifest go')
    batch.add_argument('--status', action='store_true', help='say how far the batch in DIR is, and stop')
    batch.add_argument('--retry-failed', action='store_true', help='queue the rows that failed once more')
    batch.add_argument('--model', metavar='MODEL', help='mini (default), full, a hub id, or a folder, as in draw')
    batch.add_argument('--workers', type=int, metavar='N',
                       help='N processes draw, each with a model of its own; default: this one, or one for each of '
                            'several GPUs')
    batch.add_argument('--ray', nargs='?', const='', metavar='ADDRESS',
                       help='the machines of a Ray cluster draw: auto, HOST:PORT, local; default: the one that runs '
                            'here, or one started here')
    batch.add_argument('--batch-size', type=int, default=4, metavar='N', help='pictures drawn together (4)')
    batch.add_argument('--tries', type=int, default=3, metavar='N', help='how often a row may go wrong (3)')
    batch.add_argument('--format', default='png', metavar='NAME', help=', '.join(_FORMATS))
    batch.add_argument('--lora-dir', metavar='FOLDER', help='LoRA files for <lora:name:0.8>; default: ./loras')
    batch.add_argument('--device', help='gpu (the CPU where there is none), cpu, cuda:1')
    batch.add_argument('--dtype', default='auto', help='auto, float32, float16, bfloat16')
    batch.add_argument('--backend', default='auto', help='what runs the networks: auto, compile, openvino, torch, int8')
    batch.add_argument('--memory', default='auto', help='auto, full, low, min')
    batch.add_argument('--json', action='store_true', help='machine-readable output')


def batch(arguments: argparse.Namespace) -> int:
    """Queues, draws, writes manifest.jsonl; exit code 1 where a row failed."""
    if arguments.status:
        return _status(arguments)
    form = _checked(arguments)
    jobs, output = _jobs(Path(arguments.jobs), arguments.model or mini.NAME), Path(arguments.output)
    presence = Presence(output)
    ledger = Ledger(output, presence.token)
    try:
        _check_belonging(ledger, arguments, form)
        with ledger.transaction():
            presence.arrive()
        _fill(ledger, presence, jobs, arguments)
        _draw(ledger, presence, form, arguments)
        write_manifest(ledger, output, presence.folder)
        return _tell(ledger, arguments)
    except KeyboardInterrupt:
        raise Stopped(f'interrupted; {told(ledger.counts())}; the same command goes on from there.') from None
    finally:
        presence.leave()
        ledger.close()


def _checked(arguments: argparse.Namespace) -> Format:
    if arguments.jobs is None or arguments.output is None:
        raise InvalidRequest('give a file of rows and --output: modelscope-cartoon batch jobs.jsonl --output pictures')
    for name in ('batch_size', 'tries', 'workers'):
        if (number := getattr(arguments, name)) is not None and not 1 <= number <= 1000:
            raise InvalidRequest(f'--{name.replace("_", "-")} is {number}; accepted: a whole number from 1 to 1000.')
    if arguments.ray is not None:
        cluster.check(arguments.ray, arguments.device)
    form = look_up('format', arguments.format, _FORMATS)
    parse_request({'text': '', **_shared(arguments, form)})
    return form


def _shared(arguments: argparse.Namespace, form: Format) -> dict[str, Any]:
    """What every row has that doesn't say it itself."""
    return {'output_type': form.name, 'metadata': arguments.metadata, 'label': arguments.label}


def _jobs(path: Path, model: str) -> Iterator[Job]:
    """The first row is read here, so that a file that can't be is said before a folder is made."""
    given = rows(path)
    first = next(given)
    return _tags_told(job_of(row, model) for row in chain([first], given))


def _tags_told(jobs: Iterable[Job]) -> Iterator[Job]:
    said: set[str] = set()
    for job in jobs:
        if len(said) < _TAGS and (new := job.tags.keys() - said):
            said |= new
        yield job
    if said:
        names = ', '.join(f'{name!r}{did_you_mean(name, COLUMNS)}' for name in sorted(said))
        print(f'columns that are no fields of a request are kept as tags: {names}', file=sys.stderr)


def _check_belonging(ledger: Ledger, arguments: argparse.Namespace, form: Format) -> None:
    model = arguments.model or mini.NAME
    settings = {'model': str(Path(model).resolve()) if Path(model).is_dir() else model, 'format': form.name,
                'jobs': str(Path(arguments.jobs).resolve()), **{key: getattr(arguments, key) for key in _NOTED}}
    with ledger.transaction():
        changed = belonging(ledger, settings, _FIRM)
    for key in set(changed) & set(_FIRM):
        there, now = changed[key]
        raise InvalidRequest(f'the batch in {arguments.output} is drawn with --{key} {there}, not {now}; give it that, '
                             'or another --output.')
    for key, (there, now) in changed.items():
        print(f'{key.replace("_", "-")} was {there} and is {now} from here on.', file=sys.stderr)


def _fill(ledger: Ledger, presence: Presence, jobs: Iterator[Job], arguments: argparse.Namespace) -> None:
    """Rows into the ledger; what a killed command had leased, and what is gone from the folder, is queued again."""
    queued = queue(ledger, jobs)
    if queued.forgotten:
        print(f'not drawn, no longer in {arguments.jobs}, and so forgotten: {rows_of(queued.forgotten)}',
              file=sys.stderr)
    reclaim(ledger, presence)
    lost = 0
    gone = missing(ledger, Path(arguments.output))
    while some := list(islice(gone, 500)):
        lost += len(some)
        with ledger.transaction():
            ledger.queue_again(job_id for job_id, _ in some)
    if lost:
        print(f'drawn again, because a file is gone: {rows_of(lost)}', file=sys.stderr)
    if arguments.retry_failed:
        with ledger.transaction():
            again = ledger.retry_failed()
        print(f'failed, and queued again: {rows_of(again)}', file=sys.stderr)


def _draw(ledger: Ledger, presence: Presence, form: Format, arguments: argparse.Namespace) -> None:
    if not ledger.counts()['queued'] + ledger.counts()['leased']:
        return
    tell_default(arguments.model)
    keeper = Keeper(ledger, Path(arguments.output), presence.folder, form.suffixes[0], arguments.tries)
    workers, progress = crew(arguments, form), Progress(ledger)
    try:
        with Heartbeat(ledger):
            draw_all(ledger, keeper, workers, presence, arguments.batch_size, progress)
    finally:
        workers.close()
        with contextlib.suppress(CartoonError), ledger.transaction():     # a full disk has been said already
            ledger.take_back([presence.token])
        keeper.close()
        progress.close()


def crew(arguments: argparse.Namespace, form: Format) -> Crew:
    options = {'device': arguments.device, 'dtype': arguments.dtype, 'memory': arguments.memory,
               'backend': arguments.backend, 'lora_dir': arguments.lora_dir}
    artist = Artist(arguments.model or mini.NAME, arguments.batch_size, _shared(arguments, form), **options)
    if arguments.ray is not None:
        return Actors(artist, arguments.ray, arguments.workers)
    if arguments.workers:
        return Processes(artist, arguments.workers)
    import torch
    gpus = torch.cuda.device_count() if arguments.device in ANY_GPU else 0
    if gpus > 1:
        return Processes(artist, gpus)
    artist.options['device'] = arguments.device or ('gpu' if gpus else 'cpu')
    return Alone(artist)


def _tell(ledger: Ledger, arguments: argparse.Namespace) -> int:
    found = summary(ledger, arguments.output)
    if arguments.json:
        print(json.dumps({**found, 'manifest': str(Path(arguments.output, MANIFEST))}, ensure_ascii=False, indent=2))
    else:
        print(f'{arguments.output}: {told(found["rows"])}; {MANIFEST} names them all')
        for line in failures(found):
            print(line, file=sys.stderr)
    return 1 if found['rows']['failed'] else 0


def _status(arguments: argparse.Namespace) -> int:
    folder = arguments.output or arguments.jobs
    if folder is None:
        raise InvalidRequest('give the folder of a batch: modelscope-cartoon batch --status pictures')
    ledger = Ledger(Path(folder), new=False)
    try:
        found, about = summary(ledger, folder), ledger.about()
    finally:
        ledger.close()
    if arguments.json:
        print(json.dumps({**found, 'settings': about}, ensure_ascii=False, indent=2))
        return 0
    print(f'{folder}: {told(found["rows"])}')
    print(*[f'{key.replace("_", "-")}: {value}' for key, value in about.items() if value is not None], sep='\n')
    for line in failures(found):
        print(line)
    return 0
