"""What we keep on this machine between two runs: 16-bit copies and converted networks, under the weights' own hash.

    root()                      $MODELSCOPE_CARTOON_CACHE, else `cartoon` in ModelScope's own cache
    weights_hash(folder)        says which weights they are, whatever the folder is called
    built(path, build)          `path` as `build` filled it, by whichever process came first
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
    total = hashlib.sha256()
    for name in sorted(folder.weights):
        config = folder.root / name / 'config.json'
        total.update(f'{name}\n'.encode() + config.read_bytes())
        for path in folder.weights[name].paths:
            total.update(known_sha256(path).encode())
    return total.hexdigest()[:16]


def known_sha256(path: Path) -> str:
    """The file's sha256, from the last time it was read where neither its size nor its time of change differ."""
    stat = path.stat()
    key, stamp = os.path.realpath(path), [stat.st_size, stat.st_mtime_ns]
    known = _remembered()
    if key not in known or known[key][:2] != stamp:
        known = {**_remembered(), key: [*stamp, file_sha256(path)]}
        try:
            root().mkdir(parents=True, exist_ok=True)
            write_json(root() / _HASHES, known)
        except (OSError, OutputError):
            pass     # a cache that can't be written costs time only; what is built there says so itself
    return known[key][2]


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
