"""Models that are loaded at once hold what is the same in them once, and stay each other's strangers otherwise."""
from __future__ import annotations

import gc
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from modelscope_cartoon import load_pipeline, memory, weights
from modelscope_cartoon.backends.eager import to_channels_last
from modelscope_cartoon.folder import ModelFolder

CAT = {'text': 'a cat', 'seed': 3, 'num_inference_steps': 2}
PARTS = ('unet', 'vae', 'text_encoder')


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Two fine-tunes: another UNet, the same VAE and text encoder; the second is a legacy .bin folder."""
    root = tmp_path_factory.mktemp('fine-tunes')
    first, second = tiny.build(root / 'first'), tiny.build(root / 'second', safe=False)
    unet = second / 'unet/diffusion_pytorch_model.bin'
    torch.save({key: value * 1.01 for key, value in torch.load(unet, weights_only=True).items()}, unet)
    return first, second


def load_half(folder: Path):
    """In another precision than its files have, so that its weights are converted, and not mapped from them."""
    return load_pipeline(folder, device='cpu', dtype='bfloat16')


@pytest.fixture
def both(folders):
    return [load_half(folder) for folder in folders]


def draw(pipe, **more) -> np.ndarray:
    return pipe({**CAT, **more})['output_imgs'][0]


def kept(pipes, *parts: str) -> int:
    """Bytes of all the parts' numbers, those that are shared once. (data_ptr() would end the sharing.)"""
    tensors = [p for pipe in pipes for part in parts for p in getattr(pipe.pipeline, part).parameters()]
    return sum({torch._C._data_address(tensor): tensor.nbytes for tensor in tensors}.values())


def test_two_models_of_one_vae_and_text_encoder_take_the_memory_of_one(both, folders, caplog):
    assert kept(both, 'vae', 'text_encoder') == kept(both[:1], 'vae', 'text_encoder')
    assert kept(both, 'unet') == 2 * kept(both[:1], 'unet')
    caplog.set_level(logging.INFO, 'modelscope_cartoon')
    again = load_half(folders[0])
    assert 'shared with another model that is loaded: vae, text_encoder.' in caplog.text
    assert kept([*both, again], 'vae') == kept(both[:1], 'vae')


def test_sharing_changes_no_picture(both, folders):
    for pipe, folder in zip(both, folders):
        picture = draw(pipe)
        alone = weights.load(ModelFolder(folder), torch.bfloat16)
        to_channels_last(alone.vae)     # as the backend does
        pipe.pipeline = alone
        assert (draw(pipe) == picture).all()


def test_drawing_does_not_end_the_sharing(both):
    before = kept(both, *PARTS)
    [draw(pipe) for pipe in both]
    assert kept(both, *PARTS) == before


@pytest.mark.parametrize('writer', [0, 1])
def test_who_writes_into_a_shared_weight_has_a_copy_of_it(both, folders, writer):
    pictures = [draw(pipe) for pipe in both]
    for part in ('vae', 'text_encoder'):
        for p in getattr(both[writer].pipeline, part).parameters():
            p.data += 0.5
            p.data[:1].zero_()
    assert (draw(both[1 - writer]) == pictures[1 - writer]).all()
    assert kept(both, 'vae') == 2 * kept(both[:1], 'vae')


def test_another_text_encoder_or_precision_is_not_shared(both, folders, tmp_path):
    other = load_half(tiny.build(tmp_path / 'other', seed=1))
    full = load_pipeline(folders[0], device='cpu')
    for pipe in (other, full):
        assert kept([both[0], pipe], *PARTS) == kept(both[:1], *PARTS) + kept([pipe], *PARTS)


def test_what_is_shared_outlives_the_model_that_brought_it(folders):
    first, second = (load_half(folder) for folder in folders)
    picture = draw(second)
    del first
    gc.collect()
    assert (draw(second) == picture).all()
    third = load_half(folders[0])
    assert kept([second, third], 'vae') == kept([second], 'vae')


def test_the_fp32_fallback_of_one_leaves_the_other_as_it_is(both):
    assert kept(both, 'vae') == kept(both[:1], 'vae')
    picture = draw(both[1])
    both[0].model._backend.to_fp32()
    assert both[0].pipeline.vae.dtype == torch.float32 and both[1].pipeline.vae.dtype == torch.bfloat16
    assert (draw(both[1]) == picture).all()
    both[1].model._backend.to_fp32()
    assert kept(both, 'vae') == kept(both[:1], 'vae')


@pytest.mark.parametrize('mode', ['low', 'min'])
def test_lent_networks_share_what_rests(both, mode):
    pictures = [draw(pipe) for pipe in both]
    for pipe in both:
        memory.undo(pipe.pipeline)
        memory.lend(pipe.pipeline, mode, torch.device('cpu'))
    assert kept(both, 'text_encoder') == kept(both[:1], 'text_encoder')
    for pipe, picture in zip(both, pictures):
        assert np.abs(draw(pipe).astype(int) - picture).mean() <= (0 if mode == 'min' else 1)


def test_two_models_draw_in_two_threads_with_a_lora_on_what_they_share(both, folders, tmp_path):
    lora = str(tiny.build_lora(tmp_path / 'lora', folders[0]))
    plain, with_lora = draw(both[0]), draw(both[1], lora=lora)
    assert (draw(both[1]) != with_lora).any()
    wrong: list[str] = []

    def work(pipe, expected: np.ndarray, more: dict) -> None:
        for _ in range(8):
            if (draw(pipe, **more) != expected).any():
                wrong.append(str(more))
    threads = [threading.Thread(target=work, args=args)
               for args in ((both[0], plain, {}), (both[1], with_lora, {'lora': lora}))]
    [thread.start() for thread in threads]
    [thread.join(120) for thread in threads]
    assert not wrong
