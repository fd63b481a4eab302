"""LoRA files that are broken, unsafe, of another kind or for another model: one sentence that names what is wrong."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modelscope_cartoon.errors import BadConfiguration, DamagedWeights, ModelError
from modelscope_cartoon.lora import Loras
from modelscope_cartoon.lora_choice import WEIGHTS, LoraChoice, weights_file
from modelscope_cartoon.lora_file import read

LAYER = 'lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q'      # 16 wide in the tiny model
GOOD = {f'{LAYER}.lora_down.weight': torch.ones(2, 16), f'{LAYER}.lora_up.weight': torch.ones(16, 2),
        f'{LAYER}.alpha': torch.tensor(2.0)}


def write(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    save_file(tensors, path, metadata or None)
    return path


def test_the_good_file_is_read(tmp_path):
    delta = read(write(tmp_path / 'x.safetensors', GOOD))[LAYER]
    assert (delta.down.shape, delta.up.shape, delta.alpha, delta.divisor) == ((2, 16), (16, 2), 2.0, 2)


@pytest.mark.parametrize('broken, words', [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git-lfs pointer'),
    (b'<!DOCTYPE html><html></html>', 'web page'),
    (b'', 'no safetensors file'),
    (b'\x80\x04K\x01.' * 50, 'no safetensors file'),
], ids=lambda value: str(value)[:20])
def test_files_that_are_something_else_are_named(tmp_path, broken, words):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(broken)
    with pytest.raises(DamagedWeights, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = write(tmp_path / 'x.safetensors', GOOD)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DamagedWeights, match='where its header says'):
        read(path)


@pytest.mark.parametrize('name', ['lora.bin', 'lora.pt', 'lora.ckpt', 'pytorch_lora_weights.bin', 'x.PTH'])
def test_a_pickle_is_refused_and_never_run(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / 'exploded', 'x'))
    torch.save({'lora': Bomb()}, tmp_path / name)
    for given in (tmp_path / name, tmp_path):
        if given.is_file() or name != 'x.PTH':
            with pytest.raises(DamagedWeights, match='safetensors'):
                weights_file(given)
    assert not (tmp_path / 'exploded').exists()


def test_a_pickle_under_a_safe_name_is_refused_and_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / 'exploded', 'x'))
    torch.save({'lora': Bomb()}, tmp_path / 'x.safetensors')
    with pytest.raises(DamagedWeights):
        read(weights_file(tmp_path / 'x.safetensors'))
    assert not (tmp_path / 'exploded').exists()


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, value):
    broken = {**GOOD, f'{LAYER}.lora_up.weight': torch.full((16, 2), value)}
    with pytest.raises(DamagedWeights, match=f'{LAYER}.lora_up.weight holds NaN'):
        read(write(tmp_path / 'x.safetensors', broken))


@pytest.mark.parametrize('extra', ['dora_scale', 'hada_w1_a', 'lokr_w1', 'lora_mid.weight', 'diff'])
def test_other_kinds_of_adapters_are_refused_not_drawn_half(tmp_path, extra):
    with pytest.raises(ModelError, match=rf'{LAYER}\.{extra}.*not DoRA'):
        read(write(tmp_path / 'x.safetensors', {**GOOD, f'{LAYER}.{extra}': torch.ones(2)}))


def test_half_a_layer_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(ModelError, match=LAYER):
        read(write(tmp_path / 'x.safetensors', {f'{LAYER}.lora_down.weight': torch.ones(2, 16)}))
    with pytest.raises((ModelError, DamagedWeights)):
        read(write(tmp_path / 'y.safetensors', {}))


@pytest.mark.parametrize('alpha', [torch.tensor(float('inf')), torch.ones(3)])
def test_an_alpha_that_is_no_number_is_refused(tmp_path, alpha):
    with pytest.raises(DamagedWeights, match='alpha'):
        read(write(tmp_path / 'x.safetensors', {**GOOD, f'{LAYER}.alpha': alpha}))


@pytest.mark.parametrize('metadata', ['[', '[]', '{"unet.alpha_pattern": {"(a+)+$": 1}}', '{"unet.alpha_pattern": [1]}',
                                      '{"unet.lora_alpha": "8"}', '{"unet.lora_alpha": NaN}'])
def test_metadata_that_can_not_be_used_is_refused(tmp_path, metadata):
    tensors = {'unet.x.lora_A.weight': torch.ones(2, 4), 'unet.x.lora_B.weight': torch.ones(4, 2)}
    with pytest.raises(ModelError):
        read(write(tmp_path / 'x.safetensors', tensors, lora_adapter_metadata=metadata))


def test_rank_stabilised_loras_divide_by_the_root_of_the_rank(tmp_path):
    tensors = {'unet.x.lora_A.weight': torch.ones(4, 4), 'unet.x.lora_B.weight': torch.ones(4, 4)}
    metadata = '{"unet.lora_alpha": 8, "unet.use_rslora": true}'
    delta = read(write(tmp_path / 'x.safetensors', tensors, lora_adapter_metadata=metadata))['unet.x']
    assert (delta.alpha, delta.divisor) == (8, 2.0)


def put_on(pipe, path: Path) -> None:
    Loras().check(pipe.pipeline, LoraChoice('x', str(path), 1.0))


def test_layers_that_the_model_does_not_have_are_listed(tiny_pipe, tmp_path):
    strange = {key.replace('mid_block', f'mid_block_{i}'): tensor.clone()
               for i in range(12) for key, tensor in GOOD.items()}
    with pytest.raises(ModelError) as caught:
        put_on(tiny_pipe, write(tmp_path / 'x.safetensors', {**GOOD, **strange}))
    message = str(caught.value)
    assert '12 of 13 layers' in message and message.count('lora_unet_') == 10 and 'and 2 more' in message
    assert '\n' not in message and 'another base model' in message


@pytest.mark.parametrize('down, up', [((2, 32), (16, 2)), ((2, 16), (32, 2)), ((2, 16, 3, 3), (16, 2, 1, 1)),
                                      ((2, 16), (16, 3)), ((0, 16), (16, 0)), ((16,), (16, 1))])
def test_shapes_that_do_not_fit_name_the_layer(tiny_pipe, tmp_path, down, up):
    tensors = {f'{LAYER}.lora_down.weight': torch.ones(down), f'{LAYER}.lora_up.weight': torch.ones(up)}
    with pytest.raises(ModelError, match=LAYER):
        put_on(tiny_pipe, write(tmp_path / 'x.safetensors', tensors))


def test_a_folder_means_its_one_file(tmp_path):
    with pytest.raises(ModelError, match='no safetensors'):
        weights_file(tmp_path)
    one = write(tmp_path / 'one.safetensors', GOOD)
    assert weights_file(tmp_path) == weights_file(one) == one
    write(tmp_path / 'two.safetensors', GOOD)
    with pytest.raises(ModelError, match='2 safetensors'):
        weights_file(tmp_path)
    assert weights_file(write(tmp_path / WEIGHTS, GOOD).parent) == tmp_path / WEIGHTS


def test_a_manifest_beside_the_file_is_held_against_it(tmp_path):
    path = write(tmp_path / 'x.safetensors', GOOD)
    manifest = tmp_path / 'manifest.json'
    manifest.write_text(json.dumps({'files': {'other.png': '0'}}))
    read(path)
    manifest.write_text(json.dumps({'files': {'x.safetensors': '0' * 64}}))
    with pytest.raises(DamagedWeights, match=r'manifest\.json'):
        read(path)
    manifest.write_text('[]')
    with pytest.raises(BadConfiguration, match=r'manifest\.json'):
        read(path)
