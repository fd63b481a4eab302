"""Which pictures a sheet shows, and where."""
from __future__ import annotations

import itertools

import pytest

from modelscope_cartoon.errors import InvalidRequest
from modelscope_cartoon.sheet_axes import AXES, Label, grid, product_words, settings_line, style_label

ONE = {'text': ['a cat'], 'style': [None], 'seed': [0], 'guidance_scale': [None], 'num_inference_steps': [None],
       'scheduler': [None]}


def cells(sections):
    return [cell for section in sections for row in section.cells for cell in row]


def test_styles_are_columns_and_seeds_are_rows():
    [section] = grid({**ONE, 'style': ['flat', 'watercolor'], 'seed': [1, 2, 3]}, {'height': 64})
    assert section.columns == [Label('扁平', 'flat'), Label('水彩', 'watercolor')] and not section.title
    assert [label.main for label in section.rows] == ['1', '2', '3'] and 'seed' in section.rows[0].sub
    for row, seed in zip(section.cells, (1, 2, 3)):
        assert [(cell.request['style'], cell.request['seed']) for cell in row] == [('flat', seed), ('watercolor', seed)]
    assert section.cells[2][0].request['height'] == 64 and section.cells[2][0].name == '扁平 flat · 种子 seed 3'


def test_one_axis_is_a_row_and_none_is_one_picture():
    [section] = grid({**ONE, 'guidance_scale': [2.0, 7.5]}, {})
    assert [label.main for label in section.columns] == ['2', '7.5'] and section.rows == [Label('')]
    [alone] = grid(ONE, {})
    assert alone.cells[0][0].request == {field: value for field, [value] in ONE.items()}
    assert alone.columns == alone.rows == [Label('')] and alone.cells[0][0].name == ''


def test_every_combination_of_all_six_axes_is_there_once():
    values = {'text': ['a', 'b'], 'style': ['flat', None], 'seed': [1, 2], 'guidance_scale': [3.0, 4.0],
              'num_inference_steps': [5, 6], 'scheduler': ['DDIM', 'LMS']}
    sections = grid(values, {})
    assert len(sections) == 16 and len({section.title for section in sections}) == 16
    assert sections[0].title == 'DDIM · 步数 steps 5 · 引导 guidance 3 · a'
    drawn = [tuple(cell.request[field] for field in values) for cell in cells(sections)]
    assert sorted(drawn, key=str) == sorted(itertools.product(*values.values()), key=str)


def test_equal_values_are_one():
    [section] = grid({**ONE, 'seed': [1, 1, 2], 'guidance_scale': [3, 3.0]}, {})
    assert len(section.columns) == 2 and len(cells([section])) == 2


def test_a_product_that_is_too_large_is_refused_in_words():
    with pytest.raises(InvalidRequest, match='2 风格 styles × 201 种子 seeds are 402 pictures; .* room for 400'):
        grid({**ONE, 'seed': list(range(201)), 'style': ['flat', 'design']}, {})


def test_labels_say_chinese_and_english():
    assert style_label('flat:0.6+watercolor:0.4') == Label('扁平 0.6 + 水彩 0.4', 'flat + watercolor')
    assert style_label(None) == Label('无风格', 'no style')
    assert product_words({**ONE, 'num_inference_steps': [1, 2], 'text': ['a', 'b', 'c']}) == (
        '2 步数 steps × 3 提示词 prompts')


def test_the_axes_are_fields_of_a_request():
    from modelscope_cartoon.request import FIELD_NAMES
    assert {axis.field for axis in AXES} == set(ONE) <= set(FIELD_NAMES)


def test_what_all_pictures_share_is_one_line():
    request = {'style': 'flat', 'preset': 'exact', 'num_inference_steps': 25, 'guidance_scale': 7.5, 'scheduler': None,
               'seed': 1, 'width': 128, 'height': 64}
    one = {'model': {'id': 'mini'}, 'request': request, 'used': {'scheduler': {'class': 'DDIMScheduler'}}}
    other = {**one, 'request': {**request, 'seed': 2, 'style': None}}
    assert settings_line([one]) == (
        'mini · 扁平 flat · 步数 steps 25 · 引导 guidance 7.5 · 采样 DDIM · 种子 seed 1 · 128 × 64')
    assert settings_line([one, other]) == 'mini · 步数 steps 25 · 引导 guidance 7.5 · 采样 DDIM · 128 × 64'
    assert settings_line([]) == ''
