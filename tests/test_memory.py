"""Memory modes: what lends a network's numbers to a GPU, run here on the CPU, and that all of it can be undone."""
from __future__ import annotations

import gc
import os

import numpy as np
import psutil
import pytest
import tiny
import torch

from modelscope_cartoon import eight_bits, load_pipeline, memory, weights
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.lora import LoraLayer
from modelscope_cartoon.styles import styles

CPU = torch.device('cpu')
CAT = {'text': 'a cat', 'seed': 3, 'num_inference_steps': 3}


@pytest.fixture(autouse=True)
def tiny_matrices_count_too(monkeypatch):
    monkeypatch.setattr(eight_bits, '_WORTH', 2**6)


@pytest.fixture
def lent(tiny_folder, request):
    """A pipeline whose networks are lent to a 'GPU' that is the CPU, in the mode of the test's `mode`."""
    pipe = load_pipeline(tiny_folder, device='cpu')
    memory.lend(pipe.pipeline, request.getfixturevalue('mode'), CPU)
    return pipe


@pytest.fixture(scope='module')
def lora(tiny_folder, tmp_path_factory) -> str:
    return str(tiny.build_lora(tmp_path_factory.mktemp('lora'), tiny_folder))


def numbers(pipe) -> dict[str, torch.Tensor]:
    return {f'{part}.{name}': tensor.clone() for part in ('unet', 'vae', 'text_encoder')
            for name, tensor in getattr(pipe, part).state_dict().items()}


def hooks(network: torch.nn.Module) -> list:
    return [layer for layer in network.modules() if layer._forward_hooks or layer._forward_pre_hooks
            or hasattr(layer, '_diffusers_hook') or 'forward' in layer.__dict__]


def draw(pipe, **more) -> np.ndarray:
    return pipe({**CAT, **more})['output_imgs'][0].astype(int)


@pytest.mark.parametrize('mode, difference', [('min', 0), ('low', 3)])
def test_a_lent_model_draws_the_picture(tiny_pipe, lent, mode, difference):
    assert hooks(lent.pipeline.unet) and hooks(lent.pipeline.text_encoder)
    assert np.abs(draw(lent) - draw(tiny_pipe)).max() <= difference
    assert np.abs(draw(lent, text='a (cat:1.2) ' + 'word ' * 90) - draw(tiny_pipe, text='a (cat:1.2) ' + 'word ' * 90)
                  ).max() <= difference


@pytest.mark.parametrize('mode, difference', [('min', 0), ('low', 3)])
def test_a_lent_model_draws_with_a_lora(tiny_pipe, lent, lora, mode, difference):
    plain, with_lora = draw(tiny_pipe), draw(tiny_pipe, lora=lora)
    assert np.abs(with_lora - plain).max() > 20
    assert np.abs(draw(lent, lora=lora) - with_lora).max() <= difference
    assert np.abs(draw(lent) - plain).max() <= difference
    assert not any(isinstance(layer, LoraLayer) for layer in lent.pipeline.unet.modules())


@pytest.mark.parametrize('mode', ['low', 'min'])
def test_all_of_it_can_be_undone(tiny_folder, lent, mode):
    before = numbers(weights.load(ModelFolder(tiny_folder), torch.float32))
    picture = draw(lent)
    memory.apply(lent.pipeline, 'full', CPU)
    after = numbers(lent.pipeline)
    assert not hooks(lent.pipeline.unet) and not hooks(lent.pipeline.text_encoder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    memory.lend(lent.pipeline, mode, CPU)
    assert (draw(lent) == picture).all()


@pytest.mark.parametrize('mode', ['low', 'min'])
def test_a_lent_model_goes_to_fp32_and_is_saved_from_its_own_numbers(tiny_folder, tmp_path, monkeypatch, mode):
    pipe = load_pipeline(tiny_folder, device='cpu', dtype='bfloat16')
    before = numbers(pipe.pipeline)
    monkeypatch.setattr(memory, 'apply', lambda p, m, d: (memory.undo(p), memory.lend(p, m, d)))
    pipe.model._backend.set_memory(mode)
    pipe.model.save_pretrained(str(tmp_path / 'saved'))
    saved = numbers(weights.load(ModelFolder(tmp_path / 'saved'), torch.bfloat16))
    assert all(torch.equal(before[name], saved[name]) for name in before)
    pipe.model._backend.to_fp32()
    assert hooks(pipe.pipeline.unet) and pipe.pipeline.unet.dtype == torch.float32
    memory.undo(pipe.pipeline)
    assert all(torch.equal(tensor.float(), numbers(pipe.pipeline)[name]) for name, tensor in before.items())


def test_placing_that_runs_out_of_memory_leaves_nothing_behind(tiny_pipe, tiny_folder, monkeypatch):
    pipe = load_pipeline(tiny_folder, device='cpu')
    made, real = [], eight_bits.Packed

    def runs_out(weight):
        made.append(weight)
        if len(made) == 5:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return real(weight)
    monkeypatch.setattr(eight_bits, 'Packed', runs_out)
    with pytest.raises(torch.OutOfMemoryError):
        memory.lend(pipe.pipeline, 'low', CPU)
    memory.apply(pipe.pipeline, 'full', CPU)
    assert not hooks(pipe.pipeline.unet) and (draw(pipe) == draw(tiny_pipe)).all()


def test_a_layer_that_fails_is_packed_again():
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64))
    eight_bits.pack(layer, CPU, [])
    with pytest.raises(RuntimeError):
        layer(torch.ones(1, 3))
    assert layer[0].weight.untyped_storage().nbytes() == 4 and layer[0].weight.shape == (64, 64)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('shape', [(128, 320), (64, 32, 3, 3), (70, 70)])
def test_eight_bits_are_half_of_sixteen_and_near(shape, dtype):
    torch.manual_seed(0)
    weight = (torch.randn(shape) * 0.02).to(dtype)
    packed = eight_bits.Packed(weight)
    layer = torch.nn.Linear(1, 1)
    packed.open(layer)
    opened = layer.weight
    assert opened.dtype == dtype and opened.shape == shape
    assert (opened.float() - weight.float()).norm() < 0.012 * weight.float().norm()
    assert packed.bytes.nbytes + packed.scale.nbytes <= weight.numel() * 1.13
    fp8 = weight.to(torch.float8_e4m3fn).float()
    assert (opened.float() - weight.float()).norm() < 0.4 * (fp8 - weight.float()).norm()


def test_eight_bits_keep_the_order_in_memory():
    weight = torch.randn(64, 32, 3, 3).to(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(32, 64, 3)
    eight_bits.Packed(weight).open(layer)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert (layer.weight - weight).abs().max() < 0.02


def test_zeros_stay_zeros_in_eight_bits():
    layer = torch.nn.Linear(1, 1)
    eight_bits.Packed(torch.zeros(64, 64, dtype=torch.float16)).open(layer)
    assert (layer.weight == 0).all()


def test_a_unet_in_eight_bits_takes_little_more_than_half(tiny_folder):
    unet = weights.load_component(ModelFolder(tiny_folder), 'unet', torch.bfloat16)
    large = [layer.weight for layer in eight_bits._layers(unet)]
    small = sum(p.nbytes for p in unet.parameters()) - sum(weight.nbytes for weight in large)
    expected = sum(weight.numel() for weight in large) * 1.13 + small + 2 * len(large)
    eight_bits.pack(unet, CPU, [])
    packed = [hook.__self__ for layer in unet.modules() for hook in layer._forward_pre_hooks.values()]
    assert len(packed) == len(large) > 20
    assert (sum(p.untyped_storage().nbytes() for p in unet.parameters())
            + sum(p.bytes.nbytes + p.scale.nbytes for p in packed)) <= expected


def test_two_hundred_pictures_with_style_switches_leave_memory_flat():
    pipe = load_pipeline('mini', device='cpu')
    names = [None, *styles()]

    def four(i: int) -> None:
        pipe({'text': 'a cat', 'seed': i, 'style': names[i % len(names)], 'num_inference_steps': 1, 'height': 64,
              'width': 64, 'scheduler': 'DDIM', 'num_images_per_prompt': 4})

    def state() -> tuple[int, int]:
        gc.collect()
        tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
        return tensors, psutil.Process(os.getpid()).memory_info().rss
    for i in range(2 * len(names)):
        four(i)
    before = state()
    for i in range(50):
        four(i)
    after = state()
    assert after[0] <= before[0] + 2
    assert after[1] - before[1] < 16 * 2**20
