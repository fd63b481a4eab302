"""Names that people type: looked up without regard to case, and with the nearest one named when they miss."""
from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from modelscope_cartoon.errors import UnknownOption

Row = TypeVar('Row')


def look_up(what: str, name: object, rows: Mapping[str, Row]) -> Row:
    """The row called `name`, any case; UnknownOption says what there is."""
    if isinstance(name, str):
        folded = name.strip().casefold()
        for key, row in rows.items():
            if key.casefold() == folded:
                return row
    raise UnknownOption(f'unknown {what} {name!r}{did_you_mean(name, rows)}; accepted: {", ".join(rows)}.')


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """ ` (did you mean 'flat'?)`, or nothing when no known name is near."""
    by_fold = {key.casefold(): key for key in known}
    near = difflib.get_close_matches(str(name).casefold(), by_fold, n=1, cutoff=0.6)
    return f' (did you mean {by_fold[near[0]]!r}?)' if near else ''


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """UnknownOption for the first of `given` that isn't in `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            raise UnknownOption(f'unknown {what} {name!r}{did_you_mean(name, known)}; '
                                f'accepted: {", ".join(sorted(known))}.')
