"""Which commands are at work in a folder: each has a folder of its own in there, with a lock that the operating system
lets go of when the process ends, however it ends. What it was writing lies beside the lock, and goes with it.
"""
from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from modelscope_cartoon.errors import OutputError

_ROOM = '.drawing'


class Presence:
    """Call arrive and gone in a transaction of the ledger: two that come at once would take each other for dead."""

    def __init__(self, output: Path):
        self.token = secrets.token_hex(8)
        self.room = output / _ROOM
        self.folder = self.room / self.token
        self._lock = FileLock(self.folder / 'lock')

    def arrive(self) -> None:
        """OutputError where the folder can't be made."""
        try:
            self.folder.mkdir(parents=True)
            self._lock.acquire(timeout=10)
        except OSError as error:
            raise OutputError(f'{self.folder} could not be written ({error.strerror or error}). Free some space, or '
                              'choose another place with --output, and give the same command again.') from error

    def gone(self) -> Iterator[str]:
        """The tokens of those that ended without a word; what they left behind is removed."""
        for folder in self.room.iterdir():
            if folder.name != self.token and _is_free(folder / 'lock'):
                yield folder.name
                shutil.rmtree(folder, ignore_errors=True)

    def leave(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)     # Windows: not while the lock is held
        with contextlib.suppress(OSError):     # others are at work in there
            self.room.rmdir()


def _is_free(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return True
    except Timeout:
        return False
    except OSError:     # its owner removes it at this moment
        return True
