"""Building a folder for the hub: what is in it, what stays, and what is refused before anything is there."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modelscope_cartoon import metadata, picture_recipe
from modelscope_cartoon.errors import CartoonError, InvalidRequest, PublishError
from modelscope_cartoon.publish.repository import build_repository, read_repository

FLAT = 'damo/cv_cartoon_stable_diffusion_flat'
MODEL_FILES = {'model_index.json', 'scheduler/scheduler_config.json', 'unet/config.json', 'vae/config.json',
               'unet/diffusion_pytorch_model.safetensors', 'vae/diffusion_pytorch_model.safetensors',
               'text_encoder/config.json', 'text_encoder/model.safetensors', 'tokenizer/vocab.json',
               'tokenizer/merges.txt', 'tokenizer/tokenizer.json', 'tokenizer/tokenizer_config.json'}
WRITTEN = {'README.md', 'configuration.json', 'ms_wrapper.py', 'requirements.txt', 'manifest.json',
           *(f'description/{number}.png' for number in range(1, 5))}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr('modelscope_cartoon.publish.samples.STEPS', 2)


@pytest.fixture(scope='module')
def legacy(tmp_path_factory) -> Path:
    """A folder as it lies about on a disk: .bin weights, a safety checker in the index, and things that must stay."""
    folder = tiny.build(tmp_path_factory.mktemp('legacy') / 'bin', safe=False, configuration=tiny.LEGACY)
    index = json.loads((folder / 'model_index.json').read_text())
    index['safety_checker'] = ['stable_diffusion', 'StableDiffusionSafetyChecker']
    (folder / 'model_index.json').write_text(json.dumps(index))
    vae = json.loads((folder / 'vae/config.json').read_text())
    (folder / 'vae/config.json').write_text(json.dumps({**vae, '_name_or_path': '/home/somebody/models/vae'}))
    for name in ('.env', 'id_rsa', 'server.pem', 'notes.docx', 'unet/other.ckpt', '.git/config', '__pycache__/a.pyc',
                 'train.py', 'logs/events.out'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('secret')
    (folder / 'NOTICE').write_text('thanks')
    os.symlink('/etc/hostname', folder / 'LICENSE')
    return folder


@pytest.fixture(scope='module')
def built(legacy, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('modelscope_cartoon.publish.samples.STEPS', 2)
        return build_repository(legacy, tmp_path_factory.mktemp('built') / 'flat', FLAT, revision='v1.0.0')


def text_of(repository, name: str) -> str:
    return (repository.folder / name).read_text(encoding='utf-8')


def test_only_what_a_model_needs_is_in_it(built):
    lying = {path.relative_to(built.folder).as_posix() for path in built.folder.rglob('*') if path.is_file()}
    assert lying == set(built.files) == MODEL_FILES | WRITTEN | {'NOTICE'}
    assert not any(path.is_symlink() for path in built.folder.rglob('*'))


def test_everything_that_stays_is_named_with_the_reason(built):
    reasons = {'.env': 'hidden', '.git/': 'hidden', 'id_rsa': 'may be a secret', 'server.pem': 'may be a secret',
               'LICENSE': 'a link', '__pycache__/': 'a cache', 'notes.docx': 'not a kind of file that goes up'}
    assert reasons.items() <= built.left_out.items()
    assert {'unet/other.ckpt', 'train.py', 'logs/events.out'} <= set(built.left_out)
    assert 'unet/diffusion_pytorch_model.bin' not in built.left_out, 'it goes up, as safetensors'


def test_nothing_tells_of_the_machine_it_was_made_on(built):
    assert json.loads(text_of(built, 'vae/config.json'))['_name_or_path'] == 'vae'
    for path in built.folder.rglob('*.json'):
        assert '/home/somebody' not in path.read_text(encoding='utf-8')


def test_legacy_weights_become_equal_safetensors(built, legacy):
    for name in ('unet', 'vae'):
        old = torch.load(legacy / name / 'diffusion_pytorch_model.bin', weights_only=True)
        new = load_file(built.folder / name / 'diffusion_pytorch_model.safetensors')
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    old = torch.load(legacy / 'text_encoder/pytorch_model.bin', weights_only=True)
    new = load_file(built.folder / 'text_encoder/model.safetensors')
    assert set(old) - set(new) == {'text_model.embeddings.position_ids'}, 'a buffer that is computed'
    assert new.keys() <= old.keys() and all(torch.equal(old[key], new[key]) for key in new)
    assert built.notes == ('unet, vae, text_encoder: converted to safetensors.',)


def test_diffusers_itself_loads_it_and_draws_what_the_legacy_folder_draws(built, legacy):
    from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained(built.folder)
    assert pipe.safety_checker is None
    from modelscope_cartoon import load_pipeline
    request = {'text': 'sks style, a cat', 'seed': 3, 'num_inference_steps': 2}
    new, old = (load_pipeline(folder, device='cpu')(request) for folder in (built.folder, legacy))
    assert (new['output_imgs'][0] == old['output_imgs'][0]).all()


def test_the_hub_finds_its_three_files_and_the_plugin(built):
    configuration = json.loads(text_of(built, 'configuration.json'))
    assert configuration['allow_remote'] is True and 'plugins' not in configuration
    assert configuration['preprocessor'] == {'type': 'cartoon-style-prompt', 'style': 'flat'}
    assert text_of(built, 'ms_wrapper.py').startswith('import modelscope_cartoon')
    assert text_of(built, 'requirements.txt').startswith('modelscope-cartoon>=')


def test_the_samples_are_pictures_that_it_drew_and_the_card_shows_them(built):
    sizes = {Image.open(built.folder / f'description/{number}.png').size for number in range(1, 5)}
    assert sizes == {(64, 64)} and text_of(built, 'README.md').count('](description/') == 8


def test_the_card_may_be_edited_and_nothing_else(built, tmp_path):
    folder = shutil.copytree(built.folder, tmp_path / 'copy')
    (folder / 'README.md').write_text('another card')
    (folder / '.env').write_text('secret')
    again = read_repository(folder)
    assert again.files['README.md'] != built.files['README.md'] and '.env' in again.left_out
    assert again.files['unet/config.json'] == built.files['unet/config.json']
    (folder / 'unet/config.json').write_text('{}')
    with pytest.raises(PublishError, match='unet/config.json is not the file that was built'):
        read_repository(folder)


def test_safetensors_are_copied_byte_by_byte_and_half_precision_stays_half(tiny_folder, tmp_path):
    source = shutil.copytree(tiny_folder, tmp_path / 'source')
    unet = source / 'unet/diffusion_pytorch_model.safetensors'
    save_file({key: value.half() for key, value in load_file(unet).items()},
              source / 'unet/diffusion_pytorch_model.fp16.safetensors', {'format': 'pt'})
    half = (source / 'unet/diffusion_pytorch_model.fp16.safetensors').read_bytes()
    unet.unlink()
    repository = build_repository(source, tmp_path / 'out', 'me/mine', licence='MIT')
    assert (repository.folder / 'unet/diffusion_pytorch_model.safetensors').read_bytes() == half
    vae = 'vae/diffusion_pytorch_model.safetensors'
    assert (repository.folder / vae).read_bytes() == (tiny_folder / vae).read_bytes() and repository.notes == ()


class Evil:
    def __reduce__(self):
        return os.mkdir, ('executed',)


@pytest.mark.parametrize('damage, words', [
    (lambda f: torch.save({'conv_in.weight': Evil()}, f / 'unet/diffusion_pytorch_model.bin'), 'could run its code'),
    (lambda f: _spoil(f, float('nan')), 'NaN or infinite'),
    (lambda f: _spoil(f, 1e30), 'in float32 too'),
    (lambda f: (f / 'tokenizer/vocab.json').unlink() or (f / 'tokenizer/tokenizer.json').unlink(), 'no vocabulary'),
])
def test_what_is_broken_is_refused_and_leaves_nothing(legacy, tmp_path, monkeypatch, damage, words):
    monkeypatch.chdir(tmp_path)
    source = shutil.copytree(legacy, tmp_path / 'source', symlinks=True)
    damage(source)
    with pytest.raises(CartoonError, match=words):
        build_repository(source, tmp_path / 'out', FLAT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['source']


def _spoil(folder: Path, value: float) -> None:
    path = folder / 'vae/diffusion_pytorch_model.bin'
    state = torch.load(path, weights_only=True)
    state['decoder.conv_out.weight'] *= value
    state['decoder.conv_in.weight'] *= value
    torch.save(state, path)


def test_a_licence_must_be_said_where_none_is_known(tiny_folder, tmp_path):
    with pytest.raises(InvalidRequest, match='--licence'):
        build_repository(tiny_folder, tmp_path / 'out', 'me/mine')


def test_a_folder_that_is_there_is_never_written_over(tiny_folder, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine.txt').write_text('mine')
    with pytest.raises(InvalidRequest, match='exists already'):
        build_repository(tiny_folder, tmp_path / 'out', 'me/mine', licence='MIT')
    assert [path.name for path in tmp_path.rglob('*')] == ['out', 'mine.txt']


def test_two_builds_are_the_same_bytes(built, legacy, tmp_path):
    assert build_repository(legacy, tmp_path / 'again', FLAT, revision='v1.0.0').files == built.files


def test_the_sample_pictures_say_how_they_were_drawn_under_the_hubs_names(built):
    found = metadata.read(built.folder / 'description' / '1.png')
    recipe = picture_recipe.parse(found.recipe)
    assert (recipe['model']['id'], recipe['model']['revision'], recipe['model']['adapter']) == (FLAT, 'v1.0.0', None)
    assert found.aigc and found.source_type and f'Model: {FLAT}' in found.parameters
