"""Which LoRAs a picture gets: the request's field, tags in prompts, mixes of styles, and where names are looked up."""
from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_cartoon import parse_request
from modelscope_cartoon.errors import CartoonError, InvalidPrompt, InvalidRequest, UnknownOption
from modelscope_cartoon.lora_choice import WEIGHTS, LoraChoice, LoraShelf, check_style, combined, style_weights
from modelscope_cartoon.prompt import take_loras


@pytest.mark.parametrize('given, expected', [
    ('a', [('a', 1.0)]),
    (Path('x/a.safetensors'), [(str(Path('x/a.safetensors')), 1.0)]),
    (('a', 0.8), [('a', 0.8)]),
    (['a', 0.8], [('a', 0.8)]),                                   # as JSON has a pair
    ([('a', 0.8), ('b', 0.4)], [('a', 0.8), ('b', 0.4)]),
    ([['a', 0.8], 'b'], [('a', 0.8), ('b', 1.0)]),
    (('a', 'b'), [('a', 1.0), ('b', 1.0)]),
    ([], []),
    (None, []),
])
def test_the_field_takes_one_or_several_with_or_without_scales(given, expected):
    assert list(parse_request('a cat', lora=given).lora) == expected


@pytest.mark.parametrize('value', [7, '', ' ', True, {'a': 1}, [7], [None], ('a', None), ('a', True), ('a', math.nan),
                                   ('a', 5), ('a', -4.1), ('a', 1, 2), [('a', '0.8', 1)], b'a', [[]], ('a', 10**400)])
def test_what_is_no_lora_is_refused_in_one_sentence_that_names_the_field(value):
    with pytest.raises(InvalidRequest, match='lora') as refusal:
        parse_request('a cat', lora=value)
    assert '\n' not in str(refusal.value) and len(str(refusal.value)) < 400


@pytest.mark.parametrize('text, left, loras', [
    ('a cat', 'a cat', []),
    ('a cat <lora:x:0.8>', 'a cat', [('x', 0.8)]),
    ('a cat, <lora:x:.5>', 'a cat', [('x', 0.5)]),
    ('a cat, <lora:x>, red', 'a cat, red', [('x', 1.0)]),
    ('<lora:x:-1> a cat', 'a cat', [('x', -1.0)]),
    ('<lora:x>, a cat', 'a cat', [('x', 1.0)]),
    ('a cat<LORA: My Style v1.2 : 0.8 >dog', 'a cat dog', [('My Style v1.2', 0.8)]),
    ('(a <lora:x> cat <lora:y:2>:1.2)', '(a cat:1.2)', [('x', 1.0), ('y', 2.0)]),
    ('<lora:x>', '', [('x', 1.0)]),
    ('a <b> cat, , dog', 'a <b> cat, , dog', []),
])
def test_tags_are_taken_out_of_the_prompt(text, left, loras):
    assert take_loras(text) == (left, loras)


@pytest.mark.parametrize('text', ['<lora:>', '<lora: :1>', '<lora:x:>', '<lora:x:much>', '<lora:x:1:1>',
                                  'a <lora:x cat', '<lora:<lora:x>'])
def test_a_tag_that_can_not_be_read_is_refused(text):
    with pytest.raises(InvalidPrompt, match='accepted: <lora:name>'):
        take_loras(text)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(['<lora:', 'x', ':', '0.8', '>', '<', ',', ' ', '-', 'nan', 'inf', '1e999', '(', ')',
                                 '{', '|', '}', '猫', '<lora:a:1>', '<lora:b>']), max_size=25).map(''.join))
def test_any_text_is_read_or_refused_and_no_tag_stays(text):
    try:
        left, loras = take_loras(text)
    except InvalidPrompt as error:
        assert '\n' not in str(error)
    else:
        assert '<lora:' not in left.lower() and all(name and isinstance(scale, float) for name, scale in loras)
        assert take_loras(left) == (left, []) and (loras or left == text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_unicode_is_read_or_refused(text):
    try:
        assert take_loras(f'{text}<lora:x:1>')[1][-1] == ('x', 1.0)
    except InvalidPrompt:
        assert 'lora:' in text.lower()


@pytest.mark.parametrize('given, expected', [
    ('FLAT', 'flat'), ('flat:1', 'flat'), ('flat:0.6+Watercolor:0.4', 'flat:0.6+watercolor:0.4'),
    (' flat : 0.6 + watercolor', 'flat:0.6+watercolor:1.0'), ('flat:-0.5', 'flat:-0.5')])
def test_styles_mix_with_weights(given, expected):
    assert check_style('style', given) == expected == check_style('style', expected)


def test_the_weights_of_a_style_are_those_that_were_given():
    assert style_weights(check_style('style', 'flat:0.1+clipart:0.30000000000000004')) == {
        'flat': 0.1, 'clipart': 0.30000000000000004}
    assert style_weights('flat') == {'flat': 1.0}


@pytest.mark.parametrize('value, words', [('flatt:1', "did you mean 'flat'"), ('flat:0.5+flat:0.5', 'twice'),
                                          ('flat:much', 'flat:0.6'), ('flat:', 'flat:0.6'), ('flat+', 'unknown style'),
                                          (':1', 'unknown style'), ('flat:nan', 'number'), ('flat:9', 'nearest: 4'),
                                          ('flat:1:2', 'flat:0.6')])
def test_a_mix_that_can_not_be_read_is_refused(value, words):
    with pytest.raises(InvalidRequest, match=words):
        parse_request('a cat', style=value)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(['flat', 'design', ':', '+', '0.5', '-', 'x', ' ', 'nan']), max_size=8).map(''.join))
def test_any_style_is_read_the_same_twice_or_refused(text):
    try:
        style = check_style('style', text)
    except CartoonError:
        return
    assert check_style('style', style) == style and all(-4 <= w <= 4 for w in style_weights(style).values())


def test_the_same_file_twice_is_one_with_the_scales_added(tmp_path):
    a, b = str(tmp_path / 'a'), str(tmp_path / 'b')
    choices = [LoraChoice('a', a, 0.5), LoraChoice('b', b, 1.0), LoraChoice('again', f'{tmp_path}/./a', 0.25)]
    assert combined(choices) == (LoraChoice('a', a, 0.75), LoraChoice('b', b, 1.0))
    assert combined([LoraChoice('a', a, 1.0), LoraChoice('a', a, -1.0)]) == ()
    with pytest.raises(InvalidRequest, match='scale of lora'):
        combined([LoraChoice('a', a, 3.0)] * 2)
    with pytest.raises(InvalidRequest, match='at most 16'):
        combined([LoraChoice('a', str(tmp_path / str(i)), 1.0) for i in range(17)])


@pytest.fixture
def shelf(tmp_path) -> LoraShelf:
    for name in ('anime.safetensors', f'trained/{WEIGHTS}', 'notes.txt', 'empty/x.txt', 'flat.safetensors'):
        (tmp_path / 'files' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'files' / name).write_bytes(b'x')
    return LoraShelf({'flat': str(tmp_path / 'model' / 'flat')}, str(tmp_path / 'files'))


def test_names_are_the_models_own_then_those_of_the_folder(shelf, tmp_path):
    assert list(shelf.known()) == ['trained', 'anime', 'flat']
    assert shelf.named('FLAT', 1.0).path == str(tmp_path / 'model' / 'flat')
    assert shelf.named('anime.safetensors', 0.5) == LoraChoice('anime', str(tmp_path / 'files/anime.safetensors'), 0.5)
    assert shelf.find('trained', 1.0).name == 'trained'


def test_a_file_or_folder_is_found_and_named_after_itself(shelf, tmp_path):
    assert shelf.find(str(tmp_path / 'files/anime.safetensors'), 1.0).name == 'anime'
    assert shelf.find(str(tmp_path / 'files/trained'), 1.0).name == 'trained'
    with pytest.raises(CartoonError, match='no safetensors'):
        shelf.find(str(tmp_path / 'files/empty'), 1.0)


@pytest.mark.parametrize('name', ['../files/anime', '/etc/passwd', 'trained/pytorch_lora_weights', '.', '..', 'x\0y'])
def test_a_name_in_a_prompt_is_never_a_path(shelf, name):
    with pytest.raises(UnknownOption, match='no LoRA'):
        shelf.named(name, 1.0)


def test_the_folder_is_loras_here_where_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownOption, match='names known here: none'):
        LoraShelf({}).named('anime', 1.0)
    (tmp_path / 'loras').mkdir()
    (tmp_path / 'loras/anime.safetensors').write_bytes(b'x')
    assert LoraShelf({}).named('anime', 1.0).name == 'anime'
    with pytest.raises(InvalidRequest, match='lora_dir'):
        LoraShelf({}, str(tmp_path / 'nowhere'))
