"""Feature reuse: `whole` is the UNet itself, the published package ends at the same latents, nothing stays behind."""
from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import UNet2DConditionModel, UNet2DModel

from modelscope_cartoon import deepcache, load_pipeline
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.lora import Loras
from modelscope_cartoon.lora_choice import LoraChoice
from modelscope_cartoon.schedulers import ROWS

STEPS = 6
SD21 = {'sample_size': 96, 'cross_attention_dim': 1024, 'attention_head_dim': (5, 10, 20, 20),
        'use_linear_projection': True}
# The three layouts: mini's (plain blocks outside, one layer), Stable Diffusion's (attention outside, two layers), and
# one whose levels differ in their number of layers.
LAYOUTS: dict[str, dict] = {
    'mini': {'down_block_types': ('DownBlock2D', 'CrossAttnDownBlock2D'), 'layers_per_block': 1,
             'up_block_types': ('CrossAttnUpBlock2D', 'UpBlock2D')},
    'sd': {'down_block_types': ('CrossAttnDownBlock2D',) * 2 + ('DownBlock2D',), 'layers_per_block': 2,
           'up_block_types': ('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 2, 'block_out_channels': (8, 16, 16),
           'use_linear_projection': True, 'upcast_attention': True},
    'uneven': {'down_block_types': ('CrossAttnDownBlock2D', 'DownBlock2D'), 'layers_per_block': (1, 3),
               'up_block_types': ('UpBlock2D', 'CrossAttnUpBlock2D'), 'mid_block_type': None}}


def unet_of(**options: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    plain = {'block_out_channels': (8, 16), 'sample_size': 8, 'in_channels': 4, 'out_channels': 4,
             'cross_attention_dim': 16, 'attention_head_dim': 4, 'norm_num_groups': 4}
    return UNet2DConditionModel(**{**plain, **LAYOUTS['mini'], **options}).eval()


def tensors(batch: int = 2, height: int = 8, width: int = 8, seed: int = 0) -> tuple[torch.Tensor, Any, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, 4, height, width, generator=generator), torch.tensor(500),
            torch.randn(batch, 7, 16, generator=generator))


@contextmanager
def counting(unet: UNet2DConditionModel) -> Iterator[list[str]]:
    """What is called meanwhile: rows that enter the first convolution, and the middle block."""
    seen: list[str] = []
    parts = {'conv_in': 'rows', 'mid_block': 'deep'}
    handles = [getattr(unet, part).register_forward_pre_hook(
        lambda module, given, name=name: seen.append(f'{name} {len(given[0])}')) for part, name in parts.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('size', [(8, 8), (9, 11), (16, 4)], ids=str)
@torch.no_grad()
def test_whole_is_the_unet_to_the_bit(layout: str, size: tuple[int, int]):
    unet = unet_of(**LAYOUTS[layout])
    given = tensors(3, *size)
    noise, feature = deepcache.whole(unet, *given)
    assert torch.equal(noise, unet(*given).sample)
    assert torch.equal(deepcache.shallow(unet, *given, feature), noise)


@torch.no_grad()
def test_a_shallow_call_sees_the_new_sample_time_and_text_in_its_outermost_layer():
    unet = unet_of(**LAYOUTS['sd'])
    sample, time, text = tensors()
    noise, feature = deepcache.whole(unet, sample, time, text)
    other, _, other_text = tensors(seed=1)
    for changed in ((other, time, text), (sample, torch.tensor(100), text), (sample, time, other_text)):
        assert not torch.allclose(deepcache.shallow(unet, *changed, feature), noise, atol=1e-4)


@torch.no_grad()
def test_a_lora_counts_in_both_calls(tiny_folder: Path, tmp_path: Path):
    pipe = load_pipeline(tiny_folder, device='cpu').pipeline
    lora = tiny.build_lora(tmp_path, tiny_folder)
    given = tensors()
    plain, feature = deepcache.whole(pipe.unet, *given)
    with Loras().on(pipe, [LoraChoice('l', str(lora), 1.0)]):
        noise, _ = deepcache.whole(pipe.unet, *given)
        assert torch.equal(noise, pipe.unet(*given).sample) and not torch.equal(noise, plain)
        assert not torch.equal(deepcache.shallow(pipe.unet, *given, feature), plain)
    assert torch.equal(deepcache.whole(pipe.unet, *given)[0], plain)


def run(unet: Any, interval: int, batches: list[int]) -> list[str]:
    with counting(unet) as seen:
        reusing = deepcache.ReusingUNet(unet, interval)
        for batch in batches:
            sample, time, text = tensors(batch)
            assert reusing(sample, time, encoder_hidden_states=text, return_dict=False)[0].shape == sample.shape
    return seen


def test_every_nth_call_is_whole():
    deep, flat = ['rows 2', 'deep 2'], ['rows 2']
    assert run(unet_of(), 1, [2] * 3) == deep * 3
    assert run(unet_of(), 2, [2] * 5) == (deep + flat) * 2 + deep
    assert run(unet_of(), 3, [2] * 7) == (deep + flat * 2) * 2 + deep


def test_guidance_off_goes_on_with_the_conditional_half_and_on_again_takes_a_whole_call():
    assert run(unet_of(), 3, [4, 2, 2, 2, 4]) == ['rows 4', 'deep 4', 'rows 2', 'rows 2', 'rows 2', 'deep 2',
                                                  'rows 4', 'deep 4']


@torch.no_grad()
def test_the_conditional_half_is_the_second():
    unet, (sample, time, text) = unet_of(), tensors(4)
    reusing = deepcache.ReusingUNet(unet, 2)
    reusing(sample, time, text)
    _, feature = deepcache.whole(unet, sample[2:], time, text[2:])
    again = deepcache.shallow(unet, sample[2:], time, text[2:], feature)
    assert torch.allclose(reusing(sample[2:], time, text[2:]).sample, again, atol=1e-6)


# DeepCache 0.1.1 finds a call's number by its timestep, which the schedulers that call twice at one timestep break
# (Heun, DPM2, PNDM): there it never refreshes, or refreshes at other calls than every n-th.
ONCE = [row.label for row in ROWS if row.label not in ('Heun', 'DPM2', 'DPM2 a', 'PNDM')]


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from modelscope_cartoon import mini
    return {'tiny': tiny.build(tmp_path_factory.mktemp('deepcache') / 'model'), 'mini': mini.path()}


def latents_of(pipe: Any, **settings: Any) -> torch.Tensor:
    """The last latents of a picture: what a callback sees after the last step."""
    seen = []
    pipe({'text': ['cat', 'sk'], 'seed': 7, 'num_inference_steps': STEPS, **settings},
         callback_on_step_end=lambda pipe, call, time, some: seen.append(some['latents']))
    return seen[-1]


def published(pipe: Any, interval: int, **settings: Any) -> torch.Tensor:
    """The same through DeepCache's own helper, whose wrapped UNet looks its calls up in the scheduler's timesteps."""
    helper = pytest.importorskip('DeepCache').DeepCacheSDHelper(pipe=pipe.pipeline)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    inner = pipe.pipeline.unet.forward

    def forward(sample: torch.Tensor, time: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return inner(sample, time, *arguments, **options)
    pipe.pipeline.unet.forward = forward
    try:
        from modelscope_cartoon import sampling
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, 'session', lambda *given, own=sampling.session: shown(helper, own(*given)))
            return latents_of(pipe, **settings)
    finally:
        helper.disable()


def shown(helper: Any, session: Any) -> Any:
    helper.pipe = copy.copy(helper.pipe)     # the helper reads the timesteps from the pipeline that draws
    helper.pipe.scheduler = session.scheduler
    return session


@pytest.mark.parametrize('label', ONCE)
def test_the_published_package_ends_at_the_same_latents(folders, label: str):
    pipe = load_pipeline(folders['tiny'], device='cpu')
    for interval in (2, 3):
        theirs = published(pipe, interval, scheduler=label)
        assert torch.equal(latents_of(pipe, scheduler=label, cache_interval=interval), theirs)
    assert not torch.equal(theirs, latents_of(pipe, scheduler=label))


def test_the_published_package_ends_at_the_same_latents_with_the_embedded_model_in_a_style(folders):
    pipe = load_pipeline(folders['mini'], device='cpu')
    theirs = published(pipe, 3, style='flat')
    assert torch.equal(latents_of(pipe, style='flat', cache_interval=3), theirs)


@pytest.mark.parametrize(('label', 'interval', 'deep'),
                         [('Heun', 2, 6), ('DPM2', 2, 6), ('PNDM', 2, 4), ('Heun', 3, 4)])
def test_second_halves_of_a_step_count_as_calls(tiny_pipe, label: str, interval: int, deep: int):
    """Heun's and DPM2's 2 x 6 - 1 calls, PNDM's 6 + 1: with 2, each first half is whole and each second one reuses."""
    with counting(tiny_pipe.pipeline.unet) as seen:
        tiny_pipe('cat', seed=7, scheduler=label, num_inference_steps=STEPS, cache_interval=interval)
    assert seen.count('deep 2') == deep and seen.count('rows 2') == {'PNDM': STEPS + 1}.get(label, 2 * STEPS - 1)


def test_the_evaluations_that_the_docs_name_for_fast_with_reuse(tiny_pipe):
    """16 whole and 14 shallow rows: guidance comes on in the middle of an interval, which costs one whole call more."""
    with counting(tiny_pipe.pipeline.unet) as seen:
        tiny_pipe('cat', seed=7, preset='fast', cache_interval=2)
    rows, deep = (sum(int(call.split()[1]) for call in seen if call.startswith(name)) for name in ('rows', 'deep'))
    assert (deep, rows - deep) == (16, 14)


def test_an_interval_of_one_changes_nothing_and_a_picture_leaves_nothing_behind(tiny_pipe):
    def draw(**settings: Any) -> np.ndarray:
        return tiny_pipe('cat', seed=7, num_inference_steps=STEPS, output_type='np', **settings)['output_imgs'][0]
    before, unet = draw(), tiny_pipe.pipeline.unet
    reused = draw(cache_interval=3)
    assert np.array_equal(draw(cache_interval=1), before) and not np.array_equal(reused, before)
    assert np.array_equal(draw(cache_interval=3), reused)
    assert tiny_pipe.pipeline.unet is unet and tiny_pipe.pipeline.config['unet'][1] == 'UNet2DConditionModel'


def test_a_picture_is_the_same_in_any_batch(tiny_pipe):
    settings = {'seed': [1, 2], 'cache_interval': 2, 'guidance_interval': (0, 0.5), 'num_inference_steps': STEPS,
                'output_type': 'np', 'text': ['cat', 'sk']}
    together = tiny_pipe(settings)['output_imgs']
    alone = [tiny_pipe({**settings, 'text': text, 'seed': seed})['output_imgs'][0]
             for text, seed in (('cat', 1), ('sk', 2))]
    assert np.abs(np.stack(together) - np.stack(alone)).max() < 1e-4


def test_what_offloading_hangs_on_the_unet_is_asked(tiny_folder: Path):
    class Counter(ModelHook):
        before, after = 0, 0

        def pre_forward(self, module: Any, *arguments: Any, **options: Any) -> Any:
            self.before += 1
            return arguments, options

        def post_forward(self, module: Any, output: Any) -> Any:
            self.after += 1
            return output

    pipe, hook = load_pipeline(tiny_folder, device='cpu'), Counter()
    add_hook_to_module(pipe.pipeline.unet, hook)
    pipe('cat', seed=7, num_inference_steps=STEPS, cache_interval=2)
    assert hook.before == hook.after == STEPS


def test_diffusers_own_hooks_are_asked_too(tiny_folder: Path):
    from diffusers.hooks import apply_group_offloading
    plain = load_pipeline(tiny_folder, device='cpu')
    offloaded = load_pipeline(tiny_folder, device='cpu')
    apply_group_offloading(offloaded.pipeline.unet, onload_device=torch.device('cpu'), offload_type='block_level',
                           offload_device=torch.device('cpu'), num_blocks_per_group=1)
    assert torch.equal(latents_of(offloaded, cache_interval=2), latents_of(plain, cache_interval=2))


def test_a_backends_own_calls_are_used():
    calls = []

    class Compiled:
        feature_calls = (lambda *given: (calls.append('whole'), (given[0], given[0]))[1],
                         lambda *given: (calls.append('shallow'), given[0])[1])

    deepcache.check(Compiled(), 2)
    reusing = deepcache.ReusingUNet(Compiled(), 2)
    for _ in range(3):
        reusing(*tensors())
    assert calls == ['whole', 'shallow', 'whole']


@pytest.mark.parametrize(('unet', 'words'), [
    (lambda: UNet2DModel(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
                         down_block_types=('DownBlock2D',) * 2, up_block_types=('UpBlock2D',) * 2), 'is a UNet2DModel'),
    (lambda: unet_of(down_block_types=('SimpleCrossAttnDownBlock2D', 'DownBlock2D'),
                     up_block_types=('UpBlock2D', 'UpBlock2D')), 'has a SimpleCrossAttnDownBlock2D'),
    (lambda: unet_of(time_cond_proj_dim=8), 'has the time_cond_proj_dim 8'),
    (lambda: with_freeu(unet_of()), 'has FreeU on')], ids=['class', 'blocks', 'config', 'FreeU'])
def test_a_unet_of_another_kind_is_refused_in_one_sentence(unet, words: str):
    made = unet()
    deepcache.check(made, 1)
    with pytest.raises(InvalidRequest, match=f"cache_interval is 2, and this model's UNet {words}"):
        deepcache.check(made, 2)


def with_freeu(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    unet.enable_freeu(0.9, 0.2, 1.1, 1.2)
    return unet


def test_a_compiled_unet_is_looked_through(tiny_folder: Path):
    unet = unet_of()
    deepcache.check(torch.compile(unet, backend='eager'), 2)
    assert run(unet, 2, [2, 2]) == ['rows 2', 'deep 2', 'rows 2']


def test_conditions_that_reuse_does_not_know_are_refused():
    with pytest.raises(InvalidRequest, match='called with cross_attention_kwargs'):
        deepcache.ReusingUNet(unet_of(), 2)(*tensors(), cross_attention_kwargs={'scale': 1})


def test_a_shallow_call_of_stable_diffusion_2_1_is_a_thirteenth_of_a_whole_one():
    """Counted by torch on a model without weights: 7.9 % at 512 pixels, 9.4 % at 768."""
    from torch.utils.flop_counter import FlopCounterMode
    with torch.device('meta'):
        unet = UNet2DConditionModel(**SD21)
    for side, share in ((64, 0.0787), (96, 0.0943)):
        given = (torch.empty(2, 4, side, side, device='meta'), torch.empty((), device='meta'),
                 torch.empty(2, 77, 1024, device='meta'))
        with FlopCounterMode(display=False) as counted:
            _, feature = deepcache.whole(unet, *given)
        full = counted.get_total_flops()
        with FlopCounterMode(display=False) as counted:
            deepcache.shallow(unet, *given, feature)
        assert counted.get_total_flops() / full == pytest.approx(share, abs=0.0005)
