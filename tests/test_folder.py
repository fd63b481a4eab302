"""Damaged and hostile model folders (failures.md, section 2): each is refused before anything of it is built."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from modelscope_cartoon import load_pipeline
from modelscope_cartoon.errors import BadConfiguration, CartoonError, DamagedWeights, ModelError
from modelscope_cartoon.folder import ModelFolder, check_weight_file, file_sha256

UNET = 'unet/diffusion_pytorch_model.safetensors'
WEIGHTS = (UNET, 'vae/diffusion_pytorch_model.safetensors', 'text_encoder/model.safetensors')
LONG = 'x' * 251 + '.safetensors'
LINKS = pytest.mark.skipif(os.name == 'nt', reason='symlinks need a right on Windows')


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / 'model'))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding='utf-8')


def refused(folder: Path, kind: type[CartoonError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        ModelFolder(folder)
    assert caught.value.code in ('bad_model', 'bad_configuration', 'damaged_weights')
    for word in words:
        assert word in str(caught.value), f'{word!r} is not in {caught.value}'


def test_a_whole_folder_is_accepted(tiny_folder):
    assert {w.component: w.safe for w in ModelFolder(tiny_folder).weights.values()} == dict.fromkeys(
        ('unet', 'vae', 'text_encoder'), True)


def _half(data: bytes) -> bytes:
    return data[:len(data) // 2]


HEADER_ONLY = (30).to_bytes(8, 'little')
FAKES = {
    'truncated': _half, 'one byte short': lambda data: data[:-1], 'one byte more': lambda data: data + b'\0',
    'empty': lambda data: b'', 'three bytes': lambda data: b'abc', 'all zeros': lambda data: bytes(len(data)),
    'page': lambda data: b'\n<!DOCTYPE html><html><body>404</body></html>',
    'xml': lambda data: b'<?xml version="1.0"?>',
    'pointer': lambda data: b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n',
    'no tensors': lambda data: (2).to_bytes(8, 'little') + b'{}',
    'a list': lambda data: (2).to_bytes(8, 'little') + b'[]',
    'deep': lambda data: (10**5).to_bytes(8, 'little') + b'[' * 10**5,
    'words for numbers': lambda data: HEADER_ONLY + b'{"a":{"data_offsets":[0,"b"]}}',
    'huge header': lambda data: b'\xff' * 8 + data[8:]}


@pytest.mark.parametrize('fault', FAKES)
@pytest.mark.parametrize('name', WEIGHTS)
def test_a_weight_file_that_is_not_one_is_refused_by_name(folder, name, fault):
    path = folder / name
    path.write_bytes(FAKES[fault](path.read_bytes()))
    refused(folder, DamagedWeights, str(path))


def test_a_pointer_and_a_web_page_are_called_what_they_are(tmp_path):
    for data, word in ((FAKES['pointer'](b''), 'git lfs pull'), (FAKES['page'](b''), 'web page')):
        path = tmp_path / 'a.safetensors'
        path.write_bytes(data)
        with pytest.raises(DamagedWeights, match=word):
            check_weight_file(path)


@pytest.mark.parametrize('name', [*WEIGHTS, 'tokenizer/merges.txt', 'scheduler/scheduler_config.json'])
def test_one_flipped_bit_is_refused_where_a_manifest_says_the_sha256(folder, name):
    files = {p.relative_to(folder).as_posix(): file_sha256(p) for p in folder.rglob('*') if p.is_file()}
    (folder / 'manifest.json').write_text(json.dumps({'files': files}))
    ModelFolder(folder)
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, ModelError, name)


@pytest.mark.parametrize('manifest', ['[]', '{}', '{"files": ["a"]}', '{"files": {"gone.bin": "0"}}', 'no json',
                                      '{"files": {"../out.txt": "0"}}', '{"files": {"/etc/passwd": "0"}}'])
def test_a_manifest_that_says_nothing_or_points_outside_is_refused(folder, manifest):
    (folder.parent / 'out.txt').write_text('secret')
    (folder / 'manifest.json').write_text(manifest)
    refused(folder, ModelError)


@pytest.mark.parametrize('name', ['model_index.json', 'unet/config.json', 'vae/config.json',
                                  'text_encoder/config.json', 'scheduler/scheduler_config.json', *WEIGHTS])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, ModelError, str((folder / name).parent))


JSON_FAULTS = {'empty': b'', 'list': b'[1]', 'number': b'3', 'bad utf-8': b'{"a": "\xff"}', 'cut': b'{"a": 1',
               'deep': b'{"a":' * 10**5, 'infinite digits': b'{"sample_size": ' + b'9' * 5000 + b'}'}


@pytest.mark.parametrize('fault', JSON_FAULTS)
@pytest.mark.parametrize('name', ['model_index.json', 'unet/config.json', 'scheduler/scheduler_config.json',
                                  'tokenizer/tokenizer_config.json', 'tokenizer/vocab.json'])
def test_a_json_file_that_can_not_be_used_is_bad_configuration(folder, name, fault):
    (folder / name).write_bytes(JSON_FAULTS[fault])
    refused(folder, BadConfiguration, str(folder / name))


@pytest.mark.parametrize('fault', [*JSON_FAULTS, 'deep but closed'])
def test_a_configuration_json_that_can_not_be_used_is_bad_configuration(folder, fault):
    closed = b'{"a":' * 3000 + b'1' + b'}' * 3000
    (folder / 'configuration.json').write_bytes(JSON_FAULTS.get(fault, closed))
    with pytest.raises(BadConfiguration, match=r'configuration\.json'):
        load_pipeline(folder, device='cpu')


def test_a_folder_without_configuration_json_draws(folder):
    (folder / 'configuration.json').unlink()
    output = load_pipeline(folder, device='cpu')('a cat', num_inference_steps=1, seed=1)
    assert output['output_imgs'][0].std() > 1


def test_keys_that_run_code_or_install_packages_are_never_obeyed(folder, monkeypatch):
    import subprocess
    ran = []
    monkeypatch.setattr(subprocess, 'Popen', lambda *a, **k: ran.append(a))
    (folder / 'evil.py').write_text(f'open({str(folder / "ran")!r}, "w")')
    change(folder / 'configuration.json', plugins=['evil-package'], allow_remote=True, auto_map={'a': 'evil.A'},
           _base_='evil.py', foreign={'type': 'evil'}, model={'type': 'evil.Model'}, custom_imports=['evil'])
    change(folder / 'text_encoder/config.json', auto_map={'AutoModel': 'evil.Model'}, trust_remote_code=True,
           attn_implementation='evil/kernel', _attn_implementation='evil/kernel')
    change(folder / 'tokenizer/tokenizer_config.json', auto_map={'AutoTokenizer': ['evil.T', None]})
    change(folder / 'model_index.json', unet=['evil', 'Model'], custom_pipeline='evil.py')
    output = load_pipeline(folder, device='cpu')('a cat', num_inference_steps=1, seed=1)
    assert output['output_imgs'][0].std() > 1 and not (folder / 'ran').exists() and ran == []


def test_a_foreign_pipeline_class_is_refused(folder):
    change(folder / 'model_index.json', _class_name='EvilPipeline')
    refused(folder, BadConfiguration, 'model_index.json', 'EvilPipeline')


MISFITS = [
    ('unet', {'cross_attention_dim': 32}), ('unet', {'cross_attention_dim': [16, 16]}), ('unet', {'in_channels': 9}),
    ('unet', {'attention_head_dim': 3}), ('unet', {'attention_head_dim': [4]}), ('unet', {'attention_head_dim': 0}),
    ('unet', {'attention_head_dim': -4}), ('unet', {'attention_head_dim': '4'}), ('unet', {'block_out_channels': []}),
    ('unet', {'block_out_channels': ['8', '16']}), ('unet', {'block_out_channels': 8}),
    ('unet', {'layers_per_block': 10**6}), ('unet', {'layers_per_block': True}), ('unet', {'sample_size': 10**6}),
    ('unet', {'sample_size': 10**400}), ('unet', {'sample_size': 0}), ('unet', {'sample_size': '8'}),
    ('unet', {'sample_size': None}), ('unet', {'norm_eps': float('nan')}), ('unet', {'norm_eps': float('inf')}),
    ('unet', {'quantization_config': {'quant_method': 'bitsandbytes'}}), ('unet', {'a': {'b': [1e300]}}),
    ('vae', {'latent_channels': 8}), ('vae', {'latent_channels': -4}), ('vae', {'layers_per_block': 10**5}),
    ('vae', {'scaling_factor': float('nan')}), ('vae', {'scaling_factor': 0}), ('vae', {'scaling_factor': '0.1'}),
    ('vae', {'scaling_factor': True}), ('vae', {'scaling_factor': None}), ('vae', {'scaling_factor': -1}),
    ('text_encoder', {'hidden_size': 32}), ('text_encoder', {'num_hidden_layers': 10**6}),
    ('text_encoder', {'vocab_size': 10**8}), ('text_encoder', {'max_position_embeddings': 10**9}),
    ('scheduler', {'prediction_type': 'flow'}), ('scheduler', {'prediction_type': None}),
    ('scheduler', {'num_train_timesteps': 0}), ('scheduler', {'num_train_timesteps': 10**9}),
    ('scheduler', {'beta_start': float('nan')})]


@pytest.mark.parametrize('part, values', MISFITS, ids=lambda value: str(value)[:50])
def test_numbers_that_are_absurd_or_do_not_fit_together_are_refused_before_building(folder, part, values):
    change(folder / part / ('scheduler_config.json' if part == 'scheduler' else 'config.json'), **values)
    refused(folder, BadConfiguration, str(folder), part)


def test_a_configuration_nested_deeper_than_any_is_refused(folder):
    change(folder / 'unet/config.json', a=json.loads('{"a":' * 50 + '1' + '}' * 50))
    refused(folder, BadConfiguration, 'unet', 'nested')


@pytest.mark.parametrize('gone', [('vocab.json', 'tokenizer.json'), ('merges.txt', 'tokenizer.json'),
                                  ('vocab.json', 'merges.txt', 'tokenizer.json')])
def test_a_tokenizer_without_its_vocabulary_is_refused(folder, gone):
    for name in gone:
        (folder / 'tokenizer' / name).unlink()
    refused(folder, ModelError, 'tokenizer', 'vocab.json')


def _in_shards(folder: Path, *shards: object) -> Path:
    index = folder / f'{UNET}.index.json'
    index.write_text(json.dumps({'weight_map': {f'tensor{i}': shard for i, shard in enumerate(shards)}}))
    (folder / UNET).unlink()
    return index


@pytest.mark.parametrize('shard', ['../../outside.safetensors', '../vae/diffusion_pytorch_model.safetensors',
                                   '/etc/passwd', '..\\outside.safetensors', '.hidden.safetensors', '..', '.', '',
                                   'a\nb.safetensors', 'a\x00b.safetensors', 'a\x1b[2J.safetensors', LONG, '画' * 200,
                                   '\ud800.safetensors', None, 3, ['a'], {'a': 'b'}, 'config.json'], ids=repr)
def test_a_shard_map_that_names_what_is_not_beside_it_is_refused(folder, shard):
    outside = folder.parent / 'outside.safetensors'
    shutil.copy(folder / UNET, outside)
    _in_shards(folder, shard)
    refused(folder, ModelError, str(folder))


@pytest.mark.parametrize('index', ['[]', '{}', '{"weight_map": []}', '{"weight_map": {}}', '', '{"weight_map": 3}'])
def test_a_shard_map_that_is_none_is_refused(folder, index):
    _in_shards(folder).write_text(index)
    refused(folder, BadConfiguration, 'index.json')


@pytest.mark.parametrize('name', WEIGHTS)
def test_weights_that_are_there_whole_and_in_shards_are_refused(folder, name):
    (folder / f'{name}.index.json').write_text(json.dumps({'weight_map': {'a': '../../evil.safetensors'}}))
    refused(folder, DamagedWeights, name)


@LINKS
@pytest.mark.parametrize('name', [*WEIGHTS, 'model_index.json', 'unet/config.json', 'tokenizer/merges.txt',
                                  'tokenizer/vocab.json', 'tokenizer', 'unet', 'scheduler'])
@pytest.mark.parametrize('dangling', [False, True])
def test_a_link_that_leads_out_of_the_folder_is_refused(folder, name, dangling):
    outside = folder.parent / 'outside'
    (folder / name).rename(outside)
    (folder / name).symlink_to(folder.parent / 'nowhere' if dangling else outside)
    refused(folder, ModelError, str(folder))


@LINKS
def test_a_link_within_the_folder_is_followed(folder):
    (folder / UNET).rename(folder / 'unet/real.safetensors')
    (folder / UNET).symlink_to('real.safetensors')
    assert ModelFolder(folder).weights['unet'].bytes > 1000


def test_an_adapter_that_names_another_model_is_refused(folder):
    (folder / 'text_encoder/adapter_config.json').write_text('{"base_model_name_or_path": "/etc"}')
    refused(folder, BadConfiguration, 'adapter_config.json')


@pytest.mark.parametrize('root', ['none', 'x' * 300, 'a\x00b', ''])
def test_what_is_no_folder_is_refused(tmp_path, root):
    with pytest.raises(ModelError):
        ModelFolder(tmp_path / root)


def test_a_file_that_can_not_be_read_is_refused(folder, monkeypatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(Path, 'read_text', denied)
    refused(folder, BadConfiguration, 'model_index.json', 'Permission denied')
