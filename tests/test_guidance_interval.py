"""Guidance on a part of the steps: the latents of a plain loop, half the rows outside, other people's callbacks."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from modelscope_cartoon import parse_request
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.sampling import initial_noise, session
from modelscope_cartoon.schedulers import build
from modelscope_cartoon.text_encoding import encode

STEPS, SCALE = 6, 7.5
PROMPTS = ('cat', 'sk sk')
INTERVALS = [(0, 0.5), (0.5, 1), (0.2, 0.7), (0.8, 1)]
TWICE = [call // 2 for call in range(2 * STEPS)]
STEP_OF_CALL = {'Heun': TWICE, 'DPM2': TWICE, 'PNDM': [0, *range(STEPS)]}


def rows_of(pipe: Any, **settings: Any) -> list[int]:
    """The rows of each UNet call of a drawing."""
    rows: list[int] = []
    handle = pipe.pipeline.unet.conv_in.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    try:
        pipe('cat', seed=7, num_inference_steps=STEPS, **settings)
    finally:
        handle.remove()
    return rows


def latents_of(pipe: Any, **settings: Any) -> torch.Tensor:
    seen = []
    pipe({'text': list(PROMPTS), 'seed': 7, 'num_inference_steps': STEPS, **settings},
         callback_on_step_end=lambda pipe, call, time, some: seen.append(some['latents']))
    return seen[-1]


@torch.no_grad()
def by_hand(pipe: Any, label: str, interval: tuple[float, float], rescale: float = 0.0) -> torch.Tensor:
    """The same with no pipeline around it: a loop over the scheduler's timesteps."""
    drawing = pipe.pipeline
    negative, prompts = (torch.cat(some) for some in zip(*(encode(drawing, p, '')[::-1] for p in PROMPTS)))
    scheduler = build(label, drawing.scheduler.config)
    scheduler.set_timesteps(STEPS)
    request = parse_request({'text': list(PROMPTS), 'seed': 7, 'num_inference_steps': STEPS})
    noise = initial_noise(session(drawing, request), request, 2, [torch.Generator().manual_seed(s) for s in (7, 8)])
    latents = noise * scheduler.init_noise_sigma
    for call, time in enumerate(scheduler.timesteps):
        step = STEP_OF_CALL.get(label, range(STEPS))[call]
        given = scheduler.scale_model_input(latents, time)
        prediction = drawing.unet(given, time, prompts).sample
        if interval[0] <= step / STEPS < interval[1]:
            text, without = prediction, drawing.unet(given, time, negative).sample
            prediction = without + SCALE * (text - without)
            prediction = rescale_noise_cfg(prediction, text, rescale) if rescale else prediction
        latents = scheduler.step(prediction, time, latents).prev_sample
    return latents


@pytest.mark.parametrize('interval', INTERVALS, ids=str)
@pytest.mark.parametrize('label', ['DDIM', 'Euler', 'DPM++ 2M Karras', 'UniPC', 'Heun', 'DPM2', 'PNDM'])
def test_a_picture_is_that_of_a_plain_loop(tiny_pipe, label: str, interval: tuple[float, float]):
    ours = latents_of(tiny_pipe, scheduler=label, guidance_interval=interval)
    expected = by_hand(tiny_pipe, label, interval)
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.allclose(ours, latents_of(tiny_pipe, scheduler=label), atol=1e-2)


@pytest.mark.parametrize('interval', INTERVALS[:3], ids=str)
def test_guidance_rescale_rescales_guided_steps_alone(tiny_pipe, interval: tuple[float, float]):
    ours = latents_of(tiny_pipe, scheduler='DDIM', guidance_interval=interval, guidance_rescale=0.7)
    assert (ours - by_hand(tiny_pipe, 'DDIM', interval, 0.7)).abs().max() < 1e-4
    assert not torch.allclose(ours, latents_of(tiny_pipe, scheduler='DDIM', guidance_interval=interval), atol=1e-3)


@pytest.mark.parametrize(('interval', 'rows'), [
    ((0, 0.5), [2, 2, 2, 1, 1, 1]), ((0.5, 1), [1, 1, 1, 2, 2, 2]), ((0.2, 0.7), [1, 1, 2, 2, 2, 1]),
    ((0, 1), [2] * 6), ((0.7, 0.9), [1, 1, 1, 1, 1, 2])], ids=str)
def test_the_unet_is_called_on_half_the_rows_outside(tiny_pipe, interval: tuple[float, float], rows: list[int]):
    assert rows_of(tiny_pipe, guidance_interval=interval) == rows


@pytest.mark.parametrize(('label', 'rows'), [('Heun', [2] * 6 + [1] * 5), ('DPM2', [2] * 6 + [1] * 5),
                                             ('PNDM', [2] * 4 + [1] * 3)])
def test_a_step_is_guided_in_both_its_halves_or_in_none(tiny_pipe, label: str, rows: list[int]):
    assert rows_of(tiny_pipe, scheduler=label, guidance_interval=(0, 0.5)) == rows


def test_all_of_the_steps_is_the_picture_without_an_interval(tiny_pipe):
    assert torch.equal(latents_of(tiny_pipe, guidance_interval=(0, 1)), latents_of(tiny_pipe))


def test_without_guidance_an_interval_changes_nothing(tiny_pipe):
    given = {'guidance_scale': 1.0}
    assert torch.equal(latents_of(tiny_pipe, guidance_interval=(0, 0.5), **given), latents_of(tiny_pipe, **given))
    assert rows_of(tiny_pipe, guidance_interval=(0, 0.5), **given) == [1] * STEPS


def test_prompts_of_different_length_in_one_request(tiny_pipe):
    texts = ['cat', 'cat ' * 100]
    settings = {'num_inference_steps': STEPS, 'guidance_interval': (0.2, 0.7), 'output_type': 'np'}
    together = tiny_pipe({'text': texts, 'seed': [7, 8], **settings})['output_imgs']
    alone = [tiny_pipe({'text': text, 'seed': seed, **settings})['output_imgs'][0]
             for text, seed in zip(texts, (7, 8))]
    assert np.abs(np.stack(together) - np.stack(alone)).max() < 1e-4


def test_the_users_own_callback_is_called_and_obeyed(tiny_pipe):
    calls = []

    def halve(pipe: Any, call: int, time: Any, tensors: dict) -> dict:
        calls.append((call, sorted(tensors)))
        return {'latents': tensors['latents'] / 2} if call == 3 else {}

    def draw(**settings: Any) -> Any:
        return tiny_pipe('cat', seed=7, num_inference_steps=STEPS, output_type='np', guidance_interval=(0, 0.5),
                         **settings)['output_imgs'][0]
    assert not np.array_equal(draw(callback_on_step_end=halve), draw())
    assert calls == [(call, ['latents']) for call in range(STEPS)]


def test_the_old_callback_and_one_that_returns_nothing_work(tiny_pipe):
    seen: list[int] = []
    for given in ({'callback': lambda step, time, latents: seen.append(step), 'callback_steps': 2},
                  {'callback_on_step_end': lambda *call: seen.append(call[1])}):
        tiny_pipe('cat', seed=7, num_inference_steps=STEPS, guidance_interval=(0.2, 0.7), **given)
    assert seen == [0, 2, 4, *range(STEPS)]


def test_a_scale_that_a_callback_sets_while_guided_is_found_again(tiny_pipe):
    scales = []

    def raise_it(pipe: Any, call: int, *_: Any) -> dict:
        scales.append(pipe.guidance_scale)
        if call == 1:
            pipe._guidance_scale = 3.0
        return {}
    tiny_pipe('cat', seed=7, num_inference_steps=STEPS, guidance_interval=(0, 0.5), callback_on_step_end=raise_it)
    assert scales == [SCALE, SCALE, 3.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(('cutoff', 'rows'), [(1, [2, 2, 1, 1, 1, 1]), (4, [2, 2, 2, 1, 1, 1])])
def test_diffusers_own_cutoff_and_the_interval_do_not_disturb_each_other(tiny_pipe, cutoff: int, rows: list[int]):
    callback = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=cutoff)
    assert rows_of(tiny_pipe, guidance_interval=(0, 0.5), callback_on_step_end=callback) == rows


def test_a_model_with_its_guidance_built_in_refuses_an_interval(tiny_pipe, monkeypatch):
    unet = tiny_pipe.pipeline.unet
    monkeypatch.setattr(unet, '_internal_dict', type(unet.config)({**unet.config, 'time_cond_proj_dim': 8}))
    with pytest.raises(InvalidRequest, match=r'guidance_interval is \(0.0, 0.5\), and this model has its guidance'):
        tiny_pipe('cat', seed=7, num_inference_steps=STEPS, guidance_interval=(0, 0.5))
