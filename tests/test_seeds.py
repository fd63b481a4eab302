"""One request and one seed are one picture: alone, in a list, in a batch, in a thread, in another process."""
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

LONG = 'a portrait painting of a woman with red hair, ' * 3      # 128 tokens of the tiny tokenizer: two chunks
PROMPTS = ['cat', LONG, 'a (cat:1.4) BREAK sk', 'sk', LONG + ' by the sea', '']
SETTINGS = {'num_inference_steps': 4, 'output_type': 'rgb'}
SCHEDULERS = [None, 'Euler a', 'LCM']      # the folder's own DDIM, and two that add noise at each step


def requests(scheduler: str | None) -> list[dict[str, Any]]:
    return [{'text': text, 'seed': 40 + i, 'scheduler': scheduler, 'negative_prompt': 'sk' * (i % 2), **SETTINGS}
            for i, text in enumerate(PROMPTS)]


@pytest.fixture(scope='module')
def alone(tiny_pipe) -> dict[str | None, list[np.ndarray]]:
    """Each request drawn by itself."""
    return {scheduler: [tiny_pipe(request)['output_imgs'][0] for request in requests(scheduler)]
            for scheduler in SCHEDULERS}


def assert_same(drawn: list[np.ndarray], expected: list[np.ndarray], levels: int = 1) -> None:
    assert len(drawn) == len(expected)
    for image, other in zip(drawn, expected):
        assert np.abs(image.astype(int) - other.astype(int)).max() <= levels


@pytest.mark.parametrize('scheduler', SCHEDULERS)
def test_different_seeds_and_prompts_give_different_pictures(alone, scheduler: str | None):
    for i, image in enumerate(alone[scheduler]):
        assert all(np.abs(image.astype(int) - other.astype(int)).max() > 8 for other in alone[scheduler][:i])


@pytest.mark.parametrize('scheduler', SCHEDULERS)
@pytest.mark.parametrize('batch_size', [2, 6])
def test_a_picture_is_the_same_in_a_batch_of_any_size(tiny_pipe, alone, scheduler: str | None, batch_size: int):
    drawn = [one['output_imgs'][0] for one in tiny_pipe(requests(scheduler), batch_size=batch_size)]
    assert_same(drawn, alone[scheduler])


def test_a_picture_is_the_same_at_any_position_of_a_batch(tiny_pipe, alone):
    order = [3, 0, 5, 1, 4, 2]
    several = [requests('Euler a')[i] for i in order]
    drawn = [one['output_imgs'][0] for one in tiny_pipe(several, batch_size=len(order))]
    assert_same(drawn, [alone['Euler a'][i] for i in order])


def test_a_batch_is_really_drawn_together_and_only_prompts_of_one_length_share_it(tiny_pipe):
    batches = []
    hook = tiny_pipe.pipeline.unet.register_forward_hook(lambda unet, given, out: batches.append(len(given[0])))
    try:
        tiny_pipe(requests('Euler a'), batch_size=6)
    finally:
        hook.remove()
    # Three prompts of one chunk and three of two, each beside its negative prompt, four steps.
    assert batches == [6] * 8


def test_a_list_without_a_batch_size_draws_each_picture_as_if_alone(tiny_pipe, alone):
    drawn = [one['output_imgs'][0] for one in tiny_pipe(requests('Euler a'))]
    assert_same(drawn, alone['Euler a'], levels=0)


def test_requests_of_different_settings_in_one_batch_keep_their_own(tiny_pipe, alone):
    several = [request for pair in zip(*map(requests, SCHEDULERS)) for request in pair]
    drawn = [one['output_imgs'][0] for one in tiny_pipe(several, batch_size=5)]
    assert_same(drawn, [image for images in zip(*(alone[s] for s in SCHEDULERS)) for image in images])


def test_one_request_with_several_prompts_is_each_prompt_alone(tiny_pipe, alone):
    together = tiny_pipe({'text': PROMPTS, 'seed': [40, 41, 42, 43, 44, 45], 'scheduler': 'Euler a',
                          'negative_prompt': ['', 'sk'] * 3, **SETTINGS})
    assert together['seeds'] == [40, 41, 42, 43, 44, 45]
    assert_same(together['output_imgs'], alone['Euler a'])


@pytest.mark.parametrize('scheduler', [None, 'Euler a'])
def test_num_images_per_prompt_is_the_seeds_one_after_another(tiny_pipe, scheduler: str | None):
    settings = {'scheduler': scheduler, **SETTINGS}
    together = tiny_pipe('cat', seed=2**32 - 2, num_images_per_prompt=5, **settings)
    assert together['seeds'] == [2**32 - 2, 2**32 - 1, 0, 1, 2]
    assert_same(together['output_imgs'],
                [tiny_pipe('cat', seed=seed, **settings)['output_imgs'][0] for seed in together['seeds']])


def test_a_drawn_seed_is_told_and_draws_the_picture_again(tiny_pipe):
    first = tiny_pipe('cat', **SETTINGS)
    assert first['seeds'] != tiny_pipe('cat', **SETTINGS)['seeds']
    assert_same(tiny_pipe('cat', seed=first['seeds'], **SETTINGS)['output_imgs'], first['output_imgs'], levels=0)


def test_torchs_own_seed_is_neither_used_nor_changed(tiny_pipe, alone):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = [tiny_pipe(requests('LCM')[0])['output_imgs'][0]]
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(drawn, alone['LCM'][:1], levels=0)


@pytest.mark.parametrize('scheduler', ['PNDM', 'Euler a'])
def test_four_threads_on_one_pipeline_draw_what_one_thread_draws(tiny_pipe, scheduler: str):
    several = [{'text': 'cat', 'seed': seed, 'scheduler': scheduler, **SETTINGS} for seed in range(4)]
    expected = [tiny_pipe(request)['output_imgs'][0] for request in several]
    with ThreadPoolExecutor(4) as pool:
        drawn = [one['output_imgs'][0] for one in pool.map(tiny_pipe, several)]
    assert_same(drawn, expected, levels=0)


def test_threads_with_different_schedulers_do_not_mix_them(tiny_pipe, alone):
    several = [requests(scheduler)[0] for scheduler in SCHEDULERS]
    with ThreadPoolExecutor(4) as pool:
        drawn = [one['output_imgs'][0] for one in pool.map(tiny_pipe, several)]
    assert_same(drawn, [alone[scheduler][0] for scheduler in SCHEDULERS], levels=0)


def test_drawing_leaves_the_pipelines_own_scheduler_untouched(tiny_pipe):
    own = tiny_pipe.pipeline.scheduler
    before = dict(own.config), own.timesteps.clone(), own.num_inference_steps
    tiny_pipe('cat', seed=1, scheduler='PNDM', **SETTINGS)
    tiny_pipe('cat', seed=1, **SETTINGS)
    assert tiny_pipe.pipeline.scheduler is own
    assert (dict(own.config), own.num_inference_steps) == (before[0], before[2])
    assert torch.equal(own.timesteps, before[1])


IN_ANOTHER_PROCESS = '''
import hashlib, sys, torch
torch.set_num_threads(1)
from modelscope_cartoon import load_pipeline
pipe = load_pipeline(sys.argv[1], device='cpu')
for text, scheduler in (('cat', 'DDIM'), ('a (cat:1.4) BREAK sk', 'Euler a')):
    out = pipe(text, seed=7, scheduler=scheduler, num_inference_steps=4, num_images_per_prompt=2, output_type='np')
    print(*(hashlib.sha256(image.tobytes()).hexdigest() for image in out['output_imgs']))
'''


def test_another_process_draws_the_same_floats(tiny_pipe, tiny_folder: Path):
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', IN_ANOTHER_PROCESS, str(tiny_folder)], cwd=root, text=True, check=True,
                          capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(root)})
    here = []
    for text, scheduler in (('cat', 'DDIM'), ('a (cat:1.4) BREAK sk', 'Euler a')):
        out = tiny_pipe(text, seed=7, scheduler=scheduler, num_inference_steps=4, num_images_per_prompt=2,
                        output_type='np')
        here += [hashlib.sha256(image.tobytes()).hexdigest() for image in out['output_imgs']]
    assert done.stdout.split()[-4:] == here
