"""The host's own client, unmodified, against a hub on 127.0.0.1: every published way to call the five models draws."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hosting import FOREIGN, FORMS, STYLES, model_id

pytest_plugins = ['hosting']
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='the tests fork; the code does not')

TASK = 'text-to-image-synthesis'
TRIGGERS = {style: 'archer style' if style == 'clipart' else 'sks style' for style in STYLES}

# The snippet of the model card, to the letter.
CARD = """\
import cv2
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

pipe = pipeline(Tasks.text_to_image_synthesis, model='damo/cv_cartoon_stable_diffusion_design', model_revision='v1.0.0')
output = pipe({'text': 'sks style, a portrait painting of Johnny Depp'})
cv2.imwrite('result.png', output['output_imgs'][0])
print('Image saved to result.png')
print('finished!')

# 更佳实践
pipe = pipeline(Tasks.text_to_image_synthesis, model='damo/cv_cartoon_stable_diffusion_design', model_revision='v1.0.0')
from diffusers.schedulers import EulerAncestralDiscreteScheduler
pipe.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.pipeline.scheduler.config)
output = pipe({'text': 'sks style, a portrait painting of Johnny Depp'})
cv2.imwrite('result.png', output['output_imgs'][0])
print('Image saved to result.png')
print('finished!')
"""


@pytest.mark.usefixtures('zygote')     # it warms up meanwhile
def test_importing_the_plugin_prints_nothing_and_imports_no_engine(tmp_path):
    code = 'import sys, modelscope_cartoon; open("modules", "w").write(" ".join(sys.modules))'
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, '', '')
    loaded = (tmp_path / 'modules').read_text().split()
    assert [name for name in loaded if name.startswith('modelscope_cartoon')] == ['modelscope_cartoon']
    assert 'diffusers' not in loaded and 'transformers' not in loaded


def test_the_card_s_snippets_run_unmodified_on_a_published_model(hub_of, client, tmp_path):
    hub = hub_of('published')
    (tmp_path / 'card.py').write_text(CARD, encoding='utf-8')
    card = subprocess.run([sys.executable, 'card.py'], cwd=tmp_path, env={**os.environ, **client(hub.endpoint)},
                          capture_output=True, text=True, timeout=300)
    assert card.returncode == 0, card.stderr
    assert card.stdout.count('finished!') == 2 and (tmp_path / 'result.png').read_bytes()[:4] == b'\x89PNG'
    asked = [request.line for request in hub.requests if 'FilePath=unet/diffusion' in request.line]
    assert len(asked) == 1, 'the second pipeline() takes the weights from the cache'


def draw_each_model(ids: list[str], import_plugin: bool) -> list[dict[str, Any]]:
    if import_plugin:
        import modelscope_cartoon  # noqa: F401
    from modelscope.pipelines import pipeline

    drawn = []
    for name in ids:
        pipe = pipeline(TASK, model=name, model_revision='v1.0.0')
        output = pipe({'text': 'a cat', 'num_inference_steps': 2})
        drawn.append({'class': type(pipe).__qualname__, 'prompt': output['revised_prompt'],
                      'shape': output['output_imgs'][0].shape, 'folder': pipe.model.model_dir})
    return drawn


@pytest.mark.parametrize('form', FORMS)
def test_all_five_models_of_both_owners_are_drawn_by_ours(form, hub_of, client, zygote):
    ids = [model_id(style) for style in STYLES] + [model_id('design', 'iic'), model_id('clipart', 'iic')]
    drawn = zygote.run(draw_each_model, ids, form != 'published', **client(hub_of(form).endpoint))
    assert [one['class'] for one in drawn] == ['CartoonPipeline'] * 7
    assert [one['shape'] for one in drawn] == [(64, 64, 3)] * 7
    expected = [f'{TRIGGERS[style]}, a cat' for style in (*STYLES, 'design', 'clipart')]
    assert [one['prompt'] for one in drawn] == expected, 'each model has the trigger of its own style'
    assert all(name.replace('/', '--') in one['folder'] for name, one in zip(ids, drawn))


def run_card(folder: Path) -> dict[str, Any]:
    import modelscope_cartoon  # noqa: F401
    os.chdir(folder)
    names: dict[str, Any] = {}
    exec(CARD, names)
    pipe, request = names['pipe'], {'text': 'sks style, a cat', 'seed': 5, 'num_inference_steps': 4}
    swapped = pipe(request)['output_imgs'][0]
    return {'prompt': names['output']['revised_prompt'], 'scheduler': type(pipe.pipeline.scheduler).__name__,
            'saved': Path('result.png').read_bytes()[:4], 'swapped': swapped,
            'by name': pipe(request, scheduler='Euler a')['output_imgs'][0],
            'before': pipe(request, scheduler='DDIM')['output_imgs'][0]}


def test_the_card_s_snippets_draw_a_legacy_model_after_the_import(hub_of, client, zygote, tmp_path):
    card = zygote.run(run_card, tmp_path, **client(hub_of('legacy .bin').endpoint))
    assert card['saved'] == b'\x89PNG' and card['prompt'] == 'sks style, a portrait painting of Johnny Depp'
    assert card['scheduler'] == 'EulerAncestralDiscreteScheduler'
    assert (card['swapped'] == card['by name']).all(), 'the swapped scheduler is the one that draws'
    assert (card['swapped'] != card['before']).any()


def run_the_hosts_own_test(folder: Path) -> dict[str, Any]:
    import modelscope_cartoon  # noqa: F401
    os.chdir(folder)
    import cv2
    from diffusers.schedulers import EulerAncestralDiscreteScheduler
    from modelscope.pipelines import pipeline

    prompts, pipe = {}, None
    for style in (*STYLES, 'design'):
        name = f'result_{len(prompts)}.png'
        pipe = pipeline(task=TASK, model=model_id(style), model_revision='v1.0.0')
        if len(prompts) == len(STYLES):
            pipe.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.pipeline.scheduler.config)
        output = pipe({'text': f'{TRIGGERS[style]}, a portrait painting of Johnny Depp'})
        assert cv2.imwrite(name, output['output_imgs'][0])
        prompts[name] = output['revised_prompt']
    return prompts


def test_the_six_calls_of_the_host_s_own_cartoon_test_draw(hub_of, client, zygote, tmp_path):
    prompts = zygote.run(run_the_hosts_own_test, tmp_path, **client(hub_of('legacy safetensors').endpoint))
    assert len(prompts) == 6 and all((tmp_path / name).stat().st_size > 1000 for name in prompts)
    assert [prompt.count('style') for prompt in prompts.values()] == [1] * 6, 'the trigger is not doubled'


def generate_data(folder: Path) -> dict[str, Any]:
    import cv2
    import torch
    from diffusers.schedulers import EulerAncestralDiscreteScheduler
    from modelscope.pipelines import pipeline
    from modelscope.utils.constant import Tasks

    import modelscope_cartoon  # noqa: F401

    pipe = pipeline(Tasks.text_to_image_synthesis, model=model_id('clipart'), model_revision='v1.0.0',
                    torch_dtype=torch.float16)
    pipe.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.pipeline.scheduler.config)
    output = pipe({'text': 'archer style, a portrait painting of Ada', 'num_images_per_prompt': 5})
    saved = [cv2.imwrite(str(folder / f'{i}.png'), image) for i, image in enumerate(output['output_imgs'])]
    return {'saved': saved, 'dtype': str(pipe.pipeline.unet.dtype), 'seeds': output['seeds'],
            'different': len({image.tobytes() for image in output['output_imgs']})}


def test_the_data_generation_script_of_dct_net_draws_five_different_pictures_in_fp16(hub_of, client, zygote, tmp_path):
    made = zygote.run(generate_data, tmp_path, **client(hub_of('legacy .bin').endpoint))
    assert made['saved'] == [True] * 5 and made['different'] == 5 and len(set(made['seeds'])) == 5
    assert made['dtype'] == 'torch.float16'


def foreign_without_torchvision(import_plugin: bool) -> tuple[str, str]:
    if import_plugin:
        import modelscope_cartoon  # noqa: F401
    from modelscope.pipelines import pipeline
    try:
        pipeline(TASK, model=FOREIGN)
    except Exception as error:
        return type(error).__name__, str(error)
    return 'none', ''


def test_a_foreign_model_without_torchvision_fails_in_upstream_s_own_words(hub_of, client, zygote):
    environment = client(hub_of('legacy .bin').endpoint)
    theirs, ours = (zygote.run(foreign_without_torchvision, plugin, **environment) for plugin in (False, True))
    assert theirs[0] == 'ImportError' and 'requires the torchvision library' in theirs[1]
    assert ours == ('ImportError', f'StableDiffusionPipeline: {theirs[1]}'), 'the host puts the class in front'


def foreign_with_torchvision(first: str) -> dict[str, Any]:
    _stub_torchvision()
    from importlib import import_module
    for name in (first, 'modelscope_cartoon'):
        import_module(name)
    from modelscope.pipelines import pipeline

    pipe = pipeline(TASK, model=FOREIGN)
    upstream = import_module(UPSTREAM).StableDiffusionPipeline
    cartoon = pipeline(TASK, model=model_id('flat'), model_revision='v1.0.0')
    again = pipeline(TASK, model=FOREIGN)
    shape = again({'text': 'a cat', 'num_inference_steps': 2})['output_imgs'][0].shape
    return {'upstream': type(pipe) is upstream and type(again) is upstream, 'shape': shape,
            'cartoon': type(cartoon).__name__, 'group': upstream.group_key}


UPSTREAM = 'modelscope.pipelines.multi_modal.diffusers_wrapped.stable_diffusion.stable_diffusion_pipeline'


def _stub_torchvision() -> None:
    """Upstream's module imports torchvision.transforms and uses nothing of it."""
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    for name in ('torchvision', 'torchvision.transforms'):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None, is_package=True)
    sys.modules['torchvision'].transforms = sys.modules['torchvision.transforms']


@pytest.mark.parametrize('first', [UPSTREAM, 'modelscope_cartoon', 'modelscope_cartoon.legacy', 'modelscope.pipelines'])
def test_a_foreign_model_gets_exactly_upstream_s_class_whatever_is_imported_first(first, hub_of, client, zygote):
    foreign = zygote.run(foreign_with_torchvision, first, **client(hub_of('legacy .bin').endpoint))
    assert foreign == {'upstream': True, 'shape': (64, 64, 3), 'cartoon': 'CartoonPipeline', 'group': TASK}
