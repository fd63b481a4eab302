"""The ledger: SQLite in the output folder, which knows of every job whether it is queued, leased, done or failed.

Written ahead (WAL), so that a kill at any moment leaves the last transaction whole, and others can read meanwhile.
Transactions are short, and each that writes begins by taking the lock, so that two commands never lease the same row.
"""
from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_cartoon.errors import InvalidRequest, OutputError

NAME = 'ledger.sqlite'
STATES = ('queued', 'leased', 'done', 'failed')
LEASE = 120.0              # seconds; a driver at work renews its leases long before (crews.py)
_IN_COMPANY = 2            # tries that a row gets in its batch before it is drawn alone
_SCHEMA = 1
_TABLES = '''
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE groups (id INTEGER PRIMARY KEY, settings TEXT NOT NULL UNIQUE, pictures INTEGER NOT NULL DEFAULT 0);
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, request TEXT NOT NULL, tags TEXT NOT NULL,
    batch INTEGER, place INTEGER,                    -- the group that it is in, and how many pictures are before it
    state TEXT NOT NULL DEFAULT 'queued', owner TEXT, worker TEXT, expires REAL, tries INTEGER NOT NULL DEFAULT 0,
    reason TEXT, seconds REAL, pictures TEXT);
CREATE INDEX queue ON jobs (state, batch, place);
'''


class Leased(NamedTuple):
    """A job to draw: the request has its seed. tries: how many went wrong before."""
    id: str
    request: dict[str, Any]
    tries: int
    batch: int


class Entry(NamedTuple):
    """A job as it stands. pictures: [{'file', 'sha256', 'recipe'}, ...] of a done one."""
    number: int
    id: str
    state: str
    request: dict[str, Any]
    tags: dict[str, Any]
    tries: int
    reason: str | None
    seconds: float | None
    pictures: list[dict[str, Any]]


class Ledger:
    """owner: the token of the command at work, to whom leases belong."""

    def __init__(self, folder: Path, owner: str = '', new: bool = True):
        self.path = folder / NAME
        self.owner = owner
        if not new and not self.path.is_file():
            raise InvalidRequest(f'{folder} holds no {NAME}; give the --output of a batch.')
        with self._translated((sqlite3.Error, OSError)):
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._db.execute('PRAGMA journal_mode = WAL')
            self._db.execute('PRAGMA cache_size = -512')     # kB: what is looked up again is little
            self._db.execute('PRAGMA synchronous = NORMAL')     # a power cut may undo the last records, never a kill
            if not self._is_there():
                with self.transaction():
                    self._create()

    def _is_there(self) -> bool:
        [version] = self._one('PRAGMA user_version')
        if version not in (0, _SCHEMA):
            raise InvalidRequest(f'{self.path} was written by another version (schema {version}, here {_SCHEMA}); '
                                 'give another --output.')
        return bool(version)

    def _create(self) -> None:
        if not self._is_there():     # another command may have come first
            for statement in _TABLES.split(';'):
                self.execute(statement)
            self.execute(f'PRAGMA user_version = {_SCHEMA}')

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; nobody else writes meanwhile. OutputError where the disk is full."""
        with self._translated():
            self._db.execute('BEGIN IMMEDIATE')
            try:
                yield
                self._db.execute('COMMIT')
            except BaseException:
                with contextlib.suppress(sqlite3.Error):     # a full disk has rolled back by itself
                    self._db.execute('ROLLBACK')
                raise

    @contextlib.contextmanager
    def _translated(self, errors: Any = sqlite3.Error) -> Iterator[None]:
        try:
            yield
        except errors as error:
            raise OutputError(f'{self.path} could not be used ({error}); what is recorded in it is kept. Free some '
                              'space, or choose another place with --output, and give the same command again.'
                              ) from error

    def execute(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def _one(self, statement: str, *values: Any) -> Any:
        return self._db.execute(statement, values).fetchone()

    def about(self) -> dict[str, Any]:
        return {key: json.loads(value) for key, value in self.execute('SELECT key, value FROM about')}

    def set_about(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self.execute('INSERT OR REPLACE INTO about VALUES (?, ?)', (key, json.dumps(value)))

    def lease(self, worker: str, at_once: int, batch: int | None = None) -> list[Leased]:
        """Rows that are drawn together: neighbours in one group of equal settings, in `batch` while it has any.

        The same rows come together after every kill, so that their pictures are the same to the last bit. A row that
        went wrong twice comes alone.
        """
        with self.transaction():
            first = 'SELECT batch, place, tries FROM jobs WHERE state = \'queued\' '
            found = (self._one(first + 'AND batch = ? ORDER BY place LIMIT 1', batch)
                     or self._one(first + 'ORDER BY batch, place LIMIT 1'))
            if not found:
                return []
            batch, place, tries = found
            start = place // at_once * at_once
            rows = self.execute(
                'SELECT id, request, tries, batch FROM jobs WHERE state = \'queued\' AND batch = ? AND place >= ? '
                'AND place < ? ORDER BY place', (batch, start, start + at_once)).fetchall()
            rows = rows[:1] if tries >= _IN_COMPANY else [row for row in rows if row[2] < _IN_COMPANY]
            for row in rows:
                self.execute('UPDATE jobs SET state = \'leased\', owner = ?, worker = ?, expires = ? WHERE id = ?',
                             (self.owner, worker, time.time() + LEASE, row[0]))
        return [Leased(job_id, json.loads(request), tries, batch) for job_id, request, tries, batch in rows]

    def renew(self) -> None:
        with self.transaction():
            self.execute('UPDATE jobs SET expires = ? WHERE state = \'leased\' AND owner = ?',
                         (time.time() + LEASE, self.owner))

    def take_back(self, gone: Iterable[str] = ()) -> int:
        """How many leased rows are queued again: those that ran out, and those of the owners that are gone."""
        back = 'UPDATE jobs SET state = \'queued\', owner = NULL, worker = NULL WHERE state = \'leased\' AND '
        count = self.execute(back + 'expires < ?', (time.time(),)).rowcount
        return count + sum(self.execute(back + 'owner = ?', (owner,)).rowcount for owner in gone)

    def is_held(self, worker: str, job_id: str) -> bool:
        """False where the lease ran out, and somebody else may have the row."""
        return bool(self._one('SELECT 1 FROM jobs WHERE id = ? AND state = \'leased\' AND owner = ? AND worker = ?',
                              job_id, self.owner, worker))

    def record(self, job_id: str, pictures: list[dict[str, Any]], seconds: float) -> None:
        self.execute('UPDATE jobs SET state = \'done\', owner = NULL, worker = NULL, reason = NULL, seconds = ?, '
                     'pictures = ? WHERE id = ?', (seconds, json.dumps(pictures), job_id))

    def went_wrong(self, job_id: str, reason: str, failed: bool) -> None:
        """Queued again with one try more, or failed."""
        self.execute('UPDATE jobs SET state = ?, owner = NULL, worker = NULL, reason = ?, tries = tries + 1 '
                     'WHERE id = ?', ('failed' if failed else 'queued', reason, job_id))

    def queue_again(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            self.execute('UPDATE jobs SET state = \'queued\', owner = NULL, worker = NULL, pictures = NULL '
                         'WHERE id = ?', (job_id,))

    def retry_failed(self) -> int:
        """How many failed rows are queued again, with all their tries; not those that can't be a request at all."""
        return self.execute('UPDATE jobs SET state = \'queued\', tries = 0, reason = NULL '
                            'WHERE state = \'failed\' AND batch IS NOT NULL').rowcount

    def counts(self) -> dict[str, int]:
        found = dict(self.execute('SELECT state, COUNT(*) FROM jobs GROUP BY state').fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def entries(self, *states: str) -> Iterator[Entry]:
        """In the order of the file."""
        marks = ', '.join('?' * len(states))
        for row in self.execute('SELECT number, id, state, request, tags, tries, reason, seconds, pictures FROM jobs '
                                f'WHERE state IN ({marks}) ORDER BY number', states):
            number, job_id, state, request, tags, tries, reason, seconds, pictures = row
            yield Entry(number, job_id, state, json.loads(request), json.loads(tags), tries, reason, seconds,
                        json.loads(pictures or '[]'))

    def close(self) -> None:
        self._db.close()
