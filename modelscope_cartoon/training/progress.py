"""A bar on a terminal; elsewhere (a log file) a line now and then."""
from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from modelscope_cartoon.log import logger

_EVERY = 15     # seconds between lines


class bar(tqdm):
    """tqdm on standard error, with lines to the logger (INFO) where that is no terminal."""

    def __init__(self, total: int, what: str, initial: int = 0, silent: bool = False):
        self._lines, self._said = not sys.stderr.isatty() and not silent, time.monotonic()
        self._suffix, self._what = '', what
        super().__init__(total=total, initial=initial, desc=what, disable=silent or self._lines, leave=False)
        self.n, self._from = initial, (initial, time.monotonic())

    def update(self, n: int = 1) -> Any:
        if self.disable:
            self.n += n
        if self._lines and (time.monotonic() - self._said > _EVERY or self.n >= self.total):
            self._said = time.monotonic()
            rate = (self.n - self._from[0]) / max(time.monotonic() - self._from[1], 1e-9)
            left = f', {tqdm.format_interval((self.total - self.n) / rate)} left' if rate else ''
            logger.info('%s %d of %d%s%s', self._what, self.n, self.total, left, self._suffix)
        return super().update(n)

    def says(self, text: str) -> None:
        self._suffix = f', {text}'
        self.set_postfix_str(text, refresh=False)
