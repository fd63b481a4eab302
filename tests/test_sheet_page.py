"""The sheet as a page: read by a parser that isn't ours, with pictures in it and nothing from elsewhere."""
from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from modelscope_cartoon.sheet_axes import Cell, Label, Section, Sheet
from modelscope_cartoon.sheet_page import page_of

EVIL = '</pre><script>alert(1)</script>"\'><img src=x onerror=alert(2)> & 水彩 \ud800 \x00 ]]> --> {{7*7}} javascript:x'
VOID = {'meta', 'img', 'input', 'br'}


class Parsed(HTMLParser):
    """Tags with their attributes, the text inside of each kind of tag, and whether all were closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def sheet(tmp_path):
    def build(words: str = '水彩', side: int = 32, columns: int = 3, rows: int = 2) -> Sheet:
        cells = []
        for i in range(rows * columns):
            path = tmp_path / f'{i}.png'
            pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(path)
            cells.append(Cell({'text': words}, f'{words} {i}', path, {'request': {'text': words, 'seed': i}}))
        grid = [cells[i * columns:(i + 1) * columns] for i in range(rows)]
        labels = [[Label(words, words)] * count for count in (columns, rows)]
        return Sheet(words, [Section(words, *labels, grid)], words, words)
    return build


def test_every_picture_is_in_the_page_bit_for_bit(sheet):
    made = sheet()
    images = Parsed(page_of(made)).all('img')
    assert len(images) == 6
    for attributes, cell in zip(images, made.cells):
        head, _, data = attributes['src'].partition(',')
        assert head == 'data:image/png;base64' and base64.b64decode(data) == cell.picture.read_bytes()
        assert (attributes['width'], attributes['height']) == ('32', '32') and cell.name in attributes['alt']


def test_large_pictures_are_in_it_smaller_and_look_the_same(sheet):
    made = sheet(side=512, columns=1, rows=1)
    pixels = np.add.outer(np.arange(512), np.arange(512))[..., None] / 4 + np.random.default_rng(0).normal(
        0, 3, (512, 512, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(made.cells[0].picture)
    [attributes] = Parsed(page_of(made)).all('img')
    head, _, data = attributes['src'].partition(',')
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head.startswith('data:image/webp') and shown.size == (512, 512)
    assert len(data) < made.cells[0].picture.stat().st_size
    original = np.asarray(Image.open(made.cells[0].picture)).astype(float)
    assert np.abs(np.asarray(shown) - original).mean() < 4


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs(sheet):
    text = page_of(sheet())
    parsed = Parsed(text)
    assert {tag for tag, _ in parsed.tags} <= {
        'html', 'head', 'meta', 'title', 'style', 'body', 'main', 'header', 'h1', 'h2', 'p', 'section', 'div', 'figure',
        'label', 'input', 'img', 'figcaption', 'details', 'summary', 'pre', 'small', 'b', 'br', 'span', 'footer'}
    assert 'http' not in text.replace('http-equiv', '') and 'url(' not in text and '@import' not in text
    policy = next(meta['content'] for meta in parsed.all('meta') if 'http-equiv' in meta)
    assert policy.startswith("default-src 'none'")


def test_what_people_write_is_text_and_never_markup(sheet):
    made = sheet(EVIL)
    made.cells[0].fault = EVIL
    parsed = Parsed(page_of(made))
    page_of(made).encode()
    plain = Parsed(page_of(sheet()))
    assert [tag for tag, _ in parsed.tags if tag in ('script', 'img')] == ['img'] * 5
    assert not any(name.startswith('on') for _, attributes in parsed.tags for name in attributes)
    assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in plain.tags} | {'b', 'br'}
    assert EVIL.replace('\ud800', '\ufffd').replace('\x00', '\ufffd') in parsed.texts['h1']


def test_the_recipe_of_each_picture_is_in_its_details(sheet):
    made = sheet()
    recipes = [json.loads(text) for text in Parsed(page_of(made)).texts['pre']]
    assert recipes == [cell.recipe for cell in made.cells]


def test_a_failed_cell_says_why(sheet):
    made = sheet()
    made.cells[2].fault = 'not enough memory'
    parsed = Parsed(page_of(made))
    assert len(parsed.all('img')) == 5 and 'not enough memory' in parsed.texts['div']


def test_it_says_its_language_and_is_made_for_phones_and_dark_rooms(sheet):
    assert Parsed(page_of(sheet('水彩'))).all('html') == [{'lang': 'zh'}]
    text = page_of(sheet('a cat'))
    assert Parsed(text).all('html') == [{'lang': 'en'}]
    assert 'width=device-width' in text and 'prefers-color-scheme: dark' in text and 'max-width: 720px' in text
