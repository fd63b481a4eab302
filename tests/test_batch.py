"""The batch command as a user meets it, on a tiny model."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from modelscope_cartoon.batch.artist import Artist, Drawn, Refused
from modelscope_cartoon.cli import main


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('SOURCE_DATE_EPOCH', '0')     # equal pictures are equal files


@pytest.fixture
def batch(tiny_folder, capsys):
    """batch(...) -> (exit code, stdout, stderr)"""
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(['batch', *map(str, arguments), *(() if '--model' in arguments else ('--model', str(tiny_folder))),
                     '--device', 'cpu'])
        return code, *capsys.readouterr()
    return run


def write(*rows: dict, name: str = 'jobs.jsonl') -> str:
    Path(name).write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return name


def cats(count: int, **more) -> list[dict]:
    return [{'text': f'a cat {i}', 'num_inference_steps': 1, **more} for i in range(count)]


def pictures() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path('out').glob('*.[pjw]*[ggp]')}


def manifest() -> list[dict]:
    return [json.loads(line) for line in Path('out/manifest.jsonl').read_text(encoding='utf-8').splitlines()]


def test_a_file_of_rows_becomes_pictures_and_a_manifest_that_names_them(batch):
    code, out, err = batch(write(*cats(5, client='Zoë'), {'text': 'two', 'num_inference_steps': 1, 'seed': [3, 9]}),
                           '-o', 'out')
    assert code == 0 and out == 'out: 6 rows: 6 done; manifest.jsonl names them all\n'
    assert err.splitlines()[0] == "columns that are no fields of a request are kept as tags: 'client'"
    lines = manifest()
    assert [line['tags'] for line in lines] == [{'client': 'Zoë'}] * 5 + [{}] * 2
    assert [line['file'].rpartition('-')[0][:7] for line in lines[:5]] == [f'a-cat-{i}' for i in range(5)]
    assert len(pictures()) == 7
    for line in lines:
        assert hashlib.sha256(Path('out', line['file']).read_bytes()).hexdigest() == line['sha256']
        picture = Image.open(Path('out', line['file']))
        assert picture.size == (64, 64) and line['seconds'] > 0
        assert json.loads(picture.info['modelscope_cartoon']) == line['recipe']
    assert sorted(path.name for path in Path('out').iterdir()) == sorted(
        [*pictures(), 'ledger.sqlite', 'manifest.jsonl'])


def test_the_same_command_draws_nothing_again_and_new_rows_are_added(batch, monkeypatch):
    batch(write(*cats(3)), '-o', 'out')
    before, drawn, draw = pictures(), [], Artist.draw
    monkeypatch.setattr(Artist, 'draw', lambda self, requests: drawn.extend(
        request['text'] for request in requests) or draw(self, requests))
    assert batch('jobs.jsonl', '-o', 'out')[0] == 0 and drawn == [] and pictures() == before
    assert batch(write(*cats(4)), '-o', 'out')[1].startswith('out: 4 rows: 4 done')
    assert drawn == ['a cat 3'] and before.items() < pictures().items()


def test_rows_are_drawn_as_the_pipeline_draws_them(batch, tiny_pipe):
    batch(write(*cats(2, seed=5), {'text': 'a dog', 'num_inference_steps': 2, 'seed': 6}), '-o', 'out')
    cat, _, dog = (Image.open(Path('out', line['file'])) for line in manifest())
    expected = tiny_pipe({'text': 'a dog', 'num_inference_steps': 2, 'seed': 6, 'output_type': 'pil'})['output_imgs'][0]
    assert dog.tobytes() == expected.tobytes() != cat.tobytes()


def test_a_row_that_is_wrong_fails_alone_and_the_exit_code_says_so(batch):
    code, out, err = batch(write(*cats(2), {'text': 'bad', 'width': 100}, {'text': 'b <lora:nobody:1>'}), '-o', 'out')
    assert code == 1 and '2 done, 2 failed' in out
    assert "'bad' failed: width is 100" in err and "failed: no LoRA 'nobody'" in err
    assert [line.get('failed', '')[:11] for line in manifest()] == ['', '', 'width is 10', "no LoRA 'no"]


def test_a_poisoned_row_leaves_its_batch_and_fails_after_its_tries(batch, monkeypatch):
    from modelscope_cartoon.model import CartoonStableDiffusion
    sizes, draw = [], CartoonStableDiffusion.draw

    def poisoned(self, request, some):
        sizes.append(len(some))
        if any('cat 1' in picture.prompt for picture in some):
            raise RuntimeError('a broken\nkernel')
        return draw(self, request, some)
    monkeypatch.setattr(CartoonStableDiffusion, 'draw', poisoned)
    code, out, err = batch(write(*cats(4)), '-o', 'out', '--tries', 2)
    assert code == 1 and '3 done, 1 failed' in out and 'failed: RuntimeError: a broken kernel' in err
    assert sizes == [4, 1, 1, 1, 1, 1] and manifest()[1]['tries'] == 2


def test_failed_rows_are_tried_again_when_asked_to(batch, monkeypatch):
    draw = Artist.draw
    monkeypatch.setattr(Artist, 'draw', lambda self, requests: [Refused('no', True)] * len(requests))
    assert batch(write(*cats(3), {'text': 'bad', 'width': 100}), '-o', 'out')[0] == 1
    monkeypatch.setattr(Artist, 'draw', draw)
    assert '4 failed' in batch('jobs.jsonl', '-o', 'out')[1]
    code, out, err = batch('jobs.jsonl', '-o', 'out', '--retry-failed')
    assert code == 1 and '3 done, 1 failed' in out and 'failed, and queued again: 3 rows' in err


def test_a_picture_that_was_removed_is_drawn_again_to_the_same_bytes(batch):
    batch(write(*cats(1, seed=5), *cats(1, seed=5, guidance_scale=2)), '-o', 'out')
    before = pictures()
    Path('out', next(iter(before))).unlink()
    code, _, err = batch('jobs.jsonl', '-o', 'out')
    assert code == 0 and 'drawn again, because a file is gone: 1 row\n' in err and pictures() == before


@pytest.mark.parametrize('options, row, kept', [((), {}, ['parameters', 'recipe']), (('--no-metadata',), {}, []),
                                                (('--no-metadata',), {'metadata': ['recipe']}, ['recipe'])])
def test_metadata_is_for_all_rows_or_as_a_row_says(options, row, kept, batch):
    assert batch(write(*cats(1, **row)), '-o', 'out', *options)[0] == 0
    info = Image.open(Path('out', manifest()[0]['file'])).info
    keys = {'parameters': 'parameters', 'recipe': 'modelscope_cartoon'}
    assert [kind for kind, key in keys.items() if key in info] == kept


@pytest.mark.parametrize('name, magic', [('jpeg', b'\xff\xd8'), ('WebP', b'RIFF')])
def test_formats(name, magic, batch):
    batch(write(*cats(1)), '-o', 'out', '--format', name)
    assert next(iter(pictures().values())).startswith(magic)


@pytest.mark.parametrize('options, words', [
    (('--model', 'mini'), 'is drawn with --model'), (('--format', 'webp'), 'is drawn with --format png, not webp')])
def test_another_model_or_format_in_the_same_folder_is_refused(options, words, batch):
    batch(write(*cats(1)), '-o', 'out')
    before = pictures()
    code, _, err = batch('jobs.jsonl', '-o', 'out', *options)
    assert code == 2 and words in err and err.count('\n') == 1 and pictures() == before
    assert not list(Path('out').glob('.*'))


@pytest.mark.parametrize('arguments, words', [
    (['none.jsonl', '-o', 'out'], "none.jsonl: there is no such file."),
    (['jobs.jsonl'], 'give a file of rows and --output'),
    (['-o', 'out'], 'give a file of rows and --output'),
    (['jobs.jsonl', '-o', 'out', '--batch-size', '0'], '--batch-size is 0'),
    (['jobs.jsonl', '-o', 'out', '--format', 'gif'], "unknown format 'gif'"),
    (['jobs.jsonl', '-o', 'out', '--metadata', 'recip'], "did you mean 'recipe'"),
    (['--status', 'nowhere'], 'holds no ledger.sqlite'),
    (['--status'], 'give the folder of a batch'),
])
def test_a_mistake_is_one_sentence_and_makes_no_folder(arguments, words, batch):
    write(*cats(1))
    code, out, err = batch(*arguments)
    assert code == 2 and out == '' and words in err and err.count('\n') == 1
    assert not Path('out').exists() and not Path('nowhere').exists()


def test_a_model_that_can_not_be_loaded_ends_the_batch_and_not_its_rows(batch):
    Path('empty').mkdir()
    code, _, err = batch(write(*cats(2)), '-o', 'out', '--model', 'empty')
    assert code == 1 and 'Traceback' not in err
    assert '2 rows: 2 queued' in batch('--status', 'out')[1]


def test_status_says_how_far_it_is_and_why_rows_failed(batch, tiny_folder):
    batch(write(*cats(2), {'text': 'bad', 'width': 100}), '-o', 'out')
    for arguments in (['--status', 'out'], ['--status', '-o', 'out']):
        code, out, _ = batch(*arguments)
        assert code == 0 and out.startswith('out: 3 rows: 2 done, 1 failed\n')
        assert f'model: {tiny_folder}' in out and "'bad' failed: width is 100" in out
    told = json.loads(batch('--status', 'out', '--json')[1])
    assert told['rows'] == {'queued': 0, 'leased': 0, 'done': 2, 'failed': 1}
    assert told['failed'][0]['request'] == {'text': 'bad', 'width': 100}


def test_json_is_one_document(batch):
    told = json.loads(batch(write(*cats(2)), '-o', 'out', '--json')[1])
    assert told['rows']['done'] == 2 and Path(told['manifest']).is_file()


def test_a_gpu_that_stops_working_ends_the_command_and_fails_no_row(batch, monkeypatch):
    import torch

    from modelscope_cartoon.model import CartoonStableDiffusion

    def lost(*_: object) -> None:
        raise torch.AcceleratorError('CUDA error: an illegal memory access was encountered')
    monkeypatch.setattr(CartoonStableDiffusion, 'draw', lost)
    code, _, err = batch(write(*cats(2)), '-o', 'out')
    assert code == 1 and 'the GPU stopped working' in err and 'give the same command again' in err
    assert '2 rows: 2 queued' in batch('--status', 'out')[1]


def test_an_artist_can_be_sent_anywhere_and_brings_plain_data_back(tiny_folder):
    import pickle
    artist = pickle.loads(pickle.dumps(Artist(str(tiny_folder), 2, {'output_type': 'png'}, device='cpu')))
    good, bad = pickle.loads(pickle.dumps(artist.draw([*cats(1), {'text': 'b', 'style': 'flat:2+design:1'}])))
    assert isinstance(good, Drawn) and good.images[0].startswith(b'\x89PNG')
    assert good.recipes[0]['request']['text'] == 'a cat 0'
    assert isinstance(bad, Refused) and bad.final and 'style is' in bad.reason


def test_a_warning_is_said_once_however_many_rows_it_is_about(batch):
    rows = [{'text': f'a 猫 {i}', 'num_inference_steps': 1} for i in range(6)]
    _, _, err = batch(write(*rows), '-o', 'out', '--batch-size', 2)
    assert err.count("can't read: 猫") == 1
