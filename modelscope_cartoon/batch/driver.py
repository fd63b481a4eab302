"""The loop of a batch: lease rows for whoever is idle, keep what comes back, until nothing is left."""
from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from modelscope_cartoon.batch.artist import Outcome
from modelscope_cartoon.batch.keeping import Death, Event, Keeper
from modelscope_cartoon.batch.ledger import LEASE, Leased, Ledger
from modelscope_cartoon.batch.presence import Presence
from modelscope_cartoon.errors import OutputError

_WAIT = 0.5         # seconds between looks at what another command still holds


class Crew(Protocol):
    """Workers by name, each of which draws one list of requests at a time."""

    def idle(self) -> list[str]: ...

    def send(self, worker: str, requests: list[dict[str, Any]]) -> None: ...

    def answers(self, seconds: float) -> list[tuple[str, Sequence[Outcome] | Death]]:
        """What came back: waits for the first, at most so long where waiting is possible."""

    def close(self) -> None: ...


class Report(Protocol):
    def __call__(self, events: Sequence[Event]) -> None: ...


def draw_all(ledger: Ledger, keeper: Keeper, crew: Crew, presence: Presence, at_once: int, report: Report) -> None:
    """Draws everything that is queued, `at_once` pictures together, and waits for what other commands hold."""
    held: dict[str, list[Leased]] = {}
    groups: dict[str, int] = {}
    while True:
        for worker in crew.idle():
            jobs = ledger.lease(worker, at_once, groups.get(worker))
            if not jobs:
                break
            held[worker], groups[worker] = jobs, jobs[0].batch
            crew.send(worker, [job.request for job in jobs])
        if held:
            for worker, answer in crew.answers(1.0):
                report(keeper.keep(worker, held.pop(worker), answer))
        elif ledger.counts()['leased']:     # by another command, which may be gone, or hang
            time.sleep(_WAIT)
            reclaim(ledger, presence)
        elif not ledger.counts()['queued']:
            return
        report([])


def reclaim(ledger: Ledger, presence: Presence) -> int:
    """How many rows are queued again whose lease ran out, or whose command is gone."""
    with ledger.transaction():
        return ledger.take_back(presence.gone())


class Heartbeat:
    """Renews the leases of a command, in a thread with a connection of its own, while the command is at work."""

    def __init__(self, ledger: Ledger, every: float = LEASE / 6):
        self._folder, self._owner, self._every = ledger.path.parent, ledger.owner, every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def _beat(self) -> None:
        while not self._end.wait(self._every):
            try:
                ledger = Ledger(self._folder, self._owner)
                ledger.renew()
                ledger.close()
            except OutputError:     # a full disk is said by the loop itself, at its next record
                continue

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
