"""The recipe that every picture carries, and that it is enough to draw the picture again."""
from __future__ import annotations

import base64
import hashlib
import io
import json

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image

from modelscope_cartoon import load_pipeline, metadata, picture_recipe
from modelscope_cartoon.corner_label import labelled
from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.labels import VISIBLE

STEPS = {'num_inference_steps': 2}


def test_each_picture_of_a_request_has_its_own_recipe(tiny_pipe):
    output = tiny_pipe({'text': ['a {cat|dog|fox}', 'a car'], 'negative_prompt': ['x', 'y'], 'seed': 7, **STEPS},
                       num_images_per_prompt=2)
    asked = [recipe['request'] for recipe in output['recipes']]
    assert [(one['text'], one['negative_prompt'], one['seed']) for one in asked] == [
        ('a {cat|dog|fox}', 'x', 7), ('a {cat|dog|fox}', 'x', 8), ('a car', 'y', 9), ('a car', 'y', 10)]
    assert [recipe['used']['prompt'] for recipe in output['recipes']] == output['revised_prompt']
    for recipe, image in zip(output['recipes'], output['output_imgs']):
        assert recipe['pixels_sha256'] == hashlib.sha256(image[..., ::-1].tobytes()).hexdigest()
        assert picture_recipe.parse(json.dumps(recipe)) == recipe


def test_a_recipe_alone_draws_the_picture_again(tiny_pipe):
    first = tiny_pipe({'text': 'a {cat|dog|fox|car} <b>\x00', 'seed': 3, 'guidance_scale': 3.5, 'height': 64,
                       'scheduler': 'Euler a', 'clip_skip': 1, 'preset': 'fast', 'num_inference_steps': 4})
    [recipe] = first['recipes']
    again = tiny_pipe(picture_recipe.request_of(picture_recipe.parse(json.dumps(recipe))))
    assert np.array_equal(first['output_imgs'][0], again['output_imgs'][0])
    assert again['recipes'][0]['pixels_sha256'] == recipe['pixels_sha256']
    assert {**again['recipes'][0], 'date': ''} == {**recipe, 'date': ''}


def test_the_recipe_says_how_it_was_drawn(tiny_folder):
    pipe = load_pipeline(tiny_folder, device='cpu')
    pipe.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.pipeline.scheduler.config)
    outputs = pipe([{'text': 'a cat', **STEPS}, {'text': 'a dog', **STEPS},
                    {'text': 'a cat', 'num_inference_steps': 3}], batch_size=2)
    recipes = [output['recipes'][0] for output in outputs]
    assert [recipe['machine']['batch_size'] for recipe in recipes] == [2, 2, 1]
    assert recipes[0]['used']['scheduler']['class'] == 'EulerAncestralDiscreteScheduler'
    assert recipes[0]['machine']['backend'] == 'torch' and recipes[0]['machine']['noise'] == 'cpu'
    assert recipes[0]['versions']['torch'] == torch.__version__
    assert recipes[0]['model']['id'] == tiny_folder.name and len(recipes[0]['model']['weights_hash']) == 16
    assert str(tiny_folder.parent) not in json.dumps(recipes[0])


@pytest.mark.parametrize('given, noise', [({'generator': torch.Generator().manual_seed(1)}, 'generator'),
                                          ({'latents': torch.zeros(1, 4, 8, 8), 'seed': 1}, 'latents')])
def test_noise_that_no_seed_gives_is_said(tiny_pipe, given, noise):
    [recipe] = tiny_pipe({'text': 'a cat', **STEPS, **given})['recipes']
    assert recipe['machine']['noise'] == noise


@pytest.mark.parametrize('name', ['png', 'jpeg', 'webp', 'base64'])
def test_files_from_the_pipeline_hold_their_recipe(tiny_pipe, tmp_path, name):
    output = tiny_pipe({'text': 'a cat', 'seed': 1, **STEPS, 'output_type': name})
    data = output['output_imgs'][0]
    (tmp_path / 'p').write_bytes(base64.b64decode(data) if name == 'base64' else data)
    assert picture_recipe.parse(metadata.read(tmp_path / 'p').recipe) == output['recipes'][0]
    bare = tiny_pipe({'text': 'a cat', 'seed': 1, **STEPS, 'output_type': name, 'metadata': False})['output_imgs'][0]
    (tmp_path / 'p').write_bytes(base64.b64decode(bare) if name == 'base64' else bare)
    found = metadata.read(tmp_path / 'p')
    assert not (found.recipe or found.parameters or found.aigc or found.xmp)


def test_a_label_is_seen_and_the_recipe_is_of_the_picture_below_it(tiny_pipe):
    request = {'text': 'a cat', 'seed': 1, 'height': 128, 'width': 256, **STEPS}
    plain, with_label = tiny_pipe(request), tiny_pipe({**request, 'label': VISIBLE})
    assert with_label['recipes'][0]['pixels_sha256'] == plain['recipes'][0]['pixels_sha256']
    differs = (plain['output_imgs'][0] != with_label['output_imgs'][0]).any(2)
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    assert rows.min() > 64 and columns.max() > 200 and len(rows) >= 128 * 5 // 100


@pytest.mark.parametrize('size', [(64, 64), (64, 512), (768, 768)])
def test_a_label_fits_into_any_picture(size):
    picture = np.full((*size, 3), 0.5, np.float32)
    after = labelled(picture, VISIBLE * 3)
    assert after.shape == picture.shape and after.dtype == np.float32 and (picture == 0.5).all()
    assert after.max() > 0.9 and after.min() < 0.3


@pytest.mark.parametrize('label', ['', ' ', 'x' * 101, 'a\nb', 3])
def test_a_label_is_a_few_words(tiny_pipe, label):
    with pytest.raises(Exception, match='label is .*accepted: a few words'):
        tiny_pipe({'text': 'a cat', 'label': label})


@pytest.mark.parametrize('text', ['', '[]', '{"schema": 2}', '{"schema": true}', '{"schema": 1}', '[' * 100_000,
                                  'x' * 2_000_000, b'\xff', '{"schema": 1, "request": [], "used": {}}'])
def test_what_is_no_recipe_is_one_sentence(text):
    with pytest.raises(InvalidRequest, match='the recipe '):
        picture_recipe.parse(text)


def test_png_bytes_are_read_by_pillow_with_the_same_pixels(tiny_pipe):
    request = {'text': 'a cat', 'seed': 1, **STEPS}
    data = tiny_pipe({**request, 'output_type': 'png'})['output_imgs'][0]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), tiny_pipe({**request, 'output_type': 'rgb'})[
        'output_imgs'][0])
