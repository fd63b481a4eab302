"""Files are written aside, flushed and renamed: a full disk or a kill leaves what was there before."""
from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelscope_cartoon.errors import OutputError

_ADVICE = 'Free some space, or choose another place with --output.'


def write_file(path: str | Path, data: bytes) -> Path:
    """`data` as the whole of `path`, or OutputError and the old file untouched."""
    path = Path(path)
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f'.{path.name[:40]}.{secrets.token_hex(6)}')
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, 'O_BINARY', 0), 0o666)
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f'{path} could not be written ({error.strerror or error}); what was there is untouched. '
                          f'{_ADVICE}') from error
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    return write_file(path, (json.dumps(value, ensure_ascii=False, indent=2) + '\n').encode())


@contextlib.contextmanager
def folder_aside(path: Path, advice: str = _ADVICE) -> Iterator[Path]:
    """A folder to fill. It becomes `path` (new, or an empty folder) when the block ends, and vanishes when it raises.

    OutputError, which ends with `advice`, where the disk is full or can't be written.
    """
    aside = path.with_name(f'.{path.name}.{secrets.token_hex(6)}')
    try:
        aside.mkdir(parents=True)
        yield aside
        sync_folder(aside)
        if os.name == 'nt' and path.is_dir():     # elsewhere a rename takes an empty folder's place
            path.rmdir()
        os.replace(aside, path)
        sync_folder(path.parent)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f'{path} could not be written ({error.strerror or error}); what was there is untouched. '
                          f'{advice}') from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """The rename itself reaches the disk; Windows has no such call for folders."""
    if os.name == 'nt':
        return
    with contextlib.suppress(OSError):     # the file is whole already; some network folders refuse this
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
