"""The package's logger. With no handler of the application's, Python itself shows warnings on stderr."""
from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

logger = logging.getLogger('modelscope_cartoon')
_REMEMBERED = 1000      # messages; a batch of any length takes no more memory


@contextlib.contextmanager
def each_warning_once(said: set[str]) -> Iterator[None]:
    """What there is to say about a prompt would be said again with each picture. said: what was, earlier too."""
    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in said
        if len(said) < _REMEMBERED:
            said.add(message)
        return new
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)
