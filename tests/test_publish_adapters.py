"""An adapter whose base is on the hub goes up as it is, and its card's snippet draws with both."""
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny
from adapters import build_adapter
from loophub_uploads import UploadHub
from test_publish import publish, run_snippet

from modelscope_cartoon import metadata

pytest.importorskip('modelscope_cartoon.lora')
pytest_plugins = ['hosting']
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='the tests fork; the code does not')

BASE, ADAPTER = 'damo/cv_cartoon_stable_diffusion_flat', 'damo/mine'


def test_an_adapter_is_published_with_its_base_named_and_the_snippet_draws_with_both(tiny_folder, client, zygote,
                                                                                     tmp_path):
    adapter = build_adapter(tmp_path / 'adapter', tiny_folder, BASE, {'trigger': 'ink style'})
    with UploadHub(root=tmp_path / 'hub') as hub:
        hub.created[BASE] = {}
        tiny.build(hub.root / BASE / 'v1.0.0', safe=False, configuration=tiny.LEGACY)
        user = {**client(hub.endpoint), 'MODELSCOPE_API_TOKEN': hub.token}
        code, out, err = zygote.run(publish, adapter, '--to', ADAPTER, '--licence', 'MIT', **user)
        assert code == 0, err
        assert 'pytorch_lora_weights.safetensors' in hub.names(ADAPTER) and 'model_index.json' not in hub.names(ADAPTER)
        folder = hub.root / ADAPTER / 'master'
        assert json.loads((folder / 'configuration.json').read_text())['model']['base_model'] == BASE
        card = (folder / 'README.md').read_text(encoding='utf-8')
        recipe = json.loads(metadata.read(folder / 'description' / '1.png').recipe)
        assert recipe['model']['adapter'] == ADAPTER and recipe['used']['loras'][0]['name'] == ADAPTER.split('/')[1]
        assert 'base_model_relation: adapter' in card and 'Anna' not in card + (folder / 'recipe.json').read_text()
        drawn = zygote.run(run_snippet, card, str(tmp_path), **client(hub.endpoint))
    assert drawn['prompt'] == 'ink style, a portrait painting of a woman with red hair'
    assert drawn['class'] == 'CartoonPipeline' and drawn['picture'] == b'\x89PNG'


def test_a_merged_adapter_keeps_its_trigger(tiny_folder, tmp_path, monkeypatch):
    from modelscope_cartoon import load_pipeline
    from modelscope_cartoon.publish.repository import build_repository
    monkeypatch.setattr('modelscope_cartoon.publish.samples.STEPS', 2)
    adapter = build_adapter(tmp_path / 'adapter', tiny_folder, str(tiny_folder), {'trigger': 'ink style'})
    repository = build_repository(adapter, tmp_path / 'out', ADAPTER, licence='MIT')
    assert "'ink style, a portrait" in Path(repository.folder, 'README.md').read_text(encoding='utf-8')
    output = load_pipeline(repository.folder, device='cpu')({'text': 'a cat', 'num_inference_steps': 2})
    assert output['revised_prompt'] == 'ink style, a cat'
