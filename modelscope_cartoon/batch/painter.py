"""What runs in an actor on another machine of a Ray cluster: an artist, and the words it has for the driver."""
from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from modelscope_cartoon import __version__
from modelscope_cartoon.batch.artist import Artist, Outcome
from modelscope_cartoon.errors import CartoonError
from modelscope_cartoon.log import logger


class Painter:
    """folder: where the driver works, for the relative paths of rows, if it is there."""

    def __init__(self, artist: Artist, folder: str):
        self._artist, self._notes, self._fault = artist, _Notes(), None
        logger.addHandler(self._notes)
        with contextlib.suppress(OSError):
            os.chdir(folder)

    def arrive(self, version: str, folders: Sequence[str]) -> str | None:
        """Why this machine can't draw for a driver of that version with those folders, or None."""
        if __version__ != version:
            return f'it has modelscope-cartoon {__version__}, and the driver {version}; install the same.'
        for folder in folders:
            if not os.path.isdir(folder):
                return (f'it has no folder {folder}; a folder given as --model or --lora-dir has to lie at the same '
                        'path on each machine: copy it there, or share the disk.')
        return None

    def load(self, request: dict[str, Any]) -> CartoonError | None:
        self._fault = None
        try:
            self._artist.load(request)
        except CartoonError as error:
            self._fault = error
        return self._fault

    def draw(self, requests: list[dict[str, Any]]) -> tuple[list[Outcome], list[str]]:
        """The outcomes, and what was said meanwhile. Called with load, before that is answered: no time is lost."""
        if self._fault:
            return [], []
        return self._artist.draw(requests), self._notes.taken()


class _Notes(logging.Handler):
    """Keeps warnings for the driver, who has the user's ear."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def taken(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines
