"""Our pictures are diffusers' pictures, and a seed means one picture wherever it is drawn."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from modelscope_cartoon import load_pipeline
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.schedulers import ROWS, get_row

STEPS = 4      # PNDM's fewest
FOLDERS = {'epsilon': {}, 'v_prediction': {'prediction_type': 'v_prediction'}, 'PNDM': {'scheduler': 'PNDM'}}


@pytest.fixture(scope='module')
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, StableDiffusionPipeline]]:
    """(our pipeline, diffusers' own pipeline) on the same folder, by the kind of folder."""
    made = {}
    for name, options in FOLDERS.items():
        folder = tiny.build(tmp_path_factory.mktemp(name) / 'model', **options)
        made[name] = load_pipeline(folder, device='cpu'), diffusers_pipeline(folder)
    return made


def diffusers_pipeline(folder: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int) -> torch.Generator:
    return torch.Generator('cpu').manual_seed(seed)


def both(pair: tuple[Any, StableDiffusionPipeline], label: str | None = None, text: Any = 'cat', seed: int = 7,
         ours: dict | None = None, theirs: dict | None = None, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """(our floats, diffusers' floats) for the same settings; `ours` and `theirs` for what is spelled differently."""
    pipe, reference = pair
    settings = {'num_inference_steps': STEPS, **settings}
    given = {'text': text, 'scheduler': label, 'output_type': 'np', **settings, **(ours or {'seed': seed})}
    own = reference.scheduler
    try:
        if label:
            row = get_row(label)
            reference.scheduler = getattr(diffusers, row.diffusers_class).from_config(own.config, **row.options)
        images = reference(text, output_type='np', **settings, **(theirs or {'generator': seeded(seed)})).images
    finally:
        reference.scheduler = own
    return np.stack(pipe(given)['output_imgs']), images


@pytest.mark.parametrize('folder', ['epsilon', 'v_prediction'])
@pytest.mark.parametrize('label', [row.label for row in ROWS])
def test_every_row_draws_what_diffusers_draws(pairs, label: str, folder: str):
    ours, theirs = both(pairs[folder], label, negative_prompt='sk')
    assert ours.shape == (1, 64, 64, 3) and ours.std() > 0.01
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_folders_own_scheduler_draws_what_diffusers_draws(pairs, folder: str):
    ours, theirs = both(pairs[folder])
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize('settings', [
    {'negative_prompt': 'sk sk'}, {'guidance_scale': 1.0}, {'guidance_scale': 0.0}, {'guidance_scale': 12.5},
    {'guidance_rescale': 0.7}, {'height': 72, 'width': 96}, {'num_inference_steps': 7}], ids=str)
def test_a_setting_does_what_it_does_in_diffusers(pairs, settings: dict):
    ours, theirs = both(pairs['v_prediction'], **settings)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize('output_type', ['rgb', 'bgr', 'pil'])
def test_bytes_are_rounded_as_diffusers_rounds_them(pairs, output_type: str):
    pipe, reference = pairs['epsilon']
    [image] = pipe('cat', seed=7, num_inference_steps=STEPS, output_type=output_type)['output_imgs']
    [expected] = reference('cat', generator=seeded(7), num_inference_steps=STEPS).images
    image = np.asarray(image)[..., ::-1] if output_type == 'bgr' else np.asarray(image)
    assert np.array_equal(image, np.asarray(expected))


def test_eta_is_ddims_eta(pairs):
    ours, theirs = both(pairs['epsilon'], 'DDIM', eta=0.8)
    assert np.array_equal(ours, theirs)
    assert not np.array_equal(ours, both(pairs['epsilon'], 'DDIM')[0])


def test_clip_skip_takes_the_layer_before_the_last(pairs):
    # diffusers 0.42.1 itself fails here with transformers 5 (it looks for text_encoder.text_model), so the layer is
    # taken by hand and given to diffusers. As there, the negative prompt keeps the last layer.
    reference = pairs['epsilon'][1]
    ids = reference.tokenizer('cat', padding='max_length', return_tensors='pt').input_ids
    with torch.no_grad():
        layers = reference.text_encoder(ids, output_hidden_states=True).hidden_states
        embeds = reference.text_encoder.final_layer_norm(layers[-2])
        negative = reference.encode_prompt('', 'cpu', 1, False)[0]
        theirs = reference(prompt_embeds=embeds, negative_prompt_embeds=negative, generator=seeded(7),
                           num_inference_steps=STEPS, output_type='np').images
    ours = pairs['epsilon'][0]('cat', seed=7, clip_skip=1, num_inference_steps=STEPS, output_type='np')['output_imgs']
    assert np.array_equal(ours, theirs)
    assert not np.array_equal(ours, both(pairs['epsilon'])[0])


def test_clip_skip_beyond_the_text_encoder_is_refused(pairs):
    with pytest.raises(InvalidRequest, match='clip_skip is 4; this text encoder has 3 layers'):
        pairs['epsilon'][0]('cat', seed=7, clip_skip=4, num_inference_steps=STEPS)


@pytest.mark.parametrize('label', [None, 'Euler a'])
def test_a_generator_is_used_as_diffusers_uses_it(pairs, label: str | None):
    ours, theirs = both(pairs['epsilon'], label, num_images_per_prompt=2, ours={'generator': seeded(3)},
                        theirs={'generator': seeded(3)})
    assert np.array_equal(ours, theirs) and len(ours) == 2
    many = [seeded(3), seeded(4)]
    ours, theirs = both(pairs['epsilon'], label, text=['cat', 'sk'], ours={'generator': many},
                        theirs={'generator': [seeded(3), seeded(4)]})
    assert np.array_equal(ours, theirs) and len(ours) == 2


@pytest.mark.parametrize('as_given', [lambda t: t, lambda t: t.numpy(), lambda t: t.double()],
                         ids=['tensor', 'numpy', 'float64'])
def test_latents_are_used_as_diffusers_uses_them(pairs, as_given):
    latents = torch.randn((2, 4, 8, 8), generator=seeded(5))
    ours, theirs = both(pairs['epsilon'], num_images_per_prompt=2, ours={'latents': as_given(latents), 'seed': 1},
                        theirs={'latents': latents})
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize('latents', [
    torch.zeros(1, 4, 8, 9), torch.zeros(2, 4, 8, 8), torch.zeros(4, 8, 8), torch.full((1, 4, 8, 8), torch.nan),
    torch.full((1, 4, 8, 8), torch.inf), 'noise', 7, object()], ids=lambda x: str(getattr(x, 'shape', type(x))))
def test_latents_that_do_not_fit_are_refused(pairs, latents: Any):
    with pytest.raises(InvalidRequest, match=r'latents .*\(1, 4, 8, 8\)'):
        pairs['epsilon'][0]('cat', latents=latents, num_inference_steps=STEPS)


def old_calls(pair: Any, label: str, callback_steps: int) -> tuple[list, list]:
    """(what our old-style callback got, what diffusers' got)."""
    ours, theirs = ([], [])
    given = [{'callback_steps': callback_steps,
              'callback': lambda *call, calls=calls: calls.append((call[0], float(call[1]), float(call[2].sum())))}
             for calls in (ours, theirs)]
    both(pair, label, ours={**given[0], 'seed': 7}, theirs={**given[1], 'generator': seeded(7)})
    return ours, theirs


@pytest.mark.parametrize(('label', 'every'), [('DDIM', 1), ('DDIM', 3), ('PNDM', 1), ('PNDM', 2), ('Heun', 1)])
def test_the_old_callback_is_called_as_diffusers_calls_it(pairs, label: str, every: int):
    ours, theirs = old_calls(pairs['epsilon'], label, every)
    assert ours == theirs and len(theirs) == {1: 4, 2: 2, 3: 2}[every]


def test_callback_steps_counts_steps_where_a_step_has_two_halves(pairs):
    # diffusers counts halves here and so calls back at the last step only.
    assert [call[0] for call in old_calls(pairs['epsilon'], 'Heun', 2)[0]] == [0, 2]


def test_callback_on_step_end_sees_and_changes_the_latents_as_in_diffusers(pairs):
    seen = []

    def halve(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        seen.append((step, int(timestep), pipe.num_timesteps))
        return {'latents': tensors['latents'] / 2} if step == 2 else {}

    ours, theirs = both(pairs['epsilon'], callback_on_step_end=halve)
    assert np.array_equal(ours, theirs) and not np.array_equal(ours, both(pairs['epsilon'])[0])
    assert seen[:STEPS] == seen[STEPS:] == [(i, 751 - 250 * i, STEPS) for i in range(STEPS)]


def test_a_callback_that_returns_nothing_changes_nothing(pairs):
    seen = []
    ours = pairs['epsilon'][0]('cat', seed=7, num_inference_steps=STEPS, output_type='np',
                               callback_on_step_end=lambda *call: seen.append(call[1]))['output_imgs']
    assert seen == [0, 1, 2, 3] and np.array_equal(ours, both(pairs['epsilon'])[0])


def test_the_published_lcm_picture_comes_out_of_our_sampling_path(tmp_path: Path):
    # huggingface/diffusers, tests/pipelines/stable_diffusion/test_stable_diffusion.py: `get_dummy_components`,
    # `get_dummy_inputs` and the slice and tolerance of `test_stable_diffusion_lcm`. Its tokenizer is on the hub only;
    # guidance is off, and another tokenizer moves these values by less than the tolerance.
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=32, time_cond_proj_dim=256, in_channels=4,
        out_channels=4, down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'), cross_attention_dim=8, norm_num_groups=2)
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=[4, 8], in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=2,
        down_block_types=['DownEncoderBlock2D'] * 2, up_block_types=['UpDecoderBlock2D'] * 2)
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(CLIPTextConfig(
        bos_token_id=0, eos_token_id=2, hidden_size=8, intermediate_size=16, layer_norm_eps=1e-05,
        num_attention_heads=2, num_hidden_layers=2, pad_token_id=1, vocab_size=1000))
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear',
                                        clip_sample=False, set_alpha_to_one=False)
    tokenizer = CLIPTokenizer.from_pretrained(tiny.write_tokenizer(tmp_path / 'tokenizer'))
    StableDiffusionPipeline(unet=unet, vae=vae, text_encoder=text_encoder.eval(), scheduler=scheduler,
                            tokenizer=tokenizer, safety_checker=None, feature_extractor=None,
                            requires_safety_checker=False).save_pretrained(tmp_path)
    [image] = load_pipeline(tmp_path, device='cpu')(
        'A painting of a squirrel eating a burger', scheduler='LCM', seed=0, num_inference_steps=2,
        guidance_scale=6.0, output_type='np')['output_imgs']
    assert image.shape == (64, 64, 3)
    published = [0.2368, 0.4900, 0.5019, 0.2723, 0.4473, 0.4578, 0.4551, 0.3532, 0.4133]
    assert image[-3:, -3:, -1].flatten() == pytest.approx(published, abs=1e-2)
