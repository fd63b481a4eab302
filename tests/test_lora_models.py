"""Models with LoRAs of their own: a folder that is a LoRA and names its base, and a base whose styles are LoRAs."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from modelscope.pipelines import pipeline

from modelscope_cartoon import load_pipeline, mini
from modelscope_cartoon.cli import main
from modelscope_cartoon.errors import BadConfiguration, DamagedWeights, InvalidRequest, ModelError
from modelscope_cartoon.lora_choice import WEIGHTS
from modelscope_cartoon.preprocessor import StylePromptPreprocessor

CAT = {'text': 'a cat', 'seed': 3, 'num_inference_steps': 2}


@pytest.fixture(scope='module')
def lora(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_lora(tmp_path_factory.mktemp('lora') / 'bare', tiny_folder)


@pytest.fixture
def adapter(tiny_folder: Path, lora: Path, tmp_path: Path) -> Path:
    """As training leaves it."""
    folder = Path(shutil.copytree(lora, tmp_path / 'mine'))
    shutil.copy(folder / WEIGHTS, folder / 'mine.safetensors')
    configure(folder, {'model': {'type': 'cartoon-stable-diffusion', 'base_model': str(tiny_folder)},
                       'preprocessor': {'type': 'cartoon-style-prompt', 'trigger': 'my look'}})
    return folder


@pytest.fixture(scope='module')
def styled(tiny_folder: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose styles flat and clipart are LoRAs, as the embedded mini's."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp('styled') / 'base'))
    shutil.copytree(lora, folder / 'loras/flat')
    tiny.build_lora(folder / 'loras/clipart', tiny_folder, 2)
    tiny.build_lora(folder / 'loras/pixel', tiny_folder, 3)
    configure(folder, {'preprocessor': {'type': 'cartoon-style-prompt', 'loras': {
        name: f'loras/{name}' for name in ('flat', 'clipart', 'pixel')}}})
    return folder


def configure(folder: Path, changes: dict) -> None:
    (folder / 'configuration.json').write_text(json.dumps({**tiny.OURS, **changes}))


@pytest.fixture(scope='module')
def tiny_with(tiny_folder: Path):
    """tiny_with(lora) -> what the plain tiny model draws with it"""
    pipe = load_pipeline(tiny_folder, device='cpu')
    return lambda *loras, text='a cat': image(pipe, text=text, lora=list(loras))


def image(pipe, **request) -> np.ndarray:
    return pipe({**CAT, **request})['output_imgs'][0]


@pytest.mark.parametrize('load', [
    lambda folder: load_pipeline(folder, device='cpu'),
    lambda folder: pipeline('text-to-image-synthesis', model=str(folder)),
    lambda folder: pipeline('text-to-image-synthesis', model=str(folder), pipeline_name='cartoon-stable-diffusion')])
def test_an_adapter_folder_is_its_base_with_the_lora_always_on(load, adapter, lora, tiny_with):
    pipe = load(adapter)
    output = pipe(CAT)
    assert output['revised_prompt'] == 'my look, a cat' and output['loras'] == [('mine', 1.0)]
    assert (output['output_imgs'][0] == tiny_with(lora, text='my look, a cat')).all()
    assert (image(pipe, trigger=False) == tiny_with(lora)).all()


def test_an_adapter_s_own_lora_and_the_request_s_add_up(adapter, styled, lora, tiny_with):
    pipe = load_pipeline(adapter, device='cpu')
    other = styled / 'loras/clipart'
    assert (image(pipe, trigger=False, lora=(other, 0.5)) == tiny_with(lora, (other, 0.5))).all()
    assert pipe(CAT, lora=(adapter, -0.5))['loras'] == [('mine', 0.5)]
    assert pipe(CAT, style='clipart')['revised_prompt'] == 'archer style, a cat'


def test_an_adapter_folder_is_a_lora_for_another_pipeline_too(adapter, lora, tiny_with):
    assert (tiny_with(adapter) == tiny_with(lora)).all()


@pytest.mark.parametrize('base, words', [('nowhere', 'is a LoRA for .nowhere.: no model'), (7, 'base_model is 7'),
                                         (None, 'names no base_model'), (' ', 'base_model is')])
def test_an_adapter_whose_base_can_not_be_found_says_so(adapter, base, words):
    configure(adapter, {'model': {'base_model': base}})
    with pytest.raises(ModelError, match=words):
        load_pipeline(adapter, device='cpu')


def test_an_adapter_on_an_adapter_is_refused(adapter, tmp_path):
    upper = Path(shutil.copytree(adapter, tmp_path / 'upper'))
    configure(upper, {'model': {'base_model': str(adapter)}})
    with pytest.raises(BadConfiguration, match='is a LoRA too'):
        load_pipeline(upper, device='cpu')


def test_an_adapter_for_another_model_or_damaged_is_refused_at_loading(adapter):
    (adapter / 'manifest.json').write_text(json.dumps({'files': {WEIGHTS: '0' * 64}}))
    with pytest.raises(DamagedWeights, match=r'manifest\.json'):
        load_pipeline(adapter, device='cpu')
    (adapter / 'manifest.json').unlink()
    configure(adapter, {'model': {'base_model': mini.NAME}})
    with pytest.raises(ModelError, match='made for another base model'):
        load_pipeline(adapter, device='cpu')


def test_a_preprocessor_that_leaves_the_adapter_off_is_warned_of(adapter, caplog):
    load_pipeline(adapter, device='cpu', preprocessor=StylePromptPreprocessor())
    assert 'leaves the LoRA' in caplog.text


def test_a_style_of_a_base_with_loras_puts_its_trigger_in_front_and_its_lora_on(styled, lora, tiny_with):
    pipe = load_pipeline(styled, device='cpu')
    output = pipe(CAT, style='flat')
    assert output['revised_prompt'] == 'sks style, a cat' and output['loras'] == [('flat', 1.0)]
    assert (output['output_imgs'][0] == tiny_with(lora, text='sks style, a cat')).all()
    assert (image(pipe, style='flat', trigger=False) == tiny_with(lora)).all()
    assert (image(pipe) == tiny_with()).all() and 'loras' not in pipe(CAT)


def test_styles_mix_by_their_weights(styled, lora, tiny_with):
    pipe = load_pipeline(styled, device='cpu')
    output = pipe(CAT, style='flat:0.6+clipart:0.4')
    assert output['revised_prompt'] == 'sks style, archer style, a cat'
    assert output['loras'] == [('flat', 0.6), ('clipart', 0.4)]
    expected = tiny_with((lora, 0.6), (styled / 'loras/clipart', 0.4), text='sks style, archer style, a cat')
    assert (output['output_imgs'][0] == expected).all()


def test_a_trigger_that_two_styles_share_comes_once(styled):
    loras = {name: 'loras/flat' for name in ('flat', 'design')}
    preprocessor = StylePromptPreprocessor(str(styled), loras=loras)
    picture = preprocessor('a cat', style='flat:0.5+design:0.5')['pictures'][0]
    assert picture.prompt == 'sks style, a cat' and [choice.scale for choice in picture.loras] == [1.0]


def test_the_model_s_own_loras_are_names_for_prompts(styled):
    pipe = load_pipeline(styled, device='cpu')
    assert pipe({**CAT, 'text': 'a <lora:pixel:0.5> cat <lora:flat>'})['loras'] == [('pixel', 0.5), ('flat', 1.0)]


@pytest.mark.parametrize('style', ['flat:0.6+watercolor:0.4', 'flat:0.5'])
def test_a_mix_on_a_model_whose_styles_are_no_loras_is_refused(tiny_pipe, styled, style):
    with pytest.raises(InvalidRequest, match='only styles that are LoRAs on one base can be mixed; this model has'):
        tiny_pipe(CAT, style=style)
    with pytest.raises(InvalidRequest, match='this model has flat, clipart, pixel'):
        StylePromptPreprocessor(str(styled), loras={n: f'loras/{n}' for n in ('flat', 'clipart', 'pixel')})(
            'a cat', style='flat:0.6+watercolor:0.4')


def test_a_saved_base_keeps_its_styles(styled, tmp_path):
    pipe = load_pipeline(styled, device='cpu')
    expected = image(pipe, style='flat')
    pipe.model.save_pretrained(str(tmp_path / 'saved'))
    assert (image(load_pipeline(tmp_path / 'saved', device='cpu'), style='flat') == expected).all()


@pytest.mark.parametrize('loras', [{'flat': '../x'}, {'flat': '/etc'}, {'flat': 'loras/none'}, {'flat': 7}, ['flat'],
                                   'x', {'flat': ''}, {'flat': '.'}, {'flat': 'x\0y'}, {'flat': 'x' * 5000}])
def test_loras_outside_the_folder_missing_or_of_another_type_are_refused(styled, loras):
    with pytest.raises(BadConfiguration, match='lora|LoRA'):
        StylePromptPreprocessor(str(styled), loras=loras)


def test_a_trigger_that_is_no_text_is_refused():
    with pytest.raises(BadConfiguration, match='trigger is 7'):
        StylePromptPreprocessor(trigger=7)


def test_triggers_of_loras_are_words_that_a_small_model_knows(styled, tmp_path, caplog):
    folder = Path(shutil.copytree(styled / 'loras', tmp_path / 'model/loras')).parent
    (folder / 'words.txt').write_text('a\ncat\n', encoding='utf-8')
    StylePromptPreprocessor(str(folder), loras={'flat': 'loras/flat'})('a cat', style='flat')
    StylePromptPreprocessor(str(folder), trigger='my look')('a cat')
    assert not caplog.records


def test_the_command_line_takes_loras_a_folder_of_them_and_mixes(styled, lora, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(lora, tmp_path / 'shelf/pale')

    def draw(*arguments) -> tuple[int, str, str]:
        code = main(['draw', *map(str, arguments), '--model', str(styled), '--steps', '1', '--device', 'cpu', '--json'])
        return code, *capsys.readouterr()
    code, out, _ = draw('a cat <lora:pale:0.5>', '--lora-dir', 'shelf', '--lora', lora, '--lora', 'pixel', 0.25)
    assert code == 0 and json.loads(out)['pictures'][0]['loras'] == [['bare', 1.0], ['pixel', 0.25], ['pale', 0.5]]
    code, out, _ = draw('a cat', '--style', 'Flat:0.6+clipart:0.4', '--seed', 3)
    picture = json.loads(out)['pictures'][0]
    assert code == 0 and picture['loras'] == [['flat', 0.6], ['clipart', 0.4]]
    assert Path(picture['file']).name == 'a-cat-flat-0.6+clipart-0.4-3.png'


@pytest.mark.parametrize('arguments, words', [
    (['--lora', 'x', 'a cat'], 'the prompt goes in front'), (['a cat', '--lora', 'x', '1', '2'], 'one number'),
    (['a cat', '--lora', 'x', '9'], 'nearest: 4'), (['a cat', '--lora', 'nowhere'], "no LoRA 'nowhere'"),
    (['a cat', '--lora-dir', 'nowhere'], 'lora_dir'), (['a <lora:> cat'], 'accepted: <lora:name>'),
    (['a cat', '--style', 'flat:0.5+design:0.5'], 'only styles that are LoRAs'),
    (['a cat', '--style', 'flat:0.5+design:0.5', '--model', 'full'], "can't be mixed")])
def test_a_mistake_with_loras_on_the_command_line_is_one_line_and_exit_code_2(
        tiny_folder, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    model = [] if '--model' in arguments else ['--model', str(tiny_folder)]
    code = main(['draw', *model, '--steps', '1', '--device', 'cpu', *arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, '') and words in err and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_downloaded_adapter_is_found_without_a_network(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv('MODELSCOPE_CACHE', str(tmp_path / 'cache'))
    snapshot = tmp_path / 'cache/models/me--mine/snapshots/master'
    shutil.copytree(adapter, snapshot)
    assert load_pipeline('me/mine', device='cpu')(CAT)['loras'] == [('mine', 1.0)]
