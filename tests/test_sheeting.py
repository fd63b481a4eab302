"""The sheet command: what is drawn, what is kept, what is drawn again, and what is said when something fails."""
from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modelscope_cartoon import drawing, metadata, sheet_layout, sheet_pictures
from modelscope_cartoon.cli import main
from modelscope_cartoon.model import CartoonStableDiffusion

TWO_BY_TWO = ('a cat', '--style', 'flat', 'clipart', '--seed', 1, 2)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path / 'cache'))
    for name in ('_SMALLEST', '_LARGEST'):
        monkeypatch.setattr(sheet_layout, name, 96)     # a small sheet is soon written


@pytest.fixture
def drawn(monkeypatch):
    """The number of pictures of each batch that the model draws."""
    counts, real = [], CartoonStableDiffusion.draw

    def counted(self, request, pictures):
        counts.append(len(pictures))
        return real(self, request, pictures)
    monkeypatch.setattr(CartoonStableDiffusion, 'draw', counted)
    return counts


@pytest.fixture
def sheet(tiny_folder, tiny_pipe, monkeypatch, capsys):
    """sheet(...) -> (exit code, stdout, stderr); one loaded model for all."""
    monkeypatch.setattr(drawing, 'load', lambda model, arguments: tiny_pipe)

    def run(*arguments: object, model: object = tiny_folder) -> tuple[int, str, str]:
        code = main(['sheet', *map(str, arguments), '--model', str(model), '--steps', '2', '--device', 'cpu'])
        return code, *capsys.readouterr()
    return run


def kept(folder: str = 'sheet.pictures') -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_it_writes_the_picture_the_page_and_the_pictures(sheet, drawn):
    code, out, err = sheet(*TWO_BY_TWO)
    assert code == 0 and out.split() == ['sheet.png', 'sheet.html'] and '4 of 4 pictures' in err
    assert len(kept()) == 4 and sum(drawn) == 4 and Image.open('sheet.png').width > 300
    page = Path('sheet.html').read_text('utf-8')
    assert page.count('<img') == 4 and '扁平' in page and '剪贴画' in page and 'AI-generated' in page


def test_each_picture_is_the_one_that_the_pipeline_draws_alone(sheet, tiny_pipe):
    _, out, _ = sheet(*TWO_BY_TWO, '--guidance-scale', 3, 9, '--scheduler', 'Euler a', '--json')
    pictures = json.loads(out)['pictures']
    assert len(pictures) == 8
    for entry in pictures:
        alone = tiny_pipe(entry['request'], output_type='rgb')['output_imgs'][0]
        assert np.abs(np.asarray(Image.open(entry['file'])).astype(int) - alone).max() <= 1


def test_a_seed_is_the_same_noise_along_an_axis(sheet, tiny_pipe, monkeypatch):
    samples, real = [], type(tiny_pipe.pipeline.unet).forward

    def noted(self, sample, *arguments, **options):
        samples.append(sample.clone())
        return real(self, sample, *arguments, **options)
    monkeypatch.setattr(type(tiny_pipe.pipeline.unet), 'forward', noted)
    sheet('a cat', '--style', 'flat', 'clipart', '--seed', 1, 2, '--guidance-scale', 1)
    assert [len(sample) for sample in samples] == [2] * 4     # each style's seeds together, in two steps
    assert torch.equal(samples[0], samples[2]) and not torch.equal(samples[1], samples[3])
    assert not torch.equal(samples[0][0], samples[0][1])


def test_equal_settings_are_drawn_together(sheet, drawn):
    sheet('a cat', 'a dog', '--seed', 1, 2, 3, '--guidance-scale', 3, 9, '--batch-size', 4)
    assert sorted(drawn) == [2, 2, 4, 4]


def test_recipes_are_in_the_pictures_and_in_the_page(sheet):
    _, out, _ = sheet('a cat', '--seed', 5, '--json')
    [entry] = json.loads(out)['pictures']
    assert json.loads(metadata.read(entry['file']).recipe) == entry['recipe']
    assert entry['recipe']['request']['seed'] == 5
    assert entry['recipe']['pixels_sha256'] in Path('sheet.html').read_text('utf-8')
    assert '"Label":"1"' in metadata.read('sheet.png').aigc


def test_the_same_command_draws_only_what_is_missing(sheet, drawn):
    sheet(*TWO_BY_TWO)
    first, image = kept(), np.asarray(Image.open('sheet.png'))
    drawn.clear()
    assert json.loads(sheet(*TWO_BY_TWO, '--json')[1])['drawn'] == 0 and drawn == []
    assert (np.asarray(Image.open('sheet.png')) == image).all()
    Path('sheet.pictures', sorted(first)[1]).unlink()
    damaged, edited = (Path('sheet.pictures', sorted(first)[i]) for i in (2, 3))
    damaged.write_bytes(damaged.read_bytes()[:-200])
    recipe = json.loads(metadata.read(edited).recipe)
    edited.write_bytes(metadata.write(Image.new('RGB', (64, 64)), 'PNG', recipe))
    assert json.loads(sheet(*TWO_BY_TWO, '--json')[1])['drawn'] == sum(drawn) == 3 and kept() == first
    again = np.asarray(Image.open('sheet.png')).astype(int)
    assert np.abs(again - image).max() <= 2     # in other batches than before
    drawn.clear()
    sheet(*TWO_BY_TWO, 3)
    assert sum(drawn) == 2 and kept() > first     # a seed more: one row


@pytest.mark.parametrize('changed', [('--negative-prompt', 'text'), ('--height', 72), ('--no-trigger',),
                                     ('--preset', 'fast'), ('--dtype', 'float32')])
def test_a_changed_setting_is_another_picture(sheet, changed):
    sheet('a cat')
    first = kept()
    sheet('a cat', *changed)
    assert len(kept() - first) == 1 and kept() > first


def train_further(model: Path) -> None:
    weights = model / 'unet' / 'diffusion_pytorch_model.safetensors'
    state = load_file(weights)
    state['conv_out.bias'] += 1
    save_file(state, weights, {'format': 'pt'})


def say_another_guidance(model: Path) -> None:
    own = json.loads((model / 'configuration.json').read_text())
    own['preprocessor']['defaults'] = {'guidance_scale': 3}
    (model / 'configuration.json').write_text(json.dumps(own))


@pytest.mark.parametrize('change', [train_further, say_another_guidance])
def test_a_model_that_changed_draws_other_pictures(sheet, tiny_folder, change):
    model = shutil.copytree(tiny_folder, 'model')
    sheet('a cat', model=model)
    first = kept()
    change(Path(model))
    sheet('a cat', model=model)
    assert len(kept() - first) == 1


def test_ctrl_c_keeps_what_is_drawn_and_the_same_command_goes_on(sheet, drawn, monkeypatch):
    real = CartoonStableDiffusion.draw

    def interrupted(self, request, pictures):
        if len(drawn) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, request, pictures)
    monkeypatch.setattr(CartoonStableDiffusion, 'draw', interrupted)
    many = ('a cat', '--seed', *range(6), '--batch-size', 2)
    code, out, err = sheet(*many)
    assert code == 130 and out == '' and 'again, it goes on' in err
    assert len(kept()) == 2 and not Path('sheet.png').exists()
    drawn[:] = [0, 0]
    assert sheet(*many)[0] == 0 and drawn == [0, 0, 2, 2] and len(kept()) == 6
    assert not [name for name in kept() if name.startswith('.')]


def test_a_picture_that_fails_is_shown_with_its_reason_and_the_rest_is_drawn(sheet):
    code, out, err = sheet('a cat', '--scheduler', 'DDIM', 'PNDM', '--seed', 1, 2, '--json')
    pictures = json.loads(out)['pictures']
    assert code == 1 and [bool(entry['fault']) for entry in pictures] == [False, True] * 2
    assert err.count('the scheduler PNDM takes 4 to 1000') == 2 and len(kept()) == 2
    page = Path('sheet.html').read_text('utf-8')
    assert page.count('<img') == 2 and page.count('<b>没有画成') == 2 and 'takes 4 to 1000' in page


def test_one_of_a_batch_fails_alone(sheet, monkeypatch):
    real = CartoonStableDiffusion.draw

    def poisoned(self, request, pictures):
        if any(picture.seed == 2 for picture in pictures):
            raise RuntimeError('no such\nkernel')
        return real(self, request, pictures)
    monkeypatch.setattr(CartoonStableDiffusion, 'draw', poisoned)
    code, out, _ = sheet('a cat', '--seed', 1, 2, 3, '--json')
    assert code == 1 and [entry['fault'] for entry in json.loads(out)['pictures']] == [
        None, 'RuntimeError: no such kernel', None]


def test_nothing_drawn_is_an_error_and_no_sheet(sheet):
    code, out, err = sheet('a cat', '--scheduler', 'PNDM')
    assert code == 1 and out == '' and 'no picture could be drawn: num_inference_steps is 2' in err
    assert not Path('sheet.png').exists()


def test_one_model_at_a_time_is_loaded_and_one_that_is_not_there_fails_alone(tiny_folder, monkeypatch, capsys):
    from modelscope_cartoon import load_pipeline
    from modelscope_cartoon.errors import ModelError
    seen: list[weakref.ref] = []

    def find(name):
        if name == 'flat':
            raise ModelError('flat is not on this machine.')
        return str(tiny_folder)

    def load(model, arguments):
        gc.collect()
        assert not any(ref() for ref in seen)
        pipe = load_pipeline(str(tiny_folder), device='cpu')
        seen.append(weakref.ref(pipe.model))
        return pipe
    monkeypatch.setattr(sheet_pictures, 'local_model', find)
    monkeypatch.setattr(drawing, 'load', load)
    code = main(['sheet', 'a cat', '--style', 'design', 'flat', 'clipart', '--model', 'full', '--steps', '2', '--json'])
    faults = [entry['fault'] for entry in json.loads(capsys.readouterr().out)['pictures']]
    assert code == 1 and len(seen) == 2 and faults == [None, 'flat is not on this machine.', None]


def test_a_warning_about_a_prompt_is_said_once(sheet, caplog):
    sheet('a 猫', '--seed', 1, 2, 3, '--batch-size', 1)
    assert caplog.text.count("can't read: 猫") == 1
    sheet('a 猫', '--seed', 4)
    assert caplog.text.count("can't read: 猫") == 2


def test_the_output_may_be_a_file_of_each_kind_or_a_folder(sheet):
    for output, file in (('deep/down', 'deep/down/sheet.png'), ('a.webp', 'a.webp'), ('b.jpg', 'b.jpg')):
        sheet('a cat', '-o', output)
        assert Image.open(file).width == 96 + 2 * 72 and Path(file).with_suffix('.html').is_file()
        assert len(kept(str(Path(file).with_suffix('.pictures')))) == 1


def test_title_prompts_of_a_file_and_words_that_no_encoding_has(sheet):
    Path('prompts.txt').write_text('a cat\n一只狗\n', 'utf-8')
    sheet('--prompt-file', 'prompts.txt', '--title', '猫和狗 \udcff', '--negative-prompt', 'text')
    page = Path('sheet.html').read_text('utf-8')
    assert '<h1>猫和狗 \ufffd</h1>' in page and '一只狗' in page and '避免 without: text' in page


@pytest.mark.parametrize('arguments, words', [
    ((), 'give a prompt'), (('a cat', '--prompt-file', 'x'), 'not both'),
    (('a cat', '--seed', *range(401)), '401 种子 seeds are 401 pictures'),
    (('a cat', '-o', 'cat.gif'), 'accepted: .png'),
    (('a cat', '--style', 'flatt'), "did you mean 'flat'"), (('a cat', '--scheduler', 'eulr'), "did you mean 'Euler'"),
    (('a cat', '--height', '100'), 'nearest: 96'), (('a cat', '--seed', '-1'), 'seed is -1')])
def test_a_users_mistake_is_one_line_and_exit_code_2(sheet, arguments, words):
    code, out, err = sheet(*arguments)
    assert code == 2 and words in err and out == '' and len(err.splitlines()) == 1
    assert not [path for path in Path().iterdir() if path.name != 'cache']
