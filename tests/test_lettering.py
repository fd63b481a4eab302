"""Words on pictures: measured, cut, wrapped and written, by OpenCV's fonts and by Pillow's where they are missing."""
from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_cartoon import lettering
from modelscope_cartoon.lettering import fitting, text_width, wrapped, write

WHITE, INK = 255, (40, 20, 10)
LONG = 'a portrait painting of an old man with a long grey beard, soft light from the window on the left'


OTHERS = {'opencv 4': types.SimpleNamespace(__version__='4.11.0'), 'no opencv': None}


@pytest.fixture(params=['opencv 5', 'opencv 4', 'no opencv'])
def pen(request, monkeypatch):
    """OpenCV's writer, and Pillow's: where OpenCV has no FontFace, and where it can't be imported."""
    lettering._pen.cache_clear()
    if request.param in OTHERS:
        monkeypatch.setitem(sys.modules, 'cv2', OTHERS[request.param])
    yield request.param
    lettering._pen.cache_clear()


def paper(width: int = 400, height: int = 60) -> np.ndarray:
    return np.full((height, width, 3), WHITE, np.uint8)


def inked(image: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom of what isn't white"""
    rows, columns = (np.flatnonzero((image != WHITE).any(axis=axes)) for axes in ((1, 2), (0, 2)))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize('text', ['a cat', 'Ägypten gjpq'])
def test_text_begins_where_it_was_put_and_is_as_wide_as_measured(pen, text):
    image = paper()
    write(image, text, (30, 40), 24, INK)
    left, top, right, bottom = inked(image)
    assert abs(left - 30) <= 3 and abs(right - (30 + text_width(text, 24))) <= 3
    assert 40 - 24 - 2 <= top < 40 <= bottom <= 40 + 8


def test_the_colour_is_rgb(pen):
    image = paper()
    write(image, 'MMM', (10, 40), 30, (200, 10, 60))
    assert image.reshape(-1, 3)[image.sum(axis=2).argmin()].tolist() == pytest.approx([200, 10, 60], abs=2)


def test_chinese_is_drawn_as_itself_and_not_as_boxes():
    drawn = []
    for text in ('水', '彩', '?'):
        image = paper(60)
        write(image, text, (10, 40), 30, INK)
        drawn.append(image.tobytes())
    assert len(set(drawn)) == 3 and text_width('水彩', 30) > 1.8 * 30


def test_a_heavier_weight_is_blacker():
    light, bold = paper(), paper()
    write(light, 'cartoon', (10, 40), 30, INK, 300)
    write(bold, 'cartoon', (10, 40), 30, INK, 700)
    assert bold.sum() < light.sum()


def test_a_part_of_a_picture_and_a_flipped_one_are_written_in_place(pen):
    image = paper()
    write(image[:, 100:300], 'a cat', (0, 40), 24, INK)
    assert inked(image)[0] >= 100
    other = paper()
    write(other[..., ::-1], 'a cat', (100, 40), 24, INK)
    assert (other[..., ::-1] == image).all()


@pytest.mark.parametrize('where', [(-30, 40), (390, 40), (10, -200), (10, 500), (10, 2), (10, 62)])
def test_what_is_outside_of_the_picture_is_left_out(pen, where):
    write(paper(), 'a cat and a dog', where, 24, INK)


def test_lines_and_what_no_font_engine_takes_stay_in_one_line(pen):
    image = paper(600, 200)
    write(image, 'a\ncat\t\x00with \ud800 and \u202eno\u2028end', (10, 40), 24, INK)
    assert inked(image)[3] <= 50 and inked(image)[2] > 200     # a lone surrogate would end the process


def test_what_fits_is_left_alone_and_the_rest_ends_in_an_ellipsis(pen):
    assert fitting('a cat', 200, 20) == 'a cat'
    cut = fitting(LONG, 200, 20)
    assert cut.endswith('…') and LONG.startswith(cut[:-1]) and 150 < text_width(cut, 20) <= 200
    assert fitting(LONG, 3, 20) == ''


def test_words_are_wrapped_whole(pen):
    lines = wrapped(LONG, 300, 20, lines=20)
    assert ' '.join(lines) == LONG and len(lines) > 2
    assert all(text_width(line, 20) <= 300 for line in lines)
    assert wrapped(LONG, 300, 20, lines=2)[0] == lines[0] and wrapped(LONG, 300, 20, lines=2)[1].endswith('…')


def test_chinese_is_wrapped_between_characters_and_no_line_begins_with_a_full_stop():
    text = '一只猫坐在蓝色的背景前，水彩风格。' * 3
    for width in range(60, 200, 7):
        lines = wrapped(text, width, 20, lines=99)
        assert ''.join(lines) == text and all(text_width(line, 20) <= width for line in lines)
        assert not any(line[0] in '，。' for line in lines)
        assert all(text_width(line, 20) > width - 65 for line in lines[:-1])


def test_a_word_that_is_longer_than_a_line_is_broken():
    lines = wrapped('see ' + 'x' * 100, 200, 20, lines=99)
    assert ''.join(lines).replace(' ', '') == 'see' + 'x' * 100 and all(text_width(li, 20) <= 200 for li in lines)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80), st.integers(0, 300), st.integers(8, 40), st.integers(1, 5))
def test_no_line_is_ever_too_wide(text, width, size, lines):
    got = wrapped(text, width, size, lines=lines)
    assert len(got) <= lines and all(text_width(line, size) <= width for line in got)


def test_no_text_takes_no_room(pen):
    assert text_width('', 20) == 0 and wrapped('  ', 100, 20) == [] and fitting('', 0, 20) == ''


def test_without_opencvs_fonts_it_says_which_font_is_used(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'cv2', types.SimpleNamespace(__version__='4.11.0'))
    monkeypatch.setattr(lettering, '_SYSTEM_FONTS', ('no such font.ttf',))
    lettering._pen.cache_clear()
    assert text_width('a cat', 20) > 20 and text_width('a cat', 20) < 100
    lettering._pen.cache_clear()
    assert 'OpenCV 4.11.0' in caplog.text and "Pillow's font, which has no Chinese" in caplog.text
