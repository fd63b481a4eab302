"""Pictures are written aside, flushed, renamed, then recorded: the record never speaks of what isn't on the disk."""
from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_cartoon.batch.artist import Drawn, Outcome, Refused
from modelscope_cartoon.batch.ledger import Leased, Ledger
from modelscope_cartoon.drawing import slug
from modelscope_cartoon.errors import OutputError
from modelscope_cartoon.files import sync_folder

_FLUSHING = 8      # files at once: the disk flushes many in the time of one


class Death(NamedTuple):
    """The worker ended while it drew. blameless: the rows are not why; it was loading, or its machine is gone."""
    reason: str
    blameless: bool = False


class Event(NamedTuple):
    """What became of a leased job: 'done', 'failed', 'again' (it will be tried again) or 'lost' (another has it)."""
    id: str
    what: str
    reason: str | None = None


class Keeper:
    """output: where the pictures go. aside: a folder on the same disk for what isn't whole yet. tries: how often a
    row may go wrong before it has failed."""

    def __init__(self, ledger: Ledger, output: Path, aside: Path, suffix: str, tries: int):
        self._ledger, self._output, self._aside, self._suffix, self._tries = ledger, output, aside, suffix, tries
        self._flushers = ThreadPoolExecutor(_FLUSHING)

    def keep(self, worker: str, jobs: Sequence[Leased], answer: Sequence[Outcome] | Death) -> list[Event]:
        """Files and records of what `worker` drew of `jobs`. OutputError where the disk is full: none is recorded."""
        if isinstance(answer, Death):
            outcomes: Sequence[Outcome | Death] = [answer] * len(jobs)
        else:
            outcomes = answer
        try:
            files = self._write(jobs, outcomes)
            with self._ledger.transaction():
                events = [self._settle(worker, job, outcome, len(jobs), files.get(job.id, ()))
                          for job, outcome in zip(jobs, outcomes)]
                if files:
                    sync_folder(self._output)
            return events
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f'{self._output} could not be written ({error.strerror or error}); what was drawn before '
                              'is kept. Free some space, and give the same command again.') from error
        finally:
            self._clear()

    def _write(self, jobs: Sequence[Leased], outcomes: Sequence[Any]) -> dict[str, list[tuple[Path, bytes]]]:
        """(file aside, its data) of every picture, by job; on the disk when this returns."""
        files = {job.id: [(self._aside / f'{job.id}-{i}', image) for i, image in enumerate(outcome.images)]
                 for job, outcome in zip(jobs, outcomes) if isinstance(outcome, Drawn)}
        list(self._flushers.map(_write_through, (file for one in files.values() for file in one)))
        return files

    def _settle(self, worker: str, job: Leased, outcome: Outcome | Death, company: int,
                files: Sequence[tuple[Path, bytes]]) -> Event:
        if not self._ledger.is_held(worker, job.id):
            return Event(job.id, 'lost')
        if isinstance(outcome, Drawn):
            self._ledger.record(job.id, list(self._placed(job, outcome, files)), round(outcome.seconds, 4))
            return Event(job.id, 'done')
        if isinstance(outcome, Death) and outcome.blameless:
            self._ledger.queue_again([job.id])
            return Event(job.id, 'again')
        alone = isinstance(outcome, Refused) or company == 1
        failed = alone and (job.tries + 1 >= self._tries or (isinstance(outcome, Refused) and outcome.final))
        self._ledger.went_wrong(job.id, outcome.reason, failed)
        return Event(job.id, 'failed' if failed else 'again', outcome.reason)

    def _placed(self, job: Leased, outcome: Drawn, files: Sequence[tuple[Path, bytes]]) -> Iterator[dict[str, Any]]:
        for i, ((aside, data), recipe) in enumerate(zip(files, outcome.recipes), 1):
            number = str(i) if len(files) > 1 else ''
            name = '-'.join(filter(None, [slug(recipe['request']['text']), job.id, number])) + self._suffix
            os.replace(aside, self._output / name)
            yield {'file': name, 'sha256': hashlib.sha256(data).hexdigest(), 'recipe': recipe}

    def _clear(self) -> None:
        for path in self._aside.glob('*-*'):
            with contextlib.suppress(OSError):
                path.unlink()

    def close(self) -> None:
        self._flushers.shutdown()


def _write_through(file: tuple[Path, bytes]) -> None:
    path, data = file
    with path.open('xb') as open_file:
        open_file.write(data)
        open_file.flush()
        os.fsync(open_file.fileno())
