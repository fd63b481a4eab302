"""The prepare command: a model converted once, for every way of running it that works here, and what that takes."""
from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelscope_cartoon import cache, mini
from modelscope_cartoon.drawing import best_device
from modelscope_cartoon.errors import ModelError
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.hub import base_folder, cached_snapshot, hub_model, local_model


def prepare(arguments: argparse.Namespace) -> int:
    """Prepares, lists or removes; prints each thing as it is done, or with --json one document at the end."""
    if arguments.list:
        return _list(arguments.json)
    if arguments.remove:
        return _remove(arguments.remove, arguments.json)
    folder = ModelFolder(base_folder(local_model(arguments.model)))
    done = []
    for entry in _prepare_each(folder, arguments):
        done.append(entry)
        if not arguments.json:
            print(f'{entry["backend"]}: {_said(entry)}', flush=True)
    if arguments.json:
        print(json.dumps({'model': str(folder.root), 'dtype': arguments.dtype, 'prepared': done}, indent=2))
    return 0


def _prepare_each(folder: ModelFolder, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import torch
    from modelscope.utils.device import create_device

    from modelscope_cartoon import backends
    from modelscope_cartoon.backends.int8 import Int8
    from modelscope_cartoon.precision import parse_dtype

    device = create_device(arguments.device or best_device())
    dtype = parse_dtype(arguments.dtype) or torch.bfloat16
    chosen = backends.parse_backend(arguments.backend)
    if arguments.accept:
        Int8.accept = staticmethod(lambda distance: True)
    unasked = [name for name in backends.NAMES[1:] if not backends.get_backend(name).by_name_only]
    for name in unasked if chosen == 'auto' else [chosen]:
        backend = backends.get_backend(name)
        reason = backend.missing(device) or backend.obstacle(folder)
        if reason and chosen != 'auto':
            raise ModelError(f'backend {name!r} can\'t be prepared here: {reason}')
        if reason:
            yield {'backend': name, 'built': False, 'skipped': reason, 'seconds': 0.0, 'bytes': 0, 'steps': []}
            continue
        before, started, steps = _bytes(cache.entries()), time.perf_counter(), []
        built = backend.prepare(folder, device, dtype, steps.append)
        yield {'backend': name, 'built': built, 'seconds': round(time.perf_counter() - started, 1),
               'bytes': _bytes(cache.entries()) - before, 'steps': steps}


def _said(entry: dict[str, Any]) -> str:
    if 'skipped' in entry:
        return f'skipped, {entry["skipped"]}'
    if not entry['built']:
        return 'nothing to do, it is prepared already or needs no preparation'
    steps = ''.join(f'\n  {step}' for step in entry['steps'])
    return f'prepared in {entry["seconds"]} s, {entry["bytes"]:,} bytes on disk{steps}'


def _list(as_json: bool) -> int:
    entries = [{'name': path.name, 'kind': path.parent.name, 'model': _model_of(path), 'bytes': _bytes([path]),
                'path': str(path)} for path in cache.entries()]
    total = _bytes(cache.entries())
    if as_json:
        print(json.dumps({'entries': entries, 'bytes': total}, ensure_ascii=False, indent=2))
        return 0
    for entry in entries:
        print(f'{entry["bytes"]:>15,}  {entry["kind"]}/{entry["name"]}  {entry["model"] or ""}')
    print(f'{total:>15,}  bytes in {cache.root()}; give them back with: modelscope-cartoon prepare --remove MODEL')
    return 0


def _remove(name: str, as_json: bool) -> int:
    wanted = [path for path in cache.entries() if name == path.name] or _entries_of(name)
    if not wanted:
        raise ModelError(f'nothing was prepared for {name!r}; modelscope-cartoon prepare --list says what was.')
    freed = _bytes(cache.entries())
    for path in wanted:
        cache.remove(path)
    freed -= _bytes(cache.entries())
    names = [f'{path.parent.name}/{path.name}' for path in wanted]
    print(json.dumps({'removed': names, 'bytes': freed}, indent=2) if as_json
          else f'removed {", ".join(names)}: {freed:,} bytes')
    return 0


def _entries_of(name: str) -> list[Path]:
    """What was prepared for the weights of a model on this machine; the hub is not asked."""
    folder = name if os.path.isdir(name) else mini.path() if name == mini.NAME else cached_snapshot(*hub_model(name))
    if folder is None:
        raise ModelError(f'{name} is not on this machine; modelscope-cartoon prepare --list names what was prepared, '
                         'and --remove takes such a name too.')
    known = cache.weights_hash(ModelFolder(base_folder(str(folder))))
    return [path for path in cache.entries() if path.name.startswith(known)]


def _model_of(path: Path) -> str | None:
    """The folder that an entry was made from, where its manifest says so."""
    try:
        return json.loads((path / 'manifest.json').read_text(encoding='utf-8'))['source']
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _bytes(folders: list[Path]) -> int:
    """On disk: a file that two folders share is counted once."""
    stats = [file.stat() for folder in folders for file in folder.rglob('*') if file.is_file()]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())
