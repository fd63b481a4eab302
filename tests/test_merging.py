"""An adapter whose base is on this machine alone is published merged into it, and draws as it did beside it."""
from __future__ import annotations

import json
import shutil

import pytest
import torch
from adapters import build_adapter
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from modelscope_cartoon.conversion import ADAPTER_FILE, merge
from modelscope_cartoon.errors import DamagedWeights, ModelError
from modelscope_cartoon.repository import build_repository


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr('modelscope_cartoon.samples.STEPS', 2)


@pytest.fixture(scope='module')
def adapter(tiny_folder, tmp_path_factory):
    return build_adapter(tmp_path_factory.mktemp('adapters') / 'flat', tiny_folder, str(tiny_folder), {'style': 'flat'})


def predict(pipe: StableDiffusionPipeline) -> torch.Tensor:
    """What the UNet makes of a text, so that both merged parts have a say."""
    torch.manual_seed(2)
    ids = pipe.tokenizer('a cat', padding='max_length', max_length=77, return_tensors='pt').input_ids
    with torch.no_grad():
        return pipe.unet(torch.randn(1, 4, 8, 8), 500, pipe.text_encoder(ids)[0]).sample


def test_a_merged_model_predicts_what_base_and_lora_predict_together(adapter, tiny_folder, tmp_path):
    repository = build_repository(adapter, tmp_path / 'out', 'me/flat', licence='MIT')
    merged, base = (StableDiffusionPipeline.from_pretrained(f) for f in (repository.folder, tiny_folder))
    plain = predict(base)
    base.load_lora_weights(adapter, weight_name=ADAPTER_FILE)
    assert torch.allclose(predict(merged), predict(base), atol=1e-5)
    assert (predict(merged) - plain).abs().max() > 1e-2
    assert not any('lora' in key for key in load_file(repository.folder / 'unet/diffusion_pytorch_model.safetensors'))


def test_the_card_and_the_listing_say_that_it_was_merged(adapter, tmp_path):
    repository = build_repository(adapter, tmp_path / 'out', 'me/flat', licence='MIT')
    card = (repository.folder / 'README.md').read_text(encoding='utf-8')
    assert 'is merged into the weights' in card and '| recipe.rank | 2 |' in card and '| pictures | 1 |' in card
    assert any('merged into' in note for note in repository.notes) and ADAPTER_FILE not in repository.files
    assert repository.left_out['samples/1.png'] == 'pictures are drawn anew'
    recipe = (repository.folder / 'recipe.json').read_text()
    assert json.loads(recipe) == {'recipe': {'rank': 2, 'data': 'drawings'}, 'pictures': 1}


def test_a_lora_of_another_model_or_without_effect_is_refused(adapter, tiny_folder, tmp_path):
    for spoil, words in ((lambda key, value: (key.replace('to_v', 'to_w'), value), 'has weights for .* layers'),
                         (lambda key, value: (key, value * 0), 'changes nothing')):
        folder = shutil.copytree(adapter, tmp_path / words[:7])
        state = dict(spoil(*item) for item in load_file(folder / ADAPTER_FILE).items())
        save_file(state, folder / ADAPTER_FILE, {'format': 'pt'})
        with pytest.raises(DamagedWeights, match=words):
            merge(StableDiffusionPipeline.from_pretrained(tiny_folder), folder / ADAPTER_FILE)


def test_an_adapter_without_a_base_says_so(adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / 'adapter')
    (folder / 'configuration.json').write_text('{}')
    with pytest.raises(ModelError, match='names no base_model'):
        build_repository(folder, tmp_path / 'out', 'me/flat', licence='MIT')
