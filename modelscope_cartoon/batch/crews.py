"""Who draws: this process, or several, each with an artist of its own, one a GPU where there are several."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any

from modelscope_cartoon.batch.artist import Artist, DeviceLost, Outcome
from modelscope_cartoon.batch.keeping import Death
from modelscope_cartoon.errors import CartoonError, ModelError

ANY_GPU = (None, 'gpu', 'cuda')      # --device that leaves open which
_LOADING_DEATHS = 3      # in a row, and nobody has drawn anything: it is no accident


class Alone:
    """This process draws. What takes the process down takes the command down, which goes on when it is given again."""

    def __init__(self, artist: Artist):
        self._artist = artist
        self._waiting: list[dict[str, Any]] | None = None

    def idle(self) -> list[str]:
        return [] if self._waiting else ['here']

    def send(self, worker: str, requests: list[dict[str, Any]]) -> None:
        self._waiting = requests

    def answers(self, seconds: float) -> list[tuple[str, Sequence[Outcome] | Death]]:
        requests, self._waiting = self._waiting or [], None
        return [('here', self._artist.draw(requests))]

    def close(self) -> None:
        self._waiting = None


class Processes:
    """`count` processes with an artist each; one that dies is started again. Where no device is named, and there are
    GPUs, they are dealt out; on a processor its threads are."""

    def __init__(self, artist: Artist, count: int):
        self._artist, self._count = artist, count
        self._spawn = multiprocessing.get_context('spawn')
        self._running: dict[str, tuple[Any, connection.Connection]] = {}
        self._busy: dict[str, bool] = {}      # worker -> whether its model is loaded
        self._deaths = 0

    def idle(self) -> list[str]:
        return [name for name in map(str, range(self._count)) if name not in self._busy]

    def send(self, worker: str, requests: list[dict[str, Any]]) -> None:
        if worker not in self._running:
            self._start(worker)
        self._busy[worker] = False
        with contextlib.suppress(OSError):     # it died while it was idle: answers() finds that out
            self._running[worker][1].send(requests)

    def _start(self, worker: str) -> None:
        near, far = self._spawn.Pipe()
        process = self._spawn.Process(target=_work, args=(far, self._artist, int(worker), self._count), daemon=True)
        process.start()
        far.close()
        self._running[worker] = process, near

    def answers(self, seconds: float) -> list[tuple[str, Sequence[Outcome] | Death]]:
        """CartoonError where a worker can't load the model, or three die of it."""
        names = {self._running[worker][1]: worker for worker in self._busy}
        found = []
        for near in connection.wait(list(names), seconds):
            answer = self._received(names[near], near)
            if answer is not None:
                found.append((names[near], answer))
                del self._busy[names[near]]
        return found

    def _received(self, worker: str, near: Any) -> Sequence[Outcome] | Death | None:
        try:
            answer = near.recv()
        except (EOFError, OSError):
            return self._buried(worker)
        if isinstance(answer, CartoonError):
            raise answer
        self._deaths = 0
        if answer == _LOADED:
            self._busy[worker] = True
            return None
        return answer

    def _buried(self, worker: str) -> Death:
        process, near = self._running.pop(worker)
        near.close()
        process.join()
        reason = f'the process that drew it ended with {_exit(process.exitcode)}'
        loading = not self._busy[worker]
        self._deaths += loading
        if self._deaths >= _LOADING_DEATHS:
            raise ModelError(f'{self._deaths} workers ended while they loaded the model, the last with '
                             f'{_exit(process.exitcode)}; each holds a model of its own: give fewer --workers.')
        return Death(reason, loading)

    def close(self) -> None:
        for process, near in self._running.values():
            near.close()
            process.kill()
        for process, _ in self._running.values():
            process.join()
        self._running, self._busy = {}, {}


_LOADED = 'loaded'


def _exit(code: int | None) -> str:
    return f'signal {-code} ({signal.Signals(-code).name})' if code and code < 0 else f'exit code {code}'


def _work(far: connection.Connection, artist: Artist, number: int, count: int) -> None:
    """A worker's life: requests in, outcomes out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)     # Ctrl-C is the driver's business, which ends this process
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    _settle_down(artist, number, count)
    while True:
        try:
            requests = far.recv()
        except EOFError:
            return
        try:
            artist.load(requests[0])
            far.send(_LOADED)
            far.send(artist.draw(requests))
        except DeviceLost:
            traceback.print_exc()
            os._exit(1)     # the driver starts another process in this one's place
        except CartoonError as error:
            far.send(error)


def _end_with_the_driver() -> None:
    """A killed driver's workers would draw on for nobody, and keep the memory that the next ones need."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _settle_down(artist: Artist, number: int, count: int) -> None:
    """A device and a number of threads for this one of `count` processes."""
    import torch

    from modelscope_cartoon.cli import log_to_stderr

    log_to_stderr()
    gpus = torch.cuda.device_count()
    if artist.options.get('device') in ANY_GPU:
        artist.options['device'] = f'cuda:{number % gpus}' if gpus else 'cpu'
    if artist.options['device'] == 'cpu':
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
