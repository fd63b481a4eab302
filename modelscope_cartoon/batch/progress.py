"""How far a batch is, and how long it takes yet: one line, written over, on a terminal; else a line now and then."""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from modelscope_cartoon.batch.keeping import Event
from modelscope_cartoon.batch.ledger import Ledger

_TERMINAL, _FILE = 1.0, 30.0      # seconds between lines


class Progress:
    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._terminal = sys.stderr.isatty()
        self._settled, self._first, self._said = 0, 0.0, time.monotonic()
        self._wide = 0

    def __call__(self, events: Sequence[Event]) -> None:
        now = time.monotonic()
        settled = sum(event.what in ('done', 'failed') for event in events)
        if settled and not self._first:
            self._first = now             # the model's loading is not the rows' time
        elif self._first:
            self._settled += settled
        if now - self._said >= (_TERMINAL if self._terminal else _FILE):
            self._said = now
            self._say(self.line(self._ledger.counts(), now - self._first if self._first else 0.0))

    def line(self, counts: dict[str, int], seconds: float) -> str:
        """`1,234 of 10,000 rows, 3 of them failed; 2.1 a second, 1 h 10 min left`"""
        ended, open_rows = counts['done'] + counts['failed'], counts['queued'] + counts['leased']
        line = f'{ended:,} of {ended + open_rows:,} rows'
        if counts['failed']:
            line += f', {counts["failed"]:,} of them failed'
        if self._settled and seconds:
            rate = self._settled / seconds
            line += f'; {rate:.3g} a second, {duration(open_rows / rate)} left'
        return line

    def _say(self, line: str) -> None:
        print(f'\r{line:<{self._wide}}' if self._terminal else line, end='' if self._terminal else '\n',
              file=sys.stderr, flush=True)
        self._wide = len(line)

    def close(self) -> None:
        if self._terminal and self._wide:
            print(f'\r{"":<{self._wide}}\r', end='', file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s' if minutes else f'{rest} s'
