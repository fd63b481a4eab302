"""Artists without a model, for tests of who draws: they can be pickled, and import nothing."""
from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from modelscope_cartoon.batch.artist import DeviceLost, Drawn, Outcome


class Quick:
    """Draws at once; a text of 'die' kills its process, 'gpu' loses its GPU, 'sleep' takes long. Loading may fail in
    two ways."""

    def __init__(self, loading: str = 'fine'):
        self.loading = loading
        self.options: dict[str, Any] = {}

    def load(self, request: dict[str, Any]) -> None:
        from modelscope_cartoon.errors import ModelError
        if self.loading == 'error':
            raise ModelError('the model is broken.')
        if self.loading == 'death':
            os.kill(os.getpid(), signal.SIGKILL)

    def draw(self, requests: Sequence[dict[str, Any]]) -> list[Outcome]:
        for request in requests:
            if request['text'] == 'die':
                os.kill(os.getpid(), signal.SIGKILL)
            if request['text'] == 'gpu':
                raise DeviceLost('no GPU any more')
            if request['text'] == 'sleep':
                time.sleep(600)
        where = f'by {os.getpid()} on {self.options["device"]}'
        return [Drawn([f'{request["text"]} {where}'.encode()], [{'request': {'seed': 0, **request}}], 0.1)
                for request in requests]
