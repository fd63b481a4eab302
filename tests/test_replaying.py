"""The replay command: bit-equal from its own file, and why where not; what a stranger's file can't make it do."""
from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from modelscope_cartoon import load_pipeline, metadata, mini, picture_recipe, replaying
from modelscope_cartoon.cli import main


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mini, 'path', lambda: tiny_folder)
    monkeypatch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def other_folder(tmp_path_factory) -> Path:
    return tiny.build(tmp_path_factory.mktemp('models') / 'other', seed=5)


@pytest.fixture
def run(capsys):
    """run(...) -> (exit code, stdout, stderr) of the command line"""
    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments)])
        return code, *capsys.readouterr()
    return command


@pytest.fixture
def drawn(run):
    """drawn(...) -> a file drawn by mini, which is the tiny model here"""
    def draw(*arguments: object, file: str = 'cat.png', prompt: str = 'a cat') -> str:
        code, _, err = run('draw', prompt, '--steps', 2, '--seed', 7, '--device', 'cpu', '-o', file, *arguments)
        assert code == 0, err
        return file
    return draw


def with_recipe(file: str, change, **more) -> str:
    """The file again, its recipe changed by a stranger."""
    recipe = picture_recipe.parse(metadata.read(file).recipe)
    change(recipe)
    info = PngInfo()
    info.add_text(metadata.RECIPE_KEY, json.dumps(recipe))
    Image.open(file).save(file, pnginfo=info)
    return file


def pixels(file: str) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


@pytest.mark.parametrize('file', ['cat.png', 'cat.jpg', 'cat.webp'])
@pytest.mark.parametrize('prompt, arguments', [
    ('{a|the} cat, (red:1.2),', ()), ('a cat', ('--label', '--style', 'flat', '--preset', 'fast')),
    ('a cat', ('--scheduler', 'UniPC', '--dtype', 'bfloat16', '--height', 72, '--negative-prompt', 'x'))])
def test_a_picture_comes_out_bit_for_bit(run, drawn, file, prompt, arguments):
    code, out, err = run('replay', drawn(*arguments, file=file, prompt=prompt))
    json.loads(metadata.read(file).recipe, parse_constant=pytest.fail)     # other languages' readers are strict
    assert (code, out, err) == (0, f'{file}: bit-equal\n', '')


def test_a_picture_that_was_drawn_in_a_batch_does_too(run):
    output = load_pipeline(mini.path(), device='cpu')(
        {'text': ['a cat', 'a dog', 'an owl'], 'seed': 3, 'num_inference_steps': 3, 'output_type': 'png'})
    assert output['recipes'][0]['machine']['batch_size'] == 3
    for i, data in enumerate(output['output_imgs']):
        Path(f'{i}.png').write_bytes(data)
    assert run('replay', '0.png', '1.png', '2.png')[0] == 0


def test_a_scheduler_that_was_put_in_by_hand_is_put_back(run, monkeypatch):
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    monkeypatch.setattr(logging.getLogger('diffusers'), 'handlers', [listener])
    pipe = load_pipeline(mini.path(), device='cpu')
    pipe.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(
        pipe.pipeline.scheduler.config, timestep_spacing='trailing')
    Path('cat.png').write_bytes(pipe({'text': 'a cat', 'seed': 1, 'num_inference_steps': 3, 'output_type': 'png'})
                                ['output_imgs'][0])
    assert run('replay', 'cat.png')[0] == 0 and said == []


def test_what_a_models_folder_wants_today_is_nothing_to_it(run, drawn, tiny_folder, monkeypatch):
    folder = Path(shutil.copytree(tiny_folder, 'model'))
    monkeypatch.setattr(mini, 'path', lambda: folder)
    drawn()
    own = json.loads(Path('model/configuration.json').read_text())
    own['preprocessor']['defaults'] = {'clip_skip': 1, 'scheduler': 'Euler'}
    Path('model/configuration.json').write_text(json.dumps(own))
    assert run('replay', 'cat.png')[0] == 0


def test_the_recorded_threads_are_used_and_the_others_come_back(run, drawn, monkeypatch):
    file, seen = with_recipe(drawn(), lambda recipe: recipe['machine'].update(threads=2)), []
    real = replaying._draw
    monkeypatch.setattr(replaying, '_draw', lambda *a: (seen.append(torch.get_num_threads()), real(*a))[1])
    run('replay', file)
    assert seen == [2] and torch.get_num_threads() == 1


def test_a_picture_that_was_changed_is_told_from_one_that_comes_out_differently(run, drawn):
    image = np.array(Image.open(drawn()))
    image[0, 0, 0] ^= 8
    text = PngInfo()
    text.add_text(metadata.RECIPE_KEY, metadata.read('cat.png').recipe)
    Image.fromarray(image).save('cat.png', pnginfo=text)
    code, out, _ = run('replay', 'cat.png', '--json')
    [entry] = json.loads(out)['pictures']
    assert code == 1 and entry['largest'] == 8 and entry['share'] == pytest.approx(1 / image.size)
    assert entry['reasons'] == ['the picture was changed after it was drawn']


@pytest.mark.parametrize('change, words', [
    (lambda image: image.resize((32, 32)), 'it is 32 x 32 now'),
    (lambda image: image.rotate(180), 'the picture was changed after it was drawn')])
def test_a_lossy_picture_that_was_changed_is_too(run, drawn, change, words):
    image = Image.open(drawn(file='cat.webp'))
    change(image).save('cat.webp', quality=95, method=4, xmp=image.info['xmp'])
    code, out, _ = run('replay', 'cat.webp')
    assert code == 1 and words in out


def test_other_weights_and_versions_are_why(run, drawn, other_folder):
    file = with_recipe(drawn(), lambda recipe: recipe['versions'].update(torch='1.13.0'))
    code, out, _ = run('replay', file, '--model', other_folder, '-o', 'again.png', '--json')
    [entry] = json.loads(out)['pictures']
    far = np.abs(pixels('cat.png') - pixels('again.png'))
    assert code == 1 and not entry['bit_equal'] and entry['output'] == 'again.png'
    assert (entry['largest'], entry['mean']) == (far.max(), pytest.approx(far.mean()))
    assert entry['share'] == pytest.approx((far > 0).mean())
    assert [reason.partition(':')[0] for reason in entry['reasons']] == ['other weights', 'another version of torch']
    assert f'1.13.0 then, {torch.__version__.partition("+")[0]}' in entry['reasons'][1]


def test_another_precision_is_why(run, drawn):
    code, out, _ = run('replay', drawn(), '--dtype', 'bfloat16')
    first, *reasons = out.splitlines()
    assert code == 1 and first.startswith('cat.png: different: ') and 'of 255 grey levels' in first
    assert reasons == ['  another precision: float32 then, bfloat16 now']


def test_a_lora_is_found_by_name_and_another_file_of_that_name_is_why(run, drawn, tiny_folder, tmp_path):
    for seed, folder in ((1, 'elsewhere'), (2, 'loras')):
        made = tiny.build_lora(tmp_path / f'made{seed}', tiny_folder, seed=seed)
        Path(folder).mkdir()
        shutil.copy(made / 'pytorch_lora_weights.safetensors', f'{folder}/anime.safetensors')
    drawn('--lora', tmp_path / 'elsewhere' / 'anime.safetensors', 0.8)
    assert b'elsewhere' not in Path('cat.png').read_bytes()
    assert run('replay', 'cat.png', '--lora-dir', 'elsewhere')[0] == 0
    code, out, _ = run('replay', 'cat.png')
    assert code == 1 and 'LoRA anime: another file' in out
    shutil.rmtree('loras')
    with_recipe('cat.png', _set('request', 'lora', [[str(tmp_path / 'elsewhere' / 'anime.safetensors'), 0.8]]))
    code, _, err = run('replay', 'cat.png')     # the path in the recipe is there, and is not opened
    assert code == 2 and "no LoRA 'anime'" in err and err.count('\n') == 1


def test_nothing_is_written_without_output_nor_over_the_picture(run, drawn):
    before = Path(drawn()).read_bytes()
    run('replay', 'cat.png')
    assert run('replay', 'cat.png', '-o', '.')[0] == 2
    assert Path('cat.png').read_bytes() == before and [p.name for p in Path().glob('*.*')] == ['cat.png']
    assert run('replay', 'cat.png', '-o', 'out')[0] == 0
    assert (pixels('out/cat.png') == pixels('cat.png')).all() and run('replay', 'out/cat.png')[0] == 0


def test_a_fault_of_one_file_does_not_keep_the_others(run, drawn):
    Path('no.png').write_text('no picture')
    code, out, err = run('replay', 'no.png', drawn(), 'missing.png', '--json')
    entries = json.loads(out)['pictures']
    assert code == 2 and [entry.get('bit_equal') for entry in entries] == [None, True, None]
    assert err.count('\n') == 2 and 'missing.png: there is no such file' in err


def test_a_picture_that_is_cut_off_is_one_line(run, drawn):
    for file in ('cat.png', 'cat.jpg'):
        Path(drawn(file=file)).write_bytes(Path(file).read_bytes()[:-300])
        code, out, err = run('replay', file)
        assert code == 2 and out == '' and err.count('\n') == 1 and 'truncated' in err


def _set(*keys):
    *path, last, value = keys

    def change(recipe):
        for key in path:
            recipe = recipe[key]
        recipe[last] = value
    return change


HOSTILE = {
    'generator': (_set('machine', 'noise', 'generator'), 'draw -C'),
    'folder': (_set('model', 'id', 'my-model'), "a model folder called 'my-model'; say where"),
    'path': (_set('model', 'id', '/etc/passwd'), 'no hub id'), 'up': (_set('model', 'id', '../..'), 'no hub id'),
    'revision': (_set('model', {'id': 'a/b', 'revision': '../../x'}), 'no hub id'),
    'hub': (_set('model', 'id', 'some/body'), '--model some/body downloads it'),
    'old style': (_set('model', {'id': 'damo/cv_cartoon_stable_diffusion_flat', 'revision': 'v0'}), 'not on this'),
    'class': (_set('used', 'scheduler', 'class', 'os.system'), 'none of ours'),
    'number': (_set('used', 'scheduler', 'config', 'num_train_timesteps', 10**12), 'no real one has'),
    'order': (_set('used', 'scheduler', 'config', 'trained_betas', [[1e300]]), 'no real one has'),
    'config': (_set('used', 'scheduler', 'config', 'beta_schedule', 'x'), "can't be used"),
    'key': (_set('request', 'output_type', 'pil'), "'output_type'"),
    'many': (_set('request', 'text', ['a'] * 1000), 'text is a list'),
    'seeds': (_set('request', 'seed', [1, 2]), 'seed is a list'),
    'size': (_set('request', 'height', 10**6), 'height is 1000000'),
    'lora': (_set('request', 'lora', [['../secret.safetensors', 1]]), "no LoRA 'secret'"),
    'schema': (_set('schema', [1]), 'schema [1]'), 'deep': (_set('request', 'eta', eval('[' * 50 + ']' * 50)), 'deep'),
    'escape': (_set('model', 'id', '\x1b[2J\u202e'), r'\x1b[2J\u202e'),
}


@pytest.mark.parametrize('change, words', HOSTILE.values(), ids=HOSTILE)
def test_what_a_strangers_file_asks_for_is_refused_in_one_line(run, drawn, monkeypatch, change, words):
    file = with_recipe(drawn(), change)
    monkeypatch.setattr('modelscope_cartoon.hub._download', lambda *_: pytest.fail('it went to the network'))
    code, out, err = run('replay', file)
    assert code == 2 and out == '' and err.count('\n') == 1 and words in err and '\x1b' not in err


def test_a_folder_of_the_recorded_name_is_not_opened(run, drawn, tiny_folder):
    file = with_recipe(drawn(), _set('model', 'id', 'some/body'))
    shutil.copytree(tiny_folder, 'some/body')
    assert run('replay', file)[0] == 2 and run('replay', file, '--model', 'some/body')[0] == 0


@pytest.fixture(scope='module')
def own_pipe(tiny_folder):
    return load_pipeline(tiny_folder, device='cpu')


def test_a_model_of_the_hubs_is_taken_from_this_machine(run, drawn, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('MODELSCOPE_CACHE', str(tmp_path / 'hub'))
    snapshot = shutil.copytree(tiny_folder, tmp_path / 'hub' / 'models' / 'some--body' / 'snapshots' / 'v1')
    drawn('--model', snapshot)
    assert picture_recipe.parse(metadata.read('cat.png').recipe)['model']['id'] == 'some/body'
    assert run('replay', 'cat.png')[0] == 0
    with_recipe('cat.png', _set('model', 'revision', 'v2'))
    code, _, err = run('replay', 'cat.png')
    assert code == 2 and 'some/body v2, which is not on this machine' in err


@pytest.mark.parametrize('name, revision', [('damo/cv_cartoon_stable_diffusion_flat', 'v1.0.0'),
                                            ('iic/cv_cartoon_stable_diffusion_flat', None)])
def test_one_of_the_five_is_downloaded_as_draw_would(run, drawn, monkeypatch, tmp_path, name, revision):
    monkeypatch.setenv('MODELSCOPE_CACHE', str(tmp_path / 'hub'))
    file = with_recipe(drawn(), _set('model', {'id': name, 'revision': revision, 'weights_hash': None}))
    asked: list[tuple] = []

    def download(model_id, revision, flaw):
        asked.append((model_id, revision))
        return str(mini.path())
    monkeypatch.setattr('modelscope_cartoon.hub._download', download)
    assert run('replay', file)[0] == 0 and asked == [(name, 'v1.0.0')]


WRONG = [None, True, -1, 1e308, '\ud800', [[]], {'class': []}]


@pytest.mark.parametrize('value', WRONG, ids=repr)
def test_wrong_types_anywhere_never_raise(run, drawn, own_pipe, monkeypatch, value):
    """Every value of a recipe in turn: what can be drawn is, the rest is one line."""
    monkeypatch.setattr('modelscope_cartoon.pipeline.load_pipeline', lambda *_, **__: own_pipe)
    recipe = picture_recipe.parse(metadata.read(drawn()).recipe)
    paths = [(part,) for part in recipe] + [(part, key) for part, inner in recipe.items() if isinstance(inner, dict)
                                            for key in inner] + [('used', 'scheduler', 'class')]
    original = Path('cat.png').read_bytes()
    for path in paths:
        Path('cat.png').write_bytes(original)
        with_recipe('cat.png', _set(*path, value))
        for command in ('replay', 'inspect'):
            code, out, err = run(command, 'cat.png')
            assert code in (0, 1, 2) and (out or err) and 'Traceback' not in err, path


def test_wrong_values_in_a_scheduler_never_raise(run, drawn, own_pipe, monkeypatch):
    monkeypatch.setattr('modelscope_cartoon.pipeline.load_pipeline', lambda *_, **__: own_pipe)
    original = Path(drawn('--scheduler', 'DPM++ 2M Karras')).read_bytes()
    for key in picture_recipe.parse(metadata.read('cat.png').recipe)['used']['scheduler']['config']:
        for value in ('x', -3, [1, 2]):
            Path('cat.png').write_bytes(original)
            with_recipe('cat.png', _set('used', 'scheduler', 'config', key, value))
            code, out, err = run('replay', 'cat.png')
            assert code in (0, 1, 2) and 'Traceback' not in err, (key, value)


def test_a1111s_text_alone_is_not_enough(run):
    info = PngInfo()
    info.add_text('parameters', 'a cat\nSteps: 20, Sampler: Euler a, Seed: 1')
    buffer = io.BytesIO()
    Image.new('RGB', (64, 64)).save(buffer, 'PNG', pnginfo=info)
    Path('cat.png').write_bytes(buffer.getvalue())
    code, _, err = run('replay', 'cat.png')
    assert code == 2 and 'draw -C cat.png' in err
