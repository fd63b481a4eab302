"""Files are written aside, flushed and renamed: a full disk or a kill leaves what was there before."""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

from modelscope_cartoon.errors import OutputError


def write_file(path: str | Path, data: bytes) -> Path:
    """`data` as the whole of `path`, or OutputError and the old file untouched."""
    path = Path(path)
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f'.{path.name[:100]}.', dir=path.parent)
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f'{path} could not be written ({error.strerror or error}); what was there is untouched. '
                          'Free some space, or choose another place with --output.') from error
    finally:
        if aside is not None and os.path.exists(aside):
            os.unlink(aside)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """The rename itself reaches the disk; Windows has no such call for folders."""
    if os.name == 'nt':
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
