"""The compile backend: the pictures are torch's, graphs are counted, and weights are as they were."""
from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import tiny
import torch
from torch._dynamo.utils import counters

from modelscope_cartoon import cache, load_pipeline
from modelscope_cartoon.backends import buckets, choose, get_backend
from modelscope_cartoon.backends.compiled import Compiled, _prepared, compiled_calls
from modelscope_cartoon.backends.merged_loras import MergedLoras
from modelscope_cartoon.errors import ModelError
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.lora_choice import LoraChoice

CPU, GPU = torch.device('cpu'), torch.device('cuda')
CAT = {'text': 'a cat', 'seed': 3, 'num_inference_steps': 3}
TRACED = {'compile': True, 'compile_options': {'backend': 'eager'}}     # graphs as compiled, run by torch as it is


@pytest.fixture(scope='module', autouse=True)
def small(tmp_path_factory):
    """A cache of its own, and a second size that is drawn at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('modelscope_cartoon.backends.compiled.SIZES', ((96, 96),))
        patch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path_factory.mktemp('cache')))
        patch.delenv('TORCHINDUCTOR_CACHE_DIR', raising=False)
        yield


@pytest.fixture(scope='module')
def loras(tiny_folder, tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp('loras')
    return [str(tiny.build_lora(root / name, tiny_folder, seed)) for name, seed in (('a', 1), ('b', 2))]


@pytest.fixture(scope='module')
def compiled(tiny_folder):
    """Knows the shapes of one picture at 64 pixels, with guidance and without."""
    pipe = load_pipeline(tiny_folder, device='cpu', backend='compile', **TRACED)
    pipe({**CAT, 'num_inference_steps': 1})
    pipe({**CAT, 'num_inference_steps': 1, 'guidance_scale': 1.0})
    return pipe


def graphs() -> int:
    return counters['stats']['unique_graphs']


def draw(pipe, **request) -> np.ndarray:
    return pipe({**CAT, **request})['output_imgs'][0].astype(int)


@pytest.mark.parametrize('request_', [
    {}, {'text': 'a dog in a hat', 'seed': 9}, {'scheduler': 'Euler a'}, {'scheduler': 'DPM++ 2M Karras'},
    {'guidance_scale': 1.0}, {'num_inference_steps': 7}, {'scheduler': 'Heun'},
    {'preset': 'fast', 'num_inference_steps': 4}, {'guidance_interval': (0.4, 0.8)}])
def test_its_pictures_are_torchs_and_nothing_is_compiled_again(compiled, tiny_pipe, request_):
    before = graphs()
    assert np.abs(draw(compiled, **request_) - draw(tiny_pipe, **request_)).max() <= 1
    assert graphs() == before > 0


def test_loras_and_their_scales_change_the_picture_and_not_the_graph(compiled, tiny_pipe, loras):
    plain, before = draw(compiled), graphs()
    for lora in ([(loras[0], 1.0)], [(loras[0], 0.5)], [(loras[0], 1.0), (loras[1], -0.5)]):
        picture = draw(compiled, lora=lora)
        assert np.abs(picture - draw(tiny_pipe, lora=lora)).max() <= 1
        assert np.abs(picture - plain).max() > 5
    assert graphs() == before and (draw(compiled) == plain).all()


def test_a_second_size_is_one_graph_more_for_each_network(compiled, caplog):
    before = graphs()
    draw(compiled, height=96, width=96, num_inference_steps=1)
    assert graphs() == before + 2
    assert 'compiling the UNet2DConditionModel for 96 x 96 pixels, 2 at once' in caplog.text
    draw(compiled, height=96, width=96, num_inference_steps=1, seed=1)
    draw(compiled)
    assert graphs() == before + 2


def test_another_size_is_drawn_without_compiling_and_said_once(compiled, tiny_pipe, caplog):
    before = graphs()
    for _ in range(2):
        assert np.abs(draw(compiled, height=72, width=64) - draw(tiny_pipe, height=72, width=64)).max() <= 1
    assert graphs() == before and caplog.text.count('72 x 64 pixels are drawn without compiling') == 1


def test_three_pictures_are_drawn_in_the_bucket_of_four(compiled, tiny_pipe):
    request = {**CAT, 'num_images_per_prompt': 4}
    compiled(request)
    before = graphs()
    three = compiled({**CAT, 'num_images_per_prompt': 3})['output_imgs']
    assert graphs() == before
    for one, other in zip(three, tiny_pipe({**CAT, 'num_images_per_prompt': 3})['output_imgs'], strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_reused_features_are_compiled_too(compiled, tiny_pipe):
    before = graphs()
    for seed in (3, 4):
        request = {'cache_interval': 2, 'num_inference_steps': 4, 'seed': seed}
        assert np.abs(draw(compiled, **request) - draw(tiny_pipe, **request)).max() <= 1
    assert graphs() == before + 2


def test_a_unet_whose_features_can_not_be_reused_offers_no_calls_for_that(tiny_folder):
    pipe = load_pipeline(tiny_folder, device='cpu').pipeline
    pipe.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    with compiled_calls(pipe, buckets.Buckets(CPU, {(8, 8)}, 8, {'backend': 'eager'})):
        assert 'forward' in vars(pipe.unet) and not hasattr(pipe.unet, 'feature_calls')


def test_models_of_one_architecture_share_their_graphs(compiled, tmp_path):
    other = load_pipeline(tiny.build(tmp_path / 'other', seed=5), device='cpu', backend='compile', **TRACED)
    before = graphs()
    assert np.abs(draw(other) - draw(compiled)).max() > 5 and graphs() == before


def test_every_weight_is_as_it_was_after_an_error_too(compiled, loras):
    networks = (compiled.pipeline.unet, compiled.pipeline.text_encoder)
    before = [{k: v.clone() for k, v in network.state_dict().items()} for network in networks]

    def fail(pipe, step, timestep, tensors):
        raise RuntimeError('on purpose')
    with pytest.raises(RuntimeError, match='on purpose'):
        draw(compiled, lora=loras[0], callback_on_step_end=fail)
    for network, state in zip(networks, before, strict=True):
        now = network.state_dict()
        assert now.keys() == state.keys() and all(torch.equal(now[key], state[key]) for key in state)
        assert not {'forward', 'feature_calls'} & vars(network).keys()


def test_a_callback_may_draw_another_lora_in_between(compiled, loras):
    plain, inner = draw(compiled, lora=loras[0]), []
    other = draw(compiled, lora=loras[1])

    def also(pipe, step, timestep, tensors):
        if step == 1:
            inner.append(draw(compiled, lora=loras[1]))
    assert (draw(compiled, lora=loras[0], callback_on_step_end=also) == plain).all()
    assert (inner[0] == other).all()


def test_what_a_killed_block_left_behind_is_taken_off_by_the_next(tiny_folder, loras):
    pipe = load_pipeline(tiny_folder, device='cpu').pipeline
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    merged, mine = MergedLoras(), {k: v.data for k, v in pipe.unet.named_parameters()}
    block = merged.on(pipe, [LoraChoice('a', loras[0], 1.0)])
    block.__enter__()
    merged._depth = 0     # a second Ctrl-C within the first one's cleaning up
    assert any(not torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    assert all(torch.equal(own, before[key]) for key, own in mine.items())     # another model may share it
    with merged.on(pipe, []):
        assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())


def test_in_a_lower_memory_mode_it_says_so_and_draws_as_torch_does(tiny_folder, tiny_pipe, loras, caplog):
    pipe = load_pipeline(tiny_folder, device='cpu', backend='compile', memory='low', **TRACED)
    before = graphs()
    assert (draw(pipe, lora=loras[0]) == draw(tiny_pipe, lora=loras[0])).all()
    assert graphs() == before and "backend 'compile' needs memory mode 'full'; in 'low' it draws without" in caplog.text


def test_a_compilation_that_fails_is_said_and_the_picture_is_drawn_all_the_same(tiny_folder, tiny_pipe, caplog):
    def broken(graph, inputs):
        raise ValueError('no such kernel')
    pipe = load_pipeline(tiny_folder, device='cpu', backend='compile', compile=True,
                         compile_options={'backend': broken})
    assert np.abs(draw(pipe) - draw(tiny_pipe)).max() <= 1
    assert 'no such kernel' in caplog.text and caplog.text.count('drawing goes on without it') == 1


def test_float32_after_an_overflow_gets_graphs_of_its_own(tiny_folder, tiny_pipe):
    pipe = load_pipeline(tiny_folder, device='cpu', backend='compile', dtype='bfloat16', **TRACED)
    pipe.model._backend.to_fp32()
    assert np.abs(draw(pipe, seed=5) - draw(tiny_pipe, seed=5)).max() <= 10     # the weights have been through bf16
    assert pipe.pipeline.unet.dtype == torch.float32


@pytest.mark.skipif(not shutil.which('g++'), reason='no C++ compiler')
def test_the_real_compiler_keeps_its_code_in_our_cache_and_leaves_the_users_setting_alone():
    quick = {'compile_threads': 1, 'cpp_cache_precompile_headers': False, 'cpp.simdlen': 1}
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.SiLU())
    ours = buckets.Buckets(CPU, {(8, 8)}, 8, {})
    latents = torch.randn(3, 4, 8, 8)

    def run(module, tensor):
        return module(tensor)
    with torch.no_grad(), torch._inductor.config.patch(quick):
        assert torch.allclose(ours.call(run, network, latents), network(latents), atol=1e-5)
    assert not ours.broken and any(buckets.folder().rglob('*.so')) and 'TORCHINDUCTOR_CACHE_DIR' not in os.environ


def test_auto_takes_it_on_a_gpu_where_it_is_prepared_and_never_on_a_cpu(tiny_folder, monkeypatch):
    folder = ModelFolder(tiny_folder)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'H100')
    assert Compiled.recommended(folder, GPU, torch.bfloat16) is None
    _prepared(folder, GPU, torch.bfloat16).mkdir(parents=True)
    buckets.folder().mkdir(parents=True, exist_ok=True)
    assert Compiled.recommended(folder, GPU, torch.bfloat16) == 'prepared for H100, and the fastest there.'
    assert Compiled.recommended(folder, GPU, torch.float16) is None
    _prepared(folder, CPU, torch.float32).mkdir(parents=True)
    assert choose('auto', folder, CPU, torch.float32) is get_backend('torch')


def test_what_it_lacks_is_a_sentence(tiny_folder, monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(ModelError, match=r"backend 'compile' can't run here: it needs a C\+\+ compiler.*g\+\+"):
        load_pipeline(tiny_folder, device='cpu', backend='compile')


def test_preparing_reports_each_size(tiny_folder):
    lines: list[str] = []
    backend = Compiled(ModelFolder(tiny_folder), CPU, torch.float32, 'full')
    backend.compile(backend='eager')
    assert sorted(backend.warm_up(lines.append)) == ['64 x 64', '96 x 96'] and len(lines) == 2
    assert lines[0].startswith('compiled for 64 x 64 pixels: ')
    assert Compiled.prepare(ModelFolder(tiny_folder), CPU, torch.float32, lines.append) is False
    assert cache.root() in buckets.folder().parents
