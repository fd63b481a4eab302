"""What our pictures hold, read back by us and by readers that others wrote."""
from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from modelscope_cartoon import a1111, labels, metadata, picture_recipe
from modelscope_cartoon.errors import InvalidRequest, UnknownOption
from modelscope_cartoon.prompt import clean

SUFFIX = {'PNG': '.png', 'JPEG': '.jpg', 'WEBP': '.webp'}
CONTAINERS = pytest.mark.parametrize('container', list(SUFFIX))
HARD = ('猫 "quoted", <b>&amp;</b>\r\nNegative prompt: none\nSteps: 1, Sampler: x, Seed: 3 \\ \x00\x07\x9f \ud800 🐱',
        ']]></TC260:AIGC><?xpacket end="w"?>{"a":1}', '')


@pytest.fixture(scope='module')
def recipe(tiny_pipe) -> dict:
    output = tiny_pipe({'text': 'a cat', 'negative_prompt': 'blurry', 'seed': 7, 'num_inference_steps': 2})
    return output['recipes'][0]


def written(folder: Path, container: str, recipe: dict | None, kinds=metadata.KINDS, size=(16, 8)) -> Path:
    path = folder / f'p{SUFFIX[container]}'
    path.write_bytes(metadata.write(Image.new('RGB', size, (10, 200, 30)), container, recipe, kinds))
    return path


def with_prompts(recipe: dict, text: str, negative: str = '') -> dict:
    prompts = {'text': text, 'negative_prompt': negative}
    return {**recipe, 'request': {**recipe['request'], **prompts},
            'used': {**recipe['used'], 'prompt': clean(text), 'negative_prompt': clean(negative)}}


@CONTAINERS
def test_everything_comes_back_as_it_was_written(tmp_path, container, recipe):
    found = metadata.read(written(tmp_path, container, recipe))
    assert (found.container, found.size) == (container, (16, 8))
    assert picture_recipe.parse(found.recipe) == recipe
    assert found.parameters == a1111.write(recipe)
    assert json.loads(found.aigc)['Label'] == '1' and found.source_type == labels.BY_A_TRAINED_MODEL
    assert json.loads(found.aigc)['ProduceID'] == recipe['pixels_sha256'][:32]


@CONTAINERS
@pytest.mark.parametrize('text', HARD)
def test_a_hard_prompt_comes_back_exactly_and_injects_nothing(tmp_path, container, text, recipe):
    recipe = with_prompts(recipe, text, text[::-1])
    found = metadata.read(written(tmp_path, container, recipe))
    assert picture_recipe.parse(found.recipe) == recipe
    assert labels.read_xmp(found.xmp)[labels.SOURCE_TYPE] == labels.BY_A_TRAINED_MODEL
    assert a1111.parse(found.parameters)['Seed'] == '7'


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300), st.sampled_from(list(SUFFIX)))
def test_any_two_prompts_come_back_exactly(text, negative, container):
    recipe = with_prompts(REQUEST_ONLY, text, negative)
    image = Image.open(io.BytesIO(metadata.write(Image.new('RGB', (8, 8)), container, recipe)))
    assert picture_recipe.parse(metadata._read(image).recipe) == recipe


REQUEST_ONLY = {'schema': 1, 'made_by': 'x', 'date': '', 'model': {}, 'machine': {}, 'versions': {},
                'pixels_sha256': '0' * 64, 'request': {'num_inference_steps': 2, 'guidance_scale': 7.5, 'seed': 1,
                                                       'height': 8, 'width': 8},
                'used': {'scheduler': {'class': 'DDIMScheduler', 'config': {}}}}


@CONTAINERS
def test_the_longest_prompts_fit(tmp_path, container, recipe, caplog):
    recipe = with_prompts(recipe, '🐱' * 10_000, '🐶' * 10_000)
    found = metadata.read(written(tmp_path, container, recipe))
    assert picture_recipe.parse(found.recipe) == recipe
    assert ('too long' in caplog.text) == (container == 'JPEG') == (found.parameters is None)


@CONTAINERS
@pytest.mark.parametrize('kind', metadata.KINDS)
def test_each_kind_can_be_written_alone(tmp_path, container, kind, recipe):
    found = metadata.read(written(tmp_path, container, recipe, (kind,)))
    there = {'parameters': found.parameters, 'recipe': found.recipe, 'aigc': found.aigc, 'iptc': found.source_type}
    assert [name for name, text in there.items() if text] == [kind]


@CONTAINERS
def test_without_metadata_a_file_is_what_pillow_writes(container, recipe):
    image, buffer = Image.new('RGB', (8, 8), 'red'), io.BytesIO()
    image.save(buffer, container, **metadata.OPTIONS[container])
    assert metadata.write(image, container, recipe, ()) == buffer.getvalue()


@CONTAINERS
def test_pixels_are_the_same_with_and_without_metadata(container, recipe):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))
    with_it, without = (Image.open(io.BytesIO(metadata.write(image, container, recipe, kinds)))
                        for kinds in (metadata.KINDS, ()))
    assert np.array_equal(np.asarray(with_it), np.asarray(without))


@CONTAINERS
def test_labels_need_no_recipe(tmp_path, container):
    found = metadata.read(written(tmp_path, container, None))
    assert found.aigc and found.source_type and found.recipe is found.parameters is None


def test_who_draws_can_be_named(monkeypatch):
    monkeypatch.setenv(labels.PRODUCER, '我的工作室')
    assert json.loads(labels.aigc(None))['ContentProducer'] == '我的工作室'


@CONTAINERS
def test_sd_parsers_reads_what_we_wrote(tmp_path, container, recipe):
    sd_parsers = pytest.importorskip('sd_parsers')
    recipe = with_prompts(recipe, '一只猫, "masterpiece", best quality', '模糊')
    [sampler] = sd_parsers.ParserManager().parse(written(tmp_path, container, recipe)).samplers
    assert sampler.name == 'DDIM' and sampler.parameters['seed'] == '7' and sampler.parameters['steps'] == '2'
    assert [prompt.value for prompt in sampler.prompts] == ['一只猫, "masterpiece", best quality']
    assert [prompt.value for prompt in sampler.negative_prompts] == ['模糊']
    assert sampler.model.name == recipe['model']['id']


@CONTAINERS
@pytest.mark.skipif(not shutil.which('exiftool'), reason='needs exiftool (Debian: libimage-exiftool-perl)')
def test_exiftool_reads_what_we_wrote_and_finds_no_fault(tmp_path, container, recipe):
    path = written(tmp_path, container, with_prompts(recipe, HARD[0], HARD[1]))
    told = subprocess.run(['exiftool', '-json', '-G1', '-a', '-all', path],
                          capture_output=True, text=True, check=True)
    [found] = json.loads(told.stdout)
    assert found['XMP-iptcExt:DigitalSourceType'] in (labels.BY_A_TRAINED_MODEL, 'Trained Algorithmic Media')
    assert json.loads(found['XMP-TC260:Aigc'])['Label'] == '1'
    assert not [key for key in found if key.endswith((':Error', ':Warning'))], told.stdout
    text = found.get('PNG:Parameters') or found['ExifIFD:UserComment']
    assert text.endswith('Version: modelscope-cartoon 0.1.0') and '猫' in text


def test_user_comments_of_other_tools_are_read_whichever_end_is_first(tmp_path):
    for coding in ('utf-16-be', 'utf-16-le'):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b'UNICODE\0' + '猫\nSteps: 20, Seed: 1, Sampler: Euler a'.encode(coding)
        Image.new('RGB', (8, 8)).save(tmp_path / 'p.jpg', exif=exif)
        assert metadata.read(tmp_path / 'p.jpg').parameters.startswith('猫\nSteps: 20')


@pytest.mark.parametrize('data', [b'', b'\x89PNG\r\n\x1a\n', b'GIF89a', b'<svg/>', b'\xff\xd8\xff\xe1\xff\xff'])
def test_what_is_no_picture_of_ours_is_one_sentence(tmp_path, data):
    (tmp_path / 'p.png').write_bytes(data)
    with pytest.raises(InvalidRequest, match="can't be read as a PNG, JPEG or WebP"):
        metadata.read(tmp_path / 'p.png')
    with pytest.raises(InvalidRequest, match="can't be read"):
        metadata.read(tmp_path / 'none.png')


def test_a_damaged_file_is_a_sentence_or_its_rest_but_nothing_else(tmp_path, recipe):
    rng = np.random.default_rng(1)
    for container in SUFFIX:
        whole = written(tmp_path, container, recipe).read_bytes()
        for _ in range(60):
            data = bytearray(whole[:rng.integers(1, len(whole))] if rng.random() < 0.5 else whole)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(0, 256)
            (tmp_path / 'broken').write_bytes(data)
            with contextlib.suppress(InvalidRequest):
                metadata.read(tmp_path / 'broken')


def test_a_dtd_in_xmp_is_refused():
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>'
    with pytest.raises(InvalidRequest, match='DTD'):
        labels.read_xmp(bomb)


def test_an_xmp_packet_that_can_not_be_read_leaves_the_rest(tmp_path, recipe, caplog):
    path = written(tmp_path, 'PNG', recipe)
    info = Image.open(path).info
    again = PngInfo()
    again.add_text('parameters', info['parameters'])
    again.add_itxt('XML:com.adobe.xmp', '<!DOCTYPE x><x/>')
    Image.open(path).save(path, pnginfo=again)
    found = metadata.read(path)
    assert found.parameters == a1111.write(recipe) and found.source_type is None
    assert 'has a DTD, which is not read. What it holds is left out.' in caplog.text


@pytest.mark.parametrize('value, kinds', [(True, metadata.KINDS), (False, ()), ('recipe', ('recipe',)),
                                          (['iptc', 'AIGC'], ('aigc', 'iptc'))])
def test_kinds_are_chosen_in_several_ways(value, kinds):
    assert metadata.check_kinds('metadata', value) == kinds


def test_an_unknown_kind_is_named():
    with pytest.raises(UnknownOption, match=r"unknown metadata 'exif'.*parameters, recipe, aigc, iptc"):
        metadata.check_kinds('metadata', ['exif'])
    with pytest.raises(InvalidRequest, match='accepted: True, False'):
        metadata.check_kinds('metadata', 3)
