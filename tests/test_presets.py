"""Presets: what each sets, that a field given beats it, and that a picture says which it was drawn with."""
from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from modelscope_cartoon import parse_request
from modelscope_cartoon.cli import main
from modelscope_cartoon.errors import InvalidRequest, UnknownOption
from modelscope_cartoon.pipeline import _batches
from modelscope_cartoon.presets import ROWS

FIELDS = ('scheduler', 'num_inference_steps', 'guidance_interval', 'cache_interval')
REFUSED = [
    *[('guidance_interval', v) for v in (0.5, (0,), (0, 0.5, 1), (0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0, 1.1), 'all',
                                         (0, '1'), (False, True), (0, float('nan')), (0, 10**400), {0: 1})],
    *[('cache_interval', v) for v in (0, -1, 1.5, '2', True, 1001)],
    *[('preset', v) for v in ('', 7, ['fast'], 'slow')],
]


def set_by(preset: str) -> dict:
    request = parse_request('a cat', preset=preset)
    return {name: getattr(request, name) for name in FIELDS}


def test_there_are_three_and_exact_sets_nothing():
    assert [row.name for row in ROWS] == ['exact', 'balanced', 'fast']
    assert not ROWS[0].fields and ROWS[0].words
    assert parse_request('a cat', seed=1, preset='exact') == parse_request('a cat', seed=1)


@pytest.mark.parametrize('row', ROWS[1:], ids=lambda row: row.name)
def test_a_preset_sets_its_fields_and_names_its_source(row):
    assert set(row.fields) <= set(FIELDS) and row.words and 'arXiv' in row.source
    assert parse_request('a cat', preset=row.name.upper()).preset == row.name
    assert {name: set_by(row.name)[name] for name in row.fields} == row.fields


def evaluations(preset: str) -> float:
    """Of the UNet, for one picture, a guided step counted twice."""
    made = set_by(preset)
    steps, (start, stop) = made['num_inference_steps'], made['guidance_interval'] or (0, 1)
    return sum(2 if start <= step / steps < stop else 1 for step in range(steps))


def test_each_costs_less_than_the_one_before():
    assert [evaluations(row.name) for row in ROWS] == [100, 40, 30]


@pytest.mark.parametrize(('field', 'value'), [('scheduler', 'UniPC'), ('num_inference_steps', 10),
                                              ('guidance_interval', (0.0, 1.0)), ('cache_interval', 2)])
def test_a_field_that_is_given_beats_the_preset(field: str, value: object):
    request = parse_request({'text': 'a cat', 'preset': 'fast'}, **{field: value})
    assert {name: getattr(request, name) for name in FIELDS} == {**set_by('fast'), field: value}


def test_a_keyword_preset_does_not_beat_a_field_of_the_dict_and_none_is_not_given():
    assert parse_request({'text': 'a cat', 'num_inference_steps': 7}, preset='fast').num_inference_steps == 7
    assert set_by('fast')['scheduler'] == parse_request('a cat', preset='fast', scheduler=None).scheduler
    assert parse_request('a cat', preset=None).preset == 'exact'


@pytest.mark.parametrize(('key', 'value'), REFUSED, ids=lambda v: str(v)[:20])
def test_a_bad_value_is_refused_in_one_sentence_that_names_it(key, value):
    with pytest.raises(InvalidRequest, match=key) as refusal:
        parse_request({'text': 'a cat', key: value})
    assert '\n' not in str(refusal.value) and len(str(refusal.value)) < 300


def test_an_interval_without_a_step_in_it_is_refused():
    with pytest.raises(InvalidRequest, match=r'\(0.3, 0.4\), and none of 4 steps is in it'):
        parse_request('a cat', guidance_interval=(0.3, 0.4), num_inference_steps=4)
    assert parse_request('a cat', guidance_interval=(0.3, 0.4), num_inference_steps=10).guidance_interval == (0.3, 0.4)


def test_a_misspelt_preset_gets_the_nearest():
    with pytest.raises(UnknownOption, match="unknown preset 'fats' .did you mean 'fast'.*exact, balanced, fast"):
        parse_request('a cat', preset='fats')


def test_a_picture_is_drawn_with_the_presets_fields_and_says_so(tiny_pipe):
    def draw(**settings) -> np.ndarray:
        return tiny_pipe('cat', seed=7, output_type='np', **settings)
    fast, by_fields = draw(preset='fast'), draw(**ROWS[2].fields)
    assert np.array_equal(fast['output_imgs'][0], by_fields['output_imgs'][0])
    assert (fast['preset'], by_fields['preset']) == ('fast', 'exact')


def test_pictures_of_different_presets_do_not_share_a_batch(tiny_pipe):
    jobs = [tiny_pipe.preprocess({'text': 'cat', 'seed': i, 'preset': preset})
            for i, preset in enumerate(('fast', 'balanced', 'fast'))]
    assert list(_batches(jobs, 4)) == [[(0, 0), (2, 0)], [(1, 0)]]
    jobs = [tiny_pipe.preprocess({'text': 'cat', 'seed': 1, 'cache_interval': n}) for n in (1, 2)]
    assert len(list(_batches(jobs, 4))) == 2


def test_unipc_in_few_steps_is_a_matter_of_plain_fields(tiny_pipe):
    output = tiny_pipe('cat', seed=7, scheduler='UniPC', num_inference_steps=5, cache_interval=2,
                       guidance_interval=(0, 0.8))
    assert output['preset'] == 'exact' and output['output_imgs'][0].std() > 1


def drawn(capsys, folder, *arguments: str) -> dict:
    assert main(['draw', 'a cat', '--model', str(folder), '--device', 'cpu', '--seed', '7', '--json', *arguments]) == 0
    return json.loads(capsys.readouterr().out)['pictures'][0]


def test_the_command_line_has_them(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fast = drawn(capsys, tiny_folder, '--preset', 'fast', '-o', 'fast.png')
    by_fields = drawn(capsys, tiny_folder, '--scheduler', 'DPM++ 2M Karras', '--steps', '20', '-o', 'fields.png',
                      '--guidance-interval', '0.25', '0.75')
    reused = drawn(capsys, tiny_folder, '--preset', 'fast', '--cache-interval', '2', '-o', 'reused.png')
    assert [picture['preset'] for picture in (fast, by_fields, reused)] == ['fast', 'exact', 'fast']
    one, two, three = (np.asarray(Image.open(name)).tobytes() for name in ('fast.png', 'fields.png', 'reused.png'))
    assert one == two != three


@pytest.mark.parametrize(('arguments', 'words'), [
    (['--preset', 'quick'], "unknown preset 'quick'"), (['--cache-interval', '0'], 'cache_interval is 0'),
    (['--guidance-interval', '0.5', '0.2'], 'guidance_interval is [0.5, 0.2]')])
def test_a_users_mistake_is_one_line_and_exit_code_2(tiny_folder, capsys, arguments, words):
    code = main(['draw', 'a cat', '--model', str(tiny_folder), *arguments])
    out, err = capsys.readouterr()
    assert code == 2 and words in err and out == '' and len(err.splitlines()) == 1
