"""A1111's text: written so that a reader by others agrees, read from whatever tools write, and never an exception."""
from __future__ import annotations

import time

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from recipes import recipe
from sd_parsers import ParserManager
from transformers import CLIPTokenizer

from modelscope_cartoon import a1111
from modelscope_cartoon.errors import InvalidRequest, UnknownOption
from modelscope_cartoon.prompt import clean
from modelscope_cartoon.schedulers import ROWS, build

MULTISTEP = {'class': 'DPMSolverMultistepScheduler',
             'config': {'algorithm_type': 'dpmsolver++', 'solver_order': 2, 'solver_type': 'midpoint'}}
KARRAS = {**MULTISTEP, 'config': {**MULTISTEP['config'], 'use_karras_sigmas': True}}
UNIFORM = {**MULTISTEP, 'config': {**MULTISTEP['config'], 'use_karras_sigmas': False}}
INJECTION = 'Negative prompt: x, Steps: 1, Sampler: LMS, Seed: 3'
_OPENED: list[Image.Image] = []     # kept, since sd-parsers remembers a picture by its place in memory
BASE = {'prediction_type': 'epsilon', 'num_train_timesteps': 1000}


def full():
    return recipe(used={'prompt': 'sks style, a cat', 'scheduler': KARRAS,
                        'loras': [{'name': 'anime', 'scale': 0.8, 'sha256': 'ab' * 32}]},
                  request={'clip_skip': 1}, model={'id': 'damo/cv_cartoon_stable_diffusion_flat'})


def test_the_text_is_as_a1111_writes_it():
    assert a1111.write(full()) == (
        'sks style, a cat <lora:anime:0.8>\nNegative prompt: blurry\n'
        'Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 128x64, '
        'Model hash: 0123456789, Model: damo/cv_cartoon_stable_diffusion_flat, Clip skip: 2, '
        'Lora hashes: "anime: abababababab", RNG: CPU, Version: modelscope-cartoon 0.1.0')


def test_what_is_not_there_is_left_out():
    text = a1111.write(recipe(used={'negative_prompt': ''}, request={'seed': None, 'guidance_scale': 7.0},
                              model={'weights_hash': None}, machine={'noise': 'generator'}))
    assert text == ('a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Size: 128x64, Model: mini, '
                    'Version: modelscope-cartoon 0.1.0')


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.label)
def test_every_scheduler_comes_back_from_its_text(row):
    scheduler = build(row.label, BASE)
    used = {'class': type(scheduler).__name__, 'config': dict(scheduler.config)}
    assert a1111.scheduler_of(a1111.parse(a1111.write(recipe(used={'scheduler': used})))) == (row.label, None)


@pytest.mark.parametrize('found, expected', [
    ({'Sampler': 'DPM++ 2M Karras'}, ('DPM++ 2M Karras', None)), ({'Sampler': 'euler A'}, ('Euler a', None)),
    ({'Sampler': 'DPM++ 2M', 'Schedule type': 'Automatic'}, ('DPM++ 2M Karras', None)),
    ({'Sampler': 'Euler', 'Schedule type': 'Automatic'}, ('Euler', None)),
    ({'Sampler': 'Euler', 'Schedule type': 'Karras'}, ('Euler', 'Karras')), ({}, (None, None))])
def test_samplers_of_other_tools_become_ours(found, expected):
    assert a1111.scheduler_of(found) == expected


def test_a_sampler_that_is_none_of_ours_is_named():
    with pytest.raises(UnknownOption, match='DPM adaptive'):
        a1111.scheduler_of({'Sampler': 'DPM adaptive'})


def test_a_plain_schedule_says_so_where_a1111_would_take_another():
    assert 'DPM++ 2M, Schedule type: Uniform,' in a1111.write(recipe(used={'scheduler': UNIFORM}))


@pytest.fixture(params=['png', 'jpg', 'webp'])
def saved(request, tmp_path):
    """saved(text) -> a picture file that holds it, written with Pillow alone."""
    def save(text: str) -> str:
        image, path = Image.new('RGB', (128, 64)), tmp_path / f'a.{request.param}'
        info, exif = PngInfo(), Image.Exif()
        try:
            info.add_text('parameters', text)
        except UnicodeEncodeError:
            info.add_itxt('parameters', text)
        exif.get_ifd(0x8769)[0x9286] = b'UNICODE\0' + text.encode('utf-16-be')
        image.save(path, **({'pnginfo': info} if request.param == 'png' else {'exif': exif}))
        return str(path)
    return save


@pytest.mark.parametrize('prompt', ['a cat, "quoted" (red:1.2)', '水彩风格，一只猫 🐱', INJECTION, f'a {INJECTION}'])
def test_sd_parsers_reads_our_text_and_no_prompt_slips_a_setting_in(saved, prompt):
    text = a1111.write(recipe(used={'prompt': prompt, 'negative_prompt': prompt[::-1] + '模糊', 'scheduler': KARRAS}))
    _OPENED.append(Image.open(saved(text)))
    [sampler] = ParserManager().parse(_OPENED[-1]).samplers
    assert (sampler.name, sampler.model.name, sampler.model.hash) == ('DPM++ 2M', 'mini', '0123456789')
    assert sampler.parameters == {'steps': '20', 'cfg_scale': '7.5', 'seed': '42', 'scheduler': 'Karras'}
    expected = prompt.replace('Negative prompt:', 'Negative prompt :').replace('Steps:', 'Steps :')
    assert [p.value for p in sampler.prompts] == [expected]
    assert [p.value for p in sampler.negative_prompts] == [prompt[::-1] + '模糊']


@pytest.mark.parametrize('where', ['prompt', 'negative_prompt'])
@pytest.mark.parametrize('prompt', [
    INJECTION, f'a\n{INJECTION}', 'Steps: 1, Sampler: x, Seed: 3', f'\u2028{INJECTION}'])
def test_a_prompt_that_looks_like_settings_stays_a_prompt(where, prompt):
    text = a1111.write(recipe(used={where: prompt}))
    read, plain = a1111.parse(text), a1111.parse(a1111.write(recipe()))
    assert {**read, where: ''} == {**plain, where: ''}
    assert read[where].replace(' :', ':') == ' '.join(prompt.split())
    assert text.count('\n') == 2 and text.count('Negative prompt:') == text.count('Steps:') == 1


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.text(min_size=1, max_size=30))
def test_prompts_and_names_come_back(prompt, negative, name):
    prompt, negative = clean(prompt), clean(negative)     # as the preprocessor leaves them
    read = a1111.parse(a1111.write(recipe(used={'prompt': prompt, 'negative_prompt': negative}, model={'id': name})))
    for key, text in (('prompt', prompt), ('negative_prompt', negative)):     # a marker has a space in it now
        assert read[key].replace(' :', ':') == ' '.join(text.splitlines()).strip().replace(' :', ':')
    assert read['Model'] == (name if set(',:\n\r"') & set(name) else name.strip()) and read['Seed'] == '42'


def test_the_text_encoder_reads_a_marker_with_a_space_as_the_same_words(tmp_path):
    tokenizer = CLIPTokenizer.from_pretrained(tiny.write_tokenizer(tmp_path))
    for prompt in (INJECTION, 'a (steps:1.2)', 'STEPS:::'):
        written = a1111.parse(a1111.write(recipe(used={'prompt': prompt})))['prompt']
        assert written != prompt and tokenizer(written).input_ids == tokenizer(prompt).input_ids


FORGE = '''masterpiece, (1girl:1.2),
standing in rain <lora:add_detail:0.6>
Negative prompt: lowres, bad hands,
worst quality
Steps: 28, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 5.5, Seed: 1234567890, Size: 832x1216, \
Model hash: 67ab2fd8ec, Model: some, Denoising strength: 0.4, Clip skip: 2, Hires upscale: 1.5, \
Hires prompt: "a, b: c", TI hashes: "easynegative: c74b4e810b03, x: 1", Lora hashes: "add_detail: 7c6bad76eb54", \
Hashes: {"model": "67ab2fd8ec", "lora:add_detail": "7c6b"}, Civitai resources: [{"type": "checkpoint", "id": 1}], \
Path: "C:\\models", Version: f2.0.1v1.10.1'''


def test_what_forge_writes_is_read_whole():
    read = a1111.parse(FORGE)
    assert read['prompt'] == 'masterpiece, (1girl:1.2),\nstanding in rain <lora:add_detail:0.6>'
    assert read['negative_prompt'] == 'lowres, bad hands,\nworst quality'
    assert read['Hires prompt'] == 'a, b: c' and read['TI hashes'] == 'easynegative: c74b4e810b03, x: 1'
    assert read['Hashes'].startswith('{"model"') and read['Civitai resources'].endswith('}]')
    assert read['Seed'] == '1234567890' and read['Version'] == 'f2.0.1v1.10.1' and read['Path'].startswith('"C:')


@pytest.mark.parametrize('text, expected', [
    ('a cat', {'prompt': 'a cat', 'negative_prompt': ''}), ('', {'prompt': '', 'negative_prompt': ''}),
    ('a: b, c: d\nx, y: z', {'prompt': 'a: b, c: d\nx, y: z', 'negative_prompt': ''}),
    ('a cat\r\nSteps: 3, Sampler: DDIM, Seed: 1\0', {'prompt': 'a cat', 'negative_prompt': '', 'Steps': '3',
                                                     'Sampler': 'DDIM', 'Seed': '1'}),
    ('Steps: 3, Sampler: DDIM, prompt: evil', {'prompt': '', 'negative_prompt': '', 'Steps': '3', 'Sampler': 'DDIM'}),
    ('a\nSteps: 3, Sampler: DDIM, Seed: 1\nTemplate: {a|b}\nSeed: 9', {
        'prompt': 'a', 'negative_prompt': '', 'Steps': '3', 'Sampler': 'DDIM', 'Seed': '1', 'Template': '{a|b}'}),
    ('Negative prompt: only\nSteps: 1, Sampler: , Size: 1x1', {'prompt': '', 'negative_prompt': 'only', 'Steps': '1',
                                                               'Sampler': '', 'Size': '1x1'})])
def test_odd_texts(text, expected):
    assert a1111.parse(text) == expected


@settings(deadline=None)
@given(st.one_of(st.text(alphabet='ab:,"{}[]\\\n S', max_size=200), st.binary(), st.none(), st.integers()))
def test_nothing_but_invalid_request_is_raised(anything):
    for given_text in (anything, f'x\nSteps: 1, Sampler: {anything}, Seed: 2, y: {anything}'):
        try:
            assert all(isinstance(part, str) for pair in a1111.parse(given_text).items() for part in pair)
        except InvalidRequest:
            assert not isinstance(given_text, str)


@pytest.mark.parametrize('unit', [
    'a', 'Steps: 1, ', 'a1:"\\",', 'Steps: 1, bb: {"', '[', 'Steps: "\\"\n', ' ', 'Seed: [[1,'])
def test_hostile_texts_are_read_quickly(unit):
    started = time.process_time()
    a1111.parse(('Steps: 1, Sampler: x, ' + unit * 10**6)[:a1111.MAX_CHARACTERS])
    assert time.process_time() - started < 2
    with pytest.raises(InvalidRequest, match=r'10,000,000 characters'):
        a1111.parse('x' * 10**7)
