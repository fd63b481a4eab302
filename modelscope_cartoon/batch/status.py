"""What a ledger says, for people and as plain data."""
from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from modelscope_cartoon.batch.ledger import STATES, Ledger

_SHOWN = 10      # failed rows; the manifest names them all


def summary(ledger: Ledger, output: str) -> dict[str, Any]:
    """{'output', 'rows': counts by state, 'failed': the first rows that did}"""
    failed = [{'id': entry.id, 'reason': entry.reason, 'tries': entry.tries, 'request': entry.request,
               'tags': entry.tags} for entry in islice(ledger.entries('failed'), _SHOWN)]
    return {'output': output, 'rows': ledger.counts(), 'failed': failed}


def told(counts: dict[str, int]) -> str:
    """`10,000 rows: 20 queued, 4 leased, 9,975 done, 1 failed`"""
    states = ', '.join(f'{counts[state]:,} {state}' for state in STATES if counts[state])
    return f'{rows_of(sum(counts.values()))}: {states}'


def rows_of(count: int) -> str:
    return f'{count:,} row' + 's' * (count != 1)


def failures(found: dict[str, Any]) -> Iterator[str]:
    """A line for each failed row of a summary."""
    for row in found['failed']:
        what = str(next((row['request'][key] for key in ('text', 'line') if key in row['request']), row['request']))
        yield f'{row["id"]} {what[:40]!r} failed: {row["reason"]}'
    if (more := found['rows']['failed'] - len(found['failed'])) > 0:
        yield f'and {more:,} more'
