"""Weights that don't load, load in part or carry code (failures.md, section 2), and those that must load."""
from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from modelscope_cartoon import load_pipeline, weights
from modelscope_cartoon.errors import BadConfiguration, CartoonError, DamagedWeights, ModelError
from modelscope_cartoon.folder import ModelFolder

SAFE = {'unet': 'unet/diffusion_pytorch_model.safetensors', 'vae': 'vae/diffusion_pytorch_model.safetensors',
        'text_encoder': 'text_encoder/model.safetensors'}
BIN = {'unet': 'unet/diffusion_pytorch_model.bin', 'vae': 'vae/diffusion_pytorch_model.bin',
       'text_encoder': 'text_encoder/pytorch_model.bin'}
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / 'model'))


@pytest.fixture(scope='module')
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp('models') / 'bin', safe=False)


@pytest.fixture
def pickled(bin_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bin_folder, tmp_path / 'pickled'))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding='utf-8')


def edit(path: Path, damage: Callable[[State], object]) -> None:
    state = load_file(path)
    damage(state)
    save_file(state, path, metadata={'format': 'pt'})


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return weights.load(ModelFolder(folder), dtype)


def refused(folder: Path, kind: type[CartoonError], *words: str) -> str:
    with pytest.raises(kind) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value), f'{word!r} is not in {caught.value}'
    return str(caught.value)


def draw(folder: Path):
    return load_pipeline(folder, device='cpu')('a cat', seed=1, num_inference_steps=2)['output_imgs'][0]


def _matrix(state: State) -> str:
    return next(key for key in sorted(state) if state[key].ndim > 1)


def _poison(value: float) -> Callable[[State], object]:
    return lambda state: state[_matrix(state)].view(-1)[:1].fill_(value)


def _halve(state: State) -> None:
    for key in sorted(state)[:len(state) // 2]:
        state[key].zero_()


DAMAGE = {
    'missing': lambda state: state.pop(_matrix(state)), 'unexpected': lambda state: state.update(foreign=torch.ones(3)),
    'renamed': lambda state: state.update({_matrix(state) + 'x': state.pop(_matrix(state))}),
    'mis-shaped': lambda state: state.update({_matrix(state): torch.ones(3, 5)}),
    'NaN': _poison(float('nan')), 'inf': _poison(float('inf')), '-inf': _poison(float('-inf')), 'half zeroed': _halve}


@pytest.mark.parametrize('fault', DAMAGE)
@pytest.mark.parametrize('part', SAFE)
def test_damaged_tensors_are_refused_and_named(folder, part, fault):
    path = folder / SAFE[part]
    name = {'unexpected': 'foreign', 'half zeroed': 'zeros'}.get(fault) or _matrix(load_file(path))
    edit(path, DAMAGE[fault])
    refused(folder, DamagedWeights, str(path), name)


def test_ten_of_many_missing_tensors_are_listed(folder):
    edit(folder / SAFE['unet'], lambda state: [state.pop(key) for key in sorted(state)[:30]])
    message = refused(folder, DamagedWeights, 'lacks 30 tensors', 'and 20 more')
    assert message.count(', ') == 9


@pytest.mark.parametrize('part', SAFE)
def test_half_a_file_of_zeros_is_refused(folder, part):
    path = folder / SAFE[part]
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2] + bytes(len(data) - len(data) // 2))
    refused(folder, DamagedWeights, str(path))


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple:
        return open, (str(self.proof), 'w')


def _evil_zip(path: Path, evil: Evil) -> None:
    torch.save({**torch.load(path, weights_only=True), 'evil': evil}, path)


def _evil_old(path: Path, evil: Evil) -> None:
    torch.save({'evil': evil, 'more': torch.ones(99)}, path, _use_new_zipfile_serialization=False)


def _evil_raw(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps(evil) + bytes(200))


@pytest.mark.parametrize('write', [_evil_zip, _evil_old, _evil_raw])
@pytest.mark.parametrize('part', BIN)
def test_code_in_a_pickle_never_runs(pickled, part, write):
    proof = pickled / 'ran'
    write(pickled / BIN[part], Evil(proof))
    refused(pickled, DamagedWeights, str(pickled / BIN[part]), 'pickle', 'safetensors')
    assert not proof.exists()
    with contextlib.suppress(Exception):
        torch.load(pickled / BIN[part], weights_only=False)
    assert proof.exists()     # the payload was a real one


@pytest.mark.parametrize('part', BIN)
def test_a_ckpt_is_not_read_at_all(pickled, part):
    path = pickled / BIN[part]
    torch.save(Evil(pickled / 'ran'), path.with_suffix('.ckpt'))
    path.unlink()
    refused(pickled, DamagedWeights, str(pickled / part))
    assert not (pickled / 'ran').exists()


BIN_FAULTS = {'truncated': lambda data: data[:len(data) // 2], 'empty': lambda data: b'',
              'zeros': lambda data: bytes(999),
              'page': lambda data: b'<html>' + b' ' * 200, 'noise': lambda data: b'\x80\x02' + bytes(range(200)),
              'pointer': lambda data: b'version https://git-lfs.github.com/spec/v1\n' + b'-' * 100}


@pytest.mark.parametrize('fault', BIN_FAULTS)
@pytest.mark.parametrize('part', ['unet', 'text_encoder'])     # diffusers reads the one, transformers the other
def test_a_bin_file_that_is_not_one_is_refused(pickled, part, fault):
    path = pickled / BIN[part]
    path.write_bytes(BIN_FAULTS[fault](path.read_bytes()))
    refused(pickled, DamagedWeights, str(path))


@pytest.mark.parametrize('content', [[1] * 200, {'state_dict': {'a': torch.ones(99)}}, torch.ones(99)], ids=str)
@pytest.mark.parametrize('part', ['unet', 'text_encoder'])     # diffusers reads the one, transformers the other
def test_a_bin_file_of_something_else_is_refused(pickled, part, content):
    torch.save(content, pickled / BIN[part])
    refused(pickled, DamagedWeights, str(pickled / BIN[part]))


def test_a_pickle_needs_a_torch_that_reads_it_safely(bin_folder, monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.9.1')
    refused(bin_folder, DamagedWeights, '.bin', '2.9.1', '2.10')


def _to_old_names(path: Path) -> None:
    """As diffusers 0.14 named the VAE's attention."""
    state = torch.load(path, weights_only=True)
    for new, old in (('to_q', 'query'), ('to_k', 'key'), ('to_v', 'value'), ('to_out.0', 'proj_attn')):
        state = {key.replace(f'attentions.0.{new}.', f'attentions.0.{old}.'): value for key, value in state.items()}
    assert sum('proj_attn' in key for key in state) == 4
    torch.save(state, path)


def test_a_folder_of_2023_draws_the_same_picture_as_the_same_weights_today(tiny_folder, pickled):
    assert any(key.startswith('text_model.') for key in torch.load(pickled / BIN['text_encoder'], weights_only=True))
    _to_old_names(pickled / BIN['vae'])
    assert (draw(pickled) == draw(tiny_folder)).all()


def _shard(folder: Path, part: str, safe: bool, variant: str = '') -> None:
    whole = folder / (SAFE if safe else BIN)[part]
    state = load_file(whole) if safe else torch.load(whole, weights_only=True)
    weight_map = {}
    for i in (1, 2):
        name = f'{whole.stem}{variant}-{i:05d}-of-00002{whole.suffix}'
        piece = {key: state[key].clone() for key in sorted(state)[i - 1::2]}
        save_file(piece, whole.with_name(name)) if safe else torch.save(piece, whole.with_name(name))
        weight_map |= dict.fromkeys(piece, name)
    index = whole.with_name(f'{whole.name}.index{variant}.json')
    index.write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))
    whole.unlink()


@pytest.mark.parametrize('variant', ['', '.fp16'])
@pytest.mark.parametrize('safe', [True, False])
def test_sharded_weights_draw_the_same_picture(tiny_folder, folder, pickled, safe, variant):
    target = folder if safe else pickled
    for part in SAFE:
        _shard(target, part, safe, variant)
    assert (draw(target) == draw(tiny_folder)).all()


@pytest.mark.parametrize('part', SAFE)
def test_a_shard_that_is_missing_or_cut_is_named(folder, part):
    _shard(folder, part, safe=True)
    shard = next((folder / part).glob('*-00002-of-00002.safetensors'))
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(folder, DamagedWeights, shard.name)
    shard.unlink()
    refused(folder, ModelError, shard.name)


@pytest.mark.parametrize('safe', [True, False])
def test_a_folder_with_nothing_but_fp16_weights_draws(folder, pickled, safe, tiny_folder):
    target, names = (folder, SAFE) if safe else (pickled, BIN)
    for part in names:
        path = target / names[part]
        if safe:
            edit(path, lambda state: state.update({key: value.half() for key, value in state.items()}))
        path.rename(path.with_suffix(f'.fp16{path.suffix}'))
    assert ModelFolder(target).weights['vae'].variant == 'fp16'
    assert abs(draw(target).astype(int) - draw(tiny_folder)).max() <= 2


FLOW = {'_class_name': 'FlowMatchEulerDiscreteScheduler'}
SCHEDULER_FAULTS = [FLOW, {'_class_name': 'os.system'}, {'_class_name': None}, {'beta_start': 'x'},
                    {'beta_schedule': 'none'}, {'trained_betas': [0.5]}, {'timestep_spacing': 'x'}]


@pytest.mark.parametrize('values', SCHEDULER_FAULTS, ids=str)
def test_a_scheduler_that_can_not_be_built_is_refused_at_load(folder, values):
    change(folder / 'scheduler/scheduler_config.json', **values)
    refused(folder, BadConfiguration, str(folder / 'scheduler'))
