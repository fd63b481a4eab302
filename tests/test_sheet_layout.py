"""The sheet's pixels: nothing overlaps, nothing is cut off by the page's edge, and the pictures are the pictures."""
from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from modelscope_cartoon import metadata, sheet_layout
from modelscope_cartoon.errors import OutputError
from modelscope_cartoon.lettering import text_width
from modelscope_cartoon.sheet_axes import Cell, Label, Section, Sheet
from modelscope_cartoon.sheet_layout import draw_sheet, write_sheet

LONG = 'a portrait painting of an old man with a long grey beard and glasses, by the window in the soft light, ' * 3
CHINESE = '一只戴着红色帽子的猫坐在蓝色的背景前，水彩画，柔和的光线。' * 6


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Of several shapes, with a gradient and some noise."""
    folder, noise = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
    paths = {}
    for width, height in ((64, 64), (64, 32), (32, 64), (768, 768)):
        image = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))[..., None] + np.zeros(3)
        paths[width, height] = folder / f'{width}x{height}.png'
        Image.fromarray((image + noise.integers(0, 15, image.shape)).astype(np.uint8)).save(paths[width, height])
    return paths


def sheet_of(picture, columns, rows, sections=1, label='水彩', sub='watercolor', title='a cat', fault=None, **more):
    across = [Label(f'{label} {i}' if label else '', sub) for i in range(columns)]
    down = [Label(f'{label} {i}' if rows > 1 else '', sub if rows > 1 else '') for i in range(rows)]
    cells = [[Cell({'text': 'a cat'}, '', picture, fault=fault if i == j == 0 else None) for j in range(columns)]
             for i in range(rows)]
    return Sheet(title, [Section(f'{label} {n}' if sections > 1 else '', across, down, cells) for n in range(sections)],
                 **more)


CASES = {
    'one cell': dict(columns=1, rows=1, label='', sub=''),
    'one column': dict(columns=1, rows=3),
    'five by three': dict(columns=5, rows=3, note=LONG, settings='mini · 25 步 steps · DDIM · 128 × 128'),
    'three axes': dict(columns=3, rows=2, sections=3),
    'bands': dict(columns=13, rows=2),
    'long labels': dict(columns=6, rows=3, sections=2, label=LONG, sub=LONG, title=LONG, settings=LONG),
    'chinese': dict(columns=4, rows=2, sections=2, label=CHINESE, sub=CHINESE, title=CHINESE, settings=CHINESE),
    'a word without end': dict(columns=2, rows=2, label='x' * 500, title='y' * 500, settings='z' * 500),
    'a fault': dict(columns=5, rows=2, fault=LONG), 'all long in one cell': dict(columns=1, rows=1, title=CHINESE,
                                                                               settings=LONG, fault=CHINESE),
}


@pytest.mark.parametrize('case', CASES)
def test_nothing_overlaps_and_everything_is_on_the_page(pictures, monkeypatch, case):
    words, real = [], sheet_layout.write

    def noted(image, text, where, size, colour, weight=400):
        words.append((where[0], where[1] - round(0.8 * size), text_width(text, size, weight), round(1.05 * size)))
        real(image, text, where, size, colour, weight)
    monkeypatch.setattr(sheet_layout, 'write', noted)
    image, cells = draw_sheet(sheet_of(pictures[64, 64], **CASES[case]))
    boxes = words + [tuple(box) for _, box in cells]
    assert len(cells) == len(sheet_of(None, **CASES[case]).cells) and words
    for left, top, width, height in boxes:
        assert left >= 60 and left + width <= image.shape[1] - 60 and top >= 60 and top + height <= image.shape[0] - 60
    for one, other in itertools.combinations(boxes, 2):
        assert (one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0]
                or one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]), (one, other)


@pytest.mark.parametrize('shape', [(64, 64), (64, 32), (32, 64), (768, 768)])
def test_a_cell_is_its_picture_enlarged_by_lanczos(pictures, shape):
    image, cells = draw_sheet(sheet_of(pictures[shape], 3, 2))
    for _, (left, top, width, height) in cells:
        assert abs(width / height - shape[0] / shape[1]) < 0.01 and max(width, height) >= 224
        expected = np.asarray(Image.open(pictures[shape]).resize((width, height), Image.Resampling.LANCZOS))
        inside = image[top + 1:top + height - 1, left + 1:left + width - 1]
        same = (inside == expected[1:-1, 1:-1]).all(axis=2)
        assert same[20:-20].all() and same[:, 20:-20].all() and not same[0, 0]     # but for the round corners


def test_a_picture_of_another_shape_is_shown_whole(pictures):
    sheet = sheet_of(pictures[64, 64], 2, 1)
    sheet.sections[0].cells[0][1].picture = pictures[64, 32]
    image, cells = draw_sheet(sheet)
    left, top, width, height = cells[1][1]
    expected = np.asarray(Image.open(pictures[64, 32]).resize((width, height // 2), Image.Resampling.LANCZOS))
    middle = image[top + height // 4:top + height // 4 + height // 2, left + 1:left + width - 1]
    assert (middle == expected[:, 1:-1]).all()


def test_four_hundred_cells_are_of_a_size_that_can_be_drawn(pictures):
    plan = sheet_layout.plan_of(sheet_of(pictures[768, 768], 5, 80))
    assert plan.cell[0] >= 224 and plan.cell[0] ** 2 * 400 <= 48 * 2**20
    assert sheet_layout.plan_of(sheet_of(pictures[64, 64], 20, 20)).inner < 1800


def test_a_failed_cell_says_why(pictures):
    whole, cells = draw_sheet(sheet_of(pictures[64, 64], 2, 1))
    failed, _ = draw_sheet(sheet_of(pictures[64, 64], 2, 1, fault='not enough memory'))
    (left, top, width, height), (other, *_) = cells[0][1], cells[1][1]
    assert (failed[top:top + height, left:left + width] != whole[top:top + height, left:left + width]).mean() > 0.9
    assert (failed[:, other:] == whole[:, other:]).all()


@pytest.mark.parametrize('name, container', [('a.png', 'PNG'), ('b.jpg', 'JPEG'), ('c.webp', 'WEBP')])
def test_the_file_says_that_it_is_made_by_ai(pictures, tmp_path, name, container):
    write_sheet(sheet_of(pictures[64, 64], 1, 1), tmp_path / name)
    found = metadata.read(tmp_path / name)
    assert found.container == container and '"Label":"1"' in found.aigc
    assert found.source_type.endswith('trainedAlgorithmicMedia')


def test_a_sheet_too_tall_for_a_webp_is_one_sentence(pictures, tmp_path):
    with pytest.raises(OutputError, match=r'pixels can\'t be written as WEBP .* ends in \.png'):
        write_sheet(sheet_of(pictures[64, 64], 1, 32), tmp_path / 'tall.webp')
    assert not list(tmp_path.iterdir())
