"""Publishing end to end with the hub's own client over loopback: upload, interruption, verification, the snippet."""
from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import tiny
from loophub import Fault
from loophub_uploads import UploadHub

pytest_plugins = ['hosting']
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='the tests fork; the code does not')

FLAT, OWN = 'damo/cv_cartoon_stable_diffusion_flat', 'me/mine'
UNET = 'unet/diffusion_pytorch_model.safetensors'
IMPATIENT = {'MODELSCOPE_UPLOAD_BLOB_MAX_ATTEMPTS': '1', 'MODELSCOPE_UPLOAD_RECOVERY_ENABLED': 'false',
             'MODELSCOPE_UPLOAD_FAILED_FILE_MAX_RETRY_ROUNDS': '1'}


@pytest.fixture(scope='module')
def legacy(tmp_path_factory) -> Path:
    folder = tiny.build(tmp_path_factory.mktemp('legacy') / 'bin', safe=False, configuration=tiny.LEGACY)
    (folder / '.env').write_text('MODELSCOPE_API_TOKEN=secret')
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[UploadHub]:
    with UploadHub(root=tmp_path / 'hub') as hub:
        yield hub


@pytest.fixture
def user(hub, client):
    """The environment of somebody who may write to the hub."""
    return {**client(hub.endpoint), **IMPATIENT, 'MODELSCOPE_API_TOKEN': hub.token}


def publish(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command, with short samples."""
    from modelscope_cartoon import samples
    from modelscope_cartoon.cli import main
    samples.STEPS = 2
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(['publish', str(folder), '--device', 'cpu', *arguments])
    return code, out.getvalue(), err.getvalue()


def run_snippet(card: str, folder: str) -> dict[str, Any]:
    """The first code block of a card, to the letter, as somebody who has the package installed and imports nothing."""
    os.chdir(folder)
    assert not [name for name in sys.modules if name.startswith('modelscope')]
    names: dict[str, Any] = {}
    exec(re.search(r'```python\n(.+?)```', card, re.DOTALL).group(1), names)
    return {'class': type(names['pipe']).__qualname__, 'prompt': names['output']['revised_prompt'],
            'picture': Path('result.png').read_bytes()[:4], 'folder': names['pipe'].model.model_dir}


def test_a_published_style_is_downloaded_and_drawn_by_the_snippet_of_its_card(legacy, hub, user, client, zygote,
                                                                              tmp_path):
    code, out, err = zygote.run(publish, legacy, '--to', FLAT, '--tag', 'v1.0.0', '--chinese-name', '扁平', **user)
    assert code == 0, err
    assert 'a fresh download is the same' in out and '.env  (hidden)' in out
    told = hub.created[FLAT]
    assert (told['Visibility'], told['License'], told['ChineseName']) == (5, 'Apache-2.0', '扁平')
    assert '.env' not in hub.names(FLAT) and UNET in hub.names(FLAT) == hub.names(FLAT, 'v1.0.0')
    assert not any(name.endswith('.bin') for name in hub.names(FLAT))
    card = (hub.root / FLAT / 'v1.0.0' / 'README.md').read_text(encoding='utf-8')
    drawn = zygote.run(run_snippet, card, str(tmp_path), **client(hub.endpoint))
    assert drawn['class'] == 'CartoonPipeline' and drawn['picture'] == b'\x89PNG'
    assert drawn['prompt'] == 'sks style, a portrait painting of a woman with red hair'
    assert drawn['folder'].startswith(str(tmp_path / 'cache')), 'downloaded by this very process'


def test_an_owner_whom_the_host_does_not_know_has_a_snippet_that_works_as_well(tiny_folder, hub, user, client, zygote,
                                                                             tmp_path):
    code, _, err = zygote.run(publish, tiny_folder, '--to', OWN, '--licence', 'mit', '--private', **user)
    assert code == 0, err
    assert (hub.created[OWN]['Visibility'], hub.created[OWN]['License']) == (1, 'MIT')
    card = (hub.root / OWN / 'master' / 'README.md').read_text(encoding='utf-8')
    drawn = zygote.run(run_snippet, card, str(tmp_path), **client(hub.endpoint))
    assert drawn['class'] == 'CartoonPipeline' and drawn['picture'] == b'\x89PNG'


def test_a_dry_run_says_all_and_the_hub_hears_nothing(legacy, hub, client, zygote, tmp_path):
    code, out, err = zygote.run(publish, legacy, '--to', FLAT, '--dry-run', '--tag', 'v1.0.0', '--output',
                                str(tmp_path / 'built'), **client(hub.endpoint))
    assert code == 0, err
    assert hub.requests == [] and (tmp_path / 'built' / 'README.md').is_file()
    assert re.search(r'kB +' + UNET, out) and re.search(r'stays +\.env  \(hidden\)', out)
    assert f'nothing was sent. They would go to {hub.endpoint}/models/{FLAT}' in out
    assert 'a public model under Apache-2.0, tag v1.0.0' in out


def test_an_interrupted_upload_goes_on_where_it_stopped(legacy, hub, user, zygote, tmp_path):
    zygote.run(publish, legacy, '--to', FLAT, '--dry-run', '--output', str(tmp_path / 'built'), **user)
    hub.faults.append(Fault('status', f'PUT /blob/{sha256(tmp_path / "built" / UNET)}', -1))
    code, out, err = zygote.run(publish, tmp_path / 'built', '--to', FLAT, **user)
    assert code == 1 and 'the same command again goes on' in err and out == ''
    assert UNET not in hub.names(FLAT)
    there = hub.names(FLAT)
    hub.faults.clear()
    before = len(hub.put)
    code, out, err = zygote.run(publish, tmp_path / 'built', '--to', FLAT, **user)
    assert code == 0, err
    assert hub.put[before:] == [sha256(tmp_path / 'built' / UNET)], 'only what was missing is sent'
    assert set(re.findall(r'(\S+)  \(was there\)', out)) == there and UNET in hub.names(FLAT)
    writes = len(hub.writes())
    assert zygote.run(publish, tmp_path / 'built', '--to', FLAT, **user)[0] == 0
    assert len(hub.writes()) == writes, 'nothing is left to send'


def test_a_file_that_the_hub_spoils_is_noticed(tiny_folder, hub, user, zygote):
    hub.faults.append(Fault('spoil', 'PUT /blob/'))
    code, out, err = zygote.run(publish, tiny_folder, '--to', OWN, '--licence', 'MIT', **user)
    assert code == 1 and out == '' and 'is not what was sent' in err


def test_a_tag_that_is_taken_is_not_passed_off_as_the_new_model(tiny_folder, legacy, hub, user, zygote):
    assert zygote.run(publish, legacy, '--to', FLAT, '--tag', 'v1.0.0', **user)[0] == 0
    code, _, err = zygote.run(publish, tiny_folder, '--to', FLAT, '--tag', 'v1.0.0', '--training', 'new', **user)
    assert code == 1 and 'choose another' in err
    code, out, err = zygote.run(publish, tiny_folder, '--to', FLAT, '--tag', 'v1.1.0', '--training', 'new', **user)
    assert code == 0, err
    assert 'there already' in err and '(was there)' in out, 'weights that are equal are not sent again'


def test_without_a_token_or_with_a_wrong_one_it_is_one_sentence_before_any_work(tiny_folder, hub, client, user, zygote):
    anybody = client(hub.endpoint)
    code, out, err = zygote.run(publish, tiny_folder, '--to', OWN, '--licence', 'MIT', **anybody)
    assert code == 1 and 'set MODELSCOPE_API_TOKEN' in err and out == '' and hub.requests == []
    code, _, err = zygote.run(publish, tiny_folder, '--to', OWN, '--licence', 'MIT', '--token', 'wrong', **anybody)
    assert code == 1 and 'does not know this token' in err and 'Traceback' not in err and not hub.created
    hub.faults.append(Fault('forbidden', 'POST /api/v1/models', -1))
    code, _, err = zygote.run(publish, tiny_folder, '--to', OWN, '--licence', 'MIT', **user)
    assert code == 1 and 'may not write there' in err


@pytest.mark.parametrize('arguments, words', [
    (['--to', 'nowhere'], 'owner/name'),
    (['--to', OWN, '--licence', 'apache'], "did you mean 'Apache-2.0'"),
    (['--to', OWN, '--licence', 'MIT', '--style', 'flatt'], "did you mean 'flat'"),
    (['--to', OWN], 'under which licence'),
])
def test_a_mistake_is_one_line_and_exit_code_2(tiny_folder, capsys, arguments, words):
    from modelscope_cartoon.cli import main
    assert main(['publish', str(tiny_folder), '--dry-run', '--device', 'cpu', *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.out == ''


def test_what_was_built_for_another_place_is_not_uploaded_as_it_is(legacy, tmp_path, monkeypatch):
    from modelscope_cartoon import publish as publisher
    from modelscope_cartoon.errors import InvalidRequest
    monkeypatch.setattr('modelscope_cartoon.samples.STEPS', 2)
    publication = publisher.publish(legacy, FLAT, output=tmp_path / 'built', dry_run=True, device='cpu')
    assert publication.sent is None and publication.repository.licence == 'Apache-2.0'
    with pytest.raises(InvalidRequest, match=f'was built for {FLAT}'):
        publisher.upload(tmp_path / 'built', OWN, token='a-token')
    with pytest.raises(InvalidRequest, match='training: said when a folder is built'):
        publisher.publish(tmp_path / 'built', FLAT, dry_run=True, training='late')


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
