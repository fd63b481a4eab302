"""The openvino backend: torch's pictures, from converted files, without torch's weights."""
from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from modelscope_cartoon import backends, load_pipeline, weights
from modelscope_cartoon.backends import conversion, graphs
from modelscope_cartoon.backends.openvino import OpenVINO
from modelscope_cartoon.errors import InvalidRequest, ModelError
from modelscope_cartoon.folder import ModelFolder
from modelscope_cartoon.precision import cpu_has_bf16

pytestmark = pytest.mark.skipif(not graphs.is_installed(), reason='openvino is not installed')
REQUEST = {'text': 'a cat', 'seed': [3, 4], 'num_inference_steps': 4, 'output_type': 'np'}
NEAR = 2e-4     # of 1, in float32


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='module')
def converted(tiny_folder):
    return load_pipeline(tiny_folder, device='cpu', backend='openvino')


@pytest.fixture(scope='module')
def lora(tiny_folder, tmp_path_factory):
    return str(tiny.build_lora(tmp_path_factory.mktemp('lora'), tiny_folder))


def draw(pipe, **fields) -> np.ndarray:
    return np.stack(pipe({**REQUEST, **fields})['output_imgs'])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


@pytest.mark.parametrize('fields', [
    {}, {'height': 72, 'width': 88}, {'text': 'a (cat:1.3), ' + 'a cat, ' * 30}, {'clip_skip': 1},
    {'scheduler': 'Euler a'}, {'cache_interval': 2}, {'guidance_interval': (0.0, 0.5)},
    {'guidance_interval': (0.0, 0.5), 'cache_interval': 3}, {'guidance_scale': 1.0}], ids=str)
def test_the_picture_is_that_of_torch(converted, tiny_pipe, fields):
    assert converted.model.backend == 'openvino'
    assert distance(draw(converted, **fields), draw(tiny_pipe, **fields)) < NEAR


def test_the_mini_model_with_a_style_is_drawn_as_torch_draws_it():
    style = {'style': 'flat', 'text': 'a portrait of a woman with red hair', 'seed': 7}
    ours = draw(load_pipeline(device='cpu', backend='openvino'), **style)
    assert distance(ours, draw(load_pipeline(device='cpu', backend='torch'), **style)) < NEAR


def test_a_seed_means_the_same_alone_and_in_a_batch(converted):
    assert distance(draw(converted)[1:], draw(converted, seed=4)) < NEAR


def test_a_lora_is_drawn_as_with_torch_and_leaves_no_trace(converted, tiny_pipe, lora):
    before = draw(converted)
    ours, theirs = (draw(pipe, lora=(lora, 0.7)) for pipe in (converted, tiny_pipe))
    assert distance(ours, theirs) < NEAR < distance(ours, before)
    assert np.array_equal(draw(converted), before)


def test_of_many_sets_of_loras_the_last_few_used_are_kept_on_disk(tmp_path):
    sets = [tmp_path / f'lora-{number}' for number in range(conversion.KEPT_MERGES + 2)]
    for age, path in enumerate(sets):
        path.mkdir()
        os.utime(path, (age, age))
    (tmp_path / 'unet').mkdir()
    conversion.keep_young(sets[0])
    assert {path.name for path in tmp_path.iterdir()} == {'unet', 'lora-0', *(path.name for path in sets[3:])}


def test_a_lora_for_another_model_is_refused_before_anything_is_converted(converted, tmp_path):
    strange = {'lora_unet_elsewhere.lora_down.weight': torch.ones(1, 4), 'lora_unet_elsewhere.lora_up.weight':
               torch.ones(4, 1)}
    save_file(strange, tmp_path / 'strange.safetensors')
    with pytest.raises(ModelError, match='made for another base model'):
        draw(converted, lora=str(tmp_path / 'strange.safetensors'))


def test_a_warm_start_reads_no_weights_of_torch_and_converts_nothing(converted, tiny_folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError('read again')
    expected = draw(converted)
    monkeypatch.setattr(weights, 'load_component', refuse)
    again = load_pipeline(tiny_folder, device='cpu', backend='openvino')
    assert again.model.backend == 'openvino' and np.array_equal(draw(again), expected)
    assert not list(again.pipeline.unet.parameters()) and not list(again.pipeline.vae.parameters())


def test_a_damaged_file_is_built_again(converted, tiny_folder, caplog):
    expected = draw(converted)
    file = conversion.place(ModelFolder(tiny_folder)) / 'vae' / 'vae.bin'
    half = file.read_bytes()[:1000]
    file.unlink()     # the old one stays mapped where it is in use
    file.write_bytes(half)
    again = load_pipeline(tiny_folder, device='cpu', backend='openvino')
    assert 'is damaged' in caplog.text and 'is built again' in caplog.text
    assert np.array_equal(draw(again), expected)


def test_prepare_converts_and_says_so_once(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path))
    monkeypatch.setattr(conversion, 'NETWORKS', ('vae',))     # the quickest
    said: list[str] = []
    arguments = ModelFolder(tiny_folder), torch.device('cpu'), torch.float32, said.append
    assert OpenVINO.prepare(*arguments) and not OpenVINO.prepare(*arguments)
    assert len(said) == 1 and 'converted for OpenVINO' in said[0] and str(tmp_path) in said[0]


def test_auto_takes_it_for_a_big_converted_model_on_a_cpu_only(converted, tiny_folder, monkeypatch, tmp_path):
    folder, cpu = ModelFolder(tiny_folder), torch.device('cpu')
    assert OpenVINO.recommended(folder, cpu, torch.float32) is None      # small
    monkeypatch.setattr(conversion, 'folder_bytes', lambda folder: 5 * 2**30)
    assert 'faster than torch' in OpenVINO.recommended(folder, cpu, torch.float32)
    assert backends.choose('auto', folder, cpu, torch.float32) is OpenVINO
    assert OpenVINO.recommended(folder, torch.device('cuda'), torch.float32) is None
    monkeypatch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path))
    assert OpenVINO.recommended(folder, cpu, torch.float32) is None      # not converted


def test_without_the_package_the_error_says_what_to_install(tiny_folder, monkeypatch):
    monkeypatch.setattr(graphs, 'is_installed', lambda: False)
    with pytest.raises(ModelError, match=r"openvino is not installed; pip install 'modelscope-cartoon\[openvino\]'"):
        load_pipeline(tiny_folder, device='cpu', backend='openvino')


def test_its_telemetry_is_not_even_imported(converted):
    assert sys.modules['openvino_telemetry'] is None
    assert 'stub' in type(sys.modules['openvino.tools.ovc'].telemetry).__module__


def test_another_architecture_is_drawn_with_torch_and_that_is_said(tiny_folder, tmp_path):
    folder = ModelFolder(tiny_folder)
    assert OpenVINO.obstacle(folder) is None
    folder.configs['unet'] = {**folder.configs['unet'], 'down_block_types': ['AttnDownBlock2D', 'DownBlock2D']}
    assert 'its UNet has a AttnDownBlock2D' in OpenVINO.obstacle(folder)
    folder.configs['unet'] = {'time_cond_proj_dim': 32}
    assert 'the time_cond_proj_dim 32' in OpenVINO.obstacle(folder)


def test_a_conversion_that_fails_leaves_a_pipeline_that_draws_with_torch(tiny_folder, tiny_pipe, tmp_path, monkeypatch,
                                                                         caplog):
    def fail(*_):
        raise ValueError('no such operation')
    monkeypatch.setenv('MODELSCOPE_CARTOON_CACHE', str(tmp_path))
    monkeypatch.setitem(conversion._CALLS, 'unet', fail)
    pipe = load_pipeline(tiny_folder, device='cpu', backend='openvino')
    assert "the unet of" in caplog.text and "no such operation); drawing with torch instead" in caplog.text
    assert pipe.model.backend == 'torch' and np.array_equal(draw(pipe), draw(tiny_pipe))


def test_loras_that_can_not_be_merged_leave_a_pipeline_that_draws_them_with_torch(tiny_folder, tiny_pipe, lora,
                                                                                    monkeypatch, caplog):
    def fail(*_):
        raise ValueError('no such operation')
    pipe = load_pipeline(tiny_folder, device='cpu', backend='openvino')
    monkeypatch.setitem(conversion._CALLS, 'unet', fail)
    assert np.array_equal(draw(pipe, lora=(lora, 0.35)), draw(tiny_pipe, lora=(lora, 0.35)))
    assert 'no such operation); torch runs all of the pipeline from now on' in caplog.text


def test_on_another_device_torch_draws(tiny_folder, caplog):
    backend = OpenVINO(ModelFolder(tiny_folder), torch.device('cuda'), torch.float32, 'full')
    assert backend.name == 'torch' and 'not on cuda; drawing with torch instead' in caplog.text


def test_a_replaced_unet_hands_the_pipeline_to_torch(tiny_folder, tiny_pipe, lora, caplog):
    pipe = load_pipeline(tiny_folder, device='cpu', backend='openvino')
    pipe.pipeline.unet = StableDiffusionPipeline.from_pretrained(tiny_folder).unet
    assert np.array_equal(draw(pipe), draw(tiny_pipe))
    assert caplog.text.count('replaced in the pipeline: unet; torch runs all of the pipeline from now on') == 1
    assert pipe.model.backend == 'torch' and np.array_equal(draw(pipe, lora=lora), draw(tiny_pipe, lora=lora))


def test_a_replaced_pipeline_is_drawn_with_as_it_is(tiny_folder, tiny_pipe, caplog):
    pipe = load_pipeline(tiny_folder, device='cpu', backend='openvino')
    pipe.pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    assert np.array_equal(draw(pipe), draw(tiny_pipe))
    assert 'replaced in the pipeline: unet, text_encoder' in caplog.text and pipe.model.backend == 'torch'


def test_a_replaced_vae_alone_leaves_the_rest_where_it_was(tiny_folder, tiny_pipe):
    pipe = load_pipeline(tiny_folder, device='cpu', backend='openvino')
    pipe.pipeline.vae = StableDiffusionPipeline.from_pretrained(tiny_folder).vae
    assert distance(draw(pipe), draw(tiny_pipe)) < NEAR and pipe.model.backend == 'openvino'


@pytest.mark.parametrize('mode', ['low', 'min'])
def test_memory_modes_do_what_they_do_with_torch(tiny_folder, mode):
    pipes = [load_pipeline(tiny_folder, device='cpu', backend=name, memory=mode) for name in ('openvino', 'torch')]
    for pipe in pipes:
        pipe.pipeline.vae.tile_latent_min_size, pipe.pipeline.vae.tile_sample_min_size = 4, 32
    assert distance(*(draw(pipe) for pipe in pipes)) < NEAR
    assert len(pipes[0].pipeline.unet.graph._compiled) == 1


def test_a_few_sizes_are_kept_compiled(converted):
    for size in (64, 72, 80, 64):
        draw(converted, height=size, num_inference_steps=1)
    assert len(converted.pipeline.unet.graph._compiled) == graphs.KEPT


def test_one_compilation_of_the_text_encoder_serves_all_numbers_of_prompts(converted):
    encoder, ids = converted.pipeline.text_encoder, torch.arange(2 * 77).reshape(2, 77) % 7
    encoder.graph.forget()
    both = encoder(ids)[0]
    assert torch.allclose(encoder(ids[1:])[0], both[1:], atol=1e-5)
    assert len(encoder.graph._compiled) == 1


def test_what_the_stand_ins_can_not_do_is_an_error_that_names_torch(converted):
    with pytest.raises(AttributeError, match="has no 'set_attn_processor'; load the model with backend='torch'"):
        converted.pipeline.unet.set_attn_processor(None)
    with pytest.raises(ModelError, match='decodes only'):
        converted.pipeline.vae.encode(torch.zeros(1, 3, 64, 64))
    with pytest.raises(InvalidRequest, match='called with cross_attention_kwargs'):
        converted.pipeline.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, 16), cross_attention_kwargs={'scale': 1})


def test_the_model_is_saved_whole(converted, tiny_folder, tiny_pipe, tmp_path):
    converted.model.save_pretrained(str(tmp_path / 'copy'))
    again = load_pipeline(tmp_path / 'copy', device='cpu', backend='torch')
    assert np.array_equal(draw(again), draw(tiny_pipe))


def test_after_an_overflow_it_computes_in_float32(tiny_folder, tiny_pipe):
    pipe = load_pipeline(tiny_folder, device='cpu', backend='openvino', dtype='bfloat16')
    pipe.model._backend.to_fp32()
    assert distance(draw(pipe), draw(tiny_pipe)) < NEAR


@pytest.mark.skipif(not cpu_has_bf16(), reason='this processor has no bfloat16')
def test_bfloat16_is_as_near_to_float32_as_torch_s(tiny_folder, converted):
    """With the time's sinusoids computed in bfloat16 it would be three times as far off: 981 is no bfloat16 number."""
    torch_unet = weights.load_component(ModelFolder(tiny_folder), 'unet', torch.float32)
    half = weights.load_component(ModelFolder(tiny_folder), 'unet', torch.bfloat16)
    ours = load_pipeline(tiny_folder, device='cpu', backend='openvino', dtype='bfloat16').pipeline.unet
    torch.manual_seed(0)
    sample, text = torch.randn(2, 4, 32, 32), torch.randn(2, 77, 16)
    with torch.no_grad():
        exact = torch_unet(sample, 981, text, return_dict=False)[0]
        theirs = half(sample.bfloat16(), 981, text.bfloat16(), return_dict=False)[0]
    error = (ours(sample, torch.tensor(981), text, return_dict=False)[0] - exact).norm()
    assert error < 2 * (theirs.float() - exact).norm()
