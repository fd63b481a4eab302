"""The inspect command: what a picture holds, for people and for programs; a hostile one is harmless."""
from __future__ import annotations

import json
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from recipes import recipe

from modelscope_cartoon import metadata
from modelscope_cartoon.cli import main

A1111 = 'a cat,\nsitting\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 0, Hires prompt: "a, b"'


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def inspect(capsys):
    """inspect(...) -> (exit code, stdout, stderr)"""
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(['inspect', *map(str, arguments)])
        return code, *capsys.readouterr()
    return run


def ours(container: str = 'PNG', file: str = 'cat.png', **parts) -> str:
    Path(file).write_bytes(metadata.write(Image.new('RGB', (128, 64)), container, recipe(**parts)))
    return file


def with_texts(texts: dict[str, str], file: str = 'cat.png', **options) -> str:
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text, **options)
    Image.new('RGB', (64, 64)).save(file, pnginfo=info)
    return file


def rows(out: str) -> dict[str, str]:
    return {line[2:20].strip(): line[22:] for line in out.splitlines()[1:]}


@pytest.mark.parametrize('container', ['PNG', 'JPEG', 'WEBP'])
def test_a_picture_of_ours_tells_all(inspect, container):
    file = ours(container, request={'text': '一只 {a|b} cat', 'style': 'flat', 'seed': 0, 'clip_skip': 1},
                used={'prompt': 'sks style, 一只 a cat', 'loras': [{'name': 'x', 'scale': 0.8, 'sha256': 'ab' * 32}]})
    code, out, err = inspect(file)
    assert (code, err) == (0, '') and out.startswith(f'cat.png: {container}, 128 x 64\n')
    told = rows(out)
    assert told.pop('AIGC label').startswith('{"Label":"1"')
    assert told.pop('IPTC source type').endswith('trainedAlgorithmicMedia')
    assert told.pop('versions').startswith('modelscope-cartoon 0.1.0, torch 2.13.0')
    assert told == {
        'prompt': '一只 {a|b} cat', 'prompt as used': 'sks style, 一只 a cat', 'negative prompt': 'blurry',
        'style': 'flat', 'seed': '0', 'preset': 'exact', 'steps': '20', 'guidance': '7.5', 'clip skip': '1',
        'LoRAs': 'x x 0.8 (abababababab)', 'scheduler': 'Euler a (EulerAncestralDiscreteScheduler)',
        'model': 'mini weights 0123456789abcdef', 'date': '2026-11-25T01:20:00Z',
        'drawn with': 'backend torch, dtype float32, device cpu, threads 1, batch size 1, noise cpu',
        'holds': 'parameters, recipe, aigc, iptc'}


def test_programs_get_everything_as_it_is(inspect):
    made = recipe(request={'text': 'a\x1b[2J\ud800\x9b "cat"\n猫'})
    Path('cat.png').write_bytes(metadata.write(Image.new('RGB', (128, 64)), 'PNG', made))
    code, out, _ = inspect('cat.png', '--json')
    [entry] = json.loads(out)['pictures']
    assert code == 0 and entry['recipe'] == made and entry['parameters']['Seed'] == '42'
    assert entry['channels'] == ['parameters', 'recipe', 'aigc', 'iptc'] and entry['width'] == 128
    assert all(c.isprintable() or c == '\n' for c in out) and '猫' in out


def test_a_picture_of_a1111_is_told_as_it_says_itself(inspect):
    code, out, _ = inspect(with_texts({'parameters': A1111}))
    assert code == 0 and rows(out) == {
        'prompt': r'a cat,\nsitting', 'negative prompt': 'blurry', 'Steps': '20', 'Sampler': 'Euler a', 'Seed': '0',
        'Hires prompt': 'a, b', 'holds': 'parameters'}


def test_a_picture_with_nothing_in_it_is_one_sentence(inspect):
    code, out, err = inspect(with_texts({'Comment': 'holiday'}))
    assert code == 0 and out.count('\n') == 1 and 'holds no recipe' in out and err == ''


def test_control_characters_are_escapes_wherever_they_stand(inspect):
    evil = 'a\x1b]0;x\x07\r\x9b2J\u202e\u2028cat'
    texts = {'parameters': f'{evil}\nSteps: 1, Sampler: {evil}, Seed: {evil}, x{evil}: y', 'AIGC': evil,
             'modelscope_cartoon': json.dumps(recipe(request={'text': evil, 'style': [evil]}, versions={evil: evil},
                                                     model={'id': {evil: 1}}, date=evil))}
    for file in (with_texts(texts), with_texts({'parameters': texts['parameters']}, 'other.png')):
        for arguments in ((), ('--json',)):
            code, out, err = inspect(file, *arguments)
            assert code == 0 and all(c.isprintable() or c == '\n' for c in out + err)
    assert r'\x1b]0;x\x07' in inspect('other.png')[1]


def test_a_recipe_that_is_broken_is_said_and_the_rest_is_shown(inspect):
    deep = '{"schema": 1, "x": ' + '[' * 900 + ']' * 900 + '}'
    for broken in ('{"schema": 2}', '[1', '{"schema": 1}', deep, '[' * 100_000, '\0'):
        code, out, err = inspect(with_texts({'modelscope_cartoon': broken, 'parameters': A1111}))
        assert code == 0 and err == '' and rows(out)['Steps'] == '20' and 'recipe: ' in rows(out)["can't be read"]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    everything = ((b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)), *chunks,
                  (b'IDAT', zlib.compress(b'')), (b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(data)) + kind + data + struct.pack(
        '>I', zlib.crc32(kind + data)) for kind, data in everything)


NO_PICTURES = {
    'text': b'no picture', 'empty': b'', 'bomb': png(60_000, 60_000), 'half a bomb': png(10_000, 10_000),
    'zipped text': png(8, 8, (b'zTXt', b'parameters\0\0' + zlib.compress(b'a' * 10**8))),
    'no pixels': png(0, 0), 'head': png(8, 8)[:20], 'gif': b'GIF89a' + bytes(20), 'jpeg': b'\xff\xd8\xff\xe1\xff\xff',
    'svg': b'<!DOCTYPE x [<!ENTITY a "aa">]><svg xmlns="http://www.w3.org/2000/svg"/>',
    'riff': b'RIFF\xff\xff\xff\x7fWEBP',
}


@pytest.mark.parametrize('data', NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_picture_or_a_huge_one_is_one_line(inspect, data):
    Path('x.png').write_bytes(data)
    started = time.process_time()
    code, out, err = inspect('x.png')
    assert code == 2 and out == '' and err.count('\n') == 1 and err.startswith('modelscope-cartoon: x.png')
    assert time.process_time() - started < 3


def test_folders_and_missing_files_are_one_line_and_the_others_are_shown(inspect):
    Path('folder').mkdir()
    code, out, err = inspect('folder', ours(), 'missing.png')
    assert code == 2 and 'cat.png: PNG' in out
    assert err.splitlines() == ['modelscope-cartoon: folder is a folder; give the pictures in it, folder/*.png.',
                                'modelscope-cartoon: missing.png: there is no such file.']
    assert 'error' in json.loads(inspect('folder', '--json')[1])['pictures'][0]


def test_a_picture_that_is_cut_off_is_said_to_be(inspect):
    from os import urandom
    noise = Image.frombytes('RGB', (128, 64), urandom(128 * 64 * 3))
    for container, file in (('PNG', 'a.png'), ('JPEG', 'a.jpg')):
        data = metadata.write(noise, container, recipe())
        Path(file).write_bytes(data[:-2000])
        code, out, _ = inspect(file)
        assert code == 2 and rows(out)['prompt'] == 'a cat' and 'truncated' in rows(out)['damaged']


BOMB = ('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + ''.join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(12)) + ']><x>&m;</x>')


@pytest.mark.parametrize('texts', [
    {'XML:com.adobe.xmp': BOMB}, {'XML:com.adobe.xmp': '<x' * 1000}, {'parameters': 'x' * 10**7},
    {'modelscope_cartoon': '{"a":' * 2 * 10**6}, {'AIGC': 'x' * 10**7}],
    ids=['entities', 'xml', 'text', 'json', 'aigc'])
def test_bombs_in_the_texts_are_harmless(inspect, texts):
    started = time.process_time()
    code, out, err = inspect(with_texts(texts))
    assert code in (0, 2) and len(out) + len(err) < 5000 and 'Traceback' not in err
    assert time.process_time() - started < 5
