"""An artist without a model for Ray's actors, and a batch command that draws with it in a process of its own."""
from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelscope_cartoon.batch.artist import Artist, Drawn, Outcome
from modelscope_cartoon.errors import ModelError


class Stub(Artist):
    """Writes into a file who begins and ends what; a text of 'die' kills its process. lame: the nodes that can't load.
    together: nobody ends its first before so many nodes have written something."""

    def __init__(self, log: Path, lame: Sequence[str] = (), together: int = 1):
        super().__init__('mini', 2, {})
        self.log, self.lame, self.together = log, lame, together

    def load(self, request: dict[str, Any]) -> None:
        if _node() in self.lame:
            self.note('refuses', request['text'])
            raise ModelError('the weights are broken.')

    def draw(self, requests: Sequence[dict[str, Any]]) -> list[Outcome]:
        for request in requests:
            self.note('begins', request['text'])
        while len({line[0] for line in lines(self.log)}) < self.together:
            time.sleep(0.01)
        time.sleep(0.1)
        if any(request['text'] == 'die' for request in requests):
            os.kill(os.getpid(), signal.SIGKILL)
        for request in requests:
            self.note('ends', request['text'])
        return [Drawn([f'{request["text"]} {request["seed"]}'.encode()], [{'request': request}], 0.1)
                for request in requests]

    def note(self, verb: str, text: str) -> None:
        with self.log.open('a') as file:
            file.write(f'{_node()} {verb} {text}\n')


def _node() -> str:
    import ray
    return ray.get_runtime_context().get_node_id()


def lines(log: Path) -> list[tuple[str, str, str]]:
    """(node, 'begins', 'ends' or 'refuses', text)"""
    if not log.exists():
        return []
    return [tuple(line.split(' ')) for line in log.read_text().splitlines() if line.count(' ') == 2]


def command(jobs: str, output: str, address: str, log: str) -> int:
    from modelscope_cartoon import batching
    from modelscope_cartoon.cli import main
    batching.Artist = lambda *_, **__: Stub(Path(log))
    return main(['batch', jobs, '-o', output, '--batch-size', '2', '--ray', address])


if __name__ == '__main__':
    import ray_artists  # by its name, by which the actors know it too
    sys.exit(ray_artists.command(*sys.argv[1:]))
