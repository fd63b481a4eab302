"""To the hub with the hub's own client: upload() sends a built folder and checks it by a fresh download; publish()
builds first.

An upload can be repeated: what the hub already has, by its own sha256, is not sent again.
"""
from __future__ import annotations

import glob
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelscope_cartoon.errors import InvalidRequest, PublishError
from modelscope_cartoon.folder import file_sha256
from modelscope_cartoon.log import logger
from modelscope_cartoon.names import look_up
from modelscope_cartoon.repository import (
    Repository,
    build_repository,
    check_model_id,
    model_id_of,
    read_repository,
)

BRANCH = 'master'
_RAIL = ('CreativeML-OpenRAIL-M', 'OpenRAIL++-M')     # of Stable Diffusion; the hub files them under Other


@dataclass(frozen=True)
class Publication:
    """sent: the files that were uploaded now; None where it was a dry run."""
    repository: Repository
    url: str
    sent: tuple[str, ...] | None


def publish(source: str | os.PathLike, model_id: str, *, output: str | os.PathLike | None = None, dry_run: bool = False,
            token: str | None = None, private: bool = False, licence: str | None = None,
            chinese_name: str | None = None, **card: Any) -> Publication:
    """`source` on the hub as `model_id`, as what build_repository makes of it; `card` holds that function's options.

    What was built for this `model_id` before goes up as it is. output keeps the built folder. dry_run builds and
    checks everything and sends nothing. token: else MODELSCOPE_API_TOKEN, or that of `modelscope login`.
    """
    check_model_id(model_id)
    licence = licence_name(licence)
    config = _config(token, needed=not dry_run)      # says what is missing before minutes of building
    with tempfile.TemporaryDirectory(prefix='modelscope-cartoon-') as place:
        if model_id_of(source) == model_id:
            _refuse_options({**card, 'licence': licence, 'output': output})
            repository = read_repository(source)
        else:
            repository = build_repository(source, output or Path(place, 'repository'), model_id, licence=licence,
                                          chinese_name=chinese_name, **card)
        sent = None if dry_run else _send(config, repository, private, chinese_name)
    return Publication(repository, f'{config.endpoint}/models/{model_id}', sent)


def upload(folder: str | os.PathLike, model_id: str, *, token: str | None = None, private: bool = False,
           chinese_name: str | None = None) -> Publication:
    """Sends what build_repository made, and nothing else that lies there.

    PublishError where the hub refuses, or where a fresh download is not what was sent; repeating it goes on.
    """
    config, repository = _config(token, needed=True), _built(folder, model_id)
    sent = _send(config, repository, private, chinese_name)
    return Publication(repository, f'{config.endpoint}/models/{model_id}', sent)


def licence_name(given: str | None) -> str | None:
    """The licence as the hub writes it; UnknownOption for one that it doesn't know."""
    from modelscope_hub.constants import License

    return None if given is None else look_up('licence', given, {name: name for name in (*map(str, License), *_RAIL)})


def _config(token: str | None, needed: bool) -> Any:
    """Where the hub is, and who asks: the client's own rules."""
    from modelscope_hub.config import HubConfig

    config = HubConfig(token=token or None)
    if needed and not config.token:
        raise PublishError('the hub needs to know who you are: set MODELSCOPE_API_TOKEN, give --token, or run '
                           f'`modelscope login` once; a token is at {config.endpoint}/my/myaccesstoken.')
    return config


def _built(folder: str | os.PathLike, model_id: str) -> Repository:
    repository = read_repository(folder)
    if repository.model_id != model_id:
        raise InvalidRequest(f'{folder} was built for {repository.model_id}, which its card names, not for {model_id}; '
                             'build it for that.')
    return repository


def _refuse_options(options: Mapping[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None and name != 'device']
    if given:
        raise InvalidRequest(f'{", ".join(given)}: said when a folder is built, and this one is; leave it out, or '
                             'build again from the model.')


def _send(config: Any, repository: Repository, private: bool, chinese_name: str | None) -> tuple[str, ...]:
    from modelscope_hub import HubApi

    client, model_id = HubApi(config), repository.model_id
    with _answers(f'creating {model_id}'):
        _create(client, repository, private, chinese_name)
    with _answers(f'uploading to {model_id}'):
        missing = _missing(client, repository)
        if missing:
            with redirect_stdout(sys.stderr):     # the client prints a report
                client.upload_folder(model_id, 'model', repository.folder, use_cache=False,
                                     allow_patterns=[glob.escape(name) for name in missing],
                                     commit_message=f'{model_id} by modelscope_cartoon')
    with _answers(f'tagging {model_id}'):
        _tag(client, repository)
    _verify(client, repository)
    return tuple(missing)


def _create(client: Any, repository: Repository, private: bool, chinese_name: str | None) -> None:
    if client.repo_exists(repository.model_id, 'model'):
        logger.warning('%s is there already: its licence and who may see it stay as they are.', repository.model_id)
        return
    client.create_repo(repository.model_id, 'model', visibility='private' if private else 'public',
                       license='Other' if repository.licence in _RAIL else repository.licence,
                       chinese_name=chinese_name)


def _missing(client: Any, repository: Repository) -> list[str]:
    """The files that the hub's branch lacks, or has otherwise. Its other files are named, and stay."""
    there = _listed(client, repository.model_id)
    strangers = sorted(set(there) - set(repository.files) - {'.gitattributes', '.gitignore', '.mdl', '.msc'})
    if strangers:
        logger.warning('%s also holds files that are not of this model, and they stay: %s%s.', repository.model_id,
                       ', '.join(strangers[:10]), ' ...' if len(strangers) > 10 else '')
    return [name for name, file in repository.files.items() if there.get(name) != file.sha256]


def _listed(client: Any, model_id: str) -> dict[str, str | None]:
    from modelscope_hub.errors import NotExistError

    try:
        return {file.path: file.sha256 for file in client.list_repo_files(model_id, 'model', revision=BRANCH)
                if not file.is_dir}
    except NotExistError:     # a repository without a commit
        return {}


def _tag(client: Any, repository: Repository) -> None:
    known = [row.get('Revision') for row in client.list_repo_revisions(repository.model_id, 'model')]
    if repository.revision and repository.revision not in known:
        client.create_repo_tag(repository.model_id, 'model', repository.revision, revision=BRANCH)


def _verify(client: Any, repository: Repository) -> None:
    """Downloads what the card's snippet will download, past every cache, and compares."""
    revision = repository.revision or BRANCH
    with tempfile.TemporaryDirectory(prefix='modelscope-cartoon-') as cache:
        with _answers(f'downloading {repository.model_id} {revision} to check it'):
            folder = client.download_repo(repository.model_id, 'model', revision=revision, cache_dir=cache,
                                          allow_patterns=[glob.escape(name) for name in repository.files])
        wrong = [name for name, file in repository.files.items()
                 if not (folder / name).is_file() or file_sha256(folder / name) != file.sha256]
    if wrong:
        advice = (f'if the tag {revision} was there before, choose another' if repository.revision else
                  'publish it again')
        raise PublishError(f'{repository.model_id} {revision} is not what was sent: {", ".join(wrong[:10])}; {advice}.')


@contextmanager
def _answers(doing: str) -> Iterator[None]:
    """The hub's refusals as one sentence."""
    from modelscope_hub.errors import AuthenticationError, PermissionDeniedError

    try:
        yield
    except AuthenticationError as error:
        raise PublishError(f'{doing}: the hub does not know this token; make a new one, and give it as '
                           'MODELSCOPE_API_TOKEN or --token.') from error
    except PermissionDeniedError as error:
        raise PublishError(f'{doing}: this token may not write there; publish under your own name, or ask the '
                           'owner.') from error
    except Exception as error:
        raise PublishError(f'{doing} failed ({" ".join(str(error).split())[:300]}); the same command again goes on: '
                           'what the hub has is not sent twice.') from error
