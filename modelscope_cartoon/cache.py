"""What we keep on this machine between two runs: 16-bit copies and converted networks, under the weights' own hash.

    root()                      $MODELSCOPE_CARTOON_CACHE, else `cartoon` in ModelScope's own cache
    weights_hash(folder)        says which weights they are, whatever the folder is called
    remembered_hash(folder)     the same, or None where gigabytes would have to be read for it
    built(path, build)          `path` as `build` filled it, by whichever process came first
    entries(), remove(path)     what is there, with its bytes; and away with it
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from modelscope_cartoon.errors import OutputError
from modelscope_cartoon.files import folder_aside, write_json
from modelscope_cartoon.folder import ModelFolder, file_sha256

_HASHES = 'hashes.json'


def root() -> Path:
    own = os.environ.get('MODELSCOPE_CARTOON_CACHE')
    if own:
        return Path(own)
    from modelscope.utils.file_utils import get_modelscope_cache_dir
    return Path(get_modelscope_cache_dir(), 'cartoon')


def weights_hash(folder: ModelFolder) -> str:
    """sha256 (first 16 hex digits) over the weight files' own sha256 and the networks' config.json files.

    A file's sha256 is remembered by its path, size and time of change, since reading 5 GB takes seconds.
    """
    return _hash(folder, [known_sha256(path) for path in _weight_files(folder)])


def remembered_hash(folder: ModelFolder) -> str | None:
    """weights_hash, None where a weight file has not been read for it since it last changed."""
    known = _remembered()
    found = [_sha256_in(known, path) for path in _weight_files(folder)]
    return None if None in found else _hash(folder, found)


def _weight_files(folder: ModelFolder) -> list[Path]:
    return [path for name in sorted(folder.weights) for path in folder.weights[name].paths]


def _hash(folder: ModelFolder, sha256s: list[str]) -> str:
    total, given = hashlib.sha256(), iter(sha256s)
    for name in sorted(folder.weights):
        config = folder.root / name / 'config.json'
        total.update(f'{name}\n'.encode() + config.read_bytes())
        for _ in folder.weights[name].paths:
            total.update(next(given).encode())
    return total.hexdigest()[:16]


def known_sha256(path: Path) -> str:
    """The file's sha256, from the last time it was read where neither its size nor its time of change differ."""
    known = _remembered()
    if (sha256 := _sha256_in(known, path)) is None:
        key, stamp, sha256 = os.path.realpath(path), _stamp(path), file_sha256(path)
        try:
            root().mkdir(parents=True, exist_ok=True)
            write_json(root() / _HASHES, {**_remembered(), key: [*stamp, sha256]})
        except (OSError, OutputError):
            pass     # a cache that can't be written costs time only; what is built there says so itself
    return sha256


def _sha256_in(known: dict[str, list], path: Path) -> str | None:
    entry = known.get(os.path.realpath(path))
    return entry[2] if entry and entry[:2] == _stamp(path) else None


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _remembered() -> dict[str, list]:
    try:
        return json.loads((root() / _HASHES).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}


def built(path: Path, build: Callable[[Path], None]) -> bool:
    """Makes sure that the folder `path` is there: `build` fills a folder aside, which then takes its name.

    True where this call built it. Other processes wait meanwhile. OutputError where the disk is full or can't be
    written; what a killed build leaves aside counts for nothing and the next one clears it away.
    """
    if path.is_dir():
        return False
    from filelock import FileLock
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{path}.lock'):
            if path.is_dir():
                return False
            for old in path.parent.glob(f'.{path.name}.*'):
                shutil.rmtree(old, ignore_errors=True)
            with folder_aside(path) as aside:
                build(aside)
    except OSError as error:
        raise OutputError(f'{path} can\'t be built ({error}); free some disk space, or set '
                          'MODELSCOPE_CARTOON_CACHE to a folder on another disk.') from error
    return True


def entries() -> list[Path]:
    """The folders of everything that was built: <root>/<kind>/<name>, where the name begins with the weights' hash."""
    return sorted(path for path in root().glob('*/*') if path.is_dir() and not path.name.startswith('.'))


def remove(path: Path) -> None:
    """Deletes what `built` built. OutputError where that fails; killed, it leaves nothing that counts as built."""
    try:
        aside = path.rename(path.with_name(f'.{path.name}.removed'))
        shutil.rmtree(aside)
    except OSError as error:
        raise OutputError(f'{path} can\'t be deleted ({error}).') from error
    Path(f'{path}.lock').unlink(missing_ok=True)
