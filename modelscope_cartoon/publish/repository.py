"""From a model folder to a folder ready for the hub: build_repository().

The source is a diffusers folder (safetensors or legacy .bin), a snapshot of one of the five, or an adapter folder.
The result was loaded and has drawn its own sample pictures before it gets its name.
"""
from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from modelscope_cartoon import __version__
from modelscope_cartoon.configuration import MODEL_TYPE, PIPELINE_TYPE, PREPROCESSOR_TYPE, TASK
from modelscope_cartoon.errors import InvalidRequest, PublishError
from modelscope_cartoon.files import folder_aside, write_file, write_json
from modelscope_cartoon.folder import file_sha256
from modelscope_cartoon.hub import local_model
from modelscope_cartoon.publish.card import Card, render
from modelscope_cartoon.publish.kinds import read_json
from modelscope_cartoon.publish.samples import draw_samples
from modelscope_cartoon.publish.sources import Draft, draft
from modelscope_cartoon.styles import get_style

README, MANIFEST = 'README.md', 'manifest.json'
_TOLD = {'model_id', 'licence', 'revision', 'files'}      # of the manifest
_WRAPPER = 'import modelscope_cartoon  # noqa: F401\n'


class File(NamedTuple):
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Repository:
    """A built folder. files: by relative name. left_out: other files of the source, and why each stays."""
    folder: Path
    model_id: str
    licence: str
    revision: str | None
    files: dict[str, File]
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()


def build_repository(source: str | os.PathLike, target: str | os.PathLike, model_id: str, *, style: str | None = None,
                     licence: str | None = None, revision: str | None = None, base_model: str | None = None,
                     chinese_name: str | None = None, training: str | None = None, device: str = 'gpu') -> Repository:
    """`target`, a new folder, made of `source` (a folder, mini, a style, a hub id) for the hub as `model_id`.

    style: what it draws, where the source doesn't say. revision: the tag that the card's snippet names. training: what
    the card says of the training data. CartoonError where the source is not whole or doesn't draw; then there is no
    `target`.
    """
    target, source = _new(target), Path(local_model(source))
    given = Card(check_model_id(model_id), licence or '', 0, revision=revision, base_model=base_model,
                 style=get_style(style) if style else None, chinese_name=chinese_name, training=training)
    with folder_aside(target, 'It needs as much free space as the model has: free some, or choose another place with '
                              '--output.') as aside:
        drafted = draft(source, aside, given)
        _finish(aside, drafted, device)
    return replace(read_repository(target), left_out=drafted.left_out, notes=drafted.notes)


def _finish(folder: Path, drafted: Draft, device: str) -> None:
    """Everything beside the model's own files. What can't draw its samples goes no further."""
    write_json(folder / 'configuration.json', _configuration(drafted))
    write_file(folder / 'ms_wrapper.py', _WRAPPER.encode())
    write_file(folder / 'requirements.txt', f'modelscope-cartoon>={__version__}\n'.encode())
    card = draw_samples(folder, drafted.card, device)
    # The card is not in the manifest: edited on the hub, it must not make the model look damaged.
    write_json(folder / MANIFEST, {'model_id': card.model_id, 'licence': card.licence, 'revision': card.revision,
                                    'files': {name: file_sha256(folder / name) for name in _names(folder)}})
    write_file(folder / README, render(card).encode())


def _configuration(drafted: Draft) -> dict[str, Any]:
    base = {'base_model': drafted.card.base_model} if drafted.card.relation == 'adapter' else {}
    return {'framework': 'pytorch', 'task': TASK, 'model': {'type': MODEL_TYPE, **base},
            'preprocessor': {'type': PREPROCESSOR_TYPE, **drafted.preprocessor}, 'pipeline': {'type': PIPELINE_TYPE},
            'allow_remote': True}


def model_id_of(folder: str | os.PathLike) -> str | None:
    """What a built folder was built for; None for any other."""
    manifest = Path(folder, MANIFEST)
    told = read_json(manifest) if manifest.is_file() else {}
    return told.get('model_id') if set(told) >= _TOLD else None


def read_repository(folder: str | os.PathLike) -> Repository:
    """A folder that build_repository made, each file held against its manifest. PublishError where it is not whole."""
    folder = Path(folder)
    if model_id_of(folder) is None:
        raise PublishError(f'{folder} was not built for the hub; give the model folder itself: '
                           'modelscope-cartoon publish DIR --to owner/name')
    told = read_json(folder / MANIFEST)
    for name in (*told['files'], README):
        if not (folder / name).is_file() or (folder / name).is_symlink():
            raise PublishError(f'{folder / name} is missing; build the folder again.')
    files = {name: File((folder / name).stat().st_size, file_sha256(folder / name))
             for name in sorted([*told['files'], README, MANIFEST])}
    changed = [name for name, sha256 in told['files'].items() if files[name].sha256 != sha256]
    if changed:
        raise PublishError(f'{folder / changed[0]} is not the file that was built; build the folder again.')
    left_out = {name: 'came after the folder was built' for name in _names(folder) if name not in files}
    return Repository(folder, told['model_id'], told['licence'], told['revision'], files, left_out)


def check_model_id(model_id: str) -> str:
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', model_id, re.ASCII):
        raise InvalidRequest(f'{model_id!r} is no place on the hub; accepted: owner/name, with letters, digits, '
                             'dots, hyphens and underscores.')
    return model_id


def _new(target: str | os.PathLike) -> Path:
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidRequest(f'{target} exists already; give a new folder, or publish what was built there: '
                             f'modelscope-cartoon publish {target} --to owner/name')
    return target


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
