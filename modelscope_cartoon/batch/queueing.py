"""Jobs into the ledger, a few hundred a transaction, so that neither memory nor a lock grows with the file."""
from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_cartoon.batch.jobs import Job, id_of, seeded
from modelscope_cartoon.batch.ledger import Ledger

_AT_ONCE = 500


class Queued(NamedTuple):
    """new: rows that the ledger didn't know. forgotten: rows that it knew, that are neither drawn nor in the file."""
    rows: int
    new: int
    forgotten: int


def queue(ledger: Ledger, jobs: Iterable[Job]) -> Queued:
    """What is in the ledger already stays as it is."""
    ledger.execute('CREATE TEMP TABLE seen (content BLOB PRIMARY KEY, times INTEGER NOT NULL)')
    ledger.execute('CREATE TEMP TABLE present (id TEXT PRIMARY KEY)')
    rows = new = 0
    for some in _chunks(jobs):
        with ledger.transaction():
            for job in some:
                rows += 1
                new += _add(ledger, job)
    with ledger.transaction():
        forgotten = ledger.execute('DELETE FROM jobs WHERE state IN (\'queued\', \'failed\') '
                                   'AND id NOT IN (SELECT id FROM present)').rowcount
    for table in ('seen', 'present'):
        ledger.execute(f'DROP TABLE temp.{table}')
    return Queued(rows, new, forgotten)


def _chunks(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    jobs = iter(jobs)
    while some := list(itertools.islice(jobs, _AT_ONCE)):
        yield some


def _add(ledger: Ledger, job: Job) -> bool:
    """True where the job is new."""
    content = (hashlib.sha256(job.content.encode()).digest(),)
    ledger.execute('INSERT INTO temp.seen VALUES (?, 1) ON CONFLICT (content) DO UPDATE SET times = times + 1', content)
    [occurrence] = ledger.execute('SELECT times FROM temp.seen WHERE content = ?', content).fetchone()
    job_id = id_of(job.content, occurrence)
    ledger.execute('INSERT INTO temp.present VALUES (?)', (job_id,))
    if ledger.execute('SELECT 1 FROM jobs WHERE id = ?', (job_id,)).fetchone():
        return False
    batch, place = _place(ledger, job) if job.fault is None else (None, None)
    request = seeded(job.request, job_id) if job.fault is None else job.request
    ledger.execute('INSERT INTO jobs (id, request, tags, batch, place, state, reason) VALUES (?, ?, ?, ?, ?, ?, ?)',
                   (job_id, json.dumps(request, default=str), json.dumps(job.tags, default=str), batch, place,
                    'queued' if job.fault is None else 'failed', job.fault))
    return True


def _place(ledger: Ledger, job: Job) -> tuple[int, int]:
    """The group of the job's settings, and how many pictures are in it before this job's."""
    ledger.execute('INSERT INTO groups (settings, pictures) VALUES (?, ?) ON CONFLICT (settings) DO UPDATE '
                   'SET pictures = pictures + excluded.pictures', (job.group, job.pictures))
    batch, end = ledger.execute('SELECT id, pictures FROM groups WHERE settings = ?', (job.group,)).fetchone()
    return batch, end - job.pictures


def missing(ledger: Ledger, output: Path) -> Iterator[tuple[str, str]]:
    """(id, file) of rows that are recorded as done, and whose file is no longer there."""
    for entry in ledger.entries('done'):
        for picture in entry.pictures:
            if not (output / picture['file']).is_file():
                yield entry.id, picture['file']
                break


def belonging(ledger: Ledger, settings: dict[str, Any], firm: Iterable[str]) -> dict[str, tuple[Any, Any]]:
    """Which of `settings` differ from the ledger's: name -> (there, now). Those not in `firm` are then set anew."""
    known = ledger.about()
    changed = {key: (known[key], value) for key, value in settings.items() if key in known and known[key] != value}
    if not set(changed) & set(firm):
        ledger.set_about(settings)
    return changed
