"""What is said of a batch while it runs."""
from __future__ import annotations

import io
import sys

import pytest

from modelscope_cartoon.batch import progress
from modelscope_cartoon.batch.jobs import job_of
from modelscope_cartoon.batch.keeping import Event
from modelscope_cartoon.batch.ledger import Ledger
from modelscope_cartoon.batch.progress import Progress, duration
from modelscope_cartoon.batch.queueing import queue
from modelscope_cartoon.batch.status import told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def said(tmp_path, monkeypatch):
    """said(stream) -> what is on it after 10 rows of 100, two a second, the first after 50 s of loading"""
    def run(stream: io.StringIO) -> str:
        ledger = Ledger(tmp_path, 'me')
        queue(ledger, [job_of({'text': str(i), **({'width': 100} if i > 98 else {})}, 'mini') for i in range(100)])
        monkeypatch.setattr(sys, 'stderr', stream)
        clock = iter([0.0, *(50 + 0.5 * i for i in range(10)), 90.0])
        monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
        report = Progress(ledger)
        for _ in range(10):
            [job] = ledger.lease('w', 1)
            ledger.record(job.id, [], 0.1)
            report([Event(job.id, 'done')])
        report.close()
        ledger.close()
        return stream.getvalue()
    return run


def test_a_file_gets_a_line_now_and_then(said):
    assert said(io.StringIO()) == '2 of 100 rows, 1 of them failed\n'


def test_a_terminal_gets_one_line_that_is_written_over_with_the_time_left(said):
    lines = said(Terminal()).split('\r')
    assert lines[1].rstrip() == '2 of 100 rows, 1 of them failed'
    assert lines[-3].rstrip() == '10 of 100 rows, 1 of them failed; 2 a second, 45 s left'
    assert lines[-2].strip() == '' and lines[-1] == ''


@pytest.mark.parametrize('seconds, words', [(59.4, '59 s'), (61, '1 min 1 s'), (3599.9, '1 h 0 min'),
                                            (90_000, '25 h 0 min')])
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_counts_are_told_without_what_is_nought():
    assert told({'queued': 0, 'leased': 1, 'done': 1234, 'failed': 0}) == '1,235 rows: 1 leased, 1,234 done'
    assert told({'queued': 0, 'leased': 0, 'done': 1, 'failed': 0}) == '1 row: 1 done'
