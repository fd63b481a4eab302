"""Overflow, interruptions and too little memory while drawing (failures.md, section 3): never a black picture."""
from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from modelscope.utils import torch_utils

from modelscope_cartoon import load_pipeline
from modelscope_cartoon.errors import Interrupted, NonFiniteError, OutOfMemory
from modelscope_cartoon.schedulers import ROWS

CAT = {'text': 'a cat', 'seed': 3, 'num_inference_steps': 4}
BAD = [float('nan'), float('inf'), float('-inf')]


@pytest.fixture
def pipe(tiny_folder):
    return load_pipeline(tiny_folder, device='cpu')


@pytest.fixture(scope='module')
def cat(tiny_folder) -> np.ndarray:
    """What a fresh pipeline draws."""
    return load_pipeline(tiny_folder, device='cpu')(CAT)['output_imgs'][0]


class Calls:
    """Counts a module's forward calls, and at the `at`-th does `act`: its result, if any, replaces the output."""

    def __init__(self, module: torch.nn.Module, act=None, at: int = 0):
        self.count, self.act, self.at = 0, act, at
        self.remove = module.register_forward_hook(self).remove

    def __call__(self, module, inputs, output):
        self.count += 1
        return self.act(output) if self.count == self.at else None


def poisoned(value: float):
    def poison(output):
        broken = output[0].clone()
        broken.view(-1)[0] = value
        return (broken,)
    return poison


def raises(error: BaseException):
    def throw(output):
        raise error
    return throw


@pytest.mark.parametrize('value', BAD)
@pytest.mark.parametrize('step', [1, 4])
def test_numbers_that_are_not_finite_at_any_step_stop_the_drawing(pipe, cat, step, value):
    calls = Calls(pipe.pipeline.unet, poisoned(value), at=step)
    with pytest.raises(NonFiniteError, match='denoising') as caught:
        pipe(CAT)
    assert calls.count == step and caught.value.code == 'non_finite'
    calls.remove()
    assert (pipe(CAT)['output_imgs'][0] == cat).all()


@pytest.mark.parametrize('label', [row.label for row in ROWS])
def test_no_scheduler_hides_an_infinite_prediction(tiny_pipe, label):
    model = tiny_pipe.pipeline
    was, clips = model.scheduler, type(model.scheduler).from_config(model.scheduler.config, clip_sample=True)
    model.scheduler = clips
    calls = Calls(model.unet, poisoned(float('inf')), at=2)
    try:
        with pytest.raises(NonFiniteError):
            tiny_pipe(CAT, scheduler=label, guidance_scale=1.0)
    finally:
        calls.remove()
        model.scheduler = was


@pytest.mark.parametrize('part, stage', [('text_encoder', 'text encoding'), ('vae', 'decoding')])
def test_numbers_that_are_not_finite_in_the_other_networks_are_named(pipe, cat, part, stage):
    module = getattr(pipe.pipeline, part)
    weight = (module.decoder.conv_in if part == 'vae' else module.get_input_embeddings()).weight
    before = weight.detach().clone()
    weight.data[:] = float('nan')
    with pytest.raises(NonFiniteError, match=stage):
        pipe(CAT)
    weight.data[:] = before
    assert (pipe(CAT)['output_imgs'][0] == cat).all()


def overflowing(pipe, dtype: torch.dtype) -> None:
    """Attention scores beyond fp16, as Stable Diffusion 2.1 has them."""
    pipe.pipeline.unet.set_attn_processor(AttnProcessor())
    for name, weight in pipe.pipeline.unet.named_parameters():
        if name.endswith(('to_q.weight', 'to_k.weight')):
            weight.data = (weight.data.float() * 3000).to(dtype)


def test_an_fp16_overflow_is_drawn_again_in_fp32_and_the_user_is_told(tiny_folder, caplog):
    half = load_pipeline(tiny_folder, device='cpu', dtype='float16')
    overflowing(half, torch.float16)
    direct = half.pipeline('a cat', num_inference_steps=2, output_type='np').images[0]
    assert not np.isfinite(direct).all() or not direct.any()     # diffusers' own: black
    image = half(CAT)['output_imgs'][0]
    assert image.std() > 1 and half.model.dtype == half.pipeline.unet.dtype == torch.float32
    assert 'float16; the picture is drawn again in float32' in caplog.text
    caplog.clear()
    assert (half(CAT)['output_imgs'][0] == image).all() and caplog.text == ''


def test_a_black_picture_in_half_precision_is_drawn_again(tiny_folder, caplog):
    half = load_pipeline(tiny_folder, device='cpu', dtype='bfloat16')
    Calls(half.pipeline.vae.decoder, lambda output: torch.full_like(output, -9), at=1)
    assert half(CAT)['output_imgs'][0].any() and 'black picture' in caplog.text


def test_four_threads_on_one_pipeline_draw_the_right_pictures(pipe, tiny_folder):
    requests = [{**CAT, 'seed': i, 'scheduler': name} for i, name in enumerate(('PNDM', 'Euler a', 'PNDM', 'DPM++ 2M'))]
    expected = [load_pipeline(tiny_folder, device='cpu')(r)['output_imgs'][0] for r in requests]
    drawn: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        drawn[i] = pipe(requests[i])['output_imgs'][0]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert sorted(drawn) == [0, 1, 2, 3] and all((drawn[i] == expected[i]).all() for i in drawn)


class Mine(Exception):
    pass


def in_callback(error: BaseException):
    def callback(pipe, step, timestep, tensors):
        if step == 1:
            raise error
        return {}
    return callback


@pytest.mark.parametrize('error, seen', [(KeyboardInterrupt(), Interrupted), (Mine(), Mine)], ids=['Ctrl-C', 'error'])
@pytest.mark.parametrize('scheduler', ['PNDM', 'Euler a'])
def test_a_callback_that_raises_stops_within_a_step_and_leaves_no_trace(pipe, tiny_folder, scheduler, error, seen):
    calls = Calls(pipe.pipeline.unet)
    with pytest.raises(seen):
        pipe({**CAT, 'scheduler': scheduler}, callback_on_step_end=in_callback(error))
    assert calls.count == 2
    fresh = load_pipeline(tiny_folder, device='cpu')({**CAT, 'scheduler': scheduler})['output_imgs'][0]
    assert (pipe({**CAT, 'scheduler': scheduler})['output_imgs'][0] == fresh).all()


def test_a_real_ctrl_c_stops_within_a_step_and_leaves_no_trace(pipe, cat):
    calls = Calls(pipe.pipeline.unet, lambda output: os.kill(os.getpid(), signal.SIGINT), at=2)
    with pytest.raises(Interrupted):
        pipe(CAT)
    assert calls.count == 2
    assert (pipe(CAT)['output_imgs'][0] == cat).all()


@pytest.mark.parametrize('options', [{}, {'batch_size': 1}], ids=['host loop', 'batches'])
def test_ctrl_c_keeps_the_pictures_that_are_done(pipe, cat, options):
    Calls(pipe.pipeline.unet, raises(KeyboardInterrupt()), at=6)
    with pytest.raises(Interrupted) as caught:
        pipe([CAT, {**CAT, 'seed': 4}, {**CAT, 'seed': 5}], **options)
    assert [out['seeds'] for out in caught.value.outputs] == [[3]]
    assert (caught.value.outputs[0]['output_imgs'][0] == cat).all()


def test_ctrl_c_in_one_request_keeps_its_finished_pictures(pipe, cat):
    Calls(pipe.pipeline.unet, raises(KeyboardInterrupt()), at=6)
    with pytest.raises(Interrupted) as caught:
        pipe({**CAT, 'num_images_per_prompt': 6})
    assert [out['seeds'] for out in caught.value.outputs] == [[3, 4, 5, 6]]
    assert np.abs(caught.value.outputs[0]['output_imgs'][0].astype(int) - cat).max() <= 1


OUT_OF_MEMORY = [torch.OutOfMemoryError('CUDA out of memory'), MemoryError(),
                 RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")]


@pytest.mark.parametrize('error', OUT_OF_MEMORY, ids=repr)
@pytest.mark.parametrize('part', ['unet', 'text_encoder'])
def test_too_little_memory_is_tried_once_in_the_next_lower_mode(pipe, cat, part, error, caplog):
    Calls(getattr(pipe.pipeline, part), raises(error), at=1)
    assert (pipe(CAT)['output_imgs'][0] == cat).all()
    assert pipe.model.memory_mode == 'low' and "in memory mode 'full'; trying 'low'" in caplog.text


def test_a_second_try_draws_from_the_callers_generator_as_it_was(pipe):
    def draw() -> np.ndarray:
        request = {key: value for key, value in CAT.items() if key != 'seed'}
        return pipe({**request, 'generator': torch.Generator().manual_seed(5)})['output_imgs'][0]
    expected = draw()
    Calls(pipe.pipeline.unet, raises(OUT_OF_MEMORY[0]), at=1)
    assert (draw() == expected).all() and pipe.model.memory_mode == 'low'


@pytest.mark.parametrize('mode, after', [('full', 'low'), ('low', 'min'), ('min', 'min')])
def test_too_little_memory_twice_is_an_error_and_the_pipeline_still_works(tiny_folder, cat, mode, after):
    pipe = load_pipeline(tiny_folder, device='cpu', memory=mode)
    calls = [Calls(pipe.pipeline.unet, raises(OUT_OF_MEMORY[0]), at=i) for i in (1, 2)]
    with pytest.raises(OutOfMemory, match='smaller height and width'):
        pipe(CAT)
    [call.remove() for call in calls]
    assert pipe.model.memory_mode == after and (pipe(CAT)['output_imgs'][0] == cat).all()


@pytest.mark.parametrize('memory', ['low', 'min'])
@pytest.mark.parametrize('size', [64, 128])
def test_lower_memory_modes_draw_the_same_picture(pipe, tiny_folder, memory, size):
    lower = load_pipeline(tiny_folder, device='cpu', memory=memory)
    request = {**CAT, 'height': size, 'width': size, 'num_images_per_prompt': 2}
    pictures = [np.stack(p(request)['output_imgs']).astype(int) for p in (pipe, lower)]
    difference = np.abs(pictures[0] - pictures[1])
    tiled = memory == 'min' and size > 64     # tiles normalise by themselves: alike, not equal
    assert difference.max() <= 1 if not tiled else difference.mean() < 0.5 * pictures[0].std()


@pytest.mark.parametrize('options', [{}, {'compile': True, 'compile_options': {'nonsense': 1}}], ids=str)
def test_the_hosts_prepare_model_undoes_nothing_and_can_not_hang(tiny_folder, monkeypatch, options):
    pipe = load_pipeline(tiny_folder, device='cpu', memory='min', **options)
    monkeypatch.setattr(torch_utils, 'is_on_same_device', raises(RuntimeError('no device')))
    pipe(CAT)
    pipe._model_prepare = False
    pipe.prepare_model()
    assert not pipe._model_prepare_lock.locked()
    assert pipe.pipeline.vae.use_tiling and pipe.pipeline.vae.use_slicing and pipe.model.memory_mode == 'min'
