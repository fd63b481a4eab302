"""What goes wrong between the host's client and the hub: half a file, wrong bytes, no hub, somebody else's model."""
from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import model_id
from loophub import Fault

pytest_plugins = ['hosting']
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='the tests fork; the code does not')

TASK = 'text-to-image-synthesis'
UNET = 'FilePath=unet/diffusion'


@pytest.fixture
def dead_endpoint() -> Iterator[str]:
    """An address that refuses connections: its port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        yield f'http://127.0.0.1:{taken.getsockname()[1]}'


def by_host(**options: Any) -> Any:
    from modelscope.pipelines import pipeline
    return pipeline(TASK, model=model_id('design'), model_revision='v1.0.0', **options)


def by_plugin(name: str = 'design') -> Any:
    import modelscope_cartoon
    return modelscope_cartoon.load_pipeline(name)


def attempt(way: Any, *arguments: Any, import_plugin: bool = True) -> dict[str, Any]:
    """What a user of `way` sees: the picture's shape or the error, our warnings, and the seconds until the model is."""
    if import_plugin:
        import modelscope_cartoon  # noqa: F401
    import modelscope.pipelines  # noqa: F401
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger('modelscope_cartoon').addHandler(handler)
    seen: dict[str, Any] = {'warnings': warnings, 'error': None, 'family': []}
    start = time.monotonic()
    try:
        pipe = way(*arguments)
        seen |= {'seconds': time.monotonic() - start, 'folder': pipe.model.model_dir}
        seen['shape'] = pipe({'text': 'a cat', 'seed': 3, 'num_inference_steps': 2})['output_imgs'][0].shape
    except Exception as error:
        seen |= {'error': str(error), 'family': [kind.__name__ for kind in type(error).__mro__],
                 'seconds': time.monotonic() - start}
    return seen


@pytest.mark.parametrize('way', [by_host, by_plugin])
def test_a_truncated_download_is_resumed_and_draws(way, hub_of, client, zygote):
    hub = hub_of('legacy safetensors')
    hub.faults.append(Fault('truncate', UNET))
    seen = zygote.run(attempt, way, **client(hub.endpoint))
    assert seen['error'] is None and seen['shape'] == (64, 64, 3)
    first, second = [request for request in hub.requests if UNET in request.line]
    assert first.fault == 'truncate' and first.range is None
    assert second.range.startswith('bytes=') and second.range != 'bytes=0-', 'only the missing half is fetched'


@pytest.mark.parametrize('way', [by_host, by_plugin])
def test_wrong_bytes_are_an_error_that_names_the_file_and_nothing_of_it_is_kept(way, hub_of, client, zygote, tmp_path):
    hub = hub_of('legacy .bin')
    hub.faults.append(Fault('corrupt', UNET, times=-1))
    seen = zygote.run(attempt, way, **client(hub.endpoint))
    assert 'unet/diffusion_pytorch_model.bin' in seen['error'] and 'shape' not in seen
    assert ('ModelError' in seen['family']) == (way is by_plugin)
    assert [path.name for path in tmp_path.rglob('unet/*')] == ['config.json'], 'no weights are left behind'


def test_half_a_download_is_named_while_the_hub_is_dead_and_completed_when_it_lives(
        hub_of, client, zygote, dead_endpoint):
    hub = hub_of('legacy safetensors')
    hub.faults.append(Fault('missing', UNET, times=-1))
    assert zygote.run(attempt, by_host, **client(hub.endpoint))['error']
    seen = zygote.run(attempt, by_plugin, **client(dead_endpoint))
    assert 'ModelError' in seen['family'] and 'unet has no weights' in seen['error']
    hub.faults.clear()
    hub.requests.clear()
    assert zygote.run(attempt, by_plugin, **client(hub.endpoint))['shape'] == (64, 64, 3)
    fetched = [request.line for request in hub.requests if 'FilePath=' in request.line]
    assert len(fetched) == 1 and UNET in fetched[0], 'only the missing file is fetched'


@pytest.mark.parametrize('kind', ['html', 'status'])
def test_a_hub_that_answers_nonsense_once_is_asked_again(kind, hub_of, client, zygote):
    hub = hub_of('legacy .bin')
    hub.faults.append(Fault(kind, UNET))
    assert zygote.run(attempt, by_host, **client(hub.endpoint))['shape'] == (64, 64, 3)


@pytest.mark.parametrize('form', ['legacy .bin', 'published'])
def test_a_dead_hub_is_not_asked_for_what_is_on_this_machine(form, hub_of, client, zygote, dead_endpoint):
    hub = hub_of(form)
    warm = zygote.run(attempt, by_host, **client(hub.endpoint))
    seen = zygote.run(attempt, by_plugin, **client(dead_endpoint))
    assert seen['error'] is None and seen['shape'] == (64, 64, 3) and seen['folder'] == warm['folder']
    assert [text for text in seen['warnings'] if warm['folder'] in text and 'hub was not asked' in text]
    asked = len(hub.requests)
    again = zygote.run(attempt, by_plugin, model_id('design'), **client(hub.endpoint))
    assert len(hub.requests) == asked, 'a hub that lives is not asked either'
    assert min(seen['seconds'], again['seconds']) <= 5


def test_a_dead_hub_and_an_empty_cache_are_one_sentence(client, zygote, dead_endpoint):
    seen = zygote.run(attempt, by_plugin, 'flat', **client(dead_endpoint))
    assert 'ModelError' in seen['family'] and model_id('flat') in seen['error'] and 'check the network' in seen['error']


def test_a_published_model_of_another_owner_runs_no_code_unless_the_user_trusts_it(hub_of, client, zygote, tmp_path):
    hub = hub_of('published')
    hub.faults.append(Fault('owner', '/openapi/', times=-1))
    refused = zygote.run(attempt_without_import, **client(hub.endpoint))
    assert 'trust_remote_code' in refused['error'] and not list(Path(tmp_path).rglob('modelscope_modules/*'))
    assert zygote.run(attempt_without_import, True, **client(hub.endpoint))['shape'] == (64, 64, 3)


def attempt_without_import(trust: bool = False) -> dict[str, Any]:
    return attempt(lambda: by_host(**({'trust_remote_code': True} if trust else {})), import_plugin=False)
