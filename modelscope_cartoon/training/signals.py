"""Ctrl-C and SIGTERM during training: the first finishes the step, a second Ctrl-C ends at once."""
from __future__ import annotations

import signal
import threading
from typing import Any

from modelscope_cartoon.log import logger


class StopSignal:
    """True once a signal came. Outside the main thread, where signals can't be had, always False."""

    def __init__(self) -> None:
        self._came = False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._came

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        self._came = True
        logger.warning('stopping after this step; once more to stop without saving.')
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
