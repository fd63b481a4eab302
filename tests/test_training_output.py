"""What training gives: a folder that diffusers, kohya's readers and the host load, and that says how it was made."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import training_runs as runs
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from modelscope_cartoon import load_pipeline, weights
from modelscope_cartoon.cli import main
from modelscope_cartoon.errors import UnknownOption
from modelscope_cartoon.folder import ModelFolder, file_sha256

LORA = 'pytorch_lora_weights.safetensors'


@pytest.fixture(scope='module')
def trained(inputs, tmp_path_factory) -> Path:
    """With samples, the text encoder, and a LoRA scaled by two."""
    return runs.train(*inputs, tmp_path_factory.mktemp('out') / 'style', sample_every=5, train_text_encoder=True,
                      alpha=8, learning_rate=0.01, text_encoder_learning_rate=0.01, trackers=['tensorboard'])


def pipe_of(base: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt='sks style, a cat') -> np.ndarray:
    return pipe(prompt, num_inference_steps=3, output_type='np',
                generator=torch.Generator().manual_seed(0)).images[0]


def test_diffusers_own_loader_reads_the_lora_and_it_changes_the_picture(inputs, trained):
    pipe = pipe_of(inputs[1])
    before = draw(pipe)
    pipe.load_lora_weights(trained, weight_name=LORA)
    after = draw(pipe)
    assert np.abs(before - after).max() > 0.01
    pipe.disable_lora()
    assert np.array_equal(draw(pipe), before)
    loaded = {f'unet.{k}': v for k, v in pipe.unet.state_dict().items() if '.lora_' in k}
    loaded |= {f'text_encoder.{k}': v for k, v in pipe.text_encoder.state_dict().items() if '.lora_' in k}
    stored = load_file(trained / LORA)
    assert {k.replace('.default_0', ''): v for k, v in loaded.items()}.keys() == stored.keys()
    scales = {layer.scaling['default_0'] for layer in pipe.unet.modules() if getattr(layer, 'scaling', None)}
    assert scales == {2.0}


def test_the_picture_is_that_of_the_weights_that_were_trained(inputs, trained):
    """The samples drawn at the end of training are what the saved file draws."""
    pipe = pipe_of(inputs[1])
    pipe.load_lora_weights(trained, weight_name=LORA)
    prompt = json.loads((trained / 'recipe.json').read_text())['pictures'][0]['caption']
    image = pipe(prompt, num_inference_steps=2, guidance_scale=5.0, output_type='np',
                 generator=torch.Generator().manual_seed(7)).images[0]
    strip = np.asarray(Image.open(trained / 'samples' / f'step-{runs.STEPS:06}.png'))
    assert np.abs(strip[:64, :64] / 255 - image).mean() < 0.01


def test_kohya_s_form_is_read_back_to_the_same_tensors(trained):
    state, alphas = StableDiffusionPipeline.lora_state_dict(trained / 'style.safetensors')
    unet = {k: v for k, v in state.items() if k.startswith('unet.')}
    read = {k.replace('.processor', ''): v for k, v in convert_unet_state_dict_to_peft(unet).items()}
    stored = load_file(trained / LORA)
    expected = {k: v for k, v in stored.items() if k.startswith('unet.')}
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[k], expected[k]) for k in expected) and set(alphas.values()) == {8.0}
    assert sum('text_encoder' in k for k in state) == sum('text_encoder' in k for k in stored) > 0


def test_kohya_s_file_changes_the_picture_as_diffusers_form_does(inputs, trained):
    pictures = []
    for name in (LORA, 'style.safetensors'):
        pipe = pipe_of(inputs[1])
        pipe.load_lora_weights(trained, weight_name=name)
        pictures.append(draw(pipe))
    assert np.allclose(*pictures, atol=1e-5)


def test_the_header_says_what_other_programs_ask_for(trained):
    with safe_open(trained / 'style.safetensors', 'pt') as file:
        header = file.metadata()
    assert header['modelspec.trigger_phrase'] == 'sks style' and header['modelspec.prediction_type'] == 'v'
    assert header['modelspec.architecture'].endswith('/lora') and header['ss_network_module'] == 'networks.lora'
    assert header['ss_network_dim'] == '4' and header['ss_network_alpha'] == '8.0'


def test_the_folder_has_configuration_card_recipe_samples_and_digests(inputs, trained):
    configuration = json.loads((trained / 'configuration.json').read_text())
    assert configuration['model'] == {'type': 'cartoon-stable-diffusion', 'base_model': str(inputs[1])}
    assert configuration['preprocessor'] == {'type': 'cartoon-style-prompt', 'trigger': 'sks style'}
    card = (trained / 'README.md').read_text()
    assert card.startswith('---\n') and 'base_model_relation: adapter' in card and len(card) > 200
    manifest = json.loads((trained / 'manifest.json').read_text())['files']
    there = {p.relative_to(trained).as_posix() for p in trained.rglob('*')
             if p.is_file() and '.training' not in p.parts}
    assert set(manifest) == there - {'manifest.json'}
    assert all(file_sha256(trained / name) == digest for name, digest in manifest.items())
    assert {'samples/sheet.png', 'samples/step-000000.png', 'samples/step-000005.png', 'loss.png'} <= set(manifest)
    assert list((trained / '.training' / 'logs').rglob('events.out*'))


def test_our_pipeline_loads_the_folder_at_once_and_puts_the_trigger_in_front(inputs, trained):
    output = load_pipeline(trained, device='cpu')('a cat', seed=0, num_inference_steps=3, output_type='np')
    assert output['revised_prompt'] == 'sks style, a cat'
    pipe = pipe_of(inputs[1])
    pipe.load_lora_weights(trained, weight_name=LORA)
    assert np.abs(output['output_imgs'][0] - draw(pipe)).max() < 0.02


def test_the_recipe_trains_the_same_again(inputs, trained, tmp_path):
    command = ['train', str(inputs[0]), '--recipe', str(trained / 'recipe.json'), '--output', str(tmp_path / 'again'),
               '--sample-every', '0', '--device', 'cpu']
    assert main(command) == 0
    assert (tmp_path / 'again' / LORA).read_bytes() == (trained / LORA).read_bytes()


def test_a_full_fine_tune_is_a_model_folder_of_its_own(inputs, tmp_path):
    pictures = runs.write_pictures(tmp_path / 'class', 5)
    output = runs.train(*inputs, tmp_path / 'full', method='full', prior_pictures=str(pictures), snr_gamma=5)
    folder = ModelFolder(output)
    pipe, before = weights.load(folder, torch.float32), weights.load(ModelFolder(inputs[1]), torch.float32)
    assert not np.allclose(draw(pipe), draw(before), atol=1e-3)
    assert torch.allclose(pipe.vae.decoder.conv_in.weight, before.vae.decoder.conv_in.weight, atol=1e-3)
    assert load_pipeline(output, device='cpu')('a cat', num_inference_steps=1)['revised_prompt'] == 'sks style, a cat'
    assert 'base_model' not in json.loads((output / 'configuration.json').read_text())['model']


@pytest.mark.parametrize('method', ['lora', 'full'])
def test_it_trains_in_bfloat16_with_gradient_checkpointing(inputs, tmp_path, method):
    output = runs.train(*inputs, tmp_path / method, method=method, precision='bfloat16', gradient_checkpointing=True,
                        train_text_encoder=True, prior_target='picture', sample_every=2, steps=2)
    assert json.loads((output / 'recipe.json').read_text())['precision'] == 'torch.bfloat16'
    assert Image.open(output / 'samples' / 'step-000002.png').getextrema() != ((0, 0),) * 3


def test_the_prior_keeps_prompts_without_the_trigger(inputs, tmp_path):
    """Without the trigger the picture moves less when the base's own predictions are trained on beside the style."""
    def moved(output: Path) -> float:
        pipe = pipe_of(inputs[1])
        before = draw(pipe, 'a cat 1')
        pipe.load_lora_weights(output, weight_name=LORA)
        return float(np.abs(draw(pipe, 'a cat 1') - before).mean())
    settings = {'steps': 30, 'learning_rate': 0.01, 'checkpoint_every': 100}
    free = runs.train(*inputs, tmp_path / 'free', prior_share=0, **settings)
    kept = runs.train(*inputs, tmp_path / 'kept', prior_share=0.5, **settings)
    assert moved(kept) < moved(free)
    [checkpoint] = (kept / '.training' / 'checkpoints').iterdir()
    losses = load_file(checkpoint / 'history.safetensors')['history'][:, 1]
    assert losses[0] < 1e-9 and losses[1:].min() > 1e-7      # a new LoRA is the base; then it has something to keep


def test_the_host_builds_the_trainer_from_a_data_set(inputs, tmp_path):
    from modelscope.msdatasets import MsDataset
    from modelscope.trainers import build_trainer

    table = tmp_path / 'data.csv'
    rows = [f'{inputs[0] / f"{i}.png"},"a cat {i}"' for i in range(10)]
    table.write_text('\n'.join(['Target:FILE,Text:Prompt', *rows]))
    data = MsDataset.load(str(table))
    data = data.get('train', data) if isinstance(data, dict) else data
    arguments = {'model': str(inputs[1]), 'train_dataset': data, 'work_dir': str(tmp_path / 'out'), 'device': 'cpu',
                 **runs.SETTINGS}
    trainer = build_trainer('cartoon-stable-diffusion', default_args=arguments)
    assert trainer.train() == str(tmp_path / 'out') and (tmp_path / 'out' / LORA).is_file()
    with pytest.raises(UnknownOption, match='learning_rate'):
        build_trainer('cartoon-stable-diffusion', default_args={**arguments, 'learning_rat': 1})


def test_plan_says_steps_memory_and_time_and_writes_nothing(inputs, tmp_path, capsys):
    command = ['train', str(inputs[0]), '--base', str(inputs[1]), '--output', str(tmp_path / 'out'), '--plan',
               '--steps', '50', '--device', 'cpu']
    assert main(command) == 0
    assert '50 steps' in (said := capsys.readouterr().out) and 'memory' in said and 's a step' in said
    assert main([*command, '--json']) == 0
    assert json.loads(capsys.readouterr().out)['steps'] == 50 and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('more, said', [
    (['--rank', '0'], 'rank is 0'), (['--lora-targets', 'everything'], 'accepted: attention'),
    (['--recipe', 'nowhere.json'], 'no recipe'), (['--trackers', 'tensorbord'], "did you mean 'tensorboard'"),
    (['--precision', 'float16', '--device', 'cpu'], 'needs a GPU')])
def test_what_cannot_be_trained_is_one_sentence_and_exit_code_2(inputs, tmp_path, capsys, more, said):
    assert main(['train', str(inputs[0]), '--base', str(inputs[1]), '-o', str(tmp_path / 'out'), *more]) == 2
    assert said in capsys.readouterr().err
