"""Pictures of any mode and size are read before training starts; bad ones are named, links are not followed."""
from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from modelscope_cartoon.errors import BadPictures
from modelscope_cartoon.training import pictures
from modelscope_cartoon.training.pictures import read_examples
from modelscope_cartoon.training.recipe import Recipe

RECIPE = Recipe.of(trigger='sks style', caption='{trigger}, a portrait')


def save(folder, count=10, size=(80, 64)):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new('RGB', size, (i * 20, 100, 50)).save(folder / f'{i}.png')
    return folder


def only(folder, resolution=64):
    [example] = read_examples(folder, RECIPE, resolution)
    return example


def test_every_mode_becomes_upright_rgb_on_white(tmp_path):
    grey16 = Image.fromarray(np.full((64, 64), 32768, np.uint16))
    clear = Image.new('RGBA', (64, 64), (255, 0, 0, 0))
    palette = Image.new('RGB', (64, 64), (0, 0, 255)).convert('P')
    for name, image, grey, suffix in (
            ('16 bit', grey16, (128, 128, 128), 'png'), ('clear', clear, (255, 255, 255), 'png'),
            ('grey and clear', clear.convert('LA'), (255, 255, 255), 'png'), ('palette', palette, (0, 0, 255), 'gif'),
            ('one bit', Image.new('1', (64, 64), 1), (255, 255, 255), 'png'),
            ('cmyk', Image.new('CMYK', (64, 64), (0, 0, 0, 0)), (255, 255, 255), 'jpg'),
            ('float', Image.fromarray(np.full((64, 64), 0.5, np.float32)), (128, 128, 128), 'tif')):
        folder = tmp_path / name
        folder.mkdir()
        image.save(folder / f'a.{suffix}')
        read = only(folder).image
        assert read.mode == 'RGB' and np.abs(np.array(read.getpixel((9, 9))) - grey).max() <= 3, name


def test_a_clear_colour_of_a_palette_becomes_white(tmp_path):
    image = Image.new('P', (64, 64), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(tmp_path / 'a.png', transparency=0)
    assert only(tmp_path).image.getpixel((0, 0)) == (255, 255, 255)


def test_the_camera_s_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (128, 64), 'red').save(tmp_path / 'a.jpg', exif=exif)
    assert only(tmp_path).image.size == (64, 128)


def test_the_short_side_becomes_the_resolution_and_the_first_frame_of_an_animation_is_used(tmp_path):
    frames = [Image.new('RGB', (300, 200), colour) for colour in ('red', 'blue')]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    example = only(tmp_path)
    assert example.image.size == (96, 64) and example.image.getpixel((5, 5))[0] > 240


def bomb():
    buffer = io.BytesIO()
    Image.new('1', (30_000, 30_000)).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.mark.parametrize('name, data', [
    ('empty', b''), ('no picture', b'<html>nothing</html>'), ('tiny', None), ('bomb', bomb), ('truncated', None),
    ('too large a file', None)])
def test_a_bad_picture_is_named_and_left_out(tmp_path, caplog, monkeypatch, name, data):
    folder = save(tmp_path / 'p')
    whole = (folder / '3.png').read_bytes()
    if name == 'tiny':
        buffer = io.BytesIO()
        Image.new('RGB', (1, 1)).save(buffer, 'PNG')
        data = buffer.getvalue()
    elif name == 'truncated':
        data = whole[:len(whole) // 2]
    elif name == 'too large a file':
        monkeypatch.setattr(pictures, 'MAX_BYTES', 1000)
        data = whole + bytes(2000)
    (folder / '3.png').write_bytes(data() if callable(data) else data)
    assert len(read_examples(folder, RECIPE, 64)) == 9
    assert 'left out: 3.png' in caplog.text


def test_more_than_a_tenth_bad_stops(tmp_path):
    folder = save(tmp_path / 'p')
    for i in (3, 7):
        (folder / f'{i}.png').write_bytes(b'x')
    with pytest.raises(BadPictures, match=r'2 of 10 .*3\.png'):
        read_examples(folder, RECIPE, 64)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_read(tmp_path):
    folder = save(tmp_path / 'p')
    (folder / 'again.png').symlink_to(folder / '0.png')
    assert len(read_examples(folder, RECIPE, 64)) == 11
    Image.new('RGB', (64, 64)).save(tmp_path / 'secret.png')
    (folder / 'out.png').symlink_to(tmp_path / 'secret.png')
    with pytest.raises(BadPictures, match=r'out\.png is a link'):
        read_examples(folder, RECIPE, 64)


def test_captions_come_from_txt_csv_jsonl_or_the_template_with_the_trigger_in_front(tmp_path):
    folder = save(tmp_path / 'p', 5)
    (folder / '0.txt').write_text('a cat\n')
    (folder / '1.txt').write_text('a dog in SKS style')
    (folder / 'metadata.csv').write_text('file_name,text\n2.png,"a hat, red"\n')
    (folder / 'metadata.jsonl').write_text(json.dumps({'file_name': './3.png', 'text': 'a fish'}) + '\n')
    captions = {e.name: e.caption for e in read_examples(folder, RECIPE, 64)}
    assert captions == {'0.png': 'sks style, a cat', '1.png': 'a dog in SKS style', '2.png': 'sks style, a hat, red',
                        '3.png': 'sks style, a fish', '4.png': 'sks style, a portrait'}


@pytest.mark.parametrize('name, text, said', [
    ('metadata.csv', 'file_name,text\nno.png,a cat\n', 'not there: no.png'),
    ('metadata.csv', 'name,words\n0.png,a cat\n', 'file_name and text'),
    ('metadata.jsonl', '{"file_name": "0.png"\n', 'line 1'), ('0.txt', b'\xff\xfe\x00', 'UTF-8')])
def test_captions_that_cannot_be_used_are_named(tmp_path, name, text, said):
    folder = save(tmp_path / 'p')
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadPictures, match=said):
        read_examples(folder, RECIPE, 64)


def test_rows_of_a_data_set_and_lists_are_read(tmp_path):
    folder = save(tmp_path / 'p')
    path, image = folder / '0.png', Image.new('RGB', (64, 64))
    rows = [{'Target:FILE': str(path), 'Text:Prompt': 'a cat'}, (path, 'a dog'), path, (image, None),
            {'image': {'bytes': path.read_bytes(), 'path': None}, 'text': 'a hat'}]
    assert [e.caption for e in read_examples(rows, RECIPE, 64)] == [
        'sks style, a cat', 'sks style, a dog', 'sks style, a portrait', 'sks style, a portrait', 'sks style, a hat']
    with pytest.raises(BadPictures, match='Target:FILE'):
        read_examples([{'file': 1}], RECIPE, 64)


@pytest.mark.parametrize('source, said', [('nowhere', 'no folder'), (7, 'accepted: a folder'), ([], 'no rows')])
def test_what_is_no_set_of_pictures_is_refused(source, said):
    with pytest.raises(BadPictures, match=said):
        read_examples(source, RECIPE, 64)


def test_a_folder_without_pictures_says_what_is_accepted(tmp_path):
    (tmp_path / 'a.doc').write_text('x')
    with pytest.raises(BadPictures, match=r'\.png'):
        read_examples(tmp_path, RECIPE, 64)
