"""From a model's name to a folder on this machine: a folder, mini, a style, or a hub id."""
from __future__ import annotations

import os
import re
from pathlib import Path

from modelscope_cartoon import mini
from modelscope_cartoon.configuration import base_model
from modelscope_cartoon.errors import BadConfiguration, ModelError
from modelscope_cartoon.folder import ModelFolder, check_weight_file, file_sha256
from modelscope_cartoon.log import logger
from modelscope_cartoon.lora_choice import WEIGHTS
from modelscope_cartoon.names import did_you_mean
from modelscope_cartoon.styles import styles

_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+')


def local_model(name: str | os.PathLike) -> str:
    """The folder of `name`; what is on this machine is used without asking the hub, the rest is downloaded.

    ModelError where there is no such model, or the hub can't be reached.
    """
    name = os.fspath(name)
    if os.path.isdir(name):
        return name
    if name == mini.NAME:
        return str(mini.path())
    model_id, revision = hub_model(name)
    cached = cached_snapshot(model_id, revision)
    flaw = _flaw(cached) if cached else 'is not on this machine'
    if flaw is None:
        logger.warning('using the downloaded %s %s at %s; the hub was not asked.', model_id, revision or '', cached)
        return str(cached)
    return _download(model_id, revision, flaw)


def base_folder(folder: str) -> str:
    """The folder of the model that draws: `folder` itself, or the base model of the LoRA in it."""
    base = base_model(folder)
    if base is None:
        if _is_lora(Path(folder)):
            raise ModelError(f'{folder} is a LoRA and names no base_model; load the model that it was made for, and '
                             f'draw with lora={str(folder)!r}.')
        return folder
    try:
        found = local_model(base)
    except ModelError as error:
        raise ModelError(f'{folder} is a LoRA for {base!r}: {error}') from error
    if base_model(found) is not None:
        raise BadConfiguration(f'{folder}: its base_model {base!r} is a LoRA too; accepted: a whole model.')
    return found


def hub_model(name: str) -> tuple[str, str | None]:
    """(model id, revision or None for the newest) of a style's name or a hub id."""
    for style in styles().values():
        if name in (style.name, style.model_id, style.model_id.replace('damo/', 'iic/')):
            return (style.model_id if name == style.name else name), style.model_revision
    if not _HUB_ID.fullmatch(name):
        known = [mini.NAME, *styles()]
        raise ModelError(f'no model {name!r}{did_you_mean(name, known)}; accepted: a folder, a hub id such as '
                         f'damo/cv_cartoon_stable_diffusion_design, {", ".join(known)}.')
    return name, None


def cached_snapshot(model_id: str, revision: str | None) -> Path | None:
    """The downloaded folder of `model_id`, in the present or an older layout of the host's cache; no network."""
    from modelscope.utils.file_utils import get_modelscope_cache_dir

    root, revisions = Path(get_modelscope_cache_dir()), [revision] if revision else ['master', 'main']
    candidates = [root / 'models' / model_id.replace('/', '--') / 'snapshots' / r for r in revisions]
    candidates += [root / old / model_id for old in ('models', 'hub/models', '.', 'hub')]
    return next((path for path in candidates if (path / 'model_index.json').is_file() or _is_lora(path)), None)


def _is_lora(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and not (folder / 'model_index.json').is_file()


def _flaw(folder: Path) -> str | None:
    """What is wrong with a downloaded folder, as after an interrupted download; downloading again mends it."""
    try:
        check_weight_file(folder / WEIGHTS) if _is_lora(folder) else ModelFolder(folder)
    except ModelError as error:
        return f'is not whole on this machine ({str(error).rstrip(".")})'
    return None


def _download(model_id: str, revision: str | None, flaw: str) -> str:
    from modelscope import snapshot_download

    try:
        return snapshot_download(model_id, **({'revision': revision} if revision else {}))
    except Exception as error:
        raise ModelError(f'{model_id} {flaw} and could not be downloaded '
                         f'({" ".join(str(error).split())[:300]}); check the network, or give a folder.') from error


def changed_files(model_id: str, folder: str) -> list[str]:
    """The files of `folder` whose sha256 isn't the hub's, or that are missing. ModelError where the hub is silent."""
    from modelscope.hub.api import HubApi

    revision = hub_model(model_id)[1] or 'master'
    try:
        listed = HubApi().get_model_files(model_id, revision=revision, recursive=True)
    except Exception as error:
        raise ModelError(f'the hub could not be asked for {model_id} ({" ".join(str(error).split())[:200]}); lengths '
                         'and headers of the files are as they should be.') from error
    expected = {entry['Path']: entry.get('Sha256') for entry in listed if entry.get('Type') != 'tree'}
    return [name for name, sha256 in expected.items()
            if not Path(folder, name).is_file() or (sha256 and file_sha256(Path(folder, name)) != sha256)]
