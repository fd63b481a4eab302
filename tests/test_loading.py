"""Tokenizers that don't belong to the weights, precision and memory at load (failures.md, section 2)."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from modelscope_cartoon import load_pipeline, weights
from modelscope_cartoon.errors import CartoonError, DamagedWeights, ModelError, OutOfMemory
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.memory import is_out_of_memory


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / 'model'))


def encoder(rows: int, positions: int = 77) -> SimpleNamespace:
    """What load_tokenizer asks of a text encoder."""
    return SimpleNamespace(config=SimpleNamespace(vocab_size=rows, max_position_embeddings=positions))


def write_vocabulary(folder: Path, words: list[str], merges: list[str]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / 'vocab.json').write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding='utf-8')
    (folder / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n', encoding='utf-8')
    CLIPTokenizer.from_pretrained(folder, model_max_length=77).save_pretrained(folder)


def clip_words() -> tuple[list[str], list[str]]:
    """A vocabulary of CLIP's size that gives `a photo of a cat` CLIP's own ids."""
    merges = ['p h', 'ph o', 'pho t', 'phot o</w>', 'o f</w>', 'c a', 'ca t</w>']
    alphabet = tiny.bytes_to_unicode()     # CLIP's own first 512 words, as the ids 320 of `a` shows
    words = [*alphabet, *(c + '</w>' for c in alphabet)]
    words += [f'filler{i}' for i in range(len(words), 49406)] + ['<|startoftext|>', '<|endoftext|>']
    words[1125], words[539], words[2368] = 'photo</w>', 'of</w>', 'cat</w>'
    words[3000:3004] = ['ph', 'pho', 'phot', 'ca']
    return words, merges


def test_a_vocabulary_of_clips_size_passes_the_self_test(folder):
    write_vocabulary(folder / 'tokenizer', *clip_words())
    assert len(weights.load_tokenizer(ModelFolder(folder), encoder(49408))) == 49408


@pytest.mark.parametrize('fault', ['merges lost', 'words swapped', 'words lost'])
def test_a_damaged_clip_vocabulary_fails_the_self_test(folder, fault):
    words, merges = clip_words()
    words[539], words[540] = (words[540], words[539]) if fault == 'words swapped' else words[539:541]
    words = words[:10000] + words[10300:] if fault == 'words lost' else words
    write_vocabulary(folder / 'tokenizer', words, merges[:3] if fault == 'merges lost' else merges)
    with pytest.raises(ModelError, match=r'tokenizer reads .* vocabulary is damaged'):
        weights.load_tokenizer(ModelFolder(folder), encoder(49408))


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder):
    path = folder / 'tokenizer/tokenizer.json'
    content = json.loads(path.read_text())
    content['model']['vocab'] |= {f'extra{i}': 600 + i for i in range(50)}
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r'tokenizer knows .* tokens and the text encoder'):
        load_pipeline(folder, device='cpu')


@pytest.mark.parametrize('length', [10**30, 78, 2, 0])
def test_a_tokenizer_longer_than_the_text_encoder_is_refused(folder, length):
    path = folder / 'tokenizer/tokenizer_config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'model_max_length': length}))
    with pytest.raises(ModelError, match='model_max_length'):
        weights.load_tokenizer(ModelFolder(folder), encoder(600))


@pytest.mark.parametrize('content', ['{}', '{"model": {"type": "BPE", "vocab": {}, "merges": []}}', '{"version": 3}'])
def test_a_tokenizer_json_of_nothing_is_refused(folder, content):
    (folder / 'tokenizer/tokenizer.json').write_text(content)
    for name in ('vocab.json', 'merges.txt'):
        (folder / 'tokenizer' / name).unlink()
    with pytest.raises(ModelError, match='tokenizer'):
        weights.load_tokenizer(ModelFolder(folder), encoder(600))


def test_weights_beyond_float16_are_refused_with_the_way_out(folder):
    path = folder / 'unet/diffusion_pytorch_model.safetensors'
    state = load_file(path)
    state['conv_in.weight'] *= 1e7
    save_file(state, path, metadata={'format': 'pt'})
    with pytest.raises(DamagedWeights, match=r'conv_in\.weight .*float32'):
        weights.load(ModelFolder(folder), torch.float16)
    weights.load(ModelFolder(folder), torch.float32)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', torch.float16, 'auto', None])
def test_weights_are_in_the_precision_that_was_asked_for(tiny_folder, dtype):
    model = load_pipeline(tiny_folder, device='cpu', dtype=dtype).model
    name = str(dtype).removeprefix('torch.')
    wanted = {'float16': torch.float16, 'bfloat16': torch.bfloat16}.get(name, torch.float32)
    networks = [getattr(model.diffusers_pipeline, part) for part in ('unet', 'vae', 'text_encoder')]
    found = {p.dtype for network in networks for p in network.parameters()}
    assert found == {wanted} and model.dtype == wanted and not model.diffusers_pipeline.unet.training


def test_a_model_too_big_for_the_memory_is_refused_before_it_is_read(tiny_folder, monkeypatch):
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=100_000))
    monkeypatch.setattr(weights, 'load', lambda *_: pytest.fail('read it'))
    with pytest.raises(OutOfMemory, match=r'needs about .* GiB') as caught:
        load_pipeline(tiny_folder, device='cpu')
    assert caught.value.code == 'out_of_memory'


def test_the_estimate_is_near_the_weights_own_size(tiny_folder):
    pipe = weights.load(ModelFolder(tiny_folder), torch.float32)
    real = sum(p.numel() * 4 for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters())
    assert real < weights.parameter_bytes(ModelFolder(tiny_folder), torch.float32) < real * 1.4
    assert real / 2 < weights.parameter_bytes(ModelFolder(tiny_folder), torch.float16) < real * 0.7


def test_little_memory_chooses_a_lower_mode_and_says_so(tiny_folder, monkeypatch, caplog):
    need = weights.parameter_bytes(ModelFolder(tiny_folder), torch.float32)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: SimpleNamespace(available=2 * need))
    assert load_pipeline(tiny_folder, device='cpu').model.memory_mode == 'low'
    assert "memory mode 'low'" in caplog.text


@pytest.mark.parametrize('error', [MemoryError(), torch.OutOfMemoryError('CUDA out of memory'),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")], ids=repr)
def test_memory_that_runs_out_while_loading_is_not_called_damage(tiny_folder, monkeypatch, error):
    def out_of_memory(*_: object, **__: object) -> None:
        raise error
    monkeypatch.setattr(weights.UNet2DConditionModel, 'from_config', out_of_memory)
    with pytest.raises(OutOfMemory, match='unet'):
        weights.load(ModelFolder(tiny_folder), torch.float32)


def test_torchs_own_error_for_too_little_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**16)
    assert is_out_of_memory(caught.value) and not is_out_of_memory(RuntimeError('else'))


def test_loading_prints_nothing(tiny_folder, capfd):
    load_pipeline(tiny_folder, device='cpu')
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('memory', ['huge', 3, None])
def test_an_unknown_memory_mode_is_refused(tiny_folder, memory):
    with pytest.raises(CartoonError, match='full, low, min'):
        load_pipeline(tiny_folder, device='cpu', memory=memory)
