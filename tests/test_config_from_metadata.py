"""draw -C FILE: what isn't given comes from the picture, ours or A1111's; what can't be taken over is said."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from recipes import recipe

from modelscope_cartoon import metadata, mini
from modelscope_cartoon.cli import main


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mini, 'path', lambda: tiny_folder)
    monkeypatch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def draw(capsys):
    """draw(...) -> (exit code, the requests of the recipes of what was drawn, stderr)"""
    def run(*arguments: object) -> tuple[int, list[dict], str]:
        code = main(['draw', '--device', 'cpu', '--json', '-o', 'out', *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, [p['recipe']['request'] for p in json.loads(out)['pictures']] if out else [], err
    return run


def a1111(text: str) -> str:
    info = PngInfo()
    info.add_text('parameters', text)
    Image.new('RGB', (64, 64)).save('web.png', pnginfo=info)
    return 'web.png'


EVERYTHING = ('{a|the} cat', '--style', 'flat', '--seed', 7, '--negative-prompt', 'x', '--no-trigger', '--height', 72,
              '--width', 80, '--preset', 'fast', '--steps', 3, '--guidance', 5, '--cache-interval', 1, '--label', 'AI')


def test_everything_is_taken_over_and_the_same_picture_comes_out(draw):
    _, [made], _ = draw(*EVERYTHING)
    [file] = Path('out').iterdir()
    code, [again], err = draw('-C', file, '-o', 'again.png')
    assert code == 0 and again == made and err == ''     # no word of the mini model either: the picture names it
    assert (np.asarray(Image.open(file)) == np.asarray(Image.open('again.png'))).all()


@pytest.mark.parametrize('given, changed', [
    (('--seed', 8), {'seed': 8}), (('a dog',), {'text': 'a dog'}), (('--style', 'design'), {'style': 'design'}),
    (('--steps', 2, '--guidance', 7.5), {'num_inference_steps': 2, 'guidance_scale': 7.5}),
    (('--preset', 'balanced', '--steps', 4), {'preset': 'balanced', 'num_inference_steps': 4,
                                              'guidance_interval': [0.2, 0.8]}),
    (('--label', 'KI', '--negative-prompt', ''), {'label': 'KI', 'negative_prompt': ''})])
def test_what_is_given_beats_the_picture(draw, given, changed):
    _, [made], _ = draw(*EVERYTHING)
    [file] = Path('out').iterdir()
    code, [again], _ = draw('-C', file, *given)
    assert code == 0 and again == {**made, **changed}


def test_several_seeds_and_prompts_are_several_pictures(draw):
    draw(*EVERYTHING)
    [file] = Path('out').iterdir()
    Path('prompts.txt').write_text('a dog\nan owl\n')
    requests = draw('-C', file, '--seed', 1, 2, '--prompt-file', 'prompts.txt')[1]
    assert [(r['text'], r['seed']) for r in requests] == [('a dog', 1), ('a dog', 2), ('an owl', 1), ('an owl', 2)]


def test_what_has_no_option_is_taken_over_too(draw):
    made = recipe(request={'clip_skip': 1, 'eta': 0.5, 'guidance_rescale': 0.3, 'scheduler': 'DDIM', 'width': 64,
                           'num_inference_steps': 2})
    Path('cat.png').write_bytes(metadata.write(Image.new('RGB', (64, 64)), 'PNG', made))
    [again] = draw('-C', 'cat.png')[1]
    assert {key: again[key] for key in made['request']} == made['request']


A1111 = ('a cat,\nsitting\nNegative prompt: blurry\nSteps: 4, Sampler: DPM++ 2M, Schedule type: Karras, '
         'CFG scale: 6.5, Seed: 5, Size: 72x64, Model: some, Model hash: 0123456789, Clip skip: 2, '
         'Hires upscale: 2, Version: v1.10')


def test_a_picture_of_a1111_is_taken_over_and_the_rest_is_named(draw):
    code, [taken], err = draw('-C', a1111(A1111))
    expected = {'text': 'a cat,\nsitting', 'negative_prompt': 'blurry', 'num_inference_steps': 4, 'seed': 5,
                'guidance_scale': 6.5, 'width': 72, 'height': 64, 'clip_skip': 1, 'scheduler': 'DPM++ 2M Karras'}
    assert code == 0 and {key: taken[key] for key in expected} == expected
    assert 'web.png: not taken over: Model, Hires upscale\n' in err
    assert 'Model' not in draw('-C', 'web.png', '--model', mini.path())[2].partition('not taken over')[2]


def test_a_schedule_that_we_have_not_is_named(draw):
    code, [taken], err = draw('-C', a1111('a cat\nSteps: 2, Sampler: Euler, Schedule type: Exponential, Size: 64x64'))
    assert code == 0 and taken['scheduler'] == 'Euler' and 'not taken over: Schedule type Exponential' in err


@pytest.mark.parametrize('settings, words, cure', [
    ('Sampler: DPM adaptive, Seed: 1', "Sampler is 'DPM adaptive'", ('--scheduler', 'DDIM')),
    ('Sampler: DDIM, Size: 66x64', 'width is 66', ('--width', '64')),
    ('Sampler: DDIM, Size: wide', "Size is 'wide'", ('--width', '64', '--height', 64)),
    ('Sampler: DDIM, Seed: \x1b[2J', r"Seed is '\x1b[2J'", ('--seed', 1)),
    ('Sampler: DDIM, Seed: -1', 'seed is -1', ('--seed', 1))])
def test_what_can_not_be_drawn_is_one_line_unless_it_is_given(draw, settings, words, cure):
    code, _, err = draw('-C', a1111(f'a cat\nSteps: 2, {settings}, RNG: CPU'))
    assert code == 2 and words in err and err.count('\n') == 1
    assert draw('-C', 'web.png', *cure)[0] == 0


def test_nothing_of_a_hostile_picture_reaches_the_terminal_as_it_is(capsys):
    evil = 'a\x1b[2J\x9b31m\u202e cat'
    made = recipe(request={'text': evil, 'negative_prompt': evil, 'num_inference_steps': 2, 'width': 64})
    Path('cat.png').write_bytes(metadata.write(Image.new('RGB', (64, 64)), 'PNG', made))
    for arguments in (['-C', 'cat.png'], ['-C', 'cat.png', '--json'],
                      ['-C', a1111(f'{evil}\nSteps: 2, Sampler: DDIM, Size: 64x64, x{evil}: y, ENSD: {evil}')]):
        assert main(['draw', '--device', 'cpu', *arguments]) == 0
        assert all(c.isprintable() or c == '\n' for stream in capsys.readouterr() for c in stream)


def test_a_picture_that_says_nothing_is_one_line(draw):
    Image.new('RGB', (64, 64)).save('no.png')
    code, _, err = draw('-C', 'no.png')
    assert code == 2 and 'no.png: it holds neither' in err and err.count('\n') == 1


def test_loras_are_taken_by_name_and_no_path_is_opened(draw, tiny_folder, tmp_path):
    made = tiny.build_lora(tmp_path / 'made', tiny_folder)
    Path('elsewhere').mkdir()
    shutil.copy(made / 'pytorch_lora_weights.safetensors', 'elsewhere/anime.safetensors')
    assert draw('a cat', '--steps', 2, '--lora', tmp_path / 'elsewhere' / 'anime.safetensors', 0.8)[0] == 0
    [file] = Path('out').iterdir()
    code, _, err = draw('-C', file, '--seed', 3)
    assert code == 2 and "no LoRA 'anime'" in err
    code, [again], _ = draw('-C', file, '--seed', 3, '--lora-dir', 'elsewhere')
    assert code == 0 and again['lora'] == [['anime', 0.8]]
    shutil.copy('elsewhere/anime.safetensors', 'anime')     # a file of the recorded name is none of the picture's
    code, _, err = draw('-C', file, '--seed', 3)
    assert code == 2 and 'give it with --lora' in err


def test_a_model_folder_must_be_given(draw, tiny_folder):
    made = recipe(model={'id': 'mine'}, request={'num_inference_steps': 2, 'width': 64})
    Path('cat.png').write_bytes(metadata.write(Image.new('RGB', (64, 64)), 'PNG', made))
    code, _, err = draw('-C', 'cat.png')
    assert code == 2 and "a model folder called 'mine'" in err
    assert draw('-C', 'cat.png', '--model', tiny_folder)[0] == 0
