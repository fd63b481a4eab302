"""Fixtures for tests of the real host client: the five models on loopback hubs in each form that a hub may hold them,
and a zygote whose children ask those hubs. (PYTEST_DONT_REWRITE: tests import names of it before pytest loads it.)
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from loophub import LoopHub
from zygote import Zygote

STYLES = ('design', 'watercolor', 'illustration', 'clipart', 'flat')
FORMS = ('legacy .bin', 'legacy safetensors', 'published')
FOREIGN = 'other/model'


def model_id(style: str, owner: str = 'damo') -> str:
    return f'{owner}/cv_cartoon_stable_diffusion_{style}'


@pytest.fixture(scope='session')
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope='session')
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny model in each form. Read only."""
    root = tmp_path_factory.mktemp('forms')
    safe = tiny.build(root / 'safe', configuration=tiny.LEGACY)
    published = Path(shutil.copytree(safe, root / 'published'))
    (published / 'configuration.json').write_text(json.dumps({**tiny.OURS, 'allow_remote': True}))
    (published / 'ms_wrapper.py').write_text('import modelscope_cartoon  # noqa: F401\n')
    (published / 'requirements.txt').write_text('modelscope-cartoon>=0.1\n')
    return {'legacy .bin': tiny.build(root / 'bin', safe=False, configuration=tiny.LEGACY),
            'legacy safetensors': safe, 'published': published}


@pytest.fixture
def hub_of(folders: dict[str, Path]) -> Iterator[Callable[[str], LoopHub]]:
    """A hub of its own for a test, with all five models in one form, and a model of somebody else's."""
    opened = []

    def open_hub(form: str) -> LoopHub:
        hub = LoopHub().__enter__()
        opened.append(hub)
        for owner in ('damo', 'iic'):
            for style in STYLES:
                hub.add(model_id(style, owner), folders[form], 'v1.0.0')
        hub.add(FOREIGN, folders['legacy .bin'])
        return hub
    yield open_hub
    for hub in opened:
        hub.__exit__()


@pytest.fixture
def client(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """The environment of a user of the hub at `endpoint` with an empty cache, and with little patience."""
    def environment(endpoint: str) -> dict[str, str]:
        return {'MODELSCOPE_ENDPOINT': endpoint, 'MODELSCOPE_CACHE': str(tmp_path / 'cache'),
                'MODELSCOPE_HOME': str(tmp_path / 'home'), 'MODELSCOPE_DOWNLOAD_TIMEOUT': '10',
                'MODELSCOPE_API_TIMEOUT': '10', 'MODELSCOPE_API_MAX_RETRIES': '1', 'no_proxy': '127.0.0.1',
                'PIP_NO_INDEX': '1', 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    return environment
