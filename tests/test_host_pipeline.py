"""pipeline() and Model of the host on a local folder: what may be passed to them, and what comes back."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import EulerAncestralDiscreteScheduler
from modelscope.models import Model
from modelscope.msdatasets import MsDataset
from modelscope.pipelines import pipeline

import modelscope_cartoon  # noqa: F401
from modelscope_cartoon.errors import InvalidRequest, OutputError, UnknownOption
from modelscope_cartoon.model import CartoonStableDiffusion
from modelscope_cartoon.pipeline import CartoonPipeline
from modelscope_cartoon.preprocessor import StylePromptPreprocessor

TASK = 'text-to-image-synthesis'
CAT = {'text': 'a cat', 'seed': 3, 'num_inference_steps': 2}


@pytest.fixture(scope='module')
def pipe(tiny_folder: Path) -> CartoonPipeline:
    return pipeline(TASK, model=str(tiny_folder))


@pytest.fixture(scope='module')
def picture(pipe: CartoonPipeline) -> np.ndarray:
    return image(pipe)


def image(pipe: CartoonPipeline, request: Any = CAT, **keywords: Any) -> np.ndarray:
    return pipe(request, **keywords)['output_imgs'][0]


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Within one grey level: floats are summed in another order in a batch."""
    return np.abs(one.astype(int) - other).max() <= 1


def test_a_folder_with_our_configuration_is_ours(pipe, picture):
    assert type(pipe) is CartoonPipeline
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8 and picture.std() > 1


@pytest.mark.parametrize('configuration', [tiny.LEGACY, None])
def test_a_pipeline_name_makes_any_folder_ours(configuration, tiny_folder, tmp_path, picture):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / 'my-model'))
    (folder / 'configuration.json').unlink()
    if configuration is not None:
        (folder / 'configuration.json').write_text(json.dumps(configuration))
    named = pipeline(TASK, model=str(folder), pipeline_name='cartoon-stable-diffusion')
    assert type(named) is CartoonPipeline and (image(named) == picture).all()


@pytest.mark.parametrize('place', ['damo--{}/snapshots/v1.0.0', 'damo/{}', 'iic/{}'])
@pytest.mark.parametrize('wrap', [str, CartoonStableDiffusion])
def test_a_legacy_snapshot_is_ours_in_every_layout_of_the_cache(wrap, place, tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / place.format('cv_cartoon_stable_diffusion_clipart')))
    (folder / 'configuration.json').write_text(json.dumps(tiny.LEGACY))
    pipe = pipeline(TASK, model=wrap(str(folder)))
    assert type(pipe) is CartoonPipeline and pipe(CAT)['revised_prompt'] == 'archer style, a cat'


def model_from_the_host(folder: Path) -> Model:
    return Model.from_pretrained(str(folder))


def model_by_its_class(folder: Path) -> Model:
    return CartoonStableDiffusion(str(folder))


@pytest.mark.parametrize('make', [model_from_the_host, model_by_its_class])
def test_a_model_object_is_used_as_it_is(make, tiny_folder, tmp_path, picture):
    model = make(tiny_folder)
    pipe = pipeline(TASK, model=model)
    assert type(pipe) is CartoonPipeline and pipe.model is model and (image(pipe) == picture).all()
    pipe.model.save_pretrained(str(tmp_path / 'saved'))
    assert json.loads((tmp_path / 'saved/configuration.json').read_text())['pipeline'] == tiny.OURS['pipeline']


def test_a_preprocessor_object_is_used_as_it_is(tiny_folder):
    preprocessor = StylePromptPreprocessor(style='clipart')
    pipe = pipeline(TASK, model=str(tiny_folder), preprocessor=preprocessor)
    assert pipe(CAT)['revised_prompt'] == 'archer style, a cat'


@pytest.mark.skipif(torch.cuda.is_available(), reason='what happens without a GPU')
@pytest.mark.parametrize('device', ['cpu', 'gpu', 'cuda:1'])
def test_every_device_name_works_without_a_gpu(device, tiny_folder, picture):
    pipe = pipeline(TASK, model=str(tiny_folder), device=device)
    assert pipe.pipeline.device.type == 'cpu' and (image(pipe) == picture).all()


def test_two_pipelines_share_no_state(pipe, tiny_folder, picture):
    other = pipeline(TASK, model=str(tiny_folder))
    config = other.pipeline.scheduler.config
    other.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(config)
    other.pipeline.unet.conv_in.weight.data.zero_()
    assert type(pipe.pipeline.scheduler).__name__ == 'DDIMScheduler'
    assert (image(other) != picture).any() and (image(pipe) == picture).all()


def test_the_diffusers_pipeline_can_be_replaced(tiny_folder, picture):
    changed, source = (pipeline(TASK, model=str(tiny_folder)) for _ in range(2))
    changed.pipeline.unet.conv_in.weight.data.zero_()
    changed.pipeline = source.pipeline
    assert changed.pipeline is source.pipeline and (image(changed) == picture).all()
    with pytest.raises(InvalidRequest, match='accepted: a diffusers pipeline'):
        changed.pipeline = 'a string'


@pytest.mark.parametrize('name', ['dtype', 'torch_dtype', 'torch_type'])
@pytest.mark.parametrize('value', [torch.bfloat16, 'bfloat16', 'torch.bfloat16'])
def test_the_precision_has_three_names_and_is_a_dtype_or_a_string(name, value, tiny_folder):
    pipe = pipeline(TASK, model=str(tiny_folder), **{name: value})
    nets = (pipe.pipeline.unet, pipe.pipeline.vae, pipe.pipeline.text_encoder)
    assert {net.dtype for net in nets} == {torch.bfloat16} and image(pipe).std() > 1


@pytest.mark.parametrize('auto_collate', [True, False])
def test_auto_collate_changes_nothing(auto_collate, tiny_folder, picture):
    pipe = pipeline(TASK, model=str(tiny_folder), auto_collate=auto_collate)
    own = {'text': 'a cat', 'num_inference_steps': 2, 'generator': torch.Generator().manual_seed(3)}
    assert (image(pipe, own) == picture).all(), 'a generator passes'


def test_compile_is_the_host_s_keyword_and_compiles_the_unet(tiny_folder):
    pipe = pipeline(TASK, model=str(tiny_folder), compile=True, compile_options={'backend': 'eager'})
    pipe.prepare_model()     # what the first call does first; tracing the network takes ten seconds, so no picture here
    assert isinstance(pipe.model, CartoonStableDiffusion), "the host keeps what the model's compile() returns"
    assert pipe.pipeline.unet._compiled_call_impl is not None


def test_an_unknown_keyword_of_pipeline_is_an_error_that_names_the_nearest(tiny_folder):
    with pytest.raises(UnknownOption, match=r"'torch_dtyp'.*did you mean 'torch_dtype'"):
        pipeline(TASK, model=str(tiny_folder), torch_dtyp='float16')


def test_an_unknown_keyword_of_a_call_is_an_error_that_names_the_nearest(pipe):
    with pytest.raises(UnknownOption, match=r"'num_image_per_prompt'.*did you mean 'num_images_per_prompt'"):
        pipe(CAT, num_image_per_prompt=2)


def test_call_keywords_are_honoured_and_override_the_dict(pipe, picture):
    output = pipe({**CAT, 'seed': 9}, seed=3, num_images_per_prompt=2)
    assert output['seeds'] == [3, 4] and close(output['output_imgs'][0], picture)


@pytest.mark.parametrize('batch_size', [None, 1, 2, 3])
def test_a_list_gives_one_output_each_in_order_whatever_the_batch_size(batch_size, pipe):
    inputs = [CAT, {**CAT, 'num_inference_steps': 3}, {**CAT, 'text': 'a dog', 'seed': 4}]
    outputs = pipe(inputs, **({} if batch_size is None else {'batch_size': batch_size}))
    assert [output['seeds'] for output in outputs] == [[3], [3], [4]]
    assert [output['revised_prompt'] for output in outputs] == ['a cat', 'a cat', 'a dog']
    alone = [image(pipe, one) for one in inputs]
    assert all(close(output['output_imgs'][0], one) for output, one in zip(outputs, alone))
    assert not close(alone[0], alone[1]) and not close(alone[0], alone[2])


@pytest.mark.parametrize('batch_size', [0, -1, 1.5, True])
def test_a_batch_size_that_is_no_count_is_refused(batch_size, pipe):
    with pytest.raises(InvalidRequest, match='batch_size'):
        pipe([CAT], batch_size=batch_size)


def rows_of_a_csv(folder: Path) -> MsDataset:
    path = folder / 'prompts.csv'
    path.write_text('text,seed,num_inference_steps,author\na cat,3,2,Ada\na dog,3,2,Bob\n')
    return MsDataset.load('csv', data_files=str(path), split='train')


def rows_of_a_list(folder: Path) -> MsDataset:
    return MsDataset.load([{**CAT, 'author': 'Ada'}, {**CAT, 'text': 'a dog', 'author': 'Bob'}])


@pytest.mark.parametrize('load', [rows_of_a_csv, rows_of_a_list])
def test_the_rows_of_a_data_set_are_drawn_and_foreign_columns_are_named(load, pipe, tmp_path, picture, caplog):
    outputs = list(pipe(load(tmp_path)))
    assert [output['revised_prompt'] for output in outputs] == ['a cat', 'a dog']
    assert (outputs[0]['output_imgs'][0] == picture).all()
    assert [record.getMessage() for record in caplog.records if 'author' in record.getMessage()]


def test_what_save_pretrained_writes_is_loaded_again_and_draws_the_same(pipe, tmp_path, picture):
    pipe.model.save_pretrained(str(tmp_path / 'saved'))
    assert (image(pipeline(TASK, model=str(tmp_path / 'saved'))) == picture).all()


def test_save_pretrained_leaves_a_folder_with_something_in_it_alone(pipe, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(OutputError, match=r'could not be written .* untouched'):
        pipe.model.save_pretrained(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']
